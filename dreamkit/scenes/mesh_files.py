"""Meshes as files: GLB and OBJ with vertex colours or a texture, out and in.

Files are written beside their targets and renamed, so they are whole or not there. A file that is read is not trusted:
its numbers must be finite, its indices in range and its picture of a size that a texture can have.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dreamkit.errors import SceneError
from dreamkit.files import atomic_path
from dreamkit.scenes.asset_files import by_suffix, read_bytes, suffix_of
from dreamkit.scenes.density_grid import Floats
from dreamkit.scenes.mesh_limits import check_glb, check_obj
from dreamkit.scenes.triangles import (
    Faces,
    Mesh,
    TexturedMesh,
    first_of_each,
    texture_colors,
    vertex_normals,
    weld,
)

_MAX_TEXTURE = 8192
"""Texels along a side of a texture that is read."""
_MAX_COMPANIONS = 2**30
"""Bytes of all materials and pictures that an .obj names."""
_CLAMPED = {"magFilter": 9729, "minFilter": 9987, "wrapS": 33071, "wrapT": 33071}
"""Linear, with smaller versions of the picture for the distance, held at the edges."""


def write_glb(mesh: Mesh, path: Path | str) -> None:
    """Write binary glTF 2.0 with normals and with vertex colours, or a texture as an embedded PNG.

    Three traps of glTF are seen to. COLOR_0 is LINEAR by the standard, and our colours are sRGB (what a screen shows):
    they are converted, and stored as floats, because 8 linear bits band in the dark. A texture is sRGB in both, but
    glTF counts v from the top. And a mesh without a material counts as metal and looks black: a matt material is
    written. Colours at the vertices would multiply a texture, and stay out then.

    Args:
        mesh: what to write.
        path: the file to write or replace.

    Raises:
        SceneError: values that are not finite.
        RunError: the system refused the write.
    """
    import trimesh
    from trimesh.visual.material import PBRMaterial

    _require_finite(mesh)
    parts: dict[str, Any] = {"vertex_normals": mesh.normals, "process": False}
    finish: Callable[[dict], None]
    if isinstance(mesh, TexturedMesh):
        material = PBRMaterial("texture", baseColorTexture=_picture(mesh), metallicFactor=0.0, roughnessFactor=1.0)
        # trimesh turns v over.
        parts["visual"] = trimesh.visual.TextureVisuals(uv=mesh.uvs, material=material)
        finish = _clamp_textures
    else:
        parts["vertex_attributes"] = {"_COLOR_0": srgb_to_linear(mesh.colors)}
        finish = _name_colors
    body = trimesh.Trimesh(mesh.vertices, mesh.faces, **parts)
    data = trimesh.Scene(body).export(file_type="glb", include_normals=True, tree_postprocessor=finish)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def _name_colors(tree: dict) -> None:
    """Call the vertex colours by their name, and add the matt material."""
    surface = {"metallicFactor": 0.0, "roughnessFactor": 1.0}
    tree["materials"] = [{"name": "vertex colours", "pbrMetallicRoughness": surface}]
    for primitive in (p for m in tree["meshes"] for p in m["primitives"]):
        primitive["attributes"]["COLOR_0"] = primitive["attributes"].pop("_COLOR_0")
        primitive["material"] = 0


def _clamp_textures(tree: dict) -> None:
    """Say how the texture is filtered: without it, what lies at its left edge would shine through at its right."""
    tree["samplers"] = [_CLAMPED]
    for texture in tree["textures"]:
        texture["sampler"] = 0


def write_obj(mesh: Mesh, path: Path | str) -> None:
    """Write Wavefront OBJ with normals and with vertex colours, or a texture in a .mtl and a .png of the same name.

    Vertex colours are the widespread extension `v x y z r g b` (sRGB, 0 to 1). A texture's seams are cut in uv alone:
    its positions are shared, so that a reader finds a closed surface. All three files are on the disk before the first
    is renamed, and the .obj comes last.

    Args:
        mesh: what to write.
        path: the .obj to write or replace.

    Raises:
        SceneError: values that are not finite.
        RunError: the system refused the write.
    """
    _require_finite(mesh)
    if not isinstance(mesh, TexturedMesh):
        text = _colored_obj(mesh)
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
        return
    # A name with spaces is two names to many readers.
    companion = Path(path).with_name(re.sub(r"[\s#]", "_", Path(path).stem))
    material, picture = (companion.with_name(companion.name + suffix) for suffix in (".mtl", ".png"))
    with atomic_path(path) as obj, atomic_path(material) as mtl, atomic_path(picture) as png:
        _picture(mesh).save(png)
        matt = f"newmtl texture\nKa 0 0 0\nKd 1 1 1\nKs 0 0 0\nillum 1\nmap_Kd {picture.name}\n"
        mtl.write_text(matt, encoding="utf-8")
        obj.write_text(_textured_obj(mesh, material.name), encoding="utf-8")


def _colored_obj(mesh: Mesh) -> str:
    """The text of an OBJ with vertex colours."""
    import trimesh

    body = trimesh.Trimesh(
        mesh.vertices,
        mesh.faces,
        vertex_normals=mesh.normals,
        vertex_colors=np.round(mesh.colors * 255.0).astype(np.uint8),
        process=False,
    )
    return str(body.export(file_type="obj", include_normals=True, include_color=True))


def _textured_obj(mesh: TexturedMesh, material: str) -> str:
    """The text of an OBJ with texture coordinates; equal positions, uvs and normals are written once."""
    lines = [f"mtllib {material}", "usemtl texture"]
    corners = []
    for word, rows in (("v", mesh.vertices), ("vt", mesh.uvs), ("vn", mesh.normals)):
        first, number = first_of_each(rows)
        # Nine digits are all of a float.
        lines += [f"{word} " + " ".join(f"{value:.9g}" for value in row) for row in rows[first].tolist()]
        corners.append(number[mesh.faces] + 1)
    for face in np.stack(corners, axis=-1).tolist():
        lines.append("f " + " ".join("/".join(map(str, corner)) for corner in face))
    return "\n".join([*lines, ""])


def _picture(mesh: TexturedMesh) -> Any:
    """The texture as an 8-bit Pillow image."""
    from PIL import Image

    return Image.fromarray(np.round(np.clip(mesh.texture, 0.0, 1.0) * 255.0).astype(np.uint8))


def _require_finite(mesh: Mesh) -> None:
    """Check what is to be written.

    Raises:
        SceneError: a value that is not finite.
    """
    for name, values in vars(mesh).items():
        if not np.isfinite(values).all():
            raise SceneError(f"The mesh's {name} hold values that are not finite.", "Use an earlier checkpoint.")


def load_mesh(path: Path | str) -> Mesh:
    """Read a .glb or .obj mesh with a texture or vertex colours (white where there are none).

    Args:
        path: the file; of an .obj, its materials and pictures are looked for in the same folder and those in it.

    Returns:
        The mesh, colours in sRGB; all parts of a GLB's scene joined in the scene's frame. A `TexturedMesh` if there is
        one part with a texture that is not tiled; else the vertices have what their textures show there. Factors of
        materials are not applied.

    Raises:
        SceneError: another suffix, or a file that is missing, broken, empty, or needs memory out of all proportion.
    """
    import trimesh

    by_suffix(path, {".glb": write_glb, ".obj": write_obj}, "mesh")
    path = Path(path)
    data = read_bytes(path)
    linear = suffix_of(path) == ".glb"
    (check_glb if linear else check_obj)(data)
    # An OBJ's vertex has one uv only when trimesh keeps the order, and a seam needs two.
    ordered = linear or b"\nvt " not in data
    companions = _companions(path, {} if linear else None)
    try:
        with np.errstate(all="ignore"):  # what is not finite is refused below
            scene = trimesh.load_scene(
                io.BytesIO(data),
                file_type=suffix_of(path)[1:],
                resolver=companions,
                process=False,
                maintain_order=ordered,
            )
            parts = [part for node in scene.graph.nodes_geometry if len((part := _placed(scene, node, linear)).faces)]
    except SceneError:
        raise
    except Exception as error:  # trimesh lets any error of a broken file through
        raise SceneError(f"{path} can't be read as a mesh: {str(error)[:200]}.", "Export it again.") from error
    if not parts:
        raise SceneError(f"{path} holds no triangles.", "Export it again.")
    mesh = parts[0] if len(parts) == 1 else _joined(parts)
    if not all(np.isfinite(values).all() for values in vars(mesh).values()):
        raise SceneError(f"{path} holds values that are not finite.", "Export it again.")
    return mesh


def _companions(path: Path, nothing: dict[str, bytes] | None) -> Any:
    """Where trimesh gets what a mesh refers to: the files of its folder, or nothing at all.

    A .glb holds all it needs; one that asks for other files gets none. What an .obj names must be files, small enough.
    """
    if nothing is not None:
        return nothing
    from trimesh.resolvers import FilePathResolver

    class Companions(FilePathResolver):
        """As its parent, which refuses what is outside; devices and huge files are refused too."""

        left = _MAX_COMPANIONS

        def get(self, name: str) -> bytes:
            """A companion's bytes."""
            for candidate in (name.strip(), Path(name.strip()).name):
                try:
                    found = self.absolute(candidate)
                except ValueError:  # outside
                    continue
                if found.exists():
                    data = read_bytes(found, self.left)
                    self.left -= len(data)
                    return data
            raise FileNotFoundError(name)

    return Companions(str(path))


def _joined(parts: list[Mesh]) -> Mesh:
    """One mesh of several, with colours at the vertices."""
    offsets = np.cumsum([0, *(len(part.vertices) for part in parts)])
    return Mesh(
        np.concatenate([part.vertices for part in parts]),
        np.concatenate([part.faces + offset for part, offset in zip(parts, offsets, strict=False)]).astype(np.int32),
        np.concatenate([part.colors for part in parts]),
        np.concatenate([part.normals for part in parts]),
    )


def _placed(scene: Any, node: str, linear: bool) -> Mesh:
    """One part of a trimesh scene in the scene's frame, textured where it has a texture.

    Args:
        scene: what trimesh read.
        node: name of the part's node.
        linear: whether the file's vertex colours are light and not sRGB.

    Raises:
        SceneError: triangles of vertices that are not there, or a picture that is too large.
    """
    transform, name = scene.graph[node]
    body = scene.geometry[name]
    moved = np.asarray(body.vertices, np.float64) @ transform[:3, :3].T + transform[:3, 3]
    vertices = moved.astype(np.float32)
    faces = np.asarray(getattr(body, "faces", np.zeros((0, 3))), np.int32).reshape(-1, 3)
    if len(faces) and (faces.min() < 0 or faces.max() >= len(vertices)):
        raise SceneError(f"The mesh {name!r} has triangles of vertices that it lacks.", "Export it again.")
    image = _texture(body.visual, len(vertices))
    if image is None:
        colors = _vertex_colors(body.visual, len(vertices))
        colors = linear_to_srgb(colors) if linear else colors
        return Mesh(vertices, faces, colors, vertex_normals(vertices, faces))
    uvs = np.asarray(body.visual.uv, np.float32)
    normals = _seamless_normals(vertices, faces)
    inside = np.abs(uvs - 0.5).max() <= 0.5 + 1e-4
    if not inside:  # the picture is tiled
        return Mesh(vertices, faces, texture_colors(image, uvs - np.floor(uvs)), normals)
    return TexturedMesh(vertices, faces, texture_colors(image, uvs), normals, np.clip(uvs, 0.0, 1.0), image)


def _seamless_normals(vertices: Floats, faces: Faces) -> Floats:
    """Normals [V, 3] that don't see the seams of a texture."""
    points, triangles = weld(vertices, faces)
    normals = np.zeros_like(vertices)
    normals[faces.reshape(-1)] = vertex_normals(points, triangles)[triangles.reshape(-1)]
    return normals


def _vertex_colors(visual: Any, count: int) -> Floats:
    """Colours [count, 3] of vertices as stored, 0 to 1; white if there are none."""
    colors = getattr(visual, "vertex_attributes", {}).get("color")
    if colors is None and visual.kind == "vertex":
        colors = visual.vertex_colors
    if colors is None or len(colors) != count:
        return np.ones((count, 3), np.float32)
    values = np.asarray(colors)[:, :3]
    scale = float(np.iinfo(values.dtype).max) if values.dtype.kind == "u" else 1.0
    return (values / scale).astype(np.float32)


def _texture(visual: Any, count: int) -> NDArray[np.float32] | None:
    """The picture [H, W, 3] in [0, 1] of a part, if it has one and says where it goes at each of `count` vertices.

    Raises:
        SceneError: it is too large.
    """
    material = getattr(visual, "material", None)
    image = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
    uvs = getattr(visual, "uv", None)
    # trimesh puts a gray picture, of no format, where it found none.
    if image is None or image.format is None or uvs is None or len(uvs) != count or not np.isfinite(uvs).all():
        return None
    if max(image.size) > _MAX_TEXTURE:  # Pillow knows the size before it reads the picture
        raise SceneError(
            f"The mesh's texture has {image.size[0]} x {image.size[1]} texels.",
            f"Use a picture of at most {_MAX_TEXTURE} along a side.",
        )
    return np.asarray(image.convert("RGB"), np.float32) / 255.0


def srgb_to_linear(colors: Floats) -> Floats:
    """Light from what a screen shows: c / 12.92 below 0.04045, else ((c + 0.055) / 1.055)^2.4 (IEC 61966-2-1).

    Args:
        colors: any shape, in [0, 1].

    Returns:
        The same shape, in [0, 1].
    """
    low, high = colors / 12.92, ((np.maximum(colors, 0.0) + 0.055) / 1.055) ** 2.4
    return np.where(colors <= 0.04045, low, high).astype(np.float32)


def linear_to_srgb(colors: Floats) -> Floats:
    """The inverse of `srgb_to_linear`.

    Args:
        colors: any shape, in [0, 1].

    Returns:
        The same shape, in [0, 1].
    """
    low, high = colors * 12.92, 1.055 * np.maximum(colors, 0.0) ** (1.0 / 2.4) - 0.055
    return np.where(colors <= 0.0031308, low, high).astype(np.float32)
