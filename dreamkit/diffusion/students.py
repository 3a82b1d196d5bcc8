"""Students: teachers that were distilled into a few steps. How one is sampled, steered away, written and read.

A student's folder is its teacher's, with other weights and the key `dreamkit_student` in its index. It draws

    x_t = sigma e,              x = x0(x_t)    at the first of its K levels
    x_t = alpha x + sigma e',   x = x0(x_t)    at each further one, with fresh noise

The levels are evenly spaced, and K = 1 is one call in all. Guidance is inside of it, so a negative prompt has nothing
to be guided away from; `steered_away` subtracts it elsewhere.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dreamkit.checks import require_integer, require_number
from dreamkit.diffusion.condition import Condition
from dreamkit.diffusion.hub import INDEX_FILE
from dreamkit.diffusion.network_teacher import NetworkTeacher
from dreamkit.diffusion.schedule import NoiseSchedule
from dreamkit.errors import CheckpointError, ConfigError, TeacherError
from dreamkit.files import atomic_folder, write_json

STUDENT_KEY = "dreamkit_student"
"""Where the index of a pipeline folder says how a student is sampled: fields of `StudentConfig`."""
CROSS_ATTENTION = "attn2"
"""What cross-attention layers are called in diffusers' transformer blocks, and in ours."""

Predict = Callable[[Tensor, float], Tensor]
"""Noisy samples and their level -> clean samples."""


@dataclass(frozen=True)
class StudentConfig:
    """How a student is sampled."""

    steps: int = 1
    """Network calls a sample, at least 1."""
    level: float = 1.0
    """Noise level that it starts from, above 0, at most 1."""
    guidance: float = 1.0
    """Classifier-free guidance; 1 is none: the teacher's is inside."""
    negative_scale: float = 0.5
    """How much of a negative prompt's cross-attention is subtracted, >= 0 (alpha of `steered_away`)."""
    objective: str = ""
    """What it was trained by."""
    teacher: str = ""
    """Whom it was trained from."""

    def __post_init__(self) -> None:
        require_integer("A student's steps", self.steps, 1, 1000)
        require_number("A student's level", self.level, 1e-3, 1)
        require_number("A student's guidance", self.guidance, 0)
        require_number("A student's negative_scale", self.negative_scale, 0)

    @property
    def levels(self) -> tuple[float, ...]:
        """Noise levels of its calls, from the noisiest on."""
        return few_levels(self.steps, self.level)

    @classmethod
    def parse(cls, content: object, where: Path) -> StudentConfig:
        """Read what an index says.

        Raises:
            TeacherError: no settings of a student.
        """
        try:
            if not isinstance(content, Mapping) or not set(content) <= {item.name for item in fields(cls)}:
                raise ConfigError(f"{content!r} are no settings of a student.")
            return cls(**content)
        except (TypeError, ConfigError) as error:
            raise TeacherError(
                f"The {STUDENT_KEY} in the index of {where} does not fit: {error}.", "Copy the folder again."
            ) from error


def few_levels(steps: int, level: float) -> tuple[float, ...]:
    """Evenly spaced levels from `level` on towards 0, which is left out: level (K - k) / K for k = 0..K-1."""
    return tuple(level * (steps - index) / steps for index in range(steps))


def noisy_start(
    predict: Predict, draw: Callable[[], Tensor], levels: Sequence[float], schedule: NoiseSchedule
) -> Tensor:
    """What a student is asked about at the last of the levels, [B, C, h, w].

    At the first level that is noise of its size, as if the clean sample were 0; at each further one what the call
    before has made, noised afresh.

    Args:
        predict: the student.
        draw: standard normal noise, anew with every call.
        levels: from the noisiest on.
        schedule: alpha(t) and sigma(t).
    """
    noise = draw()
    x_t = schedule.sigma(levels[0]).to(noise) * noise
    for level, following in pairwise(levels):
        x_t = schedule.add_noise(predict(x_t, level), draw(), following)
    return x_t


class NetworkStudent(NetworkTeacher):
    """A network that was distilled into a few steps, with its encoders. Made by `load_teacher`.

    Asked for predictions it is a teacher like any other; but it was taught at its own levels only.

    Args:
        student: how it is sampled.
        parts: of a `NetworkTeacher`.
    """

    def __init__(self, student: StudentConfig, **parts: Any) -> None:
        super().__init__(**parts)
        self.student = student

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[str],
        steps: int | None = None,
        guidance: float | None = None,
        generator: torch.Generator | None = None,
        camera: Tensor | None = None,  # [B, 12]
        negative: str = "",
        negative_scale: float | None = None,
    ) -> Tensor:
        """Draw one image for each prompt in the student's own steps, [B, 3, image_size, image_size] in [0, 1].

        Args:
            prompts: B cleaned prompts.
            steps: network calls, at least 1; the student's own by default.
            guidance: scale s of E(n) + s (E(y) - E(n)); the student's own by default, which is 1: none.
            generator: source of the noise; one of seed 0 by default.
            camera: poses, [B, 12]; only where `supports_camera`.
            negative: negative prompt for all; empty for none. Without guidance it is subtracted in the cross-attention.
            negative_scale: how much of it, >= 0; the student's own by default.

        Raises:
            ConfigError: fewer than 1 step, or a scale below 0.
            TeacherError: a camera for a student that takes none, or a negative prompt for one without cross-attention.
        """
        levels = few_levels(self.student.steps if steps is None else steps, self.student.level)
        scale = self.student.guidance if guidance is None else guidance
        away = self.student.negative_scale if negative_scale is None else negative_scale
        if not levels:
            raise ConfigError(f"Sampling needs at least 1 step, not {steps}.")
        require_number("The scale of the negative prompt", away, 0)
        positive = self.encode_prompt(prompts)
        against = self.encode_prompt([negative]) if negative else self.null_condition(1)
        source = torch.Generator().manual_seed(0) if generator is None else generator

        def draw() -> Tensor:
            shape = (len(prompts), *self.sample_shape)
            return torch.randn(shape, generator=source, device=source.device).to(self.device)

        def predict(x_t: Tensor, level: float) -> Tensor:
            if scale != 1:
                return self.predict_guided(x_t, level, positive, against, scale, camera).guided.x0
            return self.predict(x_t, level, positive, camera).x0

        steering = negative and scale == 1 and away > 0
        with steered_away(self.network, against, away) if steering else nullcontext():
            return self.decode(predict(noisy_start(predict, draw, levels, self.schedule), levels[-1]))


@contextmanager
def steered_away(network: nn.Module, negative: Condition, scale: float) -> Iterator[None]:
    """While this lasts, a network's cross-attention is steered away from a negative prompt (NASA).

        Z = softmax(Q K+' / sqrt d) V+  -  alpha softmax(Q K-' / sqrt d) V-

    Both with the layer's own projections, before the one that follows it: scale 0 changes nothing, and where the
    prompts are the same, scale 1 leaves no features of the text. One call cannot be guided in what it puts out, where
    two pictures would be blended; in its features it can (Nguyen et al., "Supercharged One-step Text-to-Image Diffusion
    Models with Negative Prompts", SNOOPI, arXiv 2412.02687: alpha 0.1 for Stable Diffusion 1.5, 0.2 for 2.1, 0.5 for
    PixArt). A network that also reads pooled text (SDXL, the embedded one) has that of the prompt alone.

    Args:
        network: a network whose cross-attention layers are called `attn2`, and their last projection `to_out`.
        negative: the negative prompt, 1 row, or one for each sample.
        scale: alpha, >= 0.

    Raises:
        TeacherError: the network has no such layer.
    """
    layers = [module for name, module in network.named_modules() if name.rpartition(".")[2] == CROSS_ATTENTION]
    if not layers:
        raise TeacherError(
            f"{type(network).__name__} has no cross-attention layers that a negative prompt could be subtracted in.",
            "Give no negative prompt.",
        )

    def ask_for_both(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        named = "encoder_hidden_states" in kwargs  # diffusers' way
        hidden, context = args[0], kwargs["encoder_hidden_states"] if named else args[1]
        other = negative.expanded(len(context)).embeddings.to(context)
        hidden, context = torch.cat([hidden, hidden]), torch.cat([context, other])
        return ((hidden,), kwargs | {"encoder_hidden_states": context}) if named else ((hidden, context), kwargs)

    def subtract(module: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
        wanted, unwanted = args[0].chunk(2)
        return (wanted - scale * unwanted,)

    hooks = []
    for layer in layers:
        out = layer.to_out
        hooks.append(layer.register_forward_pre_hook(ask_for_both, with_kwargs=True))
        hooks.append((out[0] if isinstance(out, nn.ModuleList) else out).register_forward_pre_hook(subtract))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def save_student(network: Any, key: str, teacher: Path, folder: Path, config: StudentConfig) -> Path:
    """Write a student's pipeline folder: its network, and everything else from its teacher's.

    Args:
        network: with `save_pretrained`, in the precision it is to be kept in.
        key: the component that it is: "unet" or "denoiser".
        teacher: the teacher's folder.
        folder: appears whole or not at all; one that is there is replaced.
        config: how it is sampled.

    Returns:
        `folder`.

    Raises:
        CheckpointError: weights that are not finite.
        RunError: the system refused a write.
    """
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"The student's {name} is not finite in {str(tensor.dtype).removeprefix('torch.')}.",
                "It has diverged: a lower --lr and --lr-rest may help.",
            )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as temporary:
        for part in sorted(teacher.iterdir()):
            if part.is_dir() and part.name != key and not part.name.startswith("."):
                shutil.copytree(part, temporary / part.name)
        network.save_pretrained(temporary / key)
        for file in (temporary / key).glob("*.safetensors"):
            file.chmod(0o644)  # safetensors writes files that only their owner can read
        index = json.loads((teacher / INDEX_FILE).read_text(encoding="utf-8"))
        write_json(temporary / INDEX_FILE, {**index, STUDENT_KEY: asdict(config)})
    return folder
