"""The moving toy world: meshes, frames, tracks and samples."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dreamkit.errors import ConfigError, SceneError
from dreamkit.scenes.cameras import Camera
from dreamkit.toyworld import motion_meshes, motion_render
from dreamkit.toyworld.captions import COLOURS, HELD_OUT, Thing
from dreamkit.toyworld.geometry import Placed, trace
from dreamkit.toyworld.motion import (
    MOTION_OBJECTS,
    Clips,
    MotionConfig,
    MotionWorld,
    build_motion_cache,
    motion_vocabulary,
    relative_cameras,
)
from dreamkit.toyworld.motion_casting import Casting
from dreamkit.toyworld.motion_meshes import cache_key, cut_mesh, shape_parameters
from dreamkit.toyworld.motion_render import Stage, paint, random_stage, shapes, shoot, track
from dreamkit.toyworld.motion_scripts import CAMERA_MOVES, MOTIONS, Script
from dreamkit.toyworld.objects import get_object

TINY = MotionConfig(frames=6, size=32, points=8, shapes=1, faces=800, resolution=64)
ORIGIN = torch.zeros(1)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    told: list[tuple[int, int]] = []
    folder = tmp_path_factory.mktemp("motion")
    path = build_motion_cache(TINY, folder, 1, lambda done, total: told.append((done, total)))
    assert told == [(done + 1, 16) for done in range(16)]
    return path


@pytest.fixture(scope="module")
def world(cache: Path) -> MotionWorld:
    return MotionWorld(cache, TINY)


@pytest.fixture(scope="module")
def clips(world: MotionWorld) -> Clips:
    return world.sample(40, torch.Generator().manual_seed(0))


def gray_stage() -> Stage:
    """Nothing coloured but the objects."""
    gray = torch.full((3,), 0.7)
    light = torch.tensor([0.3, 0.9, math.sqrt(0.1)])
    return Stage(light, 0.6, gray, torch.stack([gray, gray]), torch.zeros(2), torch.zeros(3))


def placed(script: Script) -> list[Placed]:
    """The objects of a script without roll, at time 0, for the sphere tracer."""
    found = []
    for mover, pose in zip(script.movers, script.poses(ORIGIN)[0], strict=True):
        yaw = math.degrees(math.atan2(float(pose[0, 2]), float(pose[2, 2])))
        parameters = shape_parameters(MOTION_OBJECTS.index(mover.thing.name) * 1, TINY)
        where = pose[:3, 3].tolist()
        found.append(Placed(get_object(mover.thing.name), parameters, tuple(where), mover.scale, yaw))
    return found


class TestMeshes:
    def test_content(self, cache: Path) -> None:
        tensors = load_file(cache)
        vertices, faces = tensors["counts"].sum(dim=0).tolist()
        shapes = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
        assert shapes == {
            "vertices": ((vertices, 3), torch.float32),
            "faces": ((faces, 3), torch.int32),
            "normals": ((faces, 3, 3), torch.float32),
            "parts": ((faces,), torch.uint8),
            "counts": ((16, 2), torch.int64),
        }
        assert float(tensors["vertices"].norm(dim=1).max()) < 0.97
        lengths = tensors["normals"].norm(dim=-1)
        torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=0, atol=1e-5)

    def test_only_the_file_is_left_and_it_is_found_again(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert [path.name for path in cache.parent.iterdir()] == [f"motion-{cache_key(TINY)}.safetensors"]
        monkeypatch.setattr(motion_meshes, "cut_mesh", None)  # cutting again would call it
        assert build_motion_cache(TINY, cache.parent, 1) == cache

    def test_the_key_follows_what_the_meshes_depend_on(self) -> None:
        assert cache_key(replace(TINY, frames=3, size=64, points=99)) == cache_key(TINY)
        others = [
            replace(TINY, shapes=2),
            replace(TINY, faces=900),
            replace(TINY, resolution=65),
            replace(TINY, seed=2),
        ]
        assert len({cache_key(config) for config in (TINY, *others)}) == 5

    def test_the_same_mesh_whoever_cuts_it(self, cache: Path) -> None:
        again = cut_mesh(0, TINY)
        tensors = load_file(cache)
        for name, values in again.items():
            assert torch.equal(torch.from_numpy(values), tensors[name][: len(values)]), name

    def test_variants(self) -> None:
        config = replace(TINY, shapes=3)
        shapes = [shape_parameters(index, config) for index in range(6)]
        assert shapes[0] == shapes[3]  # the first of each is the standard one
        assert len(set(shapes)) == 5

    @pytest.mark.parametrize("name", MOTION_OBJECTS)
    def test_surface_points_are_on_the_surface(self, world: MotionWorld, name: str) -> None:
        mesh = world.library.mesh(name, 0)
        points, normals = mesh.sample_surface(2000, torch.Generator().manual_seed(0))
        solid = get_object(name).build(shape_parameters(0, TINY))
        distance, _ = solid(points)
        outside = distance > -0.02  # what is left of a part just inside another is never seen
        assert float(outside.float().mean()) > 0.7
        assert float(distance[outside].abs().quantile(0.95)) < 0.02
        torch.testing.assert_close(normals.norm(dim=1), torch.ones(2000), rtol=0, atol=1e-5)
        stepped, _ = solid(points[outside] + 0.03 * normals[outside])
        assert float((stepped > 0.0).float().mean()) > 0.9

    def test_another_configurations_file(self, cache: Path) -> None:
        with pytest.raises(SceneError, match="holds 16 meshes, not 2 of each of 16 objects"):
            MotionWorld(cache, replace(TINY, shapes=2))

    def test_unknown_meshes(self, world: MotionWorld) -> None:
        with pytest.raises(ConfigError, match="object 'teapot'"):
            world.library.mesh("teapot", 0)
        with pytest.raises(ConfigError, match="from 0 to 0"):
            world.library.mesh("cube", 1)


class TestFrames:
    @pytest.mark.parametrize("name", MOTION_OBJECTS)
    def test_they_agree_with_sphere_tracing(self, world: MotionWorld, name: str) -> None:
        script = world.script([Thing(name, "red")], generator=torch.Generator().manual_seed(3))
        meshes = [world.library.mesh(name, 0)]
        shot = shoot(script, meshes, ORIGIN, 64)
        traced = trace(placed(script), *shot.cameras.resized(128, 128).rays())
        mesh, sdf = shot.faces[0] >= 0, traced.hit[0]
        assert float((mesh & sdf).sum() / (mesh | sdf).sum()) >= 0.95
        both = mesh & sdf
        parts = meshes[0].parts[shot.faces[0][both].long()]
        assert float((parts == traced.part[0][both]).float().mean()) > 0.92
        along = traced.depth[0] * (shot.cameras.resized(128, 128).rays()[1][0] @ shot.cameras.forward[0])
        assert float((shot.depth[0] - along)[both].abs().quantile(0.9)) < 0.02

    def test_light_falls_as_on_traced_pictures(self, world: MotionWorld) -> None:
        """A plain ball: colour = albedo (ambient + (1 - ambient) max(0, n.l)) with the exact normal."""
        script = world.script([Thing("ball", "orange")])
        stage = gray_stage()
        shot = shoot(script, [world.library.mesh("ball", 0)], ORIGIN, 32)
        frame = paint(shot, script, stage)[0]
        traced = trace(placed(script), *shot.cameras.rays())
        lambert = (traced.normal[0] @ stage.light).clamp(min=0)
        expected = torch.tensor(COLOURS["orange"])[:, None, None] * (0.6 + 0.4 * lambert)
        inside = torch.nn.functional.avg_pool2d((shot.faces >= 0).float(), 2)[0] == 1
        torch.testing.assert_close(frame[:, inside], expected[:, inside], rtol=0, atol=0.02)

    @pytest.mark.parametrize("name", ["duck", "cube"])
    def test_shapes_are_those_of_sphere_tracing(self, world: MotionWorld, name: str) -> None:
        script = world.script([Thing(name, "red")], camera_move="orbits left")
        times = torch.tensor([5.0])
        shot = shoot(script, [world.library.mesh(name, 0)], times, 64)
        found = shapes(shot)
        assert found.shape == (1, 4, 16, 16)
        cameras = shot.cameras.resized(128, 128)
        traced = trace(placed(script), *cameras.rays())
        rotation = cameras.camera_to_world[:, :3, :3]
        normal = torch.einsum("bhwi,bij->bjhw", traced.normal, rotation) * traced.hit[:, None]
        expected = torch.nn.functional.avg_pool2d(torch.cat([traced.hit[:, None].float(), normal], dim=1), 8)
        assert float((found - expected).abs().mean()) < 0.01
        filled = expected[:, 0] == 1
        cosine = torch.nn.functional.cosine_similarity(found[:, 1:], expected[:, 1:])[filled]
        assert int(filled.sum()) > 5
        assert float(cosine.median()) > 0.97

    def test_materials(self, world: MotionWorld) -> None:
        times = torch.zeros(1)
        looks = [
            world.render(replace_material(world.script([Thing("cube", "blue")]), material), times, gray_stage())
            for material in ("plain", "striped", "spotted")
        ]
        assert all(float((a - b).abs().mean()) > 0.01 for a, b in ((looks[0], looks[1]), (looks[1], looks[2])))

    def test_a_shadow_lies_below(self, world: MotionWorld) -> None:
        script = world.script([Thing("ball", "red")], "bouncing")
        shot = shoot(script, [world.library.mesh("ball", 0)], torch.arange(14.0), 32)
        middle = shot.poses[:, 0, :3:2, 3]
        light = motion_render._shadow(
            shot, replace(gray_stage(), light=torch.tensor([0.0, 1.0, 0.0])), middle[:, None, None]
        )
        far = motion_render._shadow(shot, gray_stage(), middle[:, None, None] + 3)
        height = shot.poses[:, 0, 1, 3]
        assert float(far.min()) > 0.99
        assert float(light[height.argmin()]) < 0.6
        assert float(light[height.argmin()]) < float(light[height.argmax()]) < 0.95

    def test_the_floor_shows_that_the_camera_moves(self, world: MotionWorld) -> None:
        stage = random_stage(torch.Generator().manual_seed(1))
        for move in CAMERA_MOVES:
            script = world.script([Thing("ball", "red")], camera_move=move)
            first, second = world.render(script, torch.tensor([0.0, 3.0]), stage)[:, :, 24:]
            assert (float((first - second).abs().mean()) > 1e-3) == (move != "static")

    @pytest.mark.parametrize("seed", range(6))
    def test_nothing_jumps_in_sight(self, world: MotionWorld, seed: int) -> None:
        """What wraps round does so out of the picture, on both sides."""
        for motion, name in (("rolling", "ring"), ("sliding", "house"), ("passing", "cube")):
            things = [Thing(name, "red")] * (2 if motion == "passing" else 1)
            generator = torch.Generator().manual_seed(seed)
            script = world.script(things, motion, "left", generator=generator)
            mover = script.movers[0]
            wrap = (1 - mover.phase % 1) * mover.period
            shot = shoot(
                script, [world.library.mesh(name, 0)] * len(things), torch.tensor([wrap - 0.01, wrap + 0.01]), 32
            )
            assert float((shot.poses[0] - shot.poses[1])[:, 0, 3].abs().min()) > 2
            assert bool((shot.faces < 0).all())

    @pytest.mark.parametrize("seed", range(4))
    def test_who_enters_was_away_and_who_leaves_is_gone(self, world: MotionWorld, seed: int) -> None:
        for motion in ("entering", "leaving"):
            script = world.script([Thing("car", "red")], motion, "left", generator=torch.Generator().manual_seed(seed))
            mover = replace(script.movers[0], phase=0.0)
            script = replace(script, movers=(mover,))
            away = shoot(script, [world.library.mesh("car", 0)], torch.tensor([0.0, mover.period]), 32).faces < 0
            assert away.flatten(1).all(dim=1).tolist() == [motion == "entering", motion == "leaving"]

    @pytest.mark.parametrize("times", [[], [math.nan], [-1.0], [[0.0]]])
    def test_bad_times(self, world: MotionWorld, times: list[float]) -> None:
        with pytest.raises(ConfigError, match="times of a clip"):
            world.render(world.script([Thing("ball", "red")]), torch.tensor(times))


def replace_material(script: Script, material: str) -> Script:
    """The same script with its first object in another material."""
    mover = script.movers[0]
    return replace(script, movers=(replace(mover, thing=replace(mover.thing, material=material)),))


def see(world: MotionWorld, script: Script, times: Tensor) -> tuple[motion_render.Shot, list[Tensor], list[Tensor]]:
    """A shot, and for each object the tracks' candidates: world points [F, N, 3] and normals [F, N, 3]."""
    meshes = [world.library.mesh(thing.name, 0) for thing in script.things]
    shot = shoot(script, meshes, times, 64)
    points, normals = [], []
    generator = torch.Generator().manual_seed(5)
    for slot, mesh in enumerate(meshes):
        own, normal = mesh.sample_surface(36, generator)
        pose = shot.poses[:, slot]
        points.append(own @ pose[:, :3, :3].mT + pose[:, None, :3, 3])
        normals.append(torch.nn.functional.normalize(normal @ pose[:, :3, :3].mT, dim=-1))
    return shot, points, normals


class TestTracks:
    def test_they_are_projections_of_points_of_the_object(self, world: MotionWorld) -> None:
        script = world.script([Thing("duck", "red")], "circling", camera_move="orbits left")
        shot, points, _ = see(world, script, torch.arange(5.0))
        tracks, visible = track(shot, 16, torch.Generator().manual_seed(5))
        assert tracks.shape == (5, 16, 2)
        assert visible.shape == (5, 16)
        expected = torch.stack([shot.cameras[f].project(points[0][f])[0][0] / 64 for f in range(5)])
        apart = (tracks[:, :12, None] - expected[:, None]).norm(dim=-1).amax(dim=0)
        assert float(apart.amin(dim=1).max()) < 1e-4
        assert int(apart.argmin(dim=1).unique().numel()) == 12

    def test_floor_points_stand_still_on_the_floor(self, world: MotionWorld) -> None:
        script = world.script([Thing("cube", "red")], "sliding", "left")
        shot, _, _ = see(world, script, torch.arange(5.0))
        tracks, _ = track(shot, 16, torch.Generator().manual_seed(5))
        assert torch.equal(tracks[:, 12:], tracks[:1, 12:].expand(5, 4, 2))
        u, v = (tracks[0, 12:] * 64).unbind(-1)
        rows, columns = v.long(), u.long()
        origins, directions = shot.cameras.rays()
        down = directions[0, rows.clamp(0, 63), columns.clamp(0, 63)]
        spot = origins[0, 0, 0] - origins[0, 0, 0, 1] / down[:, 1:2] * down
        inside = (rows < 64) & (columns >= 0) & (columns < 64)
        assert float(spot[inside].norm(dim=1).max()) < 1.8

    def test_visible_points_are_painted_in_the_objects_colour(self, world: MotionWorld) -> None:
        hits = []
        for seed, motion in enumerate(("spinning", "bouncing", "circling")):
            script = world.script([Thing("table", "red")], motion, generator=torch.Generator().manual_seed(seed))
            shot, _, _ = see(world, script, torch.arange(8.0))
            tracks, visible = track(shot, 64, torch.Generator().manual_seed(5))
            frames = paint(shot, script, gray_stage())
            column, row = (tracks * 64).long().clamp(0, 63).unbind(-1)
            colours = frames.permute(0, 2, 3, 1)[torch.arange(8)[:, None], row, column]
            reddish = colours[..., 0] - colours[..., 1] > 0.1
            hits.append(reddish[:, :48][visible[:, :48]])
            assert not bool(reddish[:, 48:][visible[:, 48:]].float().mean() > 0.1)
        assert float(torch.cat(hits).float().mean()) > 0.97

    def test_visibility_agrees_with_sphere_tracing(self, world: MotionWorld) -> None:
        """Two objects, one in front of the other: rays to the points say what hides what."""
        script = world.script([Thing("robot", "red"), Thing("mushroom", "blue")], "passing", "left")
        still = replace(script, movers=tuple(replace(m, phase=0.5, yaw=0.0) for m in script.movers))
        shot, points, normals = see(world, still, ORIGIN)
        eye = shot.cameras.position[0]
        agreed, hidden = [], 0
        for point, normal in zip(points, normals, strict=True):
            where, seen = motion_render._look(shot, point)
            ray = point[0] - eye
            distance = ray.norm(dim=1)
            facing = -(normal[0] * ray).sum(dim=1) / distance > 0.3
            directions = (ray / distance[:, None])[None, :, None]
            depth = trace(placed(still), eye.expand_as(directions), directions).depth[0, :, 0]
            inside = ((where[0] > 0) & (where[0] < 1)).all(dim=1)
            free = depth > distance - 0.08
            agreed.append((free == seen[0])[facing & inside])
            hidden += int((~free & facing & inside).sum())
        assert hidden >= 3
        assert float(torch.cat(agreed).float().mean()) > 0.93

    @pytest.mark.parametrize("count", [2, 3, 16, 33])
    def test_any_number(self, world: MotionWorld, count: int) -> None:
        for things, motion in (([Thing("cube", "red")], "entering"), ([Thing("cube", "red")] * 2, "passing")):
            script = world.script(things, motion, "left")
            shot = shoot(script, [world.library.mesh("cube", 0)] * len(things), torch.arange(3.0), 32)
            tracks, visible = track(shot, count, torch.Generator().manual_seed(0))
            assert tracks.shape == (3, count, 2)
            assert visible.shape == (3, count)
            assert bool(tracks.isfinite().all())


class TestSamples:
    def test_shapes(self, clips: Clips) -> None:
        assert clips.frames.shape == (40, 6, 3, 32, 32)
        assert clips.cameras.shape == (40, 6, 12)
        assert clips.tracks.shape == (40, 6, 8, 2)
        assert clips.visible.shape == (40, 6, 8)
        assert clips.visible.dtype == torch.bool
        assert clips.shapes.shape == (40, 6, 4, 8, 8)
        assert len(clips.captions) == len(clips.scripts) == 40
        assert 0 <= float(clips.frames.min()) < float(clips.frames.max()) <= 1
        inside = ((clips.tracks >= 0) & (clips.tracks < 1)).all(dim=-1)
        assert bool((inside | ~clips.visible).all())
        assert float(clips.visible.float().mean()) > 0.4

    def test_the_cameras_are_the_scripts(self, clips: Clips) -> None:
        for row, script in enumerate(clips.scripts):
            assert torch.equal(clips.cameras[row], script.cameras(torch.arange(6.0)).pose)

    def test_the_same_seed_gives_the_same_bytes(self, world: MotionWorld, clips: Clips) -> None:
        again = world.sample(5, torch.Generator().manual_seed(0))
        other = world.sample(5, torch.Generator().manual_seed(1))
        for name in ("frames", "cameras", "tracks", "visible"):
            assert torch.equal(getattr(again, name), getattr(clips, name)[:5])
        assert again.captions == clips.captions[:5]
        assert not torch.equal(again.frames, other.frames)

    def test_length(self, world: MotionWorld) -> None:
        assert world.sample(1, torch.Generator().manual_seed(0), frames=20).frames.shape == (1, 20, 3, 32, 32)
        for bad in ({"count": 0}, {"count": 1, "frames": 0}):
            with pytest.raises(ConfigError, match="at least 1"):
                world.sample(generator=torch.Generator(), **bad)

    def test_what_is_cast(self, world: MotionWorld) -> None:
        """Every motion, object, colour, material and camera move, no composition that is held out."""
        casting = Casting(world.library, 15, torch.Generator().manual_seed(0))
        scripts = [casting.random_script(hold_out=True) for _ in range(1500)]
        things = [thing for script in scripts for thing in script.things]
        assert {script.motion for script in scripts} == set(MOTIONS)
        assert {script.camera_move for script in scripts} == set(CAMERA_MOVES)
        assert {thing.name for thing in things} == set(MOTION_OBJECTS)
        assert {thing.colour for thing in things} == set(COLOURS)
        assert not {(thing.colour, thing.name) for thing in things} & set(HELD_OUT)
        static = sum(script.camera_move == "static" for script in scripts) / len(scripts)
        assert 0.5 < static < 0.8
        free = [casting.random_script(hold_out=False) for _ in range(300)]
        assert {(thing.colour, thing.name) for script in free for thing in script.things} & set(HELD_OUT)

    def test_the_vocabulary_covers_its_captions(self, world: MotionWorld) -> None:
        generator = torch.Generator().manual_seed(0)
        casting = Casting(world.library, 15, generator)
        known = set(motion_vocabulary())
        for _ in range(2000):
            text = world.caption(casting.random_script(hold_out=False), generator)
            assert set(text.replace(",", " ,").split()) <= known, text

    def test_stated_compositions(self, world: MotionWorld) -> None:
        script = world.script([Thing("mug", "red", "spotted")], "sliding", "right", "pans left")
        assert script.things == [Thing("mug", "red", "spotted")]
        assert (script.motion, script.direction, script.camera_move) == ("sliding", "right", "pans left")
        assert world.script([Thing("mug", "red")], "spinning") == world.script([Thing("mug", "red")], "spinning")
        pair = world.script([Thing("ball", "red"), Thing("car", "blue")], "passing", "right")
        first, second = pair.poses(torch.tensor([0.0, 1.0])).unbind(1)
        assert float((first[1] - first[0])[0, 3]) > 0 > float((second[1] - second[0])[0, 3])
        assert float((first - second)[:, 2, 3].abs().min()) > 1

    @pytest.mark.parametrize("seed", range(5))
    def test_they_meet_in_the_middle_of_the_clip(self, world: MotionWorld, seed: int) -> None:
        casting = Casting(world.library, 15, torch.Generator().manual_seed(seed))
        pair = casting.script([Thing("ball", "red"), Thing("car", "blue")], "passing", "right")
        times = torch.arange(0, 15, 0.1)
        first, second = pair.poses(times)[:, :, 0, 3].unbind(1)
        assert 5 < float(times[(first - second).abs().argmin()]) < 10

    @pytest.mark.parametrize(
        ("things", "motion", "direction", "message"),
        [
            ([Thing("teapot", "red")], "still", "", "object 'teapot'"),
            ([Thing("cube", "mauve")], "still", "", "colour 'mauve'"),
            ([Thing("cube", "red", "shiny")], "still", "", "material 'shiny'"),
            ([Thing("cube", "red")], "rolling", "", "A cube does not roll"),
            ([Thing("cube", "red")], "flying", "", "motion 'flying'"),
            ([Thing("cube", "red")], "passing", "left", "number of things in a clip of passing is 1"),
            ([Thing("cube", "red")] * 2, "still", "", "number of things in a clip of still is 2"),
            ([], "still", "", "number of things in a clip of still is 0"),
            ([Thing("cube", "red")], "entering", "", "For entering, the direction ''"),
            ([Thing("cube", "red")], "sliding", "up", "For sliding, the direction 'up'"),
        ],
    )
    def test_what_can_not_be(
        self, world: MotionWorld, things: Sequence[Thing], motion: str, direction: str, message: str
    ) -> None:
        with pytest.raises(ConfigError, match=message):
            world.script(things, motion, direction)

    @pytest.mark.parametrize("bad", [{"frames": 0}, {"size": 8}, {"points": 1}, {"shapes": 0}, {"resolution": 1000}])
    def test_bad_configurations(self, bad: dict[str, int]) -> None:
        with pytest.raises(ConfigError, match=f"The moving world's {next(iter(bad))}"):
            MotionConfig(**bad)


class TestRelativeCameras:
    def test_the_first_is_the_identity(self, clips: Clips) -> None:
        relative = relative_cameras(clips.cameras)
        identity = torch.eye(4)[:3].flatten().expand(40, 12)
        torch.testing.assert_close(relative[:, 0], identity, rtol=0, atol=1e-6)

    def test_from_the_first_they_lead_to_the_others(self) -> None:
        cameras = Camera.orbit([10.0, 40.0, 90.0], [20.0, 5.0, 60.0], [4.0, 3.0, 2.0])
        row = torch.tensor([[[0.0, 0.0, 0.0, 1.0]]]).expand(1, 3, 1, 4).reshape(3, 1, 4)
        relative = torch.cat([relative_cameras(cameras.pose[None])[0].view(3, 3, 4), row], dim=1)
        torch.testing.assert_close(cameras.camera_to_world[0] @ relative, cameras.camera_to_world, rtol=0, atol=1e-5)

    def test_another_shape(self) -> None:
        with pytest.raises(ConfigError, match=r"The shape of the cameras is \(3, 12\)"):
            relative_cameras(torch.zeros(3, 12))


@pytest.fixture(scope="module")
def pairs(world: MotionWorld) -> Clips:
    return world.sample_pairs(12, torch.Generator().manual_seed(1), loops=0.0)


class TestPairs:
    """Clips that two cameras film at once."""

    def test_the_sources_are_the_scripts_clips(self, world: MotionWorld, pairs: Clips) -> None:
        assert pairs.frames.shape == (12, 12, 3, 32, 32)
        assert pairs.tracks.shape[:2] == pairs.visible.shape[:2] == pairs.shapes.shape[:2] == (12, 12)
        for row, script in enumerate(pairs.scripts):
            shot = shoot(script, world._meshes(script), torch.arange(6.0), 32)
            torch.testing.assert_close(pairs.cameras[row, ::2], shot.cameras.pose)
            torch.testing.assert_close(pairs.shapes[row, ::2], shapes(shot))

    def test_both_begin_at_one_place_under_one_light(self, pairs: Clips) -> None:
        for row, script in enumerate(pairs.scripts):
            if not script.camera_move.startswith("pans"):
                torch.testing.assert_close(pairs.frames[row, 0], pairs.frames[row, 1])
        assert (pairs.frames[:, -1] - pairs.frames[:, -2]).abs().amax(dim=(1, 2, 3)).min() > 0.05

    def test_a_loop_comes_back(self, world: MotionWorld) -> None:
        loops = world.sample_pairs(6, torch.Generator().manual_seed(1), loops=1.0)
        poses = loops.cameras[:, 1::2]
        torch.testing.assert_close(poses[:, 0], poses[:, -1])
        assert (poses[:, 0] - poses[:, 2]).abs().amax(dim=1).min() > 0.01

    def test_captions_say_nothing_of_cameras(self, pairs: Clips) -> None:
        assert not any("camera" in caption or "view" in caption for caption in pairs.captions)

    @pytest.mark.parametrize("loops", [-0.1, 1.1, float("nan")])
    def test_a_share_is_a_share(self, world: MotionWorld, loops: float) -> None:
        with pytest.raises(ConfigError, match="The share of loops"):
            world.sample_pairs(1, torch.Generator(), loops=loops)
