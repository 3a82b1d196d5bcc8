"""Checkpoints: a job's whole state in a folder that is either complete and verified, or not there.

```
checkpoints/step-00000123/
    state.safetensors   every tensor: parameters, optimiser, density control, random-number generators (uint8)
    manifest.json       format version, step, plain values, and for every file its size and SHA-256,
                        for every tensor its shape and dtype; closed by a SHA-256 of itself
```

The folder is built under a temporary name, flushed and renamed (`dreamkit.files.atomic_folder`), so a process
that is killed while it saves leaves the previous checkpoints as they were. safetensors and JSON alone do not
notice most damage (of 300 mutated safetensors files 170 loaded without an error), hence the digests.
"""

from __future__ import annotations

import hashlib
import json
import re
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from dreamkit.errors import CheckpointError
from dreamkit.files import atomic_folder, plain, remove_leftovers, remove_path, write_error
from dreamkit.runs import Run

FORMAT_VERSION = 1
STATE_FILE = "state.safetensors"
MANIFEST_FILE = "manifest.json"
_FOLDER = re.compile(r"step-(\d{8,})(\.replaced)?")
_RESUME_HINT = "`dreamkit resume` falls back to the checkpoint before it by itself."


@dataclass(frozen=True)
class Checkpoint:
    """A loaded, verified checkpoint.

    Args:
        folder: where it was read.
        step: steps done.
        tensors: by name, on the device that was asked for.
        meta: plain values (numbers, strings, lists, dicts).
    """

    folder: Path
    step: int
    tensors: dict[str, Tensor]
    meta: dict[str, Any]


def save_checkpoint(
    checkpoints: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    meta: Mapping[str, Any] | None = None,
    keep: int = 3,
) -> Path:
    """Save a job's state as `checkpoints/step-XXXXXXXX/`; earlier ones beyond the last `keep` are deleted.

    Args:
        checkpoints: the run's checkpoint folder (`Run.checkpoints`); made if missing.
        step: steps done, >= 0.
        tensors: every tensor to keep, by a non-empty name, any shape and dtype (a generator's state is a
            uint8 tensor). Values must be finite.
        meta: plain values that JSON can hold exactly: finite numbers, strings, lists, dicts.
        keep: how many checkpoints to leave, >= 1.

    Returns:
        The new folder.

    Raises:
        CheckpointError: a tensor or value is not finite (nothing is written: the last good checkpoint stays).
        RunError: the system refused a write (full disk, no rights).
    """
    if step < 0 or keep < 1:
        raise CheckpointError(f"step must be >= 0 and keep >= 1, not {step} and {keep}.")
    state = _storable(tensors)
    for name, tensor in state.items():
        _require_finite(name, tensor, f"at step {step}")
    try:
        meta_text = json.dumps(plain(meta or {}), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"The checkpoint's plain values can't be stored: {error}.") from error
    try:
        checkpoints.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(checkpoints, error) from error
    remove_leftovers(checkpoints)
    folder = checkpoints / f"step-{step:08d}"
    with atomic_folder(folder) as temporary:
        _write_state(temporary / STATE_FILE, state)
        _write_manifest(temporary, step, state, json.loads(meta_text))
    for old in list_checkpoints(checkpoints)[keep:]:
        remove_path(old)
    return folder


def load_checkpoint(folder: Path, device: str | torch.device = "cpu") -> Checkpoint:
    """Read a checkpoint and verify every digest, shape, dtype and the finiteness of every value.

    Args:
        folder: a `step-XXXXXXXX` folder.
        device: where the tensors go.

    Raises:
        CheckpointError: a file is missing, damaged, of a newer version, or holds a value that is not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    manifest = _read_manifest(folder)
    for name, entry in manifest["files"].items():
        _verify_file(folder / name, entry)
    try:
        tensors = load_file(folder / STATE_FILE, device=str(device))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{folder / STATE_FILE} can't be read: {error}.", _RESUME_HINT) from error
    expected = manifest["tensors"]
    if tensors.keys() != expected.keys():
        names = sorted(tensors.keys() ^ expected.keys())
        raise CheckpointError(f"{folder} and its manifest disagree about {', '.join(names)}.", _RESUME_HINT)
    for name, tensor in tensors.items():
        if _describe(tensor) != expected[name]:
            raise CheckpointError(
                f"{folder}: {name} is {_describe(tensor)}, the manifest says {expected[name]}.", _RESUME_HINT
            )
        _require_finite(name, tensor, f"in {folder}")
    return Checkpoint(folder, manifest["step"], tensors, manifest["meta"])


def list_checkpoints(checkpoints: Path) -> list[Path]:
    """List the checkpoint folders, newest step first.

    A folder that was being replaced by one of the same step when the process died comes right after it.
    """
    if not checkpoints.is_dir():
        return []
    found = [(match, path) for path in checkpoints.iterdir() if (match := _FOLDER.fullmatch(path.name))]
    found.sort(key=lambda item: (int(item[0][1]), item[0][2] is None), reverse=True)
    return [path for _, path in found]


def load_latest(source: Run | Path, device: str | torch.device = "cpu") -> tuple[Checkpoint, list[str]]:
    """Load the newest checkpoint that is good.

    Args:
        source: the run, or its checkpoint folder.
        device: where the tensors go.

    Returns:
        The checkpoint, and one sentence for every newer one that had to be passed over.

    Raises:
        CheckpointError: there is none, or none is good.
    """
    checkpoints = source.checkpoints if isinstance(source, Run) else source
    warnings: list[str] = []
    for folder in list_checkpoints(checkpoints):
        try:
            checkpoint = load_checkpoint(folder, device)
        except CheckpointError as error:
            warnings.append(f"Passed over {folder.name}: {error.message}")
            continue
        if warnings:
            warnings.append(f"Continuing from {folder.name}, the newest good checkpoint.")
        return checkpoint, warnings
    if warnings:
        raise CheckpointError(
            f"None of the {len(warnings)} checkpoints in {checkpoints} is good. {' '.join(warnings)}",
            "Start again with `dreamkit generate`.",
        )
    raise CheckpointError(
        f"There is no checkpoint in {checkpoints}.", "The job ended before it saved one: start it again."
    )


@dataclass
class InterruptGuard:
    """Whether the user has asked to stop (Ctrl-C or a termination signal); read between steps.

    Args:
        requested: True after the first signal.
    """

    requested: bool = field(default=False)


@contextmanager
def guard_interrupts() -> Iterator[InterruptGuard]:
    """Turn the first SIGINT or SIGTERM into a request that the loop answers between steps.

    A KeyboardInterrupt in the middle of an optimiser step would leave half of the parameters moved; a
    checkpoint of that state could not be continued bitwise. The second signal interrupts at once, as usual.
    Outside the main thread (where Python delivers no signals) the guard never fires.

    ```python
    with guard_interrupts() as interrupt:
        for step in range(first, total):
            ...
            if interrupt.requested:
                save_checkpoint(run.checkpoints, step + 1, state)
                raise RunInterrupted(run.path, step + 1)
    ```
    """
    guard = InterruptGuard()
    if threading.current_thread() is not threading.main_thread():
        yield guard
        return

    def handle(_signal: int, _frame: FrameType | None) -> None:
        if guard.requested:
            raise KeyboardInterrupt
        guard.requested = True

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield guard
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Detach, move to the CPU, make contiguous; copy what shares memory (safetensors refuses that)."""
    state: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"The checkpoint entry {name!r} is a {type(tensor).__name__}, not a tensor.")
        stored = tensor.detach().to("cpu").contiguous()
        storage = stored.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != stored.numel() * stored.element_size():
            stored = stored.clone()
        seen.add(stored.untyped_storage().data_ptr())
        state[name] = stored
    return state


def _require_finite(name: str, tensor: Tensor, where: str) -> None:
    """Raise CheckpointError when a floating-point tensor holds NaN or infinity."""
    if (tensor.is_floating_point() or tensor.is_complex()) and not bool(torch.isfinite(tensor).all()):
        count = int((~torch.isfinite(tensor)).sum())
        raise CheckpointError(
            f"{name} has {count} values that are not finite {where}.",
            "The optimisation diverged: a lower --guidance or another --seed may help.",
        )


def _describe(tensor: Tensor) -> dict[str, Any]:
    return {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}


def _write_state(path: Path, state: dict[str, Tensor]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(state, path)
    except SafetensorError as error:  # it reports a full disk in words of its own
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else 0, str(error)) from error


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _manifest_digest(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of the manifest without its own digest, in canonical JSON."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _write_manifest(folder: Path, step: int, state: Mapping[str, Tensor], meta: Any) -> None:
    files = {path.name: {"bytes": path.stat().st_size, "sha256": _digest(path)} for path in sorted(folder.iterdir())}
    manifest: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "step": step,
        "files": files,
        "tensors": {name: _describe(tensor) for name, tensor in state.items()},
        "meta": meta,
    }
    manifest["sha256"] = _manifest_digest(manifest)
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST_FILE
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror}.", _RESUME_HINT) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}.", _RESUME_HINT) from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("format_version"), int):
        raise CheckpointError(f"{path} is damaged: it is no manifest.", _RESUME_HINT)
    if manifest["format_version"] > FORMAT_VERSION:
        raise CheckpointError(
            f"{folder} has format version {manifest['format_version']}, newer than {FORMAT_VERSION}.",
            "Upgrade DreamKit to continue this run: nothing was changed.",
        )
    if manifest.get("sha256") != _manifest_digest(manifest) or STATE_FILE not in manifest.get("files", {}):
        raise CheckpointError(f"{path} is damaged: its digest does not match.", _RESUME_HINT)
    return manifest


def _verify_file(path: Path, entry: Mapping[str, Any]) -> None:
    try:
        size = path.stat().st_size
        if size != entry["bytes"]:
            raise CheckpointError(f"{path} has {size} bytes instead of {entry['bytes']}.", _RESUME_HINT)
        digest = _digest(path)
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror}.", _RESUME_HINT) from error
    if digest != entry["sha256"]:
        raise CheckpointError(f"{path} is damaged: its digest does not match.", _RESUME_HINT)
