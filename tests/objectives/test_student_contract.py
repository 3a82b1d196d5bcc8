"""What every objective of a student must keep, whatever its mathematics: on images, on clips and on streamed clips."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from closed_form import COSINE, FLOW, normal
from contract import generators
from student_closed_form import ExactDenoiser, ExactRatio, FixedContext, Trainable, context
from torch import Tensor

from dreamkit.diffusion.exact import Mixture
from dreamkit.diffusion.schedule import NoiseSchedule
from dreamkit.errors import TeacherError, TrainingError
from dreamkit.objectives import Matching, StudentLoss, student_objective_class, student_objective_names
from dreamkit.objectives.describe import describe
from dreamkit.objectives.matching import NEEDS

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = student_objective_names()
FRAME = (2, 2, 2)
SHAPES = {"image": (3, 2, 2, 2), "clip": (2, 2, 3, 2, 2), "stream": (2, 2, 5, 2, 2)}  # the last chunk of 5 is shorter
CHUNKS = {"image": 0, "clip": 0, "stream": 2}
MIXES = {"re-dmd", "f-distill", "uni-instruct"}  # weigh samples against one another


def mixture(seed: int) -> Mixture:
    means = 0.6 * normal(2, FRAME, seed)
    return Mixture(means, torch.tensor([0.2, 0.4]).double(), torch.tensor([0.3, 0.7]).double())


def samples(kind: str, seed: int = 3) -> Tensor:
    return normal(SHAPES[kind][0], SHAPES[kind][1:], seed)


def world(kind: str, seed: int = 0, schedule: NoiseSchedule = COSINE, prompt: int = 1) -> FixedContext:
    """A context in the middle of a run that lacks nothing."""
    x = samples(kind)
    teacher = ExactDenoiser(mixture(prompt), schedule, mixture(2))
    critic = Trainable(ExactDenoiser(mixture(4), schedule, mixture(5)))
    groups = (x.shape[0], x.shape[2]) if CHUNKS[kind] else (x.shape[0],)
    return context(
        teacher,
        critic,
        seed,
        schedule=schedule,
        chunk=CHUNKS[kind],
        step=40,
        discriminator=ExactRatio(mixture(1), mixture(4), schedule),
        reward=normal(1, groups, 6)[0],
        student_level=torch.full(groups, 0.75).double(),
        sample_level=torch.full(groups, 0.3).double(),
        student=Trainable(ExactDenoiser(mixture(7), schedule)),
        data=samples(kind, 8),
        path=(ExactDenoiser(mixture(9), schedule), ExactDenoiser(mixture(10), schedule)),
    )


def objective(name: str, **options: Any) -> Matching:
    """Away from the ends, where float32 has digits to lose; past any warm-up."""
    warm = {"warmup_steps": 20} if name in ("scm", "rcm") else {}
    return student_objective_class(name)(t_min=0.2, t_max=0.8, **warm, **options)


def tensors_of(given: FixedContext) -> list[Tensor]:
    values = [getattr(given, item.name) for item in dataclasses.fields(given)]
    return [value for value in values if isinstance(value, Tensor)]


def run(name: str, kind: str, x: Tensor | None = None, **changes: Any) -> StudentLoss:
    given = dataclasses.replace(world(kind), **changes)
    return objective(name)(samples(kind) if x is None else x, given)


each_name = pytest.mark.parametrize("name", NAMES)
each_kind = pytest.mark.parametrize("kind", SHAPES)


def test_these_are_the_objectives() -> None:
    assert set(NAMES) >= {
        "dmd", "swiftbrush", "decoupled-dmd", "re-dmd", "f-distill", "sid", "sim", "uni-instruct", "tdm", "phased-dmd",
        "scm", "rcm", "disback",
    }  # fmt: skip


@each_kind
@each_name
@pytest.mark.parametrize("schedule", [COSINE, FLOW], ids=["ddpm", "flow"])
def test_shape_dtype_and_finiteness(name: str, kind: str, schedule: NoiseSchedule) -> None:
    x = samples(kind)
    result = objective(name)(x.requires_grad_(), world(kind, schedule=schedule))
    for tensor in (result.grad, result.target):
        assert tensor.shape == x.shape
        assert tensor.dtype == x.dtype
        assert bool(torch.isfinite(tensor).all())
        assert not tensor.requires_grad
    assert float(result.grad.abs().max()) > 0
    assert result.loss.shape == ()
    assert all(isinstance(value, float) for value in result.diagnostics.values())


@each_kind
@each_name
def test_same_seed_same_bytes_and_nothing_changes(name: str, kind: str) -> None:
    x, given = samples(kind), world(kind)
    watched = [x, *tensors_of(given)]
    kept, before = [tensor.clone() for tensor in watched], generators()
    first = objective(name)(x, given)
    assert generators() == before
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(watched, kept, strict=True))
    again = objective(name)(x, world(kind))
    assert torch.equal(first.grad, again.grad)
    assert torch.equal(first.loss, again.loss)
    assert first.diagnostics == again.diagnostics
    other = objective(name)(x, world(kind, seed=1))
    assert not torch.equal(first.grad, other.grad)


@each_kind
@each_name
def test_the_gradient_is_that_of_the_loss_over_the_number_of_samples(name: str, kind: str) -> None:
    """And it reaches x, and the student where the objective says so, and nothing else."""
    x, given = samples(kind).requires_grad_(), world(kind)
    method = objective(name)
    result = method(x * 1.0, given)
    if name == "scm":
        assert x.grad is None
    result.loss.backward()
    if name == "scm":
        assert x.grad is None
    else:
        torch.testing.assert_close(x.grad, result.grad / len(x), rtol=1e-12, atol=1e-14)
    assert given.critic.factor.grad is None  # type: ignore[union-attr]
    assert (given.student.factor.grad is not None) == method.needs_student  # type: ignore[union-attr]


@each_name
def test_a_critic_that_is_trained_elsewhere_keeps_its_gradient(name: str) -> None:
    given = world("image")
    given.critic.factor.grad = torch.tensor(5.0).double()  # type: ignore[union-attr]
    objective(name)(samples("image").requires_grad_(), given).loss.backward()
    assert float(given.critic.factor.grad) == 5.0  # type: ignore[union-attr, arg-type]


@each_kind
@each_name
def test_float32_agrees_with_float64(name: str, kind: str) -> None:
    x = samples(kind)
    double, single = run(name, kind, x), run(name, kind, x.float(), data=samples(kind, 8).float())
    assert single.grad.dtype == torch.float32
    torch.testing.assert_close(single.grad.double(), double.grad, rtol=2e-3, atol=1e-4 * float(double.grad.abs().max()))


@each_name
def test_half_precision_is_computed_in_float32(name: str) -> None:
    x = samples("image").half().requires_grad_()
    result = run(name, "image", x, data=samples("image", 8).half())
    assert result.grad.dtype == result.target.dtype == torch.float16
    assert result.loss.dtype == torch.float32
    exact = run(name, "image", x.detach().float(), data=samples("image", 8).half().float())
    torch.testing.assert_close(result.grad.float(), exact.grad, rtol=2e-3, atol=2e-3 * float(exact.grad.abs().max()))


@each_kind
@pytest.mark.parametrize("name", [name for name in NAMES if name not in MIXES])
def test_samples_do_not_see_one_another(name: str, kind: str) -> None:
    x, data = samples(kind), samples(kind, 8)
    changed, other = x.clone(), data.clone()
    changed[-1] += 0.5
    other[-1] += 0.5
    one, two = run(name, kind, x).grad, run(name, kind, changed, data=other).grad
    torch.testing.assert_close(one[:-1], two[:-1], rtol=1e-10, atol=1e-12)
    assert not torch.allclose(one[-1], two[-1])


@each_name
def test_the_prompt_matters(name: str) -> None:
    teacher = ExactDenoiser(mixture(11), COSINE, mixture(2))
    # At this point of the run DisBack's teacher is one of the path.
    assert not torch.equal(run(name, "image").grad, run(name, "image", teacher=teacher, path=(teacher,)).grad)


@each_name
@pytest.mark.parametrize("part", NEEDS)
def test_what_it_needs_is_asked_for(name: str, part: str) -> None:
    lacking = dataclasses.replace(world("image"), **{part: () if part == "path" else None})
    method = objective(name)
    if getattr(method, f"needs_{part}"):
        for attempt in (lambda: method.check(lacking), lambda: method(samples("image"), lacking)):
            with pytest.raises(TeacherError, match=name) as caught:
                attempt()
            assert caught.value.hint
    else:
        method.check(lacking)


NOT_FINITE: dict[str, Callable[[FixedContext], dict[str, Any]]] = {
    "teacher": lambda _: {"teacher": Broken(), "path": (Broken(),)},
    "critic": lambda _: {"critic": Broken()},
    "student": lambda _: {"student": Broken()},
    "reward": lambda given: {"reward": given.reward * float("nan")},  # type: ignore[operator]
    "discriminator": lambda _: {"discriminator": lambda x_t, levels: x_t.flatten(1).sum(dim=1) * float("inf")},
}


class Broken:
    """A network that has come apart."""

    def predict(self, x_t: Tensor, levels: Tensor) -> Tensor:
        return x_t * float("nan")

    def pair(self, x_t: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
        return self.predict(x_t, levels), self.predict(x_t, levels)


@each_name
@pytest.mark.parametrize("part", NOT_FINITE)
def test_what_is_not_finite_is_named(name: str, part: str) -> None:
    given = world("image")
    broken = dataclasses.replace(given, **NOT_FINITE[part](given))
    uses = part == "teacher" or getattr(objective(name), f"needs_{part}")
    if uses:
        with pytest.raises(TrainingError, match=f"{part}.*step 40"):
            objective(name)(samples("image"), broken)
    else:
        objective(name)(samples("image"), broken)


@each_name
def test_bad_samples(name: str) -> None:
    given = world("image")
    with pytest.raises(TeacherError, match=r"\[B, C, h, w\]"):
        objective(name)(torch.zeros(2, 2, 2).double(), given)
    with pytest.raises(TeacherError, match="not \\(0,"):
        objective(name)(torch.zeros(0, 2, 2, 2).double(), given)
    with pytest.raises(TeacherError, match="Chunks of 2"):
        objective(name)(samples("image"), dataclasses.replace(given, chunk=2))
    with pytest.raises(TeacherError, match="data has shape"):
        objective(name)(samples("image"), dataclasses.replace(given, data=torch.zeros(1, 2, 2, 2)))


@each_kind
@each_name
def test_the_critic_learns_and_nobody_else(name: str, kind: str) -> None:
    x, given = samples(kind).requires_grad_(), world(kind)
    loss = objective(name).critic_loss(x, given)
    loss.backward()
    assert loss.shape == ()
    assert loss.item() > 0
    assert x.grad is None
    assert given.critic.factor.grad is not None  # type: ignore[union-attr]
    assert float(given.critic.factor.grad.abs()) > 0  # type: ignore[union-attr]
    again = objective(name).critic_loss(x, world(kind))
    assert torch.equal(loss, again)


@each_name
def test_it_is_documented_data(name: str) -> None:
    kind = student_objective_class(name)
    assert kind.name == name
    assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert "arXiv" in (kind.__doc__ or "")
    about = describe(kind)
    assert not [option for option, (_, text) in about["options"].items() if not text]
    assert "\n" not in "".join(text for _, text in about["options"].values())
    assert ("critic" in about["needs"]) == kind.needs_critic
