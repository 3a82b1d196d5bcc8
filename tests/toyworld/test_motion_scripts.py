"""Motions as functions of time: physics, periods, directions, cameras."""

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dreamkit.errors import ConfigError
from dreamkit.toyworld.captions import Thing
from dreamkit.toyworld.motion_scripts import (
    CAMERA_MOVES,
    MOTIONS,
    ROLLERS,
    CameraPath,
    Mover,
    Script,
    directions_of,
    rotation,
)


def mover(motion: str, direction: str = "", name: str = "ball", **changes: object) -> Mover:
    """A plain one with round numbers."""
    rolls = name in ROLLERS and motion not in ("still", "spinning", "bouncing", "sliding")
    plain = Mover(Thing(name, "red"), 0, motion, direction, rolls, radius=0.8, lift=0.8, scale=0.7)
    return replace(plain, **changes)  # type: ignore[arg-type]


def every_way() -> Iterator[tuple[str, str]]:
    """Every motion with every direction that it can have."""
    return ((motion, direction) for motion in MOTIONS for direction in directions_of(motion))


def place(one: Mover, *times: float) -> Tensor:
    """Where its centre is, [F, 3]."""
    return one.poses(torch.tensor(times))[:, :3, 3]


class TestMovers:
    @pytest.mark.parametrize(("motion", "direction"), list(every_way()))
    def test_poses_are_turns_and_one_scale(self, motion: str, direction: str) -> None:
        poses = mover(motion, direction, heading=10.0, yaw=30.0).poses(torch.linspace(0, 50, 41))
        turns = poses[:, :3, :3] / 0.7
        torch.testing.assert_close(turns @ turns.mT, torch.eye(3).expand(41, 3, 3), rtol=0, atol=1e-5)
        torch.testing.assert_close(torch.linalg.det(turns), torch.ones(41), rtol=0, atol=1e-5)
        assert torch.equal(poses[:, 3], torch.tensor([0.0, 0.0, 0.0, 1.0]).expand(41, 4))

    @pytest.mark.parametrize("name", ROLLERS)
    @pytest.mark.parametrize(
        ("motion", "direction"),
        [way for way in every_way() if way[0] not in ("still", "spinning", "bouncing", "sliding")],
    )
    def test_what_rolls_does_not_slip(self, motion: str, direction: str, name: str) -> None:
        """The point of the body that touches the floor stands still: arc length = radius times angle."""
        one = mover(motion, direction, name, heading=12.0, period=31.0, phase=0.13, reach=1.4)
        step = 0.02
        for time in (0.5, 3.0, 5.5, 9.0, 20.0):
            before, now, after = one.poses(torch.tensor([time - step, time, time + step]))
            contact = now[:3, 3] - torch.tensor([0.0, 0.8 * 0.7, 0.0])
            own = torch.linalg.solve(now, torch.cat([contact, torch.ones(1)]))
            slip = ((after - before) @ own)[:3] / (2 * step)
            speed = (after - before)[:3, 3].norm() / (2 * step)
            assert float(slip.norm()) < 0.01 * float(speed) + 1e-3
        assert float(place(one, 0.0)[0, 1]) == pytest.approx(0.56)

    def test_a_quarter_turn_of_the_ball_is_a_quarter_of_its_girth(self) -> None:
        one = mover("rolling", "right", reach=2.0, period=40.0, yaw=0.0)  # 0.1 a frame
        quarter = math.pi / 2 * 0.56 / 0.1
        first, second = one.poses(torch.tensor([1.0, 1.0 + quarter]))
        turned = second[:3, :3] @ first[:3, :3].mT / 0.7**2
        torch.testing.assert_close(turned, rotation(2, torch.tensor(-math.pi / 2)), rtol=0, atol=1e-5)
        assert float(second[0, 3] - first[0, 3]) == pytest.approx(math.pi / 2 * 0.56, abs=1e-5)

    @pytest.mark.parametrize("name", ["ball", "cube"])
    @pytest.mark.parametrize("start", [0.0, 1e6])
    def test_periods(self, name: str, start: float) -> None:
        for motion in ("spinning", "bouncing"):
            one = mover(motion, name=name, period=12.0, phase=0.3)
            now = one.poses(start + torch.arange(12.0))
            torch.testing.assert_close(one.poses(start + 12 + torch.arange(12.0)), now, rtol=0, atol=1e-5)
            assert float((now[0] - now[6]).abs().max()) > 0.1
        for way in (("sliding", ""), ("sliding", "left"), ("passing", "right"), ("circling", "")):
            one = mover(*way, name="cube", period=20.0, phase=0.3)
            now = one.poses(start + torch.arange(20.0))
            torch.testing.assert_close(one.poses(start + 20 + torch.arange(20.0)), now, rtol=0, atol=1e-5)

    def test_spinning_turns_on_the_spot(self) -> None:
        one = mover("spinning", period=24.0, yaw=0.0, name="duck")
        poses = one.poses(torch.arange(7.0))
        assert torch.equal(poses[:, :3, 3], poses[:1, :3, 3].expand(7, 3))
        fronts = poses[:, :3, 2] / 0.7
        degrees = torch.rad2deg(torch.atan2(fronts[:, 0], fronts[:, 2]))
        torch.testing.assert_close(degrees, 15 * torch.arange(7.0), rtol=0, atol=1e-3)
        back = replace(one, clockwise=True).poses(torch.ones(1))[0, :3, 2]
        assert float(back[0]) < 0  # clockwise from above: the front turns from +z towards -x

    def test_bouncing_is_free_flight(self) -> None:
        height = place(mover("bouncing", period=10.0, reach=0.9), *torch.arange(0, 10.25, 0.25).tolist())[:, 1] - 0.56
        assert float(height.min()) == pytest.approx(0.0, abs=1e-6)
        assert float(height.max()) == pytest.approx(0.9, abs=1e-5)
        gravity = height[2:] - 2 * height[1:-1] + height[:-2]
        torch.testing.assert_close(gravity, torch.full_like(gravity, -8 * 0.9 / 40**2), rtol=0, atol=1e-5)

    @pytest.mark.parametrize("clockwise", [False, True])
    def test_circling_looks_ahead(self, clockwise: bool) -> None:
        one = mover("circling", name="car", yaw=90.0, period=20.0, reach=0.6, clockwise=clockwise)
        poses = one.poses(torch.arange(0, 20, 0.1))
        where = poses[:, :3, 3]
        torch.testing.assert_close(where[:, ::2].norm(dim=1), torch.full((200,), 0.6), rtol=0, atol=1e-5)
        ahead = torch.nn.functional.normalize(where[2:] - where[:-2], dim=1)
        assert float((ahead * poses[1:-1, :3, 2] / 0.7).sum(dim=1).min()) > 0.999
        (x0, _, z0), (x1, _, z1) = where[:2].tolist()
        assert (z0 * x1 - x0 * z1 > 0) != clockwise  # z to x is counter-clockwise from above

    @pytest.mark.parametrize("motion", ["rolling", "sliding", "passing"])
    def test_directions(self, motion: str) -> None:
        for direction, sign in (("left", -1), ("right", 1)):
            x = place(mover(motion, direction, period=20.0, reach=2.0, phase=0.1), *range(17))[:, 0]
            torch.testing.assert_close(x.diff(), torch.full((16,), sign * 0.2), rtol=0, atol=1e-5)
            wrapped = place(mover(motion, direction, period=20.0, reach=2.0), 0.0, 19.999, 20.001)[:, 0]
            torch.testing.assert_close(wrapped * sign, torch.tensor([-2.0, 2.0, -2.0]), rtol=0, atol=1e-3)

    def test_back_and_forth_turns_at_its_reach(self) -> None:
        x = place(mover("sliding", period=32.0, reach=1.1), *range(33))[:, 0]
        assert float(x.max()) == pytest.approx(1.1, abs=1e-5)
        assert float(x.min()) == pytest.approx(-1.1, abs=1e-5)

    def test_entering_comes_from_its_side_and_stays(self) -> None:
        for side, sign in (("left", -1), ("right", 1)):
            x = place(mover("entering", side, period=10.0, reach=2.0), 0, 3, 6, 10, 1000)[:, 0] * sign
            assert float(x[0]) == pytest.approx(2.0)
            assert bool((x.diff()[:3] < 0).all())
            assert x[3:].tolist() == pytest.approx([0.0, 0.0])

    def test_leaving_goes_to_its_side_and_stays_away(self) -> None:
        for side, sign in (("left", -1), ("right", 1)):
            x = place(mover("leaving", side, period=10.0, reach=2.0), 0, 3, 6, 10, 1000)[:, 0] * sign
            assert float(x[0]) == pytest.approx(0.0)
            assert bool((x.diff()[:3] > 0).all())
            assert x[3:].tolist() == pytest.approx([2.0, 2.0])

    def test_a_lying_cylinder_points_at_the_camera(self) -> None:
        axis = mover("rolling", "left", "cylinder").poses(torch.arange(5.0))[:, :3, 1]
        torch.testing.assert_close(axis.abs() / 0.7, torch.tensor([[0.0, 0.0, 1.0]]).expand(5, 3), rtol=0, atol=1e-6)
        upright = mover("sliding", "left", "cylinder").poses(torch.arange(5.0))[:, :3, 1]
        torch.testing.assert_close(upright / 0.7, torch.tensor([[0.0, 1.0, 0.0]]).expand(5, 3), rtol=0, atol=1e-6)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"motion": "flying"}, "motion 'flying'"),
            ({"motion": "entering"}, "For entering, the direction ''"),
            ({"direction": "left"}, "For still, the direction 'left'"),
            ({"scale": 0.0}, "The mover's scale is 0.0"),
            ({"period": math.nan}, "The mover's period is nan"),
            ({"reach": math.inf}, "The mover's reach is inf"),
        ],
    )
    def test_bad_input(self, changes: dict[str, object], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            mover("still", **changes) if "motion" not in changes else replace(mover("still"), **changes)  # type: ignore[arg-type]


class TestCameras:
    TIMES = torch.arange(15.0)

    def test_static(self) -> None:
        cameras = CameraPath(azimuth=5.0).cameras(self.TIMES)
        assert torch.equal(cameras.pose, cameras.pose[:1].expand(15, 12))
        assert float(cameras.fov_y[0]) == 40.0

    def test_orbits(self) -> None:
        for move, sign in (("orbits left", -1), ("orbits right", 1)):
            cameras = CameraPath(move, rate=3.0, height=0.0).cameras(self.TIMES)
            torch.testing.assert_close(cameras.azimuth, sign * 3 * self.TIMES, rtol=0, atol=1e-3)
            assert sign * float(cameras.position[1, 0]) > 0  # right is +x, from the front

    def test_an_orbit_comes_round(self) -> None:
        cameras = CameraPath("orbits left", rate=3.0).cameras(torch.tensor([7.0, 127.0, 120_007.0]))
        torch.testing.assert_close(cameras.pose, cameras.pose[:1].expand(3, 12), rtol=0, atol=1e-5)

    def test_dollies(self) -> None:
        path = CameraPath("dollies in", radius=5.0, end_radius=3.0, height=0.0)
        radius = path.cameras(torch.tensor([0.0, 5.0, 10.0, 1e4])).radius
        assert radius.tolist() == pytest.approx([5.0, 3 + 2 * math.exp(-0.5), 3 + 2 * math.exp(-1), 3.0], abs=1e-5)

    def test_pans(self) -> None:
        middle = torch.tensor([[0.0, 0.5, 0.0]])
        for move, sign in (("pans left", 1), ("pans right", -1)):
            cameras = CameraPath(move, swing=10.0).cameras(self.TIMES)
            torch.testing.assert_close(cameras.position, cameras.position[:1].expand(15, 3))
            pixels, _ = cameras.project(middle)
            x = (pixels[:, 0, 0] - 32) * sign
            assert bool((x.diff() > 0.3).all())  # turning left moves what is seen to the right
            assert float(x[0]) < 0 < float(x[-1])
            level = cameras.camera_to_world[:, 1, 0]
            torch.testing.assert_close(level, torch.zeros(15), rtol=0, atol=1e-6)

    def test_unknown_move(self) -> None:
        with pytest.raises(ConfigError, match="move 'flies'"):
            CameraPath("flies")
        assert all(CameraPath(move).cameras(self.TIMES).camera_to_world.isfinite().all() for move in CAMERA_MOVES)


class TestScripts:
    def test_what_it_tells(self) -> None:
        pair = (mover("passing", "left"), mover("passing", "right", "cube"))
        script = Script(pair, CameraPath("orbits left"))
        assert [thing.name for thing in script.things] == ["ball", "cube"]
        assert (script.motion, script.direction, script.camera_move) == ("passing", "left", "orbits left")
        times = torch.arange(4.0)
        assert script.poses(times).shape == (4, 2, 4, 4)
        assert torch.equal(script.poses(times)[:, 1], pair[1].poses(times))
        assert script.cameras(times, 32).height == 32

    def test_any_stretch_is_the_same(self) -> None:
        script = Script((mover("rolling", "left"),), CameraPath("dollies in"))
        whole, part = torch.arange(100.0), torch.arange(40.0, 50.0)
        assert torch.equal(script.poses(whole)[40:50], script.poses(part))
        assert torch.equal(script.cameras(whole).pose[40:50], script.cameras(part).pose)

    def test_wrong_numbers_of_movers(self) -> None:
        for movers in ((), (mover("passing", "left"),), (mover("still"), mover("still"))):
            with pytest.raises(ConfigError, match=f"{len(movers)} movers"):
                Script(movers, CameraPath())
