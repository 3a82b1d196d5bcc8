"""Which backend runs an operation, which ones this machine has, and why one is missing.

The choice, in order: the call's own `backend`, the environment variable DREAMKIT_BACKEND, then the fastest backend that
applies to the tensors. A fall to the torch reference where something much faster exists is logged once.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import os
from dataclasses import dataclass
from types import ModuleType

import torch

logger = logging.getLogger("dreamkit.kernels")

BACKEND_VARIABLE = "DREAMKIT_BACKEND"
OPERATIONS: dict[str, tuple[str, ...]] = {
    "adam": ("reference", "native", "triton"),
    "gaussian_rasterize": ("reference", "native", "gsplat", "triton"),
    "hash_grid": ("reference", "native", "triton"),
    "mesh_rasterize": ("reference", "native", "triton"),
    "modulate": ("reference", "native", "triton"),
    "noise_residual": ("reference", "native", "triton"),
    "ssim": ("reference", "native", "triton"),
    "stream_attention": ("reference", "native", "triton"),
    "volume_render": ("reference", "native", "triton"),
}
"""The backends each operation has, in the order in which they are tried after the reference."""
DEVICES = {"native": "cpu", "triton": "cuda", "gsplat": "cuda"}
"""The device type of every backend but the reference, which runs anywhere."""
HALF_PRECISION = {
    "native": ({"stream_attention"}, {torch.bfloat16}),
    "triton": ({"modulate", "noise_residual", "stream_attention"}, {torch.float16, torch.bfloat16}),
}
"""The operations whose kernels also take half precision, as the networks that call them do, and which."""


@dataclass(frozen=True)
class BackendStatus:
    """One line of `dreamkit doctor`."""

    name: str
    """Backend: "reference", "native", ..."""
    operation: str
    """Operation it implements, such as "gaussian_rasterize"."""
    available: bool
    reason: str
    """What it is, or why it can't be used and what to do."""


_UNAVAILABLE = "backend {!r} is not available: {}."


@functools.cache
def _load_native() -> tuple[ModuleType | None, str]:
    """Import the extension once; returns it, or None and the reason."""
    try:
        from dreamkit_kernels import _native
    except ImportError as error:
        return None, (
            f"the native extension can't be imported ({error}); install a C++17 compiler and reinstall dreamkit"
        )
    return _native, f"C++ ({_native.instruction_set()}, OpenMP), for float32 tensors on the CPU"


def _interpreting() -> bool:
    """Whether Triton interprets its kernels instead of compiling them, which makes them run on the CPU: for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _triton_state() -> tuple[bool, str]:
    if importlib.util.find_spec("triton") is None:
        return False, "Triton is not installed (pip install 'dreamkit[gpu]')"
    if _interpreting():
        return True, "Triton's interpreter (TRITON_INTERPRET=1), which is slow and only for tests"
    if not torch.cuda.is_available():
        return False, "Triton needs a CUDA device, and torch finds none"
    return True, "Triton, compiled at the first use, for float32 tensors (networks: also half precision) on a GPU"


def _gsplat_state() -> tuple[bool, str]:
    if importlib.util.find_spec("gsplat") is None:
        return False, "gsplat is not installed (pip install gsplat)"
    if not torch.cuda.is_available():
        return False, "gsplat needs a CUDA device, and torch finds none"
    return True, "gsplat's CUDA kernels (their first use may compile them), for float32 tensors on a GPU"


@torch.compiler.assume_constant_result
def _state(name: str) -> tuple[bool, str]:
    """Whether a backend is there, and what or why not; `torch.compile` takes it as it is while it traces."""
    if name == "native":
        module, reason = _load_native()
        return module is not None, reason
    if name == "triton":
        return _triton_state()
    if name == "gsplat":
        return _gsplat_state()
    return True, "torch, any device and floating dtype; the definition"


def native_module() -> ModuleType:
    """The extension module `dreamkit_kernels._native`.

    Raises:
        RuntimeError: it was not built or can't be loaded, with the reason.
    """
    module, reason = _load_native()
    if module is None:
        raise RuntimeError(_UNAVAILABLE.format("native", reason))
    return module


def kernels(operation: str, backend: str) -> ModuleType:
    """The module with an operation's kernels of a backend, "native" or "triton", imported at the first use."""
    return importlib.import_module(f".{operation}.{backend}", __package__)


@functools.cache
def _log_once(message: str) -> None:
    logger.warning(message)


def _requested_backend(operation: str, argument: str | None) -> str | None:
    """The backend asked for by the call or the environment, checked against what the operation has."""
    source, name = "backend", argument
    if name is None:
        source, name = BACKEND_VARIABLE, os.environ.get(BACKEND_VARIABLE) or None
    if name is not None and name not in OPERATIONS[operation]:
        choices = ", ".join(OPERATIONS[operation])
        raise ValueError(f"{source} must be one of {choices} for {operation}, got {name!r}.")
    return name


def _takes(operation: str, name: str, tensor: torch.Tensor) -> bool:
    """Whether a backend can run an operation on such tensors."""
    if name == "reference":
        return tensor.is_floating_point()
    interpreted = name == "triton" and tensor.device.type == "cpu" and _interpreting()
    if tensor.device.type != DEVICES[name] and not interpreted:
        return False
    operations, half = HALF_PRECISION.get(name, (set(), set()))
    return tensor.dtype == torch.float32 or (operation in operations and tensor.dtype in half)


def choose_backend(operation: str, argument: str | None, tensor: torch.Tensor) -> str:
    """Name of the backend that will run `operation`.

    Args:
        operation: a key of `OPERATIONS`.
        argument: the call's own choice, or None.
        tensor: decides by device and dtype. float64 always runs on the reference, unless `argument` forbids it.

    Raises:
        ValueError: an unknown backend, or one asked for by `argument` that can't take such tensors.
        RuntimeError: the backend asked for is not available on this machine.
    """
    requested = _requested_backend(operation, argument)
    if requested is not None:
        if _takes(operation, requested, tensor):
            available, reason = _state(requested)
            if not available:
                raise RuntimeError(_UNAVAILABLE.format(requested, reason))
            return requested
        if argument is not None:
            where = {"cpu": "the CPU", "cuda": "a GPU"}[DEVICES[requested]]
            raise ValueError(
                f"backend {requested!r} takes float32 tensors on {where}, got {tensor.dtype} on {tensor.device}."
            )
        return "reference"
    missing = []
    for name in OPERATIONS[operation]:
        if DEVICES.get(name) != tensor.device.type or not _takes(operation, name, tensor):
            continue  # nor is the interpreter ever a good choice
        available, reason = _state(name)
        if available:
            return name
        missing.append(reason)
    if missing:
        _log_once(f"{operation} runs on the torch reference, which is many times slower: {'; '.join(missing)}.")
    elif tensor.device.type != "cpu":
        _log_once(f"{operation} has no kernel for {tensor.device.type} yet: it runs on the torch reference.")
    return "reference"


def backend_report() -> list[BackendStatus]:
    """Every backend of every operation, for `dreamkit doctor`."""
    return [BackendStatus(name, operation, *_state(name)) for operation, names in OPERATIONS.items() for name in names]
