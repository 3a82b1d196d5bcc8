"""What the trainings of the embedded models share: optimisers, averaged weights, checkpoints, the loop.

The matrices are trained by Muon, the rest by AdamW; the learning rate is constant after a warm-up and falls linearly to
zero over the last steps, so that a stopped run can be continued or finished at any time: give it fewer or more steps
in all. What a step sees comes from a generator seeded by (seed, step), so resuming equals not having stopped.
"""

import json
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dreamkit.errors import CheckpointError, ConfigError
from dreamkit.files import append_jsonl, atomic_path, read_jsonl
from dreamkit.toyworld.muon import Muon
from dreamkit.training.checkpoints import guard_interrupts, list_checkpoints, load_latest, save_checkpoint

Report = Callable[[int, dict[str, float]], None]
Tell = Callable[[str], None]


class LoopOptions(Protocol):
    """The settings that the loop reads, fields of a dataclass."""

    @property
    def out(self) -> Path:
        """Folder of the training run."""

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""

    @property
    def cooldown(self) -> int:
        """Steps at the end over which the learning rate falls to zero."""

    @property
    def warmup(self) -> int:
        """Steps at the start over which it rises."""

    @property
    def lr(self) -> float:
        """Learning rate of the matrices."""

    @property
    def lr_rest(self) -> float:
        """Learning rate of everything else."""

    @property
    def ema(self) -> float:
        """Decay of the averaged weights."""

    @property
    def seed(self) -> int:
        """Of weights, data and noise."""

    @property
    def checkpoint_every(self) -> int:
        """Steps between checkpoints."""

    @property
    def sample_every(self) -> int:
        """Steps between sample grids; 0 draws none."""


def require_positive(options: object, names: tuple[str, ...]) -> None:
    """Check that fields of the options are at least 1.

    Raises:
        ConfigError: one is not, by its name on the command line.
    """
    for name in names:
        value = getattr(options, name)
        if value < 1:
            option = name.replace("_", "-")
            raise ConfigError(f"{option} is {value}.", f"Give --{option} a number of 1 or more.")


def make_optimizers(
    networks: nn.Module, options: LoopOptions, matrices: Callable[[str, nn.Parameter], bool]
) -> list[torch.optim.Optimizer]:
    """Muon for the parameters that `matrices(name, parameter)` chooses, AdamW for the rest."""
    chosen: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in networks.named_parameters():
        (chosen if matrices(name, parameter) else rest).append(parameter)
    return [
        Muon(chosen, lr=options.lr),
        torch.optim.AdamW(rest, lr=options.lr_rest, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def is_token_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is a matrix that tokens pass through: no embedding, modulation, convolution or vector."""
    inside = re.search(r"blocks\.|encoder\.layers\.|patch_in|patch_out|merge|split", name) is not None
    return parameter.ndim == 2 and inside and "modulation" not in name


def learning_rate_factor(step: int, options: LoopOptions) -> float:
    """Warm-up, constant, linear fall to zero: the factor on both learning rates at a step."""
    rise = min(1.0, (step + 1) / max(1, options.warmup))
    fall = min(1.0, (options.steps - step) / max(1, options.cooldown))
    return rise * max(0.0, fall)


class Trainer(ABC):
    """The state of a training run and one step of it.

    Args:
        networks: what is trained, on its device.
        options: settings.
        matrices: which parameters Muon trains.
    """

    half_precision = False
    """Whether networks and Muon multiply matrices in bfloat16."""

    def __init__(
        self,
        networks: nn.Module,
        options: LoopOptions,
        matrices: Callable[[str, nn.Parameter], bool] = is_token_matrix,
    ) -> None:
        self.trained = networks
        self.loop = options
        self.matrices = matrices
        self.average = {name: p.detach().clone() for name, p in networks.named_parameters()}
        self.optimizers = make_optimizers(networks, options, matrices)
        self.step = 0

    @abstractmethod
    def losses(self) -> tuple[Tensor, dict[str, float]]:
        """What step `self.step` minimises (a number), and its metrics: a pure function of weights, seed and step."""

    @abstractmethod
    def export(self, folder: Path) -> Path:
        """Write the averaged weights as a model folder."""

    @abstractmethod
    def draw_samples(self, folder: Path, picture: Path) -> None:
        """Show what the exported model makes, as a PNG."""

    def train_step(self) -> dict[str, float]:
        """One step of training.

        Returns:
            The metrics of `losses`.
        """
        total, metrics = self.losses()
        total.backward()
        self.update(self.trained, self.optimizers, (self.loop.lr, self.loop.lr_rest))
        decay = min(self.loop.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, parameter in self.trained.named_parameters():
                self.average[name].lerp_(parameter, 1 - decay)
        self.step += 1
        return metrics

    def update(self, networks: nn.Module, optimizers: Sequence[torch.optim.Optimizer], rates: Sequence[float]) -> None:
        """Move weights along their gradients, whose norm is cut to 1, at this step's share of the learning rates."""
        nn.utils.clip_grad_norm_(networks.parameters(), 1.0)
        factor = learning_rate_factor(self.step, self.loop)
        device = next(networks.parameters()).device.type
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * factor
            with torch.autocast(device, torch.bfloat16, enabled=self.half_precision):
                optimizer.step()
            optimizer.zero_grad()

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, flat."""
        tensors = {f"weights.{name}": p.detach() for name, p in self.trained.named_parameters()}
        tensors |= {f"average.{name}": p for name, p in self.average.items()}
        return tensors | optimizer_state(self.optimizers)

    def load_state(self, tensors: dict[str, Tensor], step: int) -> None:
        """Continue from a saved state.

        Raises:
            CheckpointError: the state is of another network.
        """
        load_weights(self.trained, tensors, "weights.")
        load_weights(self.average, tensors, "average.")
        load_optimizer_state(self.optimizers, tensors)
        self.step = step

    @contextmanager
    def averaged(self, dtype: torch.dtype = torch.float32) -> Iterator[None]:
        """Hold the averaged weights, in `dtype`, for the length of a block."""
        kept = {name: p.detach().clone() for name, p in self.trained.named_parameters()}
        try:
            with torch.no_grad():
                for name, parameter in self.trained.named_parameters():
                    parameter.copy_(self.average[name])
            nn.Module.to(self.trained, dtype=dtype)  # diffusers' own warns about layers these haven't
            yield
        finally:
            nn.Module.to(self.trained, dtype=torch.float32)
            with torch.no_grad():
                for name, parameter in self.trained.named_parameters():
                    parameter.copy_(kept[name])


def optimizer_state(optimizers: Sequence[torch.optim.Optimizer], prefix: str = "") -> dict[str, Tensor]:
    """What optimisers remember, flat: "optimizer.0.3.exp_avg" and so on, behind a prefix."""
    return {
        f"{prefix}optimizer.{which}.{index}.{key}": value
        for which, optimizer in enumerate(optimizers)
        for index, slots in optimizer.state_dict()["state"].items()
        for key, value in slots.items()
    }


def load_optimizer_state(
    optimizers: Sequence[torch.optim.Optimizer], tensors: dict[str, Tensor], prefix: str = ""
) -> None:
    """Make optimisers remember what `optimizer_state` returned."""
    slots: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimizers]
    start = f"{prefix}optimizer."
    for name, value in tensors.items():
        if name.startswith(start):
            which, index, key = name.removeprefix(start).split(".")
            slots[int(which)].setdefault(int(index), {})[key] = value
    for optimizer, state in zip(optimizers, slots, strict=True):
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def load_weights(target: nn.Module | dict[str, Tensor], tensors: dict[str, Tensor], prefix: str) -> None:
    """Copy the tensors behind a prefix into a network's parameters, or into tensors by name.

    Raises:
        CheckpointError: they are of another network.
    """
    own = dict(target.named_parameters()) if isinstance(target, nn.Module) else target
    try:
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(tensors[prefix + name])
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"The checkpoint is of another network: {error}.", "Choose a new --out.") from error


def run_training(trainer: Trainer, name: str, report: Report, tell: Tell) -> Path:
    """Train until the last step, from the newest checkpoint of the run's folder where there is one.

    An interrupt (Ctrl-C or a termination signal) ends it between two steps, with a checkpoint and an exported model.

    Args:
        trainer: what to train.
        name: of the exported model's folder.
        report: called after every step with the step and its metrics.
        tell: called with a sentence when something is worth saying.

    Returns:
        The exported model.

    Raises:
        KeyboardInterrupt: it was interrupted.
    """
    options, out = trainer.loop, trainer.loop.out
    checkpoints, folder = out / "checkpoints", out / name
    if list_checkpoints(checkpoints):
        checkpoint, warnings = load_latest(checkpoints)
        trainer.load_state(checkpoint.tensors, checkpoint.step)
        for text in (*warnings, f"continuing from step {checkpoint.step}"):
            tell(text)
    log: list[dict[str, float]] = []
    started = time.perf_counter()
    with guard_interrupts() as interrupt:
        while trainer.step < options.steps and not interrupt.requested:
            losses = trainer.train_step()
            metrics = {"step": trainer.step, **losses, "seconds": round(time.perf_counter() - started, 2)}
            log.append(metrics)
            report(trainer.step, metrics)
            last = trainer.step == options.steps
            if last or interrupt.requested or trainer.step % options.checkpoint_every == 0:
                save_checkpoint(checkpoints, trainer.step, trainer.state(), _meta(options), keep=2)
                _flush(log, out / "metrics.jsonl")
            if options.sample_every and (last or trainer.step % options.sample_every == 0):
                trainer.export(folder)
                trainer.draw_samples(folder, out / f"samples-{trainer.step:06d}.png")
                draw_loss_curve(out / "metrics.jsonl", out / "loss.png")
    draw_loss_curve(out / "metrics.jsonl", out / "loss.png")
    trainer.export(folder)
    if interrupt.requested:
        tell(
            f"stopped: step {trainer.step} is saved and exported to {folder}. The same command goes on; with "
            f"--steps {trainer.step + options.cooldown} it cools down and ends."
        )
        raise KeyboardInterrupt
    return folder


def draw_loss_curve(metrics: Path, picture: Path) -> None:
    """Plot the loss of a metrics file, raw and averaged over 50 steps, on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = {int(row["step"]): float(row["loss"]) for row in read_jsonl(metrics)}
    steps = sorted(rows)
    losses = [rows[step] for step in steps]
    smooth = [sum(losses[max(0, i - 49) : i + 1]) / len(losses[max(0, i - 49) : i + 1]) for i in range(len(losses))]
    figure, axes = pyplot.subplots(figsize=(6, 3.5), dpi=120)
    axes.plot(steps, losses, color="#b8c4d6", linewidth=0.8, label="a step")
    axes.plot(steps, smooth, color="#1f4e8c", linewidth=1.6, label="mean of 50")
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    with atomic_path(picture) as temporary:
        figure.savefig(temporary, format="png")
    pyplot.close(figure)


def _meta(options: Any) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(options), default=str))


def _flush(log: list[dict[str, float]], path: Path) -> None:
    for record in log:
        append_jsonl(path, record)
    log.clear()
