"""What a mesh from elsewhere may ask of memory: a few kilobytes of it can name the same points a million times."""

from __future__ import annotations

import json
import struct
from typing import Any

from dreamkit.errors import SceneError

MAX_VERTICES = 20_000_000
"""Of a scene, a mesh that stands in it several times counted as often; also of triangles."""
MAX_MATERIALS = 10_000
"""Of an OBJ."""
MAX_NODES = 100_000
MAX_DEPTH = 1000
"""Nodes below each other."""
_OVERLAP = 8
"""How often, on average, a file's views and accessors may hold each of its bytes."""
_SLACK = 2**20
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}
_SIZES = {5120: 1, 5121: 1, 5122: 2, 5123: 2, 5124: 4, 5125: 4, 5126: 4}


def check_glb(data: bytes) -> None:
    """Make sure that reading a binary glTF takes memory and time in proportion to its size.

    Args:
        data: the file's content.

    Raises:
        SceneError: not a binary glTF, or one that asks for more.
    """
    tree = glb_tree(data)
    try:
        asked = sum(_whole(view, "byteLength") for view in _list(tree, "bufferViews"))
        asked += sum(_accessor_bytes(accessor) for accessor in _list(tree, "accessors"))
        if asked > _OVERLAP * len(data) + _SLACK:
            raise _unreadable(f"its {len(data):,} bytes promise {asked:,}")
        _check_scene(tree)
    except (TypeError, KeyError, IndexError, AttributeError, ValueError) as error:
        raise _unreadable(f"its JSON is not glTF ({type(error).__name__}: {str(error)[:100]})") from error


def check_obj(data: bytes) -> None:
    """Make sure that reading an OBJ takes memory and time in proportion to its size.

    trimesh gives every use of a material all vertices.

    Args:
        data: the file's content.

    Raises:
        SceneError: more vertices in all than `MAX_VERTICES`, or too many materials.
    """
    materials, vertices = data.count(b"usemtl "), data.count(b"\nv ") + 1
    if materials > MAX_MATERIALS or materials * vertices > MAX_VERTICES:
        raise _unreadable(f"its {vertices:,} vertices have {materials:,} materials")


def glb_tree(data: bytes) -> dict[str, Any]:
    """The JSON of a binary glTF 2.0.

    Raises:
        SceneError: there is none.
    """
    if len(data) < 20 or data[:4] != b"glTF" or data[16:20] != b"JSON":
        raise _unreadable("it does not start as a .glb does")
    (length,) = struct.unpack("<I", data[12:16])
    if length > len(data) - 20:
        raise _unreadable("it ends in its JSON")
    try:
        tree = json.loads(data[20 : 20 + length])
    except (ValueError, RecursionError) as error:
        raise _unreadable(f"its JSON is broken ({str(error)[:100]})") from error
    if not isinstance(tree, dict):
        raise _unreadable("its JSON is no object")
    return tree


def _unreadable(reason: str) -> SceneError:
    return SceneError(f"The file can't be read as a mesh: {reason}.", "Export it again.")


def _list(tree: dict[str, Any], name: str) -> list[Any]:
    values = tree.get(name, [])
    if not isinstance(values, list):
        raise TypeError(f"{name} is no list")
    return values


def _whole(item: Any, name: str) -> int:
    """A count that is not negative."""
    value = item[name]
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**53:
        raise ValueError(f"{name} is {str(value)[:40]}")
    return value


def _accessor_bytes(accessor: Any) -> int:
    size = _SIZES[accessor["componentType"]] * _WIDTHS[accessor["type"]]
    return _whole(accessor, "count") * size


def _check_scene(tree: dict[str, Any]) -> None:
    """Count what the nodes show, and follow them down.

    Raises:
        SceneError: too much, or nodes that are below themselves.
    """
    accessors = _list(tree, "accessors")
    sizes = []
    for mesh in _list(tree, "meshes"):
        total = 0
        for primitive in mesh["primitives"]:
            used = [*primitive["attributes"].values(), *([primitive["indices"]] if "indices" in primitive else [])]
            total += max((_whole(accessors[index], "count") for index in used), default=0)
        sizes.append(total)
    nodes = _list(tree, "nodes")
    if len(nodes) > MAX_NODES:
        raise _unreadable(f"it has {len(nodes):,} nodes, and at most {MAX_NODES:,} are read")
    shown = sum(sizes) + sum(sizes[node["mesh"]] for node in nodes if "mesh" in node)
    if shown > 2 * MAX_VERTICES:
        raise _unreadable(f"its nodes show {shown:,} vertices, and at most {MAX_VERTICES:,} are read")
    _check_tree(nodes)


def _check_tree(nodes: list[Any]) -> None:
    """Every node has one parent at most, and is below a node that has none.

    Raises:
        SceneError: another shape, or too deep.
    """
    children = [child for node in nodes for child in node.get("children", [])]
    level = list(set(range(len(nodes))).difference(children))
    met = depth = 0
    while level:
        depth, met = depth + 1, met + len(level)
        level = [child for index in level for child in nodes[index].get("children", [])]
    if len(children) != len(set(children)) or met != len(nodes) or depth > MAX_DEPTH:
        raise _unreadable(f"its {len(nodes)} nodes are no tree of at most {MAX_DEPTH} generations")
