"""What a stream holds in memory."""

from collections import deque

import torch


def held_bytes(thing, seen=None):
    """Bytes of every tensor that can be reached from a thing's attributes, each storage once."""
    seen = set() if seen is None else seen
    if id(thing) in seen or isinstance(thing, str | bytes | int | float | type(None) | torch.nn.Module):
        return 0
    seen.add(id(thing))
    if isinstance(thing, torch.Tensor):
        storage = thing.untyped_storage()
        known = storage.data_ptr() in seen
        seen.add(storage.data_ptr())
        return 0 if known else storage.nbytes()
    if isinstance(thing, dict):
        parts = list(thing.values())
    elif isinstance(thing, list | tuple | deque | set):
        parts = list(thing)
    else:
        parts = list(getattr(thing, "__dict__", {}).values())
    return sum(held_bytes(part, seen) for part in parts)
