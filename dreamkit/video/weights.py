"""Networks as folders in diffusers' layout: config.json and safetensors, whole or in shards; never pickles."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dreamkit.errors import CheckpointError
from dreamkit.files import atomic_path, write_error, write_json

CONFIG_FILE = "config.json"
STEM = "diffusion_pytorch_model"
_AGAIN = "Copy or download the folder again."


def read_config(folder: Path | str) -> dict[str, Any]:
    """The content of a folder's config.json.

    Raises:
        CheckpointError: no such file, or no JSON object in it.
    """
    path = Path(folder) / CONFIG_FILE
    content = _read_json(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no JSON object.", _AGAIN)
    return content


def load_weights(network: nn.Module, folder: Path | str) -> None:
    """Copy a folder's weights into a network, each in the dtype that its parameter has.

    Parameters on the meta device become new ones on the CPU.

    Args:
        network: of the shapes that the files have.
        folder: with diffusion_pytorch_model.safetensors, with shards and their index, or with one variant (.fp16).

    Raises:
        CheckpointError: no weights, an unreadable file, a wrong shape, a parameter without weights or the other way
            round, or a number that is not finite.
    """
    path = Path(folder)
    wanted = network.state_dict()
    seen: set[str] = set()
    for file in _weight_files(path):
        state = _read_tensors(file)
        for name, value in state.items():
            if name not in wanted:
                raise CheckpointError(f"{file} holds {name}, which the network has no place for.", _AGAIN)
            if value.shape != wanted[name].shape:
                shapes = f"{list(value.shape)} in {file}; config.json makes it {list(wanted[name].shape)}"
                raise CheckpointError(f"{name} has the shape {shapes}.", _AGAIN)
            if not value.is_floating_point() or not bool(torch.isfinite(value).all()):
                raise CheckpointError(f"{name} in {file} is not made of finite numbers.", _AGAIN)
            if wanted[name].is_meta:
                state[name] = value.to(wanted[name].dtype)
        network.load_state_dict(state, strict=False, assign=any(wanted[name].is_meta for name in state))
        seen |= set(state)
    if missing := sorted(set(wanted) - seen):
        raise CheckpointError(f"The weights in {path} lack {', '.join(missing[:4])} ({len(missing)} in all).", _AGAIN)


def save_weights(network: nn.Module, config: Mapping[str, Any], folder: Path | str, dtype: torch.dtype) -> None:
    """Write a network as config.json and one safetensors file; each file appears whole or not at all.

    Args:
        network: whose weights to write.
        config: what its loader needs to make one of the same shapes.
        folder: made if it isn't there.
        dtype: of the written weights.

    Raises:
        CheckpointError: weights that are not finite in that dtype.
        RunError: the system refused the write.
    """
    from safetensors.torch import save_file

    path = Path(folder)
    state = {name: value.detach().to("cpu", dtype).contiguous() for name, value in network.state_dict().items()}
    for name, value in state.items():
        if not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"{name} is not finite in {dtype}.", "Write it in float32, or train it again.")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from error
    with atomic_path(path / f"{STEM}.safetensors") as temporary:
        save_file(state, temporary, metadata={"format": "pt"})
        temporary.chmod(0o644)  # safetensors writes files that only their owner can read
    write_json(path / CONFIG_FILE, config)


def _weight_files(folder: Path) -> list[Path]:
    """The plain file, else the shards that an index names, else the only variant."""
    plain = folder / f"{STEM}.safetensors"
    if plain.is_file():
        return [plain]
    indices = [folder / f"{STEM}.safetensors.index.json", *sorted(folder.glob(f"{STEM}.safetensors.index.*.json"))]
    for index in indices:
        if index.is_file():
            return _shards(index)
    variants = sorted(path for path in folder.glob(f"{STEM}.*.safetensors") if "-of-" not in path.name)
    if len(variants) == 1:
        return variants
    if variants:
        names = ", ".join(path.name for path in variants)
        raise CheckpointError(f"{folder} holds several variants: {names}.", f"Name one of them {plain.name}.")
    raise CheckpointError(f"{folder} holds no {plain.name} and no index of shards.", "Only safetensors are loaded.")


def _shards(index: Path) -> list[Path]:
    content = _read_json(index)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise CheckpointError(f"{index} has no weight_map.", _AGAIN)
    files = sorted({index.parent / name for name in places.values()})
    for file in files:
        if file.parent != index.parent or file.suffix != ".safetensors":
            raise CheckpointError(f"{index} names {file}, which is no safetensors file beside it.", _AGAIN)
    return files


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"There is no {path}.", "Give a folder in diffusers layout.") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} can't be read as JSON: {error}.", _AGAIN) from error


def _read_tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"There is no {path}.", _AGAIN) from error
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path} can't be read: {error}.", _AGAIN) from error
