"""The way down that DisBack's student goes back up: copies of the teacher that learn what an untrained one makes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from dreamkit.diffusion.network_teacher import NetworkTeacher
from dreamkit.errors import CheckpointError
from dreamkit.files import atomic_path
from dreamkit.objectives.matching import Matching, MatchingContext
from dreamkit.training.image_student_maker import Maker
from dreamkit.training.image_student_networks import trainable_copy

FILE = "path.safetensors"
"""Where a run keeps its path, in its folder."""


def recorded_path(
    maker: Maker,
    student: NetworkTeacher,
    objective: Matching,
    file: Path,
    length: int,
    steps: int,
    rate: float,
    seed: int,
) -> list[NetworkTeacher]:
    """The path of a run, recorded if it has not been yet; the copy that is nearest to the teacher first.

    Args:
        maker: draws lessons.
        student: untrained.
        objective: how a critic learns.
        file: where it is kept.
        length: copies that are kept.
        steps: of training between two.
        rate: AdamW's learning rate.
        seed: of lessons and noise.

    Raises:
        CheckpointError: what was recorded is damaged, or of another teacher.
        RunError: the system refused the write.
        TrainingError: a term is not finite.
    """
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        _save(_record(maker, student, objective, length, steps, rate, seed), file)
    return _load(maker.teacher, file)


def _record(
    maker: Maker, student: NetworkTeacher, objective: Matching, length: int, steps: int, rate: float, seed: int
) -> list[dict[str, Tensor]]:
    """Weights along the way, from the teacher's on."""
    model = trainable_copy(maker.teacher)
    optimizer = torch.optim.AdamW(model.network.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    kept = []
    for step in range(length * steps):
        # No step of the training has this seed.
        generator = torch.Generator().manual_seed((seed + 1) * 1_000_000_007 - 1 - step)
        lesson = maker.draw(generator)
        x, level = maker.make(student, lesson, generator, trained=False)
        context = MatchingContext(
            teacher=maker.denoiser(maker.teacher, lesson),
            schedule=maker.teacher.schedule,
            generator=generator,
            critic=maker.denoiser(model, lesson),
            student_level=level,
            path=[maker.denoiser(model, lesson)],
        )
        objective.critic_loss(x, context).backward()
        torch.nn.utils.clip_grad_norm_(model.network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % steps == 0:
            kept.append({name: value.to("cpu", copy=True) for name, value in model.network.state_dict().items()})
    return kept


def _save(copies: list[dict[str, Tensor]], file: Path) -> None:
    from safetensors.torch import save_file

    tensors = {f"{index}.{name}": value.contiguous() for index, own in enumerate(copies) for name, value in own.items()}
    with atomic_path(file) as temporary:
        save_file(tensors, temporary)


def _load(teacher: NetworkTeacher, file: Path) -> list[NetworkTeacher]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = []
    try:
        tensors = load_file(file)
        for index in range(1 + max(int(name.split(".", 1)[0]) for name in tensors)):
            model = trainable_copy(teacher)
            start = f"{index}."
            own = {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
            model.network.load_state_dict(own)
            nn.Module.to(model.network.requires_grad_(False), dtype=teacher.dtype)  # diffusers' own warns
            path.append(model)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"The path in {file} can't be followed: {error}.", "Delete it, or choose a new --out."
        ) from error
    return path
