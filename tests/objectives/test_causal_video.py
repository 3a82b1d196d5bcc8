"""The losses of a causal student, in float64 on Gaussian clips whose flows and paths are known in closed form."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dreamkit.diffusion.guidance import guide
from dreamkit.errors import ConfigError, TeacherError
from dreamkit.objectives.causal_video import (
    Flow,
    clean_clip,
    consistency_error,
    draw_neighbours,
    draw_positions,
    euler_step,
    few_step_levels,
    flow_matching_error,
    noisy_clip,
    per_frame,
)

MEAN, SPREAD = 0.7, 0.4
"""Every number of a clip is drawn from N(MEAN, SPREAD^2)."""


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def clips(frames: int = 6, batch: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Clean clips [batch, 2, frames, 3, 2] and their noise."""
    shape = (batch, 2, frames, 3, 2)
    return MEAN + SPREAD * normal(*shape, seed=seed), normal(*shape, seed=seed + 1)


def variance(levels: Tensor) -> Tensor:
    """Of x_t: (1 - t)^2 s^2 + t^2."""
    return (1 - levels) ** 2 * SPREAD**2 + levels**2


def exact_flow(x_t: Tensor, levels: Tensor) -> Tensor:
    """E[eps - x0 | x_t] for Gaussian data: the regression line of eps - x0 on x_t."""
    t = per_frame(levels)
    slope = (t - (1 - t) * SPREAD**2) / variance(t)
    return -MEAN + slope * (x_t - (1 - t) * MEAN)


def exact_end(x_t: Tensor, levels: Tensor) -> Tensor:
    """Where the path of dx / dt = v through x_t ends at t = 0: (x_t - mean_t) / deviation_t stays what it is on it."""
    t = per_frame(levels)
    return MEAN + SPREAD * (x_t - (1 - t) * MEAN) / variance(t).sqrt()


def as_flow(end: Callable[[Tensor, Tensor], Tensor]) -> Flow:
    """The flow that points to a given clean clip, (x_t - end) / t; at t = 0, where x_t is clean, any."""

    def flow(x_t: Tensor, levels: Tensor) -> Tensor:
        t = per_frame(levels)
        return torch.where(t > 0, (x_t - end(x_t, levels)) / t.clamp(min=1e-300), 0.0)

    return flow


def grid_levels(steps: int, shift: float) -> list[float]:
    """t_n by the formula, in Python's floats."""
    return [shift * (n / steps) / (1 + (shift - 1) * n / steps) for n in range(steps + 1)]


def solver(steps: int, shift: float, flow: Flow = exact_flow) -> Callable[[Tensor, Tensor], Tensor]:
    """The clean clip to which Euler steps over the grid lead, from levels that lie on it."""
    grid = grid_levels(steps, shift)

    def end(x_t: Tensor, levels: Tensor) -> Tensor:
        x = x_t
        for n in range(steps, 0, -1):
            t, s = torch.full_like(levels, grid[n]), torch.full_like(levels, grid[n - 1])
            moved = x + (grid[n - 1] - grid[n]) * flow(x, t)
            x = torch.where(per_frame(levels > s + 1e-9), moved, x)
        return x

    return end


class TestConsistency:
    @pytest.mark.parametrize(("steps", "shift"), [(4, 1.0), (8, 5.0)])
    @pytest.mark.parametrize("distance", ["huber", "square"])
    def test_the_teachers_solver_is_the_fixed_point(self, steps: int, shift: float, distance: Any) -> None:
        """Loss and gradient vanish, to rounding, at the function that walks the whole grid with the teacher."""
        x0, eps = clips()
        levels, lower = draw_neighbours(
            draw_positions(3, 6, 2, torch.Generator().manual_seed(2)), steps=steps, shift=shift
        )
        fixed = as_flow(solver(steps, shift))
        factor = torch.ones((), dtype=torch.float64, requires_grad=True)

        def student(x: Tensor, t: Tensor) -> Tensor:
            return factor * fixed(x, t)

        error = consistency_error(student, fixed, exact_flow, x0, eps, levels, lower, distance)
        assert error.shape == (3, 6)
        assert float(error.detach().abs().max()) < 1e-20
        (gradient,) = torch.autograd.grad(error.sum(), factor)
        assert abs(float(gradient)) < 1e-10
        wrong = consistency_error(exact_flow, exact_flow, exact_flow, x0, eps, levels, lower, distance)
        first = lower == 0  # the last step of a solver is the flow's own
        assert float(wrong[first].abs().max()) < 1e-20
        assert float(wrong[~first].min()) > 1e-8

    def test_the_true_path_is_it_as_the_grid_becomes_fine(self) -> None:
        """A step of Euler's errs by O(dt^2), so the mean square by O(dt^4), and the gradient with it by O(dt^2)."""
        x0, eps = clips(batch=40)
        true = as_flow(exact_end)
        errors, gradients = [], []
        for steps in (32, 64, 128):
            offset = torch.zeros((), dtype=torch.float64, requires_grad=True)

            def student(x: Tensor, t: Tensor, offset: Tensor = offset) -> Tensor:
                return true(x, t) + offset * x.sin()

            levels = torch.full((40, 6), 0.5, dtype=torch.float64)
            error = consistency_error(student, true, exact_flow, x0, eps, levels, levels - 1 / steps, "square").mean()
            errors.append(float(error.detach()))
            gradients.append(abs(float(torch.autograd.grad(error, offset)[0])))
        assert errors[0] < 1e-6
        for coarse, fine in itertools.pairwise(errors):
            assert coarse / fine == pytest.approx(16, rel=0.15)
        for coarse, fine in itertools.pairwise(gradients):
            assert coarse / fine == pytest.approx(4, rel=0.15)

    def test_training_finds_it(self) -> None:
        """Affine students, one a node of the grid, trained from nothing with their own average as the target."""
        steps, shift = 4, 3.0
        grid = torch.tensor(grid_levels(steps, shift), dtype=torch.float64)
        weights = torch.zeros(steps + 1, 2, dtype=torch.float64, requires_grad=True)
        average = weights.detach().clone()

        def affine(table: Tensor) -> Flow:
            def end(x: Tensor, t: Tensor) -> Tensor:
                row = table[(t[..., None] - grid).abs().argmin(dim=-1)]
                return per_frame(row[..., 0]) * x + per_frame(row[..., 1])

            return as_flow(end)

        generator = torch.Generator().manual_seed(0)
        for step in range(400):
            x0, eps = clips(batch=8, seed=10 * step)
            levels, lower = draw_neighbours(draw_positions(8, 6, 1, generator), steps, shift)
            error = consistency_error(affine(weights), affine(average), exact_flow, x0, eps, levels, lower, "square")
            (gradient,) = torch.autograd.grad(error.mean(), weights)
            with torch.no_grad():
                weights -= 2.5 * gradient
                average.lerp_(weights, 0.5)
        walk = solver(steps, shift)
        for level in grid[1:]:
            t = torch.full((8, 6), float(level), dtype=torch.float64)
            x = noisy_clip(x0, eps, t)
            torch.testing.assert_close(clean_clip(x, affine(weights)(x, t), t).detach(), walk(x, t), atol=0.01, rtol=0)

    def test_only_the_student_has_a_gradient(self) -> None:
        x0, eps = clips()
        factors = [torch.ones((), dtype=torch.float64, requires_grad=True) for _ in range(3)]
        models = [lambda x, t, factor=factor: 1.1 * factor * exact_flow(x, t) for factor in factors]
        levels = torch.full((3, 6), 0.6, dtype=torch.float64)
        error = consistency_error(*models, x0, eps, levels, 0.8 * levels).mean()
        gradients = torch.autograd.grad(error, factors, allow_unused=True)
        assert gradients[0] is not None
        assert float(gradients[0]) != 0
        assert gradients[1:] == (None, None)

    def test_a_scalar_textbook(self) -> None:
        """Guidance, step, target and distance, one number at a time in Python's floats; every frame its own levels."""
        x0, eps = clips(frames=2, batch=2)
        levels = torch.tensor([[0.9, 0.5], [1.0, 0.2]], dtype=torch.float64)
        lower = torch.tensor([[0.8, 0.3], [0.7, 0.0]], dtype=torch.float64)
        scale = 2.5

        def positive(x: float, t: float) -> float:
            return 1.5 * x - 0.4 * t

        def negative(x: float, t: float) -> float:
            return 0.2 * x + t

        def student(x: float, t: float) -> float:
            return math.sin(x) + t * t

        def average(x: float, t: float) -> float:
            return math.cos(x) - t

        def teacher(x: Tensor, t: Tensor) -> Tensor:
            t = per_frame(t)
            return guide(1.5 * x - 0.4 * t, 0.2 * x + t, scale)

        models = (lambda x, t: x.sin() + per_frame(t) ** 2, lambda x, t: x.cos() - per_frame(t), teacher)
        square = consistency_error(*models, x0, eps, levels, lower, "square")
        huber = consistency_error(*models, x0, eps, levels, lower)
        for sample in range(2):
            for frame in range(2):
                t, s = float(levels[sample, frame]), float(lower[sample, frame])
                total, count = 0.0, 0
                places = zip(x0[sample, :, frame].flatten(), eps[sample, :, frame].flatten(), strict=True)
                for clean, noise in ((float(a), float(b)) for a, b in places):
                    x_t = (1 - t) * clean + t * noise
                    # The other convention: E(y) + (s - 1) (E(y) - E(n)).
                    flow = positive(x_t, t) + (scale - 1) * (positive(x_t, t) - negative(x_t, t))
                    x_s = x_t - (t - s) * flow
                    total += (x_t - t * student(x_t, t) - (x_s - s * average(x_s, s))) ** 2
                    count += 1
                mean = total / count
                assert float(square[sample, frame]) == pytest.approx(mean, rel=1e-12)
                assert float(huber[sample, frame]) == pytest.approx(math.sqrt(mean + 0.00054**2) - 0.00054, rel=1e-12)

    def test_an_unknown_distance(self) -> None:
        x0, eps = clips()
        levels = torch.full((3, 6), 0.5, dtype=torch.float64)
        with pytest.raises(ConfigError, match="distance"):
            consistency_error(exact_flow, exact_flow, exact_flow, x0, eps, levels, levels, "cosine")  # type: ignore[arg-type]


class TestFlowMatching:
    def test_its_minimum_is_the_conditional_mean(self) -> None:
        """Two frames that hang together, each at its level: the exact expectation, by Gauss-Hermite quadrature.

        With z = (x0_1, x0_2, eps_1, eps_2) normal, the conditional mean of the flow is linear in x_t. Its matrix and
        offset, by the normal equations, must be where the gradient of the loss vanishes; elsewhere the loss is more.
        """
        nodes, weights = numpy.polynomial.hermite_e.hermegauss(3)  # exact for squares of what is linear
        axes = torch.tensor(nodes)
        z = torch.cartesian_prod(axes, axes, axes, axes)
        share = torch.cartesian_prod(*[torch.tensor(weights / math.sqrt(2 * math.pi))] * 4).prod(dim=1)
        assert float(share.sum()) == pytest.approx(1)
        root = torch.tensor([[0.8, 0.0], [0.5, 0.3]], dtype=torch.float64)
        mean = torch.tensor([0.3, -0.2], dtype=torch.float64)
        x0 = (mean + z[:, :2] @ root.T)[:, None, :, None, None]
        eps = z[:, 2:][:, None, :, None, None]
        level = torch.tensor([0.7, 0.2], dtype=torch.float64)
        alpha, sigma = torch.diag(1 - level), torch.diag(level)
        covariance = root @ root.T
        matrix = (sigma - covariance @ alpha) @ torch.linalg.inv(alpha @ covariance @ alpha + sigma @ sigma)
        offset = -mean - matrix @ alpha @ mean

        def loss(matrix: Tensor, offset: Tensor) -> Tensor:
            def predict(x_t: Tensor, levels: Tensor) -> Tensor:
                return torch.einsum("fg,bcghw->bcfhw", matrix, x_t) + offset[:, None, None]

            error = flow_matching_error(predict, x0, eps, level.expand(len(z), 2))
            return (share[:, None] * error).sum()

        parameters = (matrix.requires_grad_(), offset.requires_grad_())
        best = loss(*parameters)
        for gradient in torch.autograd.grad(best, parameters):
            torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-12, rtol=0)
        assert abs(float(matrix[1, 0].detach())) > 0.1, "the second frame should gain from the first"
        for seed in range(3):
            with torch.no_grad():
                moved = loss(matrix + 0.05 * normal(2, 2, seed=seed), offset + 0.05 * normal(2, seed=seed))
            assert float(moved) > float(best.detach())

    def test_every_frame_has_its_own_level_and_error(self) -> None:
        x0, eps = clips(frames=3)
        levels = torch.tensor([[0.0, 0.5, 1.0]] * 3, dtype=torch.float64)
        seen: list[Tensor] = []

        def predict(x_t: Tensor, given: Tensor) -> Tensor:
            assert given is levels
            seen.append(x_t)
            return torch.zeros_like(x_t)

        error = flow_matching_error(predict, x0, eps, levels)
        assert torch.equal(seen[0][:, :, 0], x0[:, :, 0])
        assert torch.equal(seen[0][:, :, 2], eps[:, :, 2])
        torch.testing.assert_close(seen[0][:, :, 1], 0.5 * (x0 + eps)[:, :, 1])
        torch.testing.assert_close(error, (eps - x0).square().mean(dim=(1, 3, 4)))


class TestSteps:
    def test_of_the_exact_flow_follow_its_path(self) -> None:
        """Of first order: half the step, half the error at the end."""
        x0, eps = clips()
        errors = []
        for steps in (200, 400):
            t = torch.full((3, 6), 0.9, dtype=torch.float64)
            x = start = noisy_clip(x0, eps, t)
            for step in range(steps):
                s = torch.full_like(t, 0.9 * (steps - 1 - step) / steps)
                x, t = euler_step(x, exact_flow(x, t), t, s), s
            errors.append(float((x - exact_end(start, torch.full_like(t, 0.9))).abs().max()))
        assert errors[1] < 0.01
        assert errors[0] / errors[1] == pytest.approx(2, rel=0.05)

    def test_the_clean_clip_of_the_true_flow(self) -> None:
        x0, eps = clips()
        levels = torch.rand(3, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        torch.testing.assert_close(clean_clip(noisy_clip(x0, eps, levels), eps - x0, levels), x0)


class TestLevels:
    def test_four_steps_are_those_of_the_papers(self) -> None:
        assert few_step_levels(4, 5.0) == pytest.approx([1, 0.9375, 0.8333, 0.625], abs=5e-5)
        assert few_step_levels(1, 3.0) == [1.0]
        assert few_step_levels(2, 1.0) == [1.0, 0.5]

    @given(st.integers(1, 9), st.integers(1, 5), st.floats(0.2, 10))
    def test_they_are_nodes_of_a_finer_grid(self, steps: int, finer: int, shift: float) -> None:
        grid = grid_levels(steps * finer, shift)
        assert few_step_levels(steps, shift) == pytest.approx(grid[::-finer][:steps])

    def test_nonsense(self) -> None:
        with pytest.raises(ConfigError, match="steps"):
            few_step_levels(0, 5.0)
        with pytest.raises(TeacherError, match="shift"):
            few_step_levels(4, 0.0)

    @given(st.integers(1, 5), st.integers(1, 17), st.integers(1, 4), st.integers(0, 9))
    def test_places_are_equal_inside_a_chunk_and_stratified_over_them(
        self, batch: int, frames: int, chunk: int, seed: int
    ) -> None:
        places = draw_positions(batch, frames, chunk, torch.Generator().manual_seed(seed))
        assert places.shape == (batch, frames)
        assert torch.equal(places, places[:, ::chunk].repeat_interleave(chunk, dim=1)[:, :frames])
        each = places[:, ::chunk].flatten()
        assert torch.equal((each.sort().values * len(each)).floor(), torch.arange(len(each), dtype=torch.float64))

    @given(st.integers(1, 40), st.floats(0.3, 8), st.integers(0, 9))
    def test_neighbours_are_neighbours(self, steps: int, shift: float, seed: int) -> None:
        places = draw_positions(4, 9, 3, torch.Generator().manual_seed(seed))
        levels, lower = draw_neighbours(places, steps, shift)
        grid = torch.tensor(grid_levels(steps, shift), dtype=torch.float64)
        above = (levels[..., None] - grid).abs().argmin(dim=-1)
        torch.testing.assert_close(levels, grid[above])
        torch.testing.assert_close(lower, grid[above - 1])
        assert torch.equal(above - 1, (places * steps).floor().long())
