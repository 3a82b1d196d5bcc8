"""`dreamkit bench stream`: how fast a video plays on this machine, trained weights or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from dreamkit.checks import require_choice, require_integer, require_number
from dreamkit.cli.output import print_json, print_rows
from dreamkit.cli.parsing import Device, Integer, parse, require_device
from dreamkit.cli.stream import (
    ModelName,
    Overlap,
    Size,
    StudentInteger,
    StudentNumber,
    StudentSparsity,
    frame_size,
    measured,
    stream_config,
)

if TYPE_CHECKING:
    from dreamkit.video.pipeline import VideoTeacher
    from dreamkit.video.stream_config import StreamConfig


@dataclass(frozen=True)
class BenchStream:
    """Stream without writing, and print three speeds: of the denoiser, of everything, and to the first frame."""

    model: ModelName = "embedded"
    """The student: the embedded one, a folder, or wan-1.3b-random, embedded-random, tiny-random, tiny-wan-random."""
    frames: Integer = 240
    """Frames to make, >= 1."""
    size: Size = ""
    """Of a frame, pixels."""
    guidance: StudentNumber = None
    """Classifier-free guidance, >= 0; any other than 1 doubles the work."""
    chunk: StudentInteger = None
    """Latent frames that are made together."""
    window: StudentInteger = None
    """Latent frames before a chunk that it sees."""
    sink: StudentInteger = None
    """First latent frames that stay visible for good."""
    sparsity: StudentSparsity = None
    """What of attention is computed: a share of the blocks between sink and chunk, as few of them as have a share of
    the attention, or dense, all."""
    overlap: Overlap = "auto"
    """Whether denoising and decoding have threads of their own."""
    threads: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: the cores)")] = None
    """CPU threads of each computation, 1 to 1024."""
    prompt: Annotated[str, tyro.conf.arg(metavar="TEXT")] = "a red cube rolling"
    """What to show."""
    device: Device = "auto"
    """Where to compute; auto takes a GPU if there is one."""
    json: bool = False
    """Print one JSON object as the last line of stdout."""


def run(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: what follows `bench stream`.

    Returns:
        The exit code.
    """
    command = parse(BenchStream, "bench stream", arguments)
    require_integer("--frames", command.frames, 1)
    require_number("--guidance", command.guidance, 0, 100)
    require_integer("--threads", command.threads, 1, 1024)
    require_choice("--overlap", command.overlap, ("auto", "on", "off"))
    require_device(command.device)
    frame_size(command.size)
    import torch
    from dreamkit_kernels.bench import machine

    from dreamkit.diffusion.loading import resolve_device
    from dreamkit.video.stream import StreamSession
    from dreamkit.video.students import load_student

    if command.threads is not None:
        torch.set_num_threads(command.threads)
    student = load_student(command.model, resolve_device(command.device))
    config = stream_config(command, student)
    with StreamSession(student, command.prompt, config=config, frames=command.frames) as session:
        for _ in session:
            pass
        metrics = session.metrics
    content = {
        "machine": machine(),
        "model": command.model,
        "parameters": sum(parameter.numel() for parameter in student.network.parameters()),
        "size": list(config.size),
        "device": str(student.device),
        "precision": "bfloat16" if student.half_precision else str(student.network.proj_out.weight.dtype)[6:],
        "overlap": session.overlaps,
        "sparsity": str(config.sparsity or "dense"),
        "blocks_computed": _computed(student, config),
        "cache_mb": round(session.tensor_bytes / 1e6, 1),
        **measured(metrics),
    }
    if command.json:
        print_json(content)
    else:
        print_rows({name: value for name, value in content.items() if name != "drift"})
    return 0


def _computed(student: VideoTeacher, config: StreamConfig) -> float | None:
    """Share of attention's blocks that are computed where the window is full; `None` if it depends on what is seen."""
    from dreamkit_kernels.stream_attention import Stream

    from dreamkit.video.rollout import token_size

    if config.sparsity is None:
        return 1.0
    sink = 0 if config.sink_kind == "none" else config.sink
    share = config.sparsity.computed_share(Stream(*token_size(student, config.size), config.chunk, sink, config.window))
    return None if share is None else round(share, 4)
