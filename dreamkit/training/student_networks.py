"""A causal student's trained parts, and its pipeline folder: the teacher's, with other weights and how to stream it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from dreamkit_kernels.stream_attention import Stream
from torch import Tensor, nn

from dreamkit.errors import CheckpointError
from dreamkit.files import atomic_folder, plain, write_json
from dreamkit.video.causal_transformer import CausalTransformer
from dreamkit.video.controls import ControlEncoder, Controls
from dreamkit.video.sparse_attention import Sparsity
from dreamkit.video.stream_config import StreamConfig
from dreamkit.video.students import INDEX_FILE, STREAM_KEY

"""Where the index of a pipeline says how it is streamed. A model without it was never trained to be causal."""
_STREAM_FIELDS = ("size", "chunk", "window", "sink", "sink_kind", "sink_decay", "times", "shift", "guidance")
"""Fields of `StreamConfig` that a training decides."""
_TRAINED = ("transformer", "controls")


class StudentNetworks(nn.Module):
    """Transformer and control encoder as one module, so that they share optimisers and averages.

    Args:
        transformer: predicts the flow.
        controls: reads cameras and tracks, if the model does.
        half_precision: whether matrices are multiplied in bfloat16.
    """

    def __init__(
        self, transformer: CausalTransformer, controls: ControlEncoder | None, half_precision: bool = False
    ) -> None:
        super().__init__()
        self.transformer = transformer
        self.controls = controls
        self.half_precision = half_precision

    def forward(
        self,
        x_t: Tensor,  # [B, C, F, H, W]
        levels: Tensor,  # [B, F] in [0, 1]
        text: Tensor,  # [B, L, D]
        controls: Controls | None,
        stream: Stream,
        past: Tensor | None = None,  # [B, C, F, H, W]
        sparsity: Sparsity | None = None,
    ) -> Tensor:
        """Predict the flow of every chunk.

        Args:
            x_t: noisy latents.
            levels: of every frame.
            text: the prompt's tokens.
            controls: of the frames; ignored by a model that reads none.
            stream: what a chunk sees.
            past: the frames that a chunk sees before it, read as clean ones; `None` shows it the noisy ones.
            sparsity: which blocks of attention are computed; `None` is all.

        Returns:
            [B, C, F, H, W] float32 (or float64).
        """
        with torch.autocast(x_t.device.type, torch.bfloat16, enabled=self.half_precision):
            features = None
            if self.controls is not None and controls is not None:
                features = self.controls(controls, (stream.height, stream.width))
            if past is None:
                flow = self.transformer(x_t, 1000 * levels, text, features, stream, sparsity)
            else:
                flow = self.transformer.forward_teacher_forced(
                    x_t, past, 1000 * levels, text, stream, features, sparsity=sparsity
                )
        return flow.to(x_t.dtype)


def load_networks(folder: Path, device: torch.device | str, half_precision: bool = False) -> StudentNetworks:
    """Read transformer/ and, where it is there, controls/ of a pipeline folder, in float32.

    Raises:
        CheckpointError: a part is missing, damaged, or does not fit the other.
    """
    transformer = CausalTransformer.from_pretrained(folder / "transformer", device=device)
    controls = None
    if (folder / "controls").is_dir():
        controls = ControlEncoder.from_pretrained(folder / "controls", device=device)
        if controls.config["dim"] != transformer.config.dim:
            raise CheckpointError(
                f"The controls in {folder} have {controls.config['dim']} features, "
                f"its transformer {transformer.config.dim}.",
                "They belong to different models: copy the folder again.",
            )
    return StudentNetworks(transformer, controls, half_precision)


def require_alike(student: StudentNetworks, teacher: StudentNetworks, start: Path, folder: Path) -> None:
    """Check that a student can learn from a teacher.

    Raises:
        CheckpointError: latents, text or patches of other sizes, or controls that only one of them reads.
    """
    for name in ("in_channels", "out_channels", "text_dim", "patch_size"):
        got, wanted = (getattr(networks.transformer.config, name) for networks in (student, teacher))
        if got != wanted:
            raise CheckpointError(
                f"The transformer in {start} has {name} {got}, that of the teacher in {folder} {wanted}.",
                "Start from a student of the same teacher.",
            )
    if (student.controls is None) != (teacher.controls is None):
        reads, ignores = (folder, start) if student.controls is None else (start, folder)
        raise CheckpointError(
            f"{reads} reads cameras and tracks, {ignores} does not.", "Start from a student of the same teacher."
        )


def export_student(networks: StudentNetworks, teacher: Path, folder: Path, stream: StreamConfig) -> Path:
    """Write a pipeline folder in float16: the student's parts, and what it shares with its teacher.

    Args:
        networks: the student.
        teacher: pipeline folder that the rest is copied from.
        folder: appears whole or not at all; one that is there is replaced.
        stream: how it is streamed, for the index.

    Returns:
        `folder`.

    Raises:
        CheckpointError: weights that are not finite in float16, or a damaged teacher.
        RunError: the system refused a write.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as temporary:
        for part in sorted(teacher.iterdir()):
            if part.is_dir() and part.name not in _TRAINED and not part.name.startswith("."):
                shutil.copytree(part, temporary / part.name)
        networks.transformer.save_pretrained(temporary / "transformer")
        if networks.controls is not None:
            networks.controls.save_pretrained(temporary / "controls")
        index = json.loads((teacher / INDEX_FILE).read_text(encoding="utf-8"))
        settings = {name: getattr(stream, name) for name in _STREAM_FIELDS}
        if stream.sparsity is not None:  # so that a dense student's index stays what it was
            settings["sparsity"] = plain(stream.sparsity)
        if stream.buffer:
            settings |= {"buffer": stream.buffer, "reference": stream.reference}
        write_json(temporary / INDEX_FILE, {**index, STREAM_KEY: settings})
    return folder
