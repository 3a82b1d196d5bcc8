"""What every registered objective must keep, whatever its mathematics: run on a tiny teacher of each kind."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dreamkit.diffusion.loading import load_teacher
from dreamkit.diffusion.teacher import Teacher
from dreamkit.objectives import Objective, ObjectiveContext, objective_class, objective_names

KINDS = ("toyworld", "sd15", "sd21")
BATCH = 3


@pytest.fixture(scope="module")
def teachers(checkpoint: Callable[[str], Path]) -> dict[str, Teacher]:
    """One tiny teacher of each kind."""
    return {kind: load_teacher(str(checkpoint(kind)), "cpu") for kind in KINDS}


@pytest.fixture(params=KINDS)
def teacher(request: pytest.FixtureRequest, teachers: dict[str, Teacher]) -> Teacher:
    return teachers[request.param]


@pytest.fixture(params=objective_names())
def objective(request: pytest.FixtureRequest) -> Objective:
    return objective_class(request.param)()


def context(teacher: Teacher, seed: int = 0, step: int = 3) -> ObjectiveContext:
    return ObjectiveContext(
        teacher=teacher,
        positive=teacher.encode_prompt(["a red mug, front view", "a red mug, side view", "a red mug"]),
        negative=teacher.null_condition(1),
        camera=torch.randn(BATCH, 12, generator=torch.Generator().manual_seed(1)) if teacher.supports_camera else None,
        step=step,
        total=10,
        generator=torch.Generator().manual_seed(seed),
    )


def samples(teacher: Teacher, seed: int = 5) -> Tensor:
    return torch.randn(BATCH, *teacher.sample_shape, generator=torch.Generator().manual_seed(seed)).clamp(-1, 1)


def test_shape_dtype_and_finiteness(objective: Objective, teacher: Teacher) -> None:
    x = samples(teacher)
    result = objective(x, context(teacher))
    for tensor in (result.grad, result.target):
        assert tensor.shape == x.shape
        assert tensor.dtype == x.dtype
        assert bool(torch.isfinite(tensor).all())
    assert float(result.grad.abs().max()) > 0
    assert all(isinstance(value, float) for value in result.diagnostics.values())


def test_same_seed_same_bytes(objective: Objective, teacher: Teacher) -> None:
    x = samples(teacher)
    one, two, other = (objective(x, context(teacher, seed)).grad for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_it_leaves_the_global_generator_alone(objective: Objective, teacher: Teacher) -> None:
    before = torch.random.get_rng_state()
    objective(samples(teacher), context(teacher))
    assert torch.equal(before, torch.random.get_rng_state())


def test_no_graph_and_no_gradient_in_the_teacher(objective: Objective, teacher: Teacher) -> None:
    x = samples(teacher).requires_grad_()
    result = objective(x * 1.0, context(teacher))
    assert not result.grad.requires_grad
    assert not result.target.requires_grad
    assert x.grad is None
    assert all(p.grad is None and not p.requires_grad for p in teacher.network.parameters())


def test_it_changes_neither_x_nor_the_conditions(objective: Objective, teacher: Teacher) -> None:
    x, given = samples(teacher), context(teacher)
    kept = x.clone(), given.positive.embeddings.clone()
    objective(x, given)
    assert torch.equal(x, kept[0])
    assert torch.equal(given.positive.embeddings, kept[1])


def test_rows_do_not_see_one_another(objective: Objective, teacher: Teacher) -> None:
    """Another picture in the last view leaves the gradients of the other views as they were."""
    x = samples(teacher)
    changed = torch.cat([x[:-1], samples(teacher, seed=9)[-1:]])
    one, two = (objective(item, context(teacher)).grad for item in (x, changed))
    # A batched matrix product may round rows differently, no more.
    torch.testing.assert_close(one[:-1], two[:-1], rtol=1e-4, atol=1e-5 * float(one.abs().max()))
    assert not torch.allclose(one[-1], two[-1])


def test_one_view_is_a_batch_too(objective: Objective, teacher: Teacher) -> None:
    given = context(teacher)
    camera = None if given.camera is None else given.camera[:1]
    result = objective(samples(teacher)[:1], dataclasses.replace(given, positive=given.positive[0], camera=camera))
    assert result.grad.shape == (1, *teacher.sample_shape)


def test_the_prompt_matters(objective: Objective, teacher: Teacher) -> None:
    given = context(teacher)
    other = dataclasses.replace(
        given,
        positive=teacher.encode_prompt(["a blue cube on the table"] * BATCH),
        generator=torch.Generator().manual_seed(0),
    )
    x = samples(teacher)
    assert not torch.equal(objective(x, given).grad, objective(x, other).grad)


def test_its_options_are_documented(objective: Objective) -> None:
    assert dataclasses.is_dataclass(objective)
    assert "arXiv" in (type(objective).__doc__ or "")
