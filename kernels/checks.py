"""The checks of tensors that every operation makes, with messages that name the argument."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SINGLE_OR_DOUBLE = (torch.float32, torch.float64)


def check_shape(name: str, tensor: Tensor, shape: Sequence[int | str]) -> None:
    """Check that an argument is a tensor of a shape, in which a string stands for any size.

    Raises:
        TypeError: no tensor.
        ValueError: another shape.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}.")
    matches = tensor.ndim == len(shape) and all(
        isinstance(want, str) or want == got for want, got in zip(shape, tensor.shape, strict=True)
    )
    if not matches:
        raise ValueError(f"{name} must have shape [{', '.join(map(str, shape))}], got {list(tensor.shape)}.")


def check_float(name: str, tensor: Tensor, dtypes: Sequence[torch.dtype] | None = SINGLE_OR_DOUBLE) -> None:
    """Check that an argument is a tensor of one of the dtypes; `None` is any floating one.

    Raises:
        TypeError: no tensor, or of another dtype.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}.")
    if dtypes is None and not tensor.is_floating_point():
        raise TypeError(f"{name} must be floating, got {tensor.dtype}.")
    if dtypes is not None and tensor.dtype not in dtypes:
        raise TypeError(f"{name} must be float32 or float64, got {tensor.dtype}.")


def check_like(name: str, tensor: Tensor, other: str, like: Tensor) -> None:
    """Check that an argument is a tensor of the dtype and on the device of another one.

    Raises:
        TypeError: no tensor, or of another dtype.
        ValueError: on another device.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}.")
    if tensor.dtype != like.dtype:
        raise TypeError(f"{name} must have the dtype of {other} ({like.dtype}), got {tensor.dtype}.")
    if tensor.device != like.device:
        raise ValueError(f"{name} must be on the device of {other} ({like.device}), got {tensor.device}.")


def plain(tensor: Tensor) -> Tensor:
    """What the native extension takes: detached and contiguous."""
    return tensor.detach().contiguous()
