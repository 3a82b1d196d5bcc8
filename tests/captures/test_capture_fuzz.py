"""Damaged sets: whatever a file holds, it is read, or refused with an explanation. Many mutations only when slow."""

import json
import random
from pathlib import Path

import pytest
from capture_sets import small_capture, write_set
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamkit.captures import CaptureOptions, read_capture_set
from dreamkit.errors import DreamkitError

FILES = {
    "transforms": ("transforms.json", "images/view_0001.png"),
    "blender": ("transforms_train.json",),
    "colmap-binary": ("sparse/0/cameras.bin", "sparse/0/images.bin", "sparse/0/points3D.bin"),
    "colmap-text": ("sparse/0/cameras.txt", "sparse/0/images.txt", "sparse/0/points3D.txt"),
}
CASES = [(kind, name) for kind, names in FILES.items() for name in names]
ODD = [None, True, -1, 0, 1e308, float("nan"), 10**30, "", "a", "../../a", [], {}, [[]], "\0", "é", -0.0]


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    import torch

    points = torch.rand(4, 3)
    return {kind: write_set(small_capture(3), tmp_path_factory.mktemp("sets") / kind, kind, points) for kind in FILES}


def attempt(folder: Path, name: str, content: bytes) -> None:
    """Read the set with a file's content replaced."""
    path = folder / name
    whole = path.read_bytes()
    path.write_bytes(content)
    said: DreamkitError | None = None
    try:
        read_capture_set(folder, CaptureOptions(max_size=16))
    except DreamkitError as error:
        said = error
    finally:
        path.write_bytes(whole)
    assert said is None or said.hint


def mutated(content: bytes, chance: random.Random) -> bytes:
    """A few bytes changed, taken out, doubled, or the end cut off."""
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 4, 8))):
        if not data:
            break
        place = chance.randrange(len(data))
        match chance.randrange(5):
            case 0:
                data[place] = chance.randrange(256)
            case 1:
                data[place] ^= 1 << chance.randrange(8)
            case 2:
                del data[place : place + chance.choice((1, 4, 8))]
            case 3:
                data[place:place] = data[place : place + chance.choice((1, 8, 64))]
            case 4:
                data[place : place + 8] = chance.choice(
                    (b"\xff" * 8, bytes(8), b"\x7f" + bytes(7), b"\0\0\0\0\0\0\xf8\x7f")
                )
    return bytes(data[: chance.randrange(len(data) + 1)] if chance.random() < 0.1 else data)


def mutated_json(content: bytes, chance: random.Random) -> bytes:
    """A value somewhere in the tree replaced by an odd one, or taken out."""
    tree = json.loads(content)
    for _ in range(chance.choice((1, 1, 2))):
        node, places = tree, []
        while isinstance(node, (dict, list)) and node and (not places or chance.random() < 0.7):
            key = chance.choice(list(node)) if isinstance(node, dict) else chance.randrange(len(node))
            places.append((node, key))
            node = node[key]
        if not places:
            break
        parent, key = places[-1]
        if chance.random() < 0.2:
            del parent[key]
        else:
            scaled = node * chance.choice((-1, 0, 1e-9, 1e9)) if isinstance(node, float) else node
            parent[key] = chance.choice([*ODD, scaled])
    return json.dumps(tree).encode()


@pytest.mark.parametrize(("kind", "name"), CASES)
@settings(max_examples=8)
@given(seed=st.integers(0, 2**32))
def test_damaged_sets(sets, kind, name, seed):
    fuzz(sets[kind], name, seed, 1)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_thousands_of_damaged_sets(sets, kind, name):
    fuzz(sets[kind], name, 1, 2000)


def fuzz(folder: Path, name: str, seed: int, count: int) -> None:
    chance = random.Random(seed)
    content = (folder / name).read_bytes()
    for _ in range(count):
        structured = name.endswith("json") and chance.random() < 0.6
        attempt(folder, name, (mutated_json if structured else mutated)(content, chance))
