"""`dreamkit doctor`: what this installation has, what it lacks, and why."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from dreamkit._version import __version__
from dreamkit.cli.output import print_json, print_rows
from dreamkit.cli.parsing import parse

PACKAGES = (
    "torch",
    "numpy",
    "diffusers",
    "transformers",
    "tokenizers",
    "safetensors",
    "gsplat",
    "trimesh",
    "xatlas",
    "triton",
    "gradio",
    "viser",
)
CPU_FLAGS = ("avx2", "fma", "f16c", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")


@dataclass(frozen=True)
class Doctor:
    """Show versions, devices, every kernel backend with its state, and the embedded weights' cards."""

    json: bool = False
    """Print one JSON object as the last line of stdout."""


def run(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: what follows `doctor`.

    Returns:
        The exit code.
    """
    command = parse(Doctor, "doctor", arguments)
    report = {
        "versions": _section(versions),
        "machine": _section(machine),
        "backends": _section(backends),
        "embedded weights": _section(embedded_weights),
    }
    if command.json:
        print_json(report)
    else:
        lines = {name: describe(item) for name, item in report["backends"].items()}
        print_rows({**report, "backends": lines})
    return 0


def _section(collect: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Collect a part of the report; what fails is part of the diagnosis, and the other parts are still wanted."""
    try:
        return collect()
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"}


def versions() -> dict[str, str]:
    """Versions of DreamKit, Python and the packages that matter; "not installed" for a missing optional one."""
    found = {"dreamkit": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def machine() -> dict[str, Any]:
    """Operating system, processor with its SIMD level, cores, threads, memory, and GPUs."""
    import psutil
    import torch

    gpus = [
        f"{torch.cuda.get_device_name(index)}, {torch.cuda.get_device_properties(index).total_memory / 2**30:.0f} GiB"
        for index in range(torch.cuda.device_count())
    ]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    chosen = os.environ.get("DREAMKIT_BACKEND")
    return {
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "processor": _processor_name(),
        "simd": f"{torch.backends.cpu.get_cpu_capability()} ({_cpu_flags() or 'no flags known'})",
        "cores": cores,
        "threads": torch.get_num_threads(),
        "memory": f"{psutil.virtual_memory().total / 2**30:.1f} GiB",
        "gpu": ", ".join(gpus) if gpus else f"none (torch {torch.__version__}, CUDA {torch.version.cuda})",
        "kernels": f"DREAMKIT_BACKEND={chosen}" if chosen else "chosen by device (DREAMKIT_BACKEND is not set)",
    }


def _processor_name() -> str:
    return _cpuinfo("model name") or platform.processor() or "unknown"


def _cpu_flags() -> str:
    """Those of the processor's features that the kernels and torch care about."""
    flags = (_cpuinfo("flags") or _cpuinfo("Features")).split()
    return " ".join(flag for flag in CPU_FLAGS if flag in flags)


def _cpuinfo(field: str) -> str:
    """Return a field of the first processor in Linux's /proc/cpuinfo, "" where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    values = (line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == field)
    return next(values, "")


def backends() -> dict[str, dict[str, Any]]:
    """State of every kernel backend, by "operation / backend"."""
    from dreamkit_kernels.dispatch import backend_report

    return {
        f"{status.operation} / {status.name}": {"available": status.available, "reason": status.reason}
        for status in backend_report()
    }


def describe(backend: dict[str, Any] | str) -> str:
    """Write a backend's state for people."""
    if isinstance(backend, str):
        return backend
    state = "available" if backend["available"] else "not available"
    return f"{state}: {backend['reason']}" if backend["reason"] else state


def embedded_weights() -> dict[str, str]:
    """Folders of the embedded models with the size of their weights and the first sentence of their cards."""
    found: dict[str, str] = {}
    root = resources.files("dreamkit_assets")
    for folder in sorted(root.iterdir(), key=lambda item: item.name):
        if not folder.is_dir() or folder.name.startswith(("_", ".")):
            continue
        size = _weights_size(folder)
        if size:
            found[folder.name] = f"{size / 1e6:.1f} MB. {_card_head(folder)}".rstrip()
    return found or {"none": f"no weights in {root}: reinstall DreamKit"}


def _weights_size(folder: Any) -> int:
    """Bytes of the safetensors files below `folder`."""
    total = 0
    for item in folder.iterdir():
        if item.is_dir():
            total += _weights_size(item)
        elif item.name.endswith(".safetensors"):
            total += os.stat(str(item)).st_size if os.path.exists(str(item)) else len(item.read_bytes())
    return total


def _card_head(folder: Any) -> str:
    """Return the first paragraph of a model card, without front matter and headings, on one line."""
    card = folder / "README.md"
    if not card.is_file():
        return "(no card)"
    text = card.read_text(encoding="utf-8")
    if text.startswith("---\n"):
        text = text.partition("\n---\n")[2]
    paragraph: list[str] = []
    for line in text.splitlines():
        stripped = line.strip()
        if stripped and not stripped.startswith(("#", "!", "|", "<")):
            paragraph.append(stripped)
        elif paragraph:
            break
    return " ".join(paragraph)
