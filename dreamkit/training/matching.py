"""The loop of distribution matching: a critic learns what the student makes, the student moves by what it learned.

A step is one of the student's, with `critic_steps` of the critic before it, each on samples that the student makes for
it alone. The critic starts as a copy of the teacher, and so may a GAN head that reads its middle. What a step sees
comes from a generator of its own, so resuming equals not having stopped.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dreamkit.checks import nearest_first
from dreamkit.errors import ConfigError, TeacherError
from dreamkit.files import plain
from dreamkit.objectives import student_objective_class
from dreamkit.objectives.adversarial import Adversarial
from dreamkit.objectives.matching import Matching, MatchingContext
from dreamkit.training.named_options import placed, read_option
from dreamkit.training.settings import from_plain
from dreamkit.training.teacher_loop import (
    LoopOptions,
    Trainer,
    load_optimizer_state,
    load_weights,
    make_optimizers,
    optimizer_state,
)

_CRITIC = "critic."


class MatchingOptions(LoopOptions, Protocol):
    """The settings that the loop reads, fields of a dataclass."""

    @property
    def critic_steps(self) -> int:
        """Steps of the critic before each of the student's."""

    @property
    def accumulate(self) -> int:
        """Passes whose gradients make a step, the critic's as the student's."""

    @property
    def critic_lr(self) -> float:
        """Learning rate of the critic's matrices."""

    @property
    def critic_lr_rest(self) -> float:
        """Learning rate of everything else of the critic."""


@dataclass(frozen=True)
class Made:
    """Samples that the student made, and who judges them.

    Args:
        x: [B, C, h, w], or clips [B, C, F, h, w]; with the student's graph where it was asked for one.
        context: teacher, critic and all else that the objective wants to know.
    """

    x: Tensor
    context: MatchingContext


class MatchingTrainer(Trainer):
    """Trains a student by an objective of distribution matching.

    Args:
        student: what is trained, on its device.
        critic: the trainable score of what the student makes, with the GAN head if it has one; `None` without any.
        objective: which way the student goes.
        options: settings.
    """

    def __init__(
        self, student: nn.Module, critic: nn.Module | None, objective: Matching, options: MatchingOptions
    ) -> None:
        super().__init__(student, options)
        self.critic = critic
        self.objective = objective
        self.rates = (options.critic_lr, options.critic_lr_rest)
        self.critic_steps = options.critic_steps if critic is not None else 0
        self.passes = options.accumulate
        # Everything of a critic that isn't a block's matrix is trained by AdamW, its head included.
        self.critic_optimizers = [] if critic is None else make_optimizers(critic, options, self.matrices)

    @abstractmethod
    def make(self, generator: torch.Generator, trained: bool) -> Made:
        """Draw prompts and let the student make samples.

        Args:
            generator: source of every choice, on the CPU.
            trained: whether the student's graph is wanted; otherwise under `no_grad`.
        """

    def train_step(self) -> dict[str, float]:
        """`critic_steps` of the critic, then one of the student.

        Returns:
            Their metrics.

        Raises:
            TrainingError: a term is not finite; the last checkpoint is sound.
        """
        metrics: dict[str, float] = {}
        for index in range(self.critic_steps):
            for name, value in self._critic_step(index).items():
                metrics[name] = metrics.get(name, 0.0) + value / self.critic_steps
        return {**super().train_step(), **metrics}

    def losses(self) -> tuple[Tensor, dict[str, float]]:
        """The objective's loss of samples that are made for it, and its numbers; means over the passes of a step.

        All passes but the last have left their gradients in the parameters when this returns, so only one pass's
        activations are ever held.
        """
        metrics: dict[str, float] = {}
        for index in range(self.passes):
            made = self.make(self._generator(self.critic_steps, index), trained=True)
            with self._frozen_critic():
                result = self.objective(made.x, self._at_step(made.context))
            loss = result.loss / self.passes
            self._count(metrics, {"loss": float(result.loss.detach()), **result.diagnostics})
            if index + 1 < self.passes:
                loss.backward()
        return loss, metrics

    def _critic_step(self, step: int) -> dict[str, float]:
        assert self.critic is not None
        metrics: dict[str, float] = {}
        for index in range(self.passes):
            with torch.no_grad():
                made = self.make(self._generator(step, index), trained=False)
            loss, told = self._critic_loss(made)
            self._count(metrics, told)
            (loss / self.passes).backward()
        self.update(self.critic, self.critic_optimizers, self.rates)
        return metrics

    def _critic_loss(self, made: Made) -> tuple[Tensor, dict[str, float]]:
        context = self._at_step(made.context)
        loss = self.objective.critic_loss(made.x, context)
        metrics = {"critic": float(loss.detach())}
        if isinstance(self.objective, Adversarial) and self.objective.learns_from_data:
            if context.data is None:
                raise TeacherError(f"{self.objective.name} has no data for its discriminator.", "Give some.")
            head = self.objective.discriminator_loss(context.data, made.x, context)
            loss, metrics["discriminator"] = loss + head, float(head.detach())
        return loss, metrics

    def _count(self, metrics: dict[str, float], told: Mapping[str, float]) -> None:
        """Add a pass's share to the means over passes."""
        for name, value in told.items():
            metrics[name] = metrics.get(name, 0.0) + value / self.passes

    def _generator(self, step: int, index: int = 0) -> torch.Generator:
        """Source of randomness of a pass of a step's critic steps (0, 1, ...) and of the student's own (the last)."""
        number = (self.step * (self.critic_steps + 1) + step) * self.passes + index
        return torch.Generator().manual_seed(self.loop.seed * 1_000_000_007 + number)

    def _at_step(self, context: MatchingContext) -> MatchingContext:
        return replace(context, step=self.step, total=self.loop.steps)

    @contextmanager
    def _frozen_critic(self) -> Iterator[None]:
        """Gradients may flow through the critic, and none is computed for its weights."""
        parameters = [] if self.critic is None else list(self.critic.parameters())
        for parameter in parameters:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in parameters:
                parameter.requires_grad_(True)

    def state(self) -> dict[str, Tensor]:
        """As `Trainer.state`, with the critic and its optimisers."""
        if self.critic is None:
            return super().state()
        weights = {f"{_CRITIC}weights.{name}": p.detach() for name, p in self.critic.named_parameters()}
        return {**super().state(), **weights, **optimizer_state(self.critic_optimizers, _CRITIC)}

    def load_state(self, tensors: dict[str, Tensor], step: int) -> None:
        """Continue from a saved state.

        Raises:
            CheckpointError: the state is of other networks.
        """
        super().load_state(tensors, step)
        if self.critic is not None:
            load_weights(self.critic, tensors, f"{_CRITIC}weights.")
            load_optimizer_state(self.critic_optimizers, tensors, _CRITIC)


def matching_objective(name: str, options: Sequence[str] = ()) -> Matching:
    """A student's objective by its name, with NAME=VALUE options over its defaults, as `dreamkit generate` reads them.

    Args:
        name: registered name.
        options: "NAME=VALUE" each, the value in YAML; a later one wins.

    Raises:
        ConfigError: an unknown name, an option of another form, or a value of the wrong kind or out of range.
    """
    kind = student_objective_class(name)
    known = {item.name for item in fields(kind)}  # type: ignore[arg-type]
    content: dict[str, Any] = {}
    for option in options:
        path, value = read_option(option)
        if path[0] not in known:
            near = nearest_first(path[0], known)
            raise ConfigError(
                f"{name} has no option {option.partition('=')[0].strip()!r}.",
                f"Did you mean {near[0].rstrip('_')}? It has: {', '.join(n.rstrip('_') for n in sorted(known))}.",
            )
        if len(path) > 1:  # one field of an option changes: the others stay as the objective has them
            content.setdefault(path[0], plain(getattr(kind(), path[0])))
        content = placed(content, path, value)
    return from_plain(kind, content)
