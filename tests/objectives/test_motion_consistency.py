"""Motion consistency, in float64: what its representation sees, what it leaves free, and what frames are held to."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_causal_video import as_flow, clips, exact_flow, normal, solver
from torch import Tensor

from dreamkit.errors import ConfigError
from dreamkit.objectives.causal_video import (
    Flow,
    clean_clip,
    consistency_error,
    draw_neighbours,
    draw_positions,
    neighbouring_clips,
    noisy_clip,
    per_frame,
)
from dreamkit.objectives.motion_consistency import (
    appearance_error,
    frame_differences,
    mix_trajectories,
    motion_error,
)

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS, SHIFT = 4, 3.0


def levels(batch: int = 3, frames: int = 6) -> tuple[Tensor, Tensor]:
    """Neighbours on a solver's grid, chunk by chunk."""
    places = draw_positions(batch, frames, 2, torch.Generator().manual_seed(2))
    return draw_neighbours(places, STEPS, SHIFT)


def rough(x: Tensor, t: Tensor) -> Tensor:
    """A student that has learned nothing yet."""
    return x.sin() + per_frame(t)


class TestMotion:
    def test_a_clip_that_stands_still_has_none(self) -> None:
        still = normal(2, 3, 1, 4, 5).expand(-1, -1, 6, -1, -1)
        assert torch.equal(frame_differences(still), torch.zeros(2, 3, 5, 4, 5, dtype=torch.float64))

    def test_it_is_what_changes_from_frame_to_frame(self) -> None:
        clip = normal(2, 3, 4, 2, 2)
        motion = frame_differences(clip)
        for frame in range(3):
            assert torch.equal(motion[:, :, frame], clip[:, :, frame + 1] - clip[:, :, frame])

    def test_a_picture_added_to_every_frame_changes_nothing(self) -> None:
        clip, picture = normal(2, 3, 6, 4, 5), normal(2, 3, 1, 4, 5, seed=1)
        torch.testing.assert_close(frame_differences(clip + picture), frame_differences(clip), atol=1e-14, rtol=0)

    def test_it_is_all_but_that_picture(self) -> None:
        """A clip is its first frame and its motion."""
        clip = normal(2, 3, 6, 4, 5)
        again = torch.cat([clip[:, :, :1], frame_differences(clip)], dim=2).cumsum(dim=2)
        torch.testing.assert_close(again, clip)

    def test_one_frame_has_none(self) -> None:
        with pytest.raises(ConfigError, match="frames is 1"):
            frame_differences(normal(2, 3, 1, 4, 5))


class TestMotionError:
    @pytest.mark.parametrize("distance", ["huber", "square"])
    def test_of_the_clip_itself_is_plain_consistency(self, distance: Any) -> None:
        """The value and the student's gradient, with m(x) = x."""
        x0, eps = clips()
        errors = []
        for plain in (True, False):
            factor = torch.ones((), dtype=torch.float64, requires_grad=True)

            def student(x: Tensor, t: Tensor, factor: Tensor = factor) -> Tensor:
                return factor * rough(x, t)

            models = (student, rough, exact_flow, x0, eps, *levels())
            if plain:
                error = consistency_error(*models, distance)
            else:
                error = motion_error(*neighbouring_clips(*models), distance, represent=lambda clip: clip)
            errors.append((error.detach(), torch.autograd.grad(error.mean(), factor)[0]))
        assert torch.equal(errors[0][0], errors[1][0])
        assert torch.equal(errors[0][1], errors[1][1])
        assert float(errors[0][1]) != 0

    @pytest.mark.parametrize("distance", ["huber", "square"])
    def test_its_gradient_is_that_of_finite_differences(self, distance: Any) -> None:
        made, goal = normal(2, 2, 4, 3, 2).requires_grad_(), normal(2, 2, 4, 3, 2, seed=1)
        assert torch.autograd.gradcheck(lambda clip: motion_error(clip, goal, distance), made)

    def test_a_textbook(self) -> None:
        made, goal = normal(2, 2, 4, 3, 2), normal(2, 2, 4, 3, 2, seed=1)
        error = motion_error(made, goal, "square")
        assert error.shape == (2, 3)
        for row, frame in itertools.product(range(2), range(3)):
            wrong = (made[row, :, frame + 1] - made[row, :, frame]) - (goal[row, :, frame + 1] - goal[row, :, frame])
            assert float(error[row, frame]) == pytest.approx(float((wrong**2).sum() / 12), rel=1e-12)

    @pytest.mark.parametrize("distance", ["huber", "square"])
    def test_the_teachers_solver_is_a_fixed_point_in_any_colours(self, distance: Any) -> None:
        """So is what differs from it by the same picture everywhere, which plain consistency would not forgive."""
        x0, eps = clips()
        walk, picture = solver(STEPS, SHIFT), normal(3, 2, 1, 3, 2, seed=5)
        shift = torch.zeros(3, 2, 1, 3, 2, dtype=torch.float64, requires_grad=True)
        repainted = as_flow(lambda x, t: walk(x, t) + picture + shift)
        average = as_flow(walk)
        made, goal = neighbouring_clips(repainted, average, exact_flow, x0, eps, *levels())
        error = motion_error(made, goal, distance)
        assert float(error.detach().abs().max()) < 1e-20
        assert float(torch.autograd.grad(error.sum(), shift)[0].abs().max()) < 1e-10
        plain = consistency_error(repainted, average, exact_flow, x0, eps, *levels(), distance)
        assert float(plain.detach().min()) > 1e-4
        wrong, goal = neighbouring_clips(rough, average, exact_flow, x0, eps, *levels())
        assert float(motion_error(wrong, goal, distance).detach().min()) > 1e-4

    def test_only_the_student_has_a_gradient(self) -> None:
        x0, eps = clips()
        factors = [torch.ones((), dtype=torch.float64, requires_grad=True) for _ in range(3)]
        models: list[Flow] = [lambda x, t, factor=factor: 1.1 * factor * exact_flow(x, t) for factor in factors]
        made, goal = neighbouring_clips(models[0], models[1], models[2], x0, eps, *levels())
        gradients = torch.autograd.grad(motion_error(made, goal).mean(), factors, allow_unused=True)
        assert gradients[0] is not None
        assert float(gradients[0]) != 0
        assert gradients[1:] == (None, None)

    def test_mistakes(self) -> None:
        one = normal(2, 2, 1, 3, 2)
        with pytest.raises(ConfigError, match="frames is 1"):
            motion_error(one, one)
        with pytest.raises(ConfigError, match="distance"):
            motion_error(clips()[0], clips()[1], "cosine")  # type: ignore[arg-type]


class TestAppearance:
    def test_a_textbook(self) -> None:
        """Every pair of frames from different clips, one after the other."""
        made, data = normal(3, 2, 4, 3, 2), normal(3, 2, 5, 3, 2, seed=1)

        def mean(one: Tensor, other: Tensor) -> float:
            apart = [
                float((x - y).square().mean().sqrt())
                for i, j in itertools.permutations(range(3), 2)
                for x in one[i].unbind(1)
                for y in other[j].unbind(1)
            ]
            return sum(apart) / len(apart)

        wanted = 2 * mean(made, data) - mean(made, made) - mean(data, data)
        assert float(appearance_error(made, data)) == pytest.approx(wanted, rel=1e-12)

    @given(st.floats(0, 1), st.floats(0, 1))
    def test_it_is_the_distance_of_distributions(self, p: float, q: float) -> None:
        """Its exact expectation where a frame is 1 with probability p, one of data with q: 2 (p - q)^2."""
        expected = 0.0
        for bits in itertools.product((0.0, 1.0), repeat=4):
            made, data = torch.tensor(bits, dtype=torch.float64).view(2, 2, 1, 1, 1, 1).unbind(0)
            chances = [share if bit else 1 - share for bit, share in zip(bits, (p, p, q, q), strict=True)]
            expected += torch.tensor(chances, dtype=torch.float64).prod().item() * float(appearance_error(made, data))
        assert expected == pytest.approx(2 * (p - q) ** 2, abs=1e-12)

    def test_it_knows_no_motion(self) -> None:
        made, data = normal(3, 2, 6, 3, 2), normal(3, 2, 6, 3, 2, seed=1)
        shuffled = made[:, :, torch.randperm(6, generator=torch.Generator().manual_seed(0))]
        torch.testing.assert_close(appearance_error(shuffled, data), appearance_error(made, data))

    def test_its_gradient_is_that_of_finite_differences(self) -> None:
        made, data = normal(2, 2, 3, 2, 2).requires_grad_(), normal(2, 2, 3, 2, 2, seed=1)
        assert torch.autograd.gradcheck(lambda clip: appearance_error(clip, data), made)

    def test_descent_gives_frames_the_mean_and_the_spread_of_data(self) -> None:
        """A mean square would give them the mean alone."""
        mean = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        spread = torch.ones(2, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.Adam([mean, spread], lr=0.05)
        for step in range(300):
            noise, data = normal(16, 2, 1, 1, 1, seed=2 * step), normal(16, 2, 1, 1, 1, seed=2 * step + 1)
            data = torch.tensor([2.0, -1.0]).view(2, 1, 1, 1) + torch.tensor([0.5, 2.0]).view(2, 1, 1, 1) * data
            made = mean.view(2, 1, 1, 1) + spread.view(2, 1, 1, 1) * noise
            optimizer.zero_grad()
            appearance_error(made, data).backward()
            optimizer.step()
        assert mean.tolist() == pytest.approx([2.0, -1.0], abs=0.3)
        assert spread.abs().tolist() == pytest.approx([0.5, 2.0], abs=0.4)

    def test_one_clip_has_no_other(self) -> None:
        with pytest.raises(ConfigError, match="clips is 1"):
            appearance_error(normal(1, 2, 6, 3, 2), normal(1, 2, 6, 3, 2))


class TestMixedTrajectories:
    def test_some_clips_are_the_students_own(self) -> None:
        """Made of pure noise in one call, without gradients; the other rows are data."""
        x0, noise = clips()
        factor = torch.ones((), dtype=torch.float64, requires_grad=True)
        own = torch.tensor([True, False, True])
        mixed = mix_trajectories(lambda x, t: factor * rough(x, t), x0, noise, own)
        first = torch.ones(3, 6, dtype=torch.float64)
        assert torch.equal(mixed[own], clean_clip(noise, rough(noise, first), first)[own])
        assert torch.equal(mixed[1], x0[1])
        assert not mixed.requires_grad

    def test_data_alone_asks_nobody(self) -> None:
        x0, noise = clips()

        def nobody(x: Tensor, t: Tensor) -> Tensor:
            raise AssertionError

        assert mix_trajectories(nobody, x0, noise, torch.zeros(3, dtype=torch.bool)) is x0

    def test_they_are_noised_afresh(self) -> None:
        x0, noise = clips()
        mixed = mix_trajectories(rough, x0, noise, torch.ones(3, dtype=torch.bool))
        t, s = levels()
        seen: list[Tensor] = []

        def student(x: Tensor, given: Tensor) -> Tensor:
            seen.append(x)
            return rough(x, given)

        eps = normal(*x0.shape, seed=9)
        neighbouring_clips(student, rough, exact_flow, mixed, eps, t, s)
        assert torch.equal(seen[0], noisy_clip(mixed, eps, t))
