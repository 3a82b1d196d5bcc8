"""sCM and rCM: TrigFlow on any schedule, the tangent against differences, and the function that is consistent."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from closed_form import COSINE, FLOW, gaussian, normal
from student_closed_form import PIXEL, ExactDenoiser, FixedContext, Trainable, context, made, modes, numbers
from torch import Tensor

from dreamkit.config import Schedule
from dreamkit.diffusion.schedule import NoiseSchedule
from dreamkit.errors import ConfigError
from dreamkit.objectives import student_objective_class
from dreamkit.objectives.score_consistency import (
    ScoreConsistency,
    angle,
    angle_rate,
    student_velocity,
    trig_parts,
    velocity,
)

pytestmark = pytest.mark.usefixtures("one_thread")

MU, V = 0.4, 0.3
schedules = pytest.mark.parametrize("schedule", [COSINE, FLOW], ids=["ddpm", "flow"])


class ExactStudent:
    """Where the teacher's path from x_t ends: for Gaussian data mu + sqrt(v / (cos^2 v + sin^2)) (z - cos mu)."""

    def __init__(self, schedule: NoiseSchedule, wrong: float = 0.0) -> None:
        self.schedule, self.wrong = schedule, wrong

    def predict(self, x_t: Tensor, levels: Tensor) -> Tensor:
        cos, sin, size = trig_parts(self.schedule, levels, x_t)
        there = MU + (V / (cos**2 * V + sin**2)).sqrt() * (x_t / size - cos * MU)
        return there + self.wrong * sin * x_t.square()

    def pair(self, x_t: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
        return self.predict(x_t, levels), self.predict(x_t, levels)


def world(schedule: NoiseSchedule, student: Any = None, step: int = 50, **more: Any) -> FixedContext:
    teacher = ExactDenoiser(gaussian(MU, V, PIXEL), schedule)
    return context(teacher, student=student or ExactStudent(schedule), schedule=schedule, step=step, **more)


def method(**options: Any) -> ScoreConsistency:
    kind = student_objective_class("scm")
    made = kind(**{"guidance": Schedule.constant(1.0), "warmup_steps": 0, "derivative": "jvp", **options})
    assert isinstance(made, ScoreConsistency)
    return made


def state(schedule: NoiseSchedule, count: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """z, levels away from the nodes of a schedule in steps, and the teacher's velocity."""
    levels = torch.linspace(0.05, 0.95, count, dtype=torch.float64) + 0.0003
    z = numbers(normal(count, (), 3))
    size = trig_parts(schedule, levels, z)[2]
    return z, levels, velocity(world(schedule).teacher.predict(size * z, levels), z, levels, schedule)


# TrigFlow -------------------------------------------------------------------------------------------------------------


@schedules
def test_noisy_samples_are_on_the_circle(schedule: NoiseSchedule) -> None:
    """Z = cos x0 + sin e, V of the truth is cos e - sin x0, and cos z - sin V is x0 again."""
    levels = torch.linspace(0.02, 0.98, 9, dtype=torch.float64)
    x0, e = numbers(normal(9, (), 1)), numbers(normal(9, (), 2))
    cos, sin, size = trig_parts(schedule, levels, x0)
    z = schedule.add_noise(x0, e, levels) / size
    torch.testing.assert_close(z, cos * x0 + sin * e, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(cos.square() + sin.square(), torch.ones_like(cos), rtol=1e-12, atol=0)
    v = velocity(x0, z, levels, schedule)
    torch.testing.assert_close(v, cos * e - sin * x0, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(cos * z - sin * v, x0, rtol=1e-9, atol=1e-11)
    theta = angle(schedule, levels)
    torch.testing.assert_close(theta.cos(), cos.flatten(), rtol=1e-10, atol=1e-12)


@schedules
def test_the_angle_rises_from_nothing_to_a_right_one_at_its_rate(schedule: NoiseSchedule) -> None:
    ends = angle(schedule, torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert float(ends[0]) == pytest.approx(0.0, abs=1e-9)
    assert float(ends[1]) == pytest.approx(math.pi / 2, abs=0.01)
    levels = torch.linspace(0.0503, 0.9503, 12, dtype=torch.float64)
    h = 1e-6
    slope = (angle(schedule, levels + h) - angle(schedule, levels - h)) / (2 * h)
    torch.testing.assert_close(angle_rate(schedule, levels), slope, rtol=1e-6, atol=1e-8)


@schedules
def test_the_teachers_velocity_is_its_path(schedule: NoiseSchedule) -> None:
    """dz / dtheta: z on a path keeps its place in the Gaussian N(cos mu, cos^2 v + sin^2)."""
    z, levels, teacher = state(schedule)
    cos, sin, _ = trig_parts(schedule, levels, z)
    spread = cos**2 * V + sin**2
    # d/dtheta of cos mu + sqrt(spread) k with k fixed.
    expected = -sin * MU + cos * sin * (1 - V) / spread * (z - cos * MU)
    torch.testing.assert_close(teacher, expected, rtol=1e-8, atol=1e-10)


# The tangent ----------------------------------------------------------------------------------------------------------


@schedules
@pytest.mark.parametrize("r", [0.0, 0.3, 1.0])
def test_the_tangent_is_the_derivative_along_the_path(r: float, schedule: NoiseSchedule) -> None:
    """By differences of theta: the student is asked at the level that an angle has, found by bisection."""
    student = ExactDenoiser(modes([-0.8, 0.9], 0.4), schedule)
    z, levels, teacher = state(schedule, 8)
    given = world(schedule, student, step=round(100 * r))
    own = student_velocity(student, z, levels, schedule)
    got, exact = method(warmup_steps=100).tangent(own, teacher, z, levels, given)
    assert exact
    theta, h = angle(schedule, levels), 1e-4

    def level_of(angles: Tensor) -> Tensor:
        low, high = torch.zeros_like(angles), torch.ones_like(angles)
        for _ in range(60):
            middle = (low + high) / 2
            below = angle(schedule, middle) < angles
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return low

    ends = [student_velocity(student, z + d * teacher, level_of(theta + d), schedule) for d in (h, -h)]
    slope = (ends[0] - ends[1]) / (2 * h)
    cos, sin, _ = trig_parts(schedule, levels, z)
    flat = cos * (1 - (r * sin) ** 2).sqrt() * (own - teacher)
    expected = -flat - r * cos * sin * (z + slope)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    rough, exact = method(warmup_steps=100, derivative="difference").tangent(own, teacher, z, levels, given)
    assert not exact
    torch.testing.assert_close(rough, got, rtol=1e-3, atol=1e-4)


@schedules
def test_at_full_warm_up_it_is_the_change_of_the_end(schedule: NoiseSchedule) -> None:
    """G = cos df / dtheta, f = cos z - sin V: what sCM's formula abbreviates."""
    student = ExactDenoiser(modes([-0.8, 0.9], 0.4), schedule)
    z, levels, teacher = state(schedule, 8)
    own = student_velocity(student, z, levels, schedule)
    got, _ = method().tangent(own, teacher, z, levels, world(schedule, student))
    h = 1e-6
    rate = angle_rate(schedule, levels)

    def end(d: float) -> Tensor:
        at = levels + d / rate
        size = trig_parts(schedule, at, z)[2]
        return student.predict(size * (z + d * teacher), at)

    cos, _, _ = trig_parts(schedule, levels, z)
    torch.testing.assert_close(got, cos * (end(h) - end(-h)) / (2 * h), rtol=1e-5, atol=1e-7)


@schedules
@pytest.mark.parametrize("derivative", ["jvp", "difference"])
def test_the_consistent_function_has_no_tangent(derivative: str, schedule: NoiseSchedule) -> None:
    """For Gaussian data it is known: nothing moves it. A wrong one is moved, and so is the right one at the start of a
    warm-up, where the student is to be the teacher itself."""
    z, levels, teacher = state(schedule)
    given = world(schedule)
    own = student_velocity(given.student, z, levels, schedule)  # type: ignore[arg-type]
    limit = 1e-8 if derivative == "jvp" else 1e-4
    assert float(method(derivative=derivative).tangent(own, teacher, z, levels, given)[0].abs().max()) < limit
    early = method(derivative=derivative, warmup_steps=100).tangent(own, teacher, z, levels, given)[0]
    assert float(early.abs().max()) > 0.05
    wrong = ExactStudent(schedule, 0.3)
    own = student_velocity(wrong, z, levels, schedule)
    assert float(method().tangent(own, teacher, z, levels, world(schedule, wrong))[0].abs().max()) > 0.05


@schedules
def test_the_whole_loss_is_still_at_the_fixed_point(schedule: NoiseSchedule) -> None:
    """At levels that are drawn; and the teacher is the fixed point where the warm-up starts."""
    data = numbers(MU + V**0.5 * normal(64, (), 4))
    assert float(method()(data, world(schedule)).grad.abs().max()) < 1e-6
    teacher = world(schedule).teacher
    assert float(method(warmup_steps=10)(data, world(schedule, teacher, step=0)).grad.abs().max()) < 1e-9
    assert float(method()(data, world(schedule, teacher)).grad.abs().max()) > 0.1


def test_the_gradient_is_the_tangent_of_bounded_length() -> None:
    """-g / (||g|| + 0.1) with respect to the student's velocity, a sample or a chunk; and the loss has it."""
    student = Trainable(ExactDenoiser(modes([-0.8, 0.9], 0.4)))
    given = world(COSINE, student)
    x = normal(4, (1, 2, 2), 5)
    teacher = ExactDenoiser(gaussian(MU, V, (1, 2, 2)))
    result = method(t_min=0.4, t_max=0.4)(
        x, dataclasses.replace(given, teacher=teacher, student=Trainable(ExactDenoiser(gaussian(0.1, 0.2, (1, 2, 2)))))
    )
    norm = result.grad.flatten(1).norm(dim=1)
    assert bool((norm < 1).all())
    assert result.diagnostics["tangent_norm"] > 0
    assert result.diagnostics["jvp"] == 1.0
    clip = x[:, :, None].expand(-1, -1, 4, -1, -1) * torch.tensor([1.0, 1.0, 0.2, 0.2])[:, None, None].double()
    streamed = method(t_min=0.4, t_max=0.4)(
        clip, dataclasses.replace(given, teacher=teacher, student=ExactDenoiser(gaussian(0.1, 0.2, (1, 2, 2))), chunk=2)
    )
    chunks = streamed.grad.unflatten(2, (2, 2)).square().sum(dim=(1, 3, 4, 5)).sqrt()
    assert bool(((chunks > 0.2) & (chunks < 1)).all())


class Clamped(torch.nn.Module):
    """f = cos z - w sin V of the consistent function: at the clean end it is z, whatever w; consistent for w = 1."""

    def __init__(self, w: float) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(w, dtype=torch.float64))

    def predict(self, x_t: Tensor, levels: Tensor) -> Tensor:
        cos, _, size = trig_parts(COSINE, levels, x_t)
        z = x_t / size
        return cos * z - self.w * (cos * z - ExactStudent(COSINE).predict(x_t, levels))

    def pair(self, x_t: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
        return self.predict(x_t, levels), self.predict(x_t, levels)


@pytest.mark.parametrize("start", [0.5, 1.4])
def test_descent_makes_a_student_consistent(start: float) -> None:
    """A student of the right form follows the loss's own gradient to the right weight."""
    student = Clamped(start)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    for step in range(120):
        data = numbers(MU + V**0.5 * normal(16, (), 100 + step))
        optimizer.zero_grad()
        method(t_max=0.9)(data, world(COSINE, student, seed=step)).loss.backward()
        optimizer.step()
    assert float(student.w.detach()) == pytest.approx(1.0, abs=0.02)


class NoForwardMode(torch.autograd.Function):
    """Like an attention kernel: a backward and no forward derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class Fused(ExactDenoiser):
    def predict(self, x_t: Tensor, levels: Tensor) -> Tensor:
        return NoForwardMode.apply(super().predict(x_t, levels))  # type: ignore[no-any-return, no-untyped-call]


def test_a_network_without_forward_mode_gets_differences() -> None:
    """Said in the log; and refused where jvp is asked for."""
    data = numbers(MU + V**0.5 * normal(8, (), 4))
    mixture = modes([-0.8, 0.9], 0.4)
    exact = method(derivative="auto")(data, world(COSINE, ExactDenoiser(mixture)))
    rough = method(derivative="auto")(data, world(COSINE, Fused(mixture)))
    assert (exact.diagnostics["jvp"], rough.diagnostics["jvp"]) == (1.0, 0.0)
    torch.testing.assert_close(rough.grad, exact.grad, rtol=1e-2, atol=1e-3)
    with pytest.raises(ConfigError, match="difference"):
        method()(data, world(COSINE, Fused(mixture)))


def test_a_network_with_attention_has_a_forward_derivative(tiny_teacher: Any) -> None:
    """The embedded teacher's kind; its differences come near it."""
    teacher = tiny_teacher("toyworld")
    prompt, empty = teacher.encode_prompt(["a red mug"]), teacher.null_condition(1)

    class Bound:
        def predict(self, x_t: Tensor, levels: Tensor) -> Tensor:
            return teacher.predict(x_t, levels, prompt, differentiable=True).x0

        def pair(self, x_t: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
            both = teacher.predict_guided(x_t, levels, prompt, empty, 1.0)
            return both.positive.x0, both.negative.x0

    x = normal(2, teacher.sample_shape, 1).float()
    results = {}
    for derivative in ("jvp", "difference"):
        given = context(Bound(), student=Bound(), schedule=teacher.schedule)
        results[derivative] = method(derivative=derivative, guidance=Schedule.constant(3.0))(x, given)
    exact, rough = results["jvp"], results["difference"]
    assert exact.diagnostics["jvp"] == 1.0
    torch.testing.assert_close(rough.grad, exact.grad, rtol=0.05, atol=0.05 * float(exact.grad.abs().max()))


def test_guidance_is_in_the_path() -> None:
    teacher = ExactDenoiser(gaussian(MU, V, PIXEL), COSINE, gaussian(-0.2, V, PIXEL))
    guided = ExactDenoiser(gaussian(-0.2 + 3 * (MU + 0.2), V, PIXEL))
    data = numbers(normal(8, (), 4))
    student = ExactDenoiser(modes([-0.8, 0.9], 0.4))
    one = method(guidance=Schedule.constant(3.0))(data, context(teacher, student=student, step=50))
    two = method()(data, context(guided, student=student, step=50))
    torch.testing.assert_close(one.grad, two.grad, rtol=1e-8, atol=1e-10)


def test_warm_up() -> None:
    assert [method(warmup_steps=100).warmup(world(COSINE, step=step)) for step in (0, 25, 100, 5000)] == [0, 0.25, 1, 1]
    assert method().warmup(world(COSINE, step=0)) == 1.0


# rCM ------------------------------------------------------------------------------------------------------------------


def test_rcm_is_scm_and_a_little_dmd() -> None:
    """The same draws in turn; the student's weights get the one, x the other, and nothing before the warm-up ends."""
    teacher = ExactDenoiser(gaussian(MU, V, PIXEL), COSINE, gaussian(-0.2, V, PIXEL))
    critic, data = ExactDenoiser(made(-0.3, 0.5)), numbers(normal(8, (), 4))
    guidance = Schedule.constant(2.0)
    rcm = student_objective_class("rcm")(guidance=guidance, warmup_steps=10, dmd_weight=0.25)
    parts = [
        student_objective_class("scm")(guidance=guidance, warmup_steps=10),
        student_objective_class("dmd")(guidance=guidance),
    ]

    def given(step: int) -> FixedContext:
        student = Trainable(ExactDenoiser(modes([-0.8, 0.9], 0.4)))
        return context(teacher, critic, student=student, step=step, data=data)

    x, both = numbers(normal(8, (), 6)).requires_grad_(), given(10)
    result = rcm(x, both)
    result.loss.backward()
    alone = given(10)
    steady = parts[0](x.detach(), alone)
    steady.loss.backward()
    sharp = parts[1](x.detach(), alone)
    assert result.loss.item() == pytest.approx(steady.loss.item() + 0.25 * sharp.loss.item())
    torch.testing.assert_close(x.grad, 0.25 * sharp.grad / 8, rtol=1e-12, atol=0)
    torch.testing.assert_close(both.student.factor.grad, alone.student.factor.grad, rtol=1e-12, atol=0)  # type: ignore[union-attr]
    early = rcm(x, given(9))
    assert float(early.grad.abs().max()) == 0
    assert "dmd/t" in result.diagnostics
    assert "dmd/t" not in early.diagnostics


@pytest.mark.parametrize(
    "options",
    [
        {"derivative": "magic"},
        {"difference_step": 0.0},
        {"difference_step": 1.0},
        {"warmup_steps": -1},
        {"warmup_steps": 1.5},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["scm", "rcm"])
def test_bad_options(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        student_objective_class(name)(**options)
    assert caught.value.hint


def test_bad_weight_of_dmd() -> None:
    with pytest.raises(ConfigError, match="dmd_weight"):
        student_objective_class("rcm")(dmd_weight=-1.0)
