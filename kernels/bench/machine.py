"""What a benchmark ran on, for the JSON it prints."""

from __future__ import annotations

import platform
import subprocess
from datetime import date
from pathlib import Path


def machine() -> dict[str, object]:
    """Date, commit, processor, cores, threads and versions."""
    import torch

    return {
        "date": date.today().isoformat(),
        "commit": _commit(),
        "cpu": _processor(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if "model name" in line), platform.processor())


def _commit() -> str | None:
    """The commit of the source tree, `None` where dreamkit is installed without one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:  # no git
        return None
    return result.stdout.strip() or None
