"""How fast a student is, and how much memory it takes: in a process that does nothing else."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import get_context

from dreamkit.errors import RunError
from dreamkit.training.compare_video.measures import SPEED_MEASURES


def measure_speed(source: str, prompt: str, frames: int, device: str) -> dict[str, float | None]:
    """Stream a student alone in a new process, without judging a frame.

    Only so is the peak of its memory its own: a process keeps the peak of all it ever did, here of judges and of other
    students.

    Args:
        source: of the student, see `dreamkit.video.students.load_student`.
        prompt: what to show.
        frames: how many.
        device: where to compute.

    Returns:
        `SPEED_MEASURES`; `None` for what so few frames don't tell.

    Raises:
        DreamkitError: what the user can mend.
        RunError: the process died.
    """
    import torch

    threads = torch.get_num_threads()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(_alone, source, prompt, frames, device, threads).result()
        except BrokenProcessPool as error:
            raise RunError(
                f"The process that streamed {source} alone died.", "Out of memory, perhaps: free some and try again."
            ) from error


def _alone(source: str, prompt: str, frames: int, device: str, threads: int) -> dict[str, float | None]:
    import torch

    from dreamkit.training.compare_video.work import load_contender
    from dreamkit.training.generate import peak_rss_mb
    from dreamkit.video.stream import StreamSession

    torch.set_num_threads(threads)
    student, config = load_contender(source, device)
    with StreamSession(student, prompt, config=replace(config, snapshot_mb=0), frames=frames) as session:
        for _ in session:
            pass
        metrics, cache = session.metrics, session.tensor_bytes
    found = {name: getattr(metrics, name, None) for name in (measure.name for measure in SPEED_MEASURES)}
    return found | {"cache_mb": cache / 1e6, "peak_rss_mb": peak_rss_mb()}
