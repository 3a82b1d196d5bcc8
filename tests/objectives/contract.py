"""What every objective must keep, whatever its mathematics: for those of this package, and for yours.

    from contract import Case, ObjectiveContract

    def test_my_objective_keeps_the_contract():
        ObjectiveContract(MyObjective(), Case(teacher)).check()

A `Case` is a teacher with prompts, cameras, samples and (for methods that need them) a critic and a source.
"""

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dreamkit.config import Schedule
from dreamkit.diffusion.condition import Condition
from dreamkit.diffusion.critic import Critic
from dreamkit.diffusion.guidance import Repulsion
from dreamkit.diffusion.teacher import Teacher
from dreamkit.errors import TeacherError
from dreamkit.objectives import Gradient, Objective, ObjectiveContext, Source, TimestepSchedule
from dreamkit.objectives.describe import describe


@dataclass
class Case:
    """What an objective is tried on.

    Args:
        teacher: any teacher.
        critic: for methods that need one.
        prompts: one for each row.
        other: a prompt that means something else.
        source: the prompt that describes the source of an edit.
    """

    teacher: Teacher
    critic: Critic | None = None
    prompts: Sequence[str] = ("a red mug, front view", "a red mug, side view", "a red mug")
    other: str = "a blue cube on the table"
    source: str = "a blue cube"

    def samples(self, seed: int = 5, rows: int | None = None) -> Tensor:
        """Clean samples, [rows, C, h, w] in [-1, 1]."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(len(self.prompts), *self.teacher.sample_shape, generator=generator).clamp(-1, 1)[:rows]

    def context(self, seed: int = 0, rows: int | None = None, prompts: Sequence[str] | None = None) -> ObjectiveContext:
        """A context in the middle of a run, for the first `rows` samples."""
        texts = list(prompts or self.prompts)[:rows]
        poses = torch.randn(len(texts), 12, generator=torch.Generator().manual_seed(1))
        null = self.teacher.null_condition(1)
        return ObjectiveContext(
            teacher=self.teacher,
            positive=self.teacher.encode_prompt(texts),
            negative=null,
            null=null,
            camera=poses if self.teacher.supports_camera else None,
            step=3,
            total=10,
            generator=torch.Generator().manual_seed(seed),
            pose=poses,
            critic=self.critic,
            source=Source(self.samples(8, len(texts)), self.teacher.encode_prompt([self.source])),
            seed=11,
        )


class ObjectiveContract:
    """An objective on a case; `check` raises what it breaks.

    Args:
        objective: an instance.
        case: what it is tried on.
        deterministic: whether it draws nothing but the noise level; `None` where that is not known.
    """

    CHECKS = (
        "shape_dtype_and_finiteness",
        "same_seed_same_bytes",
        "chance_only_where_it_is_meant",
        "global_generators_are_left_alone",
        "nothing_it_is_given_changes",
        "no_graph_and_no_gradient",
        "rows_do_not_see_one_another",
        "one_view_is_a_batch_too",
        "the_prompt_matters",
        "a_negative_prompt_is_one_row_or_many",
        "other_views_push",
        "what_it_needs_is_asked_for",
        "it_is_documented_data",
    )

    def __init__(self, objective: Objective, case: Case, deterministic: bool | None = None) -> None:
        self.objective = objective
        self.case = case
        self.deterministic = deterministic

    def check(self) -> None:
        """Everything."""
        for name in self.CHECKS:
            getattr(self, name)()

    @cached_property
    def base(self) -> Gradient:
        """The gradient that the checks compare with."""
        return self.objective(self.case.samples(), self.case.context())

    @cached_property
    def again(self) -> tuple[Gradient, bool, bool]:
        """A second gradient on the same; whether the global generators, and all that was given, stayed as they were."""
        x, given = self.case.samples(), self.case.context()
        watched = [x, *tensors_of(given), *weights_of(self.case)]
        kept = [tensor.detach().clone() for tensor in watched]
        before = generators()
        gradient = self.objective(x, given)
        untouched = all(torch.equal(tensor, copy) for tensor, copy in zip(watched, kept, strict=True))
        return gradient, generators() == before, untouched

    def shape_dtype_and_finiteness(self) -> None:
        """Gradient and target are finite and shaped like x; the numbers for the log are floats."""
        x, result = self.case.samples(), self.base
        for tensor in (result.grad, result.target):
            assert tensor.shape == x.shape
            assert tensor.dtype == x.dtype
            assert bool(torch.isfinite(tensor).all())
        assert float(result.grad.abs().max()) > 0
        assert all(isinstance(value, float) for value in result.diagnostics.values())

    def same_seed_same_bytes(self) -> None:
        """All chance comes from the context's generator and the run's seed."""
        again, _, _ = self.again
        assert torch.equal(self.base.grad, again.grad)
        assert torch.equal(self.base.target, again.target)
        assert self.base.diagnostics == again.diagnostics

    def chance_only_where_it_is_meant(self) -> None:
        """A deterministic method does the same for every seed once the level is given; another one does not."""
        if self.deterministic is None:
            return
        level = TimestepSchedule(Schedule.constant(0.5), Schedule.constant(0.0))
        fixed = dataclasses.replace(self.objective, timesteps=level)  # type: ignore[type-var]
        one, two = (fixed(self.case.samples(), self.case.context(seed)).grad for seed in (0, 1))
        assert torch.equal(one, two) == self.deterministic

    def global_generators_are_left_alone(self) -> None:
        """Neither torch's, nor numpy's, nor Python's draws a number."""
        _, left_alone, _ = self.again
        assert left_alone

    def nothing_it_is_given_changes(self) -> None:
        """X, conditions, cameras, source, and the weights of teacher and critic stay as they were."""
        _, _, untouched = self.again
        assert untouched

    def no_graph_and_no_gradient(self) -> None:
        """The gradient is detached, and nothing flows into x or into a network."""
        x = self.case.samples().requires_grad_()
        result = self.objective(x * 1.0, self.case.context())
        assert not result.grad.requires_grad
        assert not result.target.requires_grad
        assert x.grad is None
        assert all(weight.grad is None for weight in weights_of(self.case))
        network = getattr(self.case.teacher, "network", None)
        assert network is None or not any(weight.requires_grad for weight in network.parameters())

    def rows_do_not_see_one_another(self) -> None:
        """Another picture in the last view leaves the gradients of the other views as they were."""
        x = self.case.samples()
        changed = torch.cat([x[:-1], self.case.samples(9)[-1:]])
        one, two = self.base.grad, self.objective(changed, self.case.context()).grad
        # A batched matrix product may round rows differently, no more.
        torch.testing.assert_close(one[:-1], two[:-1], rtol=1e-4, atol=1e-5 * float(one.abs().max()))
        assert not torch.allclose(one[-1], two[-1])

    def one_view_is_a_batch_too(self) -> None:
        """A batch of one."""
        x = self.case.samples(rows=1)
        result = self.objective(x, self.case.context(rows=1))
        assert result.grad.shape == x.shape
        assert bool(torch.isfinite(result.grad).all())

    def the_prompt_matters(self) -> None:
        """Another prompt, another gradient."""
        other = self.case.context(prompts=[self.case.other] * len(self.case.prompts))
        assert not torch.equal(self.base.grad, self.objective(self.case.samples(), other).grad)

    def a_negative_prompt_is_one_row_or_many(self) -> None:
        """One for all views, or one for each."""
        given, teacher = self.case.context(), self.case.teacher
        many = teacher.encode_prompt([self.case.source] * len(self.case.prompts))
        grads = []
        for negative in (teacher.encode_prompt([self.case.source]), many):
            fresh = dataclasses.replace(given, negative=negative, generator=torch.Generator().manual_seed(0))
            grads.append(self.objective(self.case.samples(), fresh).grad)
        torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-5 * float(grads[0].abs().max()))

    def other_views_push(self) -> None:
        """Perp-Neg's repulsion is not passed over in silence; with weights of 0 it is none."""
        conditions = [self.case.teacher.encode_prompt([self.case.other] * len(self.case.prompts))]
        grads = []
        for strength in (0.0, 2.0):
            repulsion = Repulsion(conditions, torch.full((1, len(self.case.prompts)), strength))
            pushed = dataclasses.replace(self.case.context(), repulsion=repulsion)
            grads.append(self.objective(self.case.samples(), pushed).grad)
        tolerance = 1e-5 * float(self.base.grad.abs().max())
        torch.testing.assert_close(grads[0], self.base.grad, rtol=1e-4, atol=tolerance)
        assert float((grads[1] - grads[0]).abs().max()) > tolerance

    def what_it_needs_is_asked_for(self) -> None:
        """A context that lacks a critic or a source is refused by name, before and at the first step."""
        lacking = dataclasses.replace(self.case.context(), critic=None, source=None)
        if self.objective.needs_critic or self.objective.needs_source:
            with pytest.raises(TeacherError, match=self.objective.name):
                self.objective.check(lacking)
            with pytest.raises(TeacherError, match=self.objective.name):
                self.objective(self.case.samples(), lacking)
        else:
            self.objective.check(lacking)

    def it_is_documented_data(self) -> None:
        """A frozen dataclass with its paper in its docstring and a docstring behind every option."""
        kind = type(self.objective)
        assert dataclasses.is_dataclass(kind)
        assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
        assert "arXiv" in (kind.__doc__ or "")
        undocumented = [name for name, (_, text) in describe(kind)["options"].items() if not text]
        assert not undocumented


def generators() -> tuple[Any, ...]:
    """The states of torch's, numpy's and Python's global generators."""
    _, keys, *rest = np.random.get_state()
    return torch.random.get_rng_state().numpy().tobytes(), keys.tobytes(), *rest, random.getstate()


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors that a context holds, conditions and source included."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for item in value.values() for tensor in tensors_of(item)]
    if isinstance(value, ObjectiveContext | Condition | Source):
        parts = (getattr(value, item.name) for item in dataclasses.fields(value))
        return [tensor for part in parts for tensor in tensors_of(part)]
    return []


def weights_of(case: Case) -> list[Tensor]:
    """The weights of the networks behind a teacher and a critic."""
    owners = [case.teacher, getattr(case.critic, "_model", None)]
    networks = [getattr(owner, "network", None) for owner in owners]
    return [weight for network in networks if isinstance(network, nn.Module) for weight in network.parameters()]
