"""The tables of a binary PLY, as arrays that share the file's bytes: a count in a header allocates nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
from numpy.typing import NDArray

from dreamkit.errors import SceneError

Tables = dict[str, NDArray[np.void]]

_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2",
    "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4",
    "double": "f8", "float64": "f8",
}  # fmt: skip
_MAX_HEADER = 65_536

Broken = Callable[[str], SceneError]


def read_tables(data: bytes, wanted: Collection[str], broken: Broken) -> Tables:
    """The elements of a binary PLY, in either byte order.

    Args:
        data: the file's content.
        wanted: elements to read; what follows the last of them is not looked at.
        broken: makes the error of a reason.

    Returns:
        Element -> rows with a field a property; without those that the file lacks.

    Raises:
        SceneError: not a binary PLY, a header that is cut off or unknown, or fewer bytes than it promises.
    """
    header, found, _ = data[:_MAX_HEADER].partition(b"end_header\n")
    if not data.startswith(b"ply") or not found:
        raise broken("it does not start with a PLY header")
    order, elements = _elements(header.decode("ascii", "replace"), wanted, broken)
    offset = len(header) + len(found)
    tables: Tables = {}
    for name, count, properties in elements:
        if name in tables or len({column for column, _ in properties}) != len(properties):
            raise broken(f"its {name} is there, or has a property, twice")
        dtype = np.dtype([(column, order + kind) for column, kind in properties])
        if count * dtype.itemsize > len(data) - offset:
            raise broken(f"it promises {count} of {name} and ends before")
        if dtype.itemsize:
            tables[name] = np.frombuffer(data, dtype, count, offset)
        offset += count * dtype.itemsize
    return tables


def _elements(
    header: str, wanted: Collection[str], broken: Broken
) -> tuple[str, list[tuple[str, int, list[tuple[str, str]]]]]:
    """Byte order and elements (name, count, [(property, numpy type)]) up to and with the last that is wanted."""
    order = ""
    elements: list[tuple[str, int, list[tuple[str, str]]]] = []
    for line in header.splitlines()[1:]:
        match line.split():
            case [] | ["comment", *_] | ["obj_info", *_]:
                continue
            case ["format", ("binary_little_endian" | "binary_big_endian") as name, "1.0"]:
                order = "<" if name == "binary_little_endian" else ">"
            case ["element", name, count] if count.isascii() and count.isdigit() and len(count) <= 12:
                elements.append((name, int(count), []))
            case ["property", kind, name] if kind in _TYPES and elements:
                elements[-1][2].append((name, _TYPES[kind]))
            case ["property", "list", *_] if elements and elements[-1][0] not in wanted:
                elements.pop()  # nobody knows where it ends
                break
            case _:
                raise broken(f"its header says {line[:60]!r}")
    if not order:
        raise broken("its header names no binary format")
    last = max((index for index, (name, _, _) in enumerate(elements) if name in wanted), default=-1)
    return order, elements[: last + 1]
