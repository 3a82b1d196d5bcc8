"""Gaussians as files: PLY (3D Gaussian Splatting), compressed PLY (PlayCanvas) and .splat, out and in.

A file that is read is not trusted: its counts are bounded by its size before anything is allocated, and its numbers
must be finite.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dreamkit.errors import SceneError
from dreamkit.files import atomic_path
from dreamkit.scenes import compressed_ply
from dreamkit.scenes.asset_files import read_bytes
from dreamkit.scenes.gaussian_config import GaussianConfig
from dreamkit.scenes.gaussians import SH_C0, GaussianScene
from dreamkit.scenes.ply_tables import read_tables

_SPLAT = np.dtype([("mean", "<f4", 3), ("scale", "<f4", 3), ("color", "u1", 4), ("rotation", "u1", 4)])
_LIMITS = {"means": 1e6, "log_scales": 40.0, "opacity_logits": 1e4, "quaternions": 1e6, "sh_base": 1e4, "sh_rest": 1e4}
_DEGREES = {0: 0, 9: 1, 24: 2, 45: 3}
"""Degree by the number of f_rest columns."""
_OPACITIES = (1e-3, 1.0 - 1e-3)
"""What 8 bits of opacity are kept within: 0 and 1 have no logit."""


def write_ply(scene: GaussianScene, path: Path | str) -> None:
    """Write the layout of 3D Gaussian Splatting, which every splat viewer opens (binary little-endian floats).

    Columns: x y z, nx ny nz (0), f_dc_0..2, f_rest_* (channel by channel), opacity (logit), scale_0..2 (log),
    rot_0..3 (unit, wxyz). Plain RGB colours become the constant harmonic, f_dc = (colour - 1/2) / SH_C0.

    Args:
        scene: what to write.
        path: the file to write or replace.

    Raises:
        SceneError: parameters that are not finite.
        RunError: the system refused the write.
    """
    tensors = _plain_tensors(scene)
    count, bases = tensors["sh"].shape[:2]
    rest = tensors["sh"][:, 1:].transpose(1, 2).reshape(count, -1)
    columns = {
        ("x", "y", "z"): tensors["means"],
        ("nx", "ny", "nz"): torch.zeros(count, 3),
        ("f_dc_0", "f_dc_1", "f_dc_2"): tensors["sh"][:, 0],
        tuple(f"f_rest_{k}" for k in range(3 * (bases - 1))): rest,
        ("opacity",): tensors["opacity_logits"][:, None],
        ("scale_0", "scale_1", "scale_2"): tensors["log_scales"],
        ("rot_0", "rot_1", "rot_2", "rot_3"): tensors["quaternions"],
    }
    names = [name for group in columns for name in group]
    table = torch.cat(list(columns.values()), dim=1).numpy().astype("<f4")
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {count}"]
    header += [f"property float {name}" for name in names] + ["end_header", ""]
    with atomic_path(path) as temporary:
        temporary.write_bytes("\n".join(header).encode("ascii") + table.tobytes())


def read_ply(path: Path | str) -> GaussianScene:
    """Read a PLY in the layout of 3D Gaussian Splatting, or a compressed one.

    Binary, in either byte order and of any property types; `compressed_ply` says how exact a compressed one is.

    Args:
        path: the file.

    Returns:
        A scene of spherical harmonics, of the degree that the file has.

    Raises:
        SceneError: no such file, not a PLY of Gaussians, counts that its size can't hold, values that are not finite
            or absurdly large.
    """
    path = Path(path)

    def broken(reason: str) -> SceneError:
        return SceneError(f"{path} is no PLY of Gaussians: {reason}.", "Use a binary PLY of 3D Gaussian Splatting.")

    tables = read_tables(read_bytes(path), compressed_ply.ELEMENTS, broken)
    if "vertex" not in tables:
        raise broken("it has no vertex element")
    if not len(tables["vertex"]):
        raise broken("it holds no Gaussians")
    if "chunk" in tables:
        return _compressed_scene(path, compressed_ply.decode(tables, broken))
    rows = tables["vertex"]
    names = set(rows.dtype.names or ())
    rest = sorted((n for n in names if re.fullmatch(r"f_rest_\d{1,3}", n)), key=lambda n: int(n[7:]))
    degree = _DEGREES.get(len(rest))
    wanted = ["x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity", "scale_0", "scale_1", "scale_2"]
    wanted += ["rot_0", "rot_1", "rot_2", "rot_3", *(f"f_rest_{k}" for k in range(len(rest)))]
    missing = [name for name in wanted if name not in names]
    if missing or degree is None:
        raise broken(f"it lacks {', '.join(missing)}" if missing else f"it has {len(rest)} f_rest columns")

    def columns(*group: str) -> Tensor:
        with np.errstate(over="ignore"):  # a double too large for a float becomes infinite, and is refused below
            return torch.from_numpy(np.stack([rows[name] for name in group], axis=-1).astype(np.float32))

    state = {
        "means": columns("x", "y", "z"),
        "log_scales": columns("scale_0", "scale_1", "scale_2"),
        "quaternions": columns("rot_0", "rot_1", "rot_2", "rot_3"),
        "opacity_logits": columns("opacity")[:, 0],
        "sh_base": columns("f_dc_0", "f_dc_1", "f_dc_2")[:, None],
    }
    if rest:
        state["sh_rest"] = columns(*rest).reshape(len(rows), 3, -1).transpose(1, 2).contiguous()
    return _checked_scene(path, state, degree)


def write_compressed_ply(scene: GaussianScene, path: Path | str) -> None:
    """Write PlayCanvas' compressed PLY, a quarter of the size or less; `compressed_ply` says how exact it is.

    Args:
        scene: what to write.
        path: the file to write or replace.

    Raises:
        SceneError: parameters that are not finite.
        RunError: the system refused the write.
    """
    tensors = _plain_tensors(scene)
    parts = (
        tensors["means"], tensors["log_scales"], tensors["quaternions"], torch.sigmoid(tensors["opacity_logits"]),
        tensors["sh"][:, 0], tensors["sh"][:, 1:],
    )  # fmt: skip
    data = compressed_ply.encode(compressed_ply.Columns(*(part.numpy() for part in parts)))
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def _compressed_scene(path: Path, columns: compressed_ply.Columns) -> GaussianScene:
    """The scene of what a compressed PLY holds."""
    means, log_scales, quaternions, opacities, base, rest = (
        torch.from_numpy(np.ascontiguousarray(values, np.float32)) for values in columns
    )
    state = {
        "means": means,
        "log_scales": log_scales,
        "quaternions": quaternions,
        "opacity_logits": opacities.clamp(*_OPACITIES).logit(),
        "sh_base": base[:, None],
    }
    if rest.shape[1]:
        state["sh_rest"] = rest
    return _checked_scene(path, state, _DEGREES[3 * rest.shape[1]])


def write_splat(scene: GaussianScene, path: Path | str, most: int | None = None) -> None:
    """Write the .splat layout of antimatter15's viewer, 32 bytes a Gaussian, the most important first.

    position 3 x float, scale 3 x float, colour and opacity 4 x byte, rotation 4 x byte as 128 (q + 1) of the unit
    quaternion (wxyz). View dependence is lost. Importance is volume times opacity, as in that viewer's converter.

    Args:
        scene: what to write.
        path: the file to write or replace.
        most: how many Gaussians at most; all by default.

    Raises:
        SceneError: parameters that are not finite.
        RunError: the system refused the write.
    """
    tensors = _plain_tensors(scene)
    scales, opacities = tensors["log_scales"].exp(), torch.sigmoid(tensors["opacity_logits"])
    order = torch.argsort(scales.prod(dim=1) * opacities, descending=True, stable=True)[:most]
    colors = (0.5 + SH_C0 * tensors["sh"][:, 0]).clamp(0.0, 1.0)
    rows = np.zeros(len(order), _SPLAT)
    rows["mean"], rows["scale"] = tensors["means"][order].numpy(), scales[order].numpy()
    rgba = torch.cat([colors, opacities[:, None]], dim=1)
    rows["color"] = (rgba * 255.0).round().to(torch.uint8)[order].numpy()
    rotation = (tensors["quaternions"] * 128.0 + 128.0).round().clamp(0.0, 255.0)
    rows["rotation"] = rotation.to(torch.uint8)[order].numpy()
    with atomic_path(path) as temporary:
        temporary.write_bytes(rows.tobytes())


def read_splat(path: Path | str) -> GaussianScene:
    """Read a .splat file, see `write_splat`.

    Args:
        path: the file.

    Returns:
        A scene of spherical harmonics of degree 0 (opacities are kept off 0 and 1 by 1e-3).

    Raises:
        SceneError: no such file, a size that is no multiple of 32 bytes, values that are not finite or too large.
    """
    path = Path(path)
    data = read_bytes(path)
    if not data or len(data) % _SPLAT.itemsize:
        raise SceneError(
            f"{path} has {len(data)} bytes, which is no whole number of {_SPLAT.itemsize}-byte Gaussians.",
            "The file is cut off or of another format: export it again.",
        )
    rows = np.frombuffer(data, _SPLAT)
    if not (np.isfinite(rows["scale"]).all() and (rows["scale"] >= 0).all()):
        raise SceneError(f"{path} holds scales that are negative or not finite.", "Export the scene again.")
    rgba = torch.from_numpy(rows["color"].astype(np.float32)) / 255.0
    state = {
        "means": torch.from_numpy(rows["mean"].astype(np.float32)),
        "log_scales": torch.from_numpy(rows["scale"].astype(np.float32)).clamp_min(1e-8).log(),
        "quaternions": (torch.from_numpy(rows["rotation"].astype(np.float32)) - 128.0) / 128.0,
        "opacity_logits": rgba[:, 3].clamp(*_OPACITIES).logit(),
        "sh_base": ((rgba[:, :3] - 0.5) / SH_C0)[:, None],
    }
    return _checked_scene(path, state, 0)


def _plain_tensors(scene: GaussianScene) -> dict[str, Tensor]:
    """What exports write, detached and on the CPU; rotations are unit.

    Raises:
        SceneError: a value that is not finite.
    """
    parameters = scene.parameters_dict()
    tensors = {
        "means": scene.means,
        "log_scales": parameters["log_scales"],
        "opacity_logits": parameters["opacity_logits"],
        "quaternions": scene.quaternions,
        "sh": scene.sh,
    }
    plain = {name: tensor.detach().float().cpu() for name, tensor in tensors.items()}
    for name, tensor in plain.items():
        if not bool(torch.isfinite(tensor).all()):
            raise SceneError(f"The scene's {name} holds values that are not finite.", "Use an earlier checkpoint.")
    return plain


def _checked_scene(path: Path, state: dict[str, Tensor], degree: int) -> GaussianScene:
    """The scene of a state that came from a file.

    Raises:
        SceneError: a value is not finite or absurdly large.
    """
    for name, tensor in state.items():
        # NaN fails the comparison, as it should.
        if not bool((tensor.abs() <= _LIMITS[name]).all()):
            raise SceneError(
                f"{path} holds {name} that are not finite or beyond {_LIMITS[name]:g}.",
                "The file is damaged: export it again.",
            )
    return GaussianScene(state, GaussianConfig(count=len(state["means"]), sh_degree=degree))
