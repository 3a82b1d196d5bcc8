"""Our GLB by other libraries' readers, and theirs by ours."""

import io
from pathlib import Path

import numpy as np
import pygltflib
import pytest
import trimesh
from numpy.typing import NDArray
from PIL import Image
from trimesh.visual.material import PBRMaterial

from dreamkit.scenes.export import export_mesh, load_mesh
from dreamkit.scenes.mesh_files import srgb_to_linear
from dreamkit.scenes.triangles import Mesh, TexturedMesh, vertex_normals

TYPES = {pygltflib.UNSIGNED_SHORT: "<u2", pygltflib.UNSIGNED_INT: "<u4", pygltflib.FLOAT: "<f4"}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3}


def make_mesh(textured: bool) -> Mesh:
    ball = trimesh.creation.icosphere(2, radius=0.7)
    vertices, faces = np.asarray(ball.vertices, np.float32) + np.float32([3, -1, 0.5]), np.asarray(ball.faces, np.int32)
    generator = np.random.default_rng(0)
    colors = generator.random((len(vertices), 3)).astype(np.float32)
    normals = vertex_normals(vertices, faces)
    if not textured:
        return Mesh(vertices, faces, colors, normals)
    uvs = generator.random((len(vertices), 2)).astype(np.float32)
    picture = np.round(generator.random((12, 20, 3)) * 255).astype(np.float32) / 255
    return TexturedMesh(vertices, faces, colors, normals, uvs, picture)


def accessor(file: pygltflib.GLTF2, index: int) -> NDArray:
    """Values of an accessor, the bounds that it declares checked."""
    about = file.accessors[index]
    view = file.bufferViews[about.bufferView]
    start, width = (view.byteOffset or 0) + (about.byteOffset or 0), WIDTHS[about.type]
    values = np.frombuffer(file.binary_blob(), TYPES[about.componentType], about.count * width, start).reshape(
        -1, width
    )
    if about.max:
        assert np.allclose(about.min, values.min(0))
        assert np.allclose(about.max, values.max(0))
    return values


@pytest.mark.parametrize("textured", [False, True])
def test_pygltflib_reads_what_we_write(tmp_path: Path, textured: bool) -> None:
    mesh = make_mesh(textured)
    export_mesh(mesh, tmp_path / "mesh.glb")
    file = pygltflib.GLTF2().load_binary(str(tmp_path / "mesh.glb"))
    assert file.asset.version == "2.0"
    assert not file.extensionsRequired
    (primitive,) = file.meshes[0].primitives
    assert primitive.mode in (None, pygltflib.TRIANGLES)
    position = file.accessors[primitive.attributes.POSITION]
    assert np.allclose(position.min, mesh.vertices.min(0))
    assert np.allclose(position.max, mesh.vertices.max(0))
    assert np.array_equal(accessor(file, primitive.attributes.POSITION), mesh.vertices)
    assert np.allclose(accessor(file, primitive.attributes.NORMAL), mesh.normals, atol=1e-6)
    assert np.array_equal(accessor(file, primitive.indices).reshape(-1, 3), mesh.faces)
    assert file.bufferViews[file.accessors[primitive.indices].bufferView].target in (
        None,
        pygltflib.ELEMENT_ARRAY_BUFFER,
    )
    material = file.materials[primitive.material]
    surface = material.pbrMetallicRoughness
    assert (surface.metallicFactor, surface.roughnessFactor) == (0.0, 1.0)
    assert material.alphaMode in (None, pygltflib.OPAQUE)
    if isinstance(mesh, TexturedMesh):
        assert primitive.attributes.COLOR_0 is None
        assert np.allclose(accessor(file, primitive.attributes.TEXCOORD_0), mesh.uvs * [1, -1] + [0, 1], atol=1e-6)
        texture = file.textures[surface.baseColorTexture.index]
        sampler = file.samplers[texture.sampler]
        assert sampler.wrapS == sampler.wrapT == pygltflib.CLAMP_TO_EDGE
        image = file.images[texture.source]
        view = file.bufferViews[image.bufferView]
        picture = Image.open(io.BytesIO(file.binary_blob()[view.byteOffset :][: view.byteLength]))
        assert image.mimeType == "image/png"
        assert np.array_equal(np.asarray(picture), np.round(mesh.texture * 255))
    else:
        assert np.allclose(accessor(file, primitive.attributes.COLOR_0), srgb_to_linear(mesh.colors), atol=1e-6)


@pytest.mark.parametrize("textured", [False, True])
def test_trimesh_reads_what_we_write(tmp_path: Path, textured: bool) -> None:
    mesh = make_mesh(textured)
    export_mesh(mesh, tmp_path / "mesh.glb")
    scene = trimesh.load_scene(tmp_path / "mesh.glb", process=False)
    assert np.allclose(scene.bounds, [mesh.vertices.min(0), mesh.vertices.max(0)])
    (body,) = scene.geometry.values()
    assert np.allclose(body.vertices, mesh.vertices)
    assert np.array_equal(body.faces, mesh.faces)
    assert np.allclose(body.vertex_normals, mesh.normals, atol=1e-6)
    assert body.visual.kind == ("texture" if textured else body.visual.kind)
    assert body.visual.material.metallicFactor == 0.0
    if isinstance(mesh, TexturedMesh):
        assert np.allclose(body.visual.uv, mesh.uvs, atol=1e-6)
        assert np.array_equal(np.asarray(body.visual.material.baseColorTexture), np.round(mesh.texture * 255))


def test_we_read_what_trimesh_writes(tmp_path: Path) -> None:
    mesh = make_mesh(textured=True)
    assert isinstance(mesh, TexturedMesh)
    picture = Image.fromarray(np.round(mesh.texture * 255).astype(np.uint8))
    visual = trimesh.visual.TextureVisuals(mesh.uvs, material=PBRMaterial(baseColorTexture=picture))
    body = trimesh.Trimesh(mesh.vertices, mesh.faces, visual=visual, process=False)
    trimesh.Scene(body).export(tmp_path / "theirs.glb")
    read = load_mesh(tmp_path / "theirs.glb")
    assert isinstance(read, TexturedMesh)
    for name in ("vertices", "faces", "uvs", "texture", "normals"):
        assert np.allclose(getattr(read, name), getattr(mesh, name), atol=1e-5), name


def test_we_read_a_scene_of_trimesh_with_moved_and_coloured_parts(tmp_path: Path) -> None:
    colors = (np.random.default_rng(1).random((8, 4)) * 255).astype(np.uint8)
    colors[:, 3] = 255
    box = trimesh.creation.box()
    box.visual = trimesh.visual.ColorVisuals(box, vertex_colors=colors)
    scene = trimesh.Scene()
    turn = trimesh.transformations.rotation_matrix(0.7, [1, 2, 3], [0.5, 0, 0])
    scene.add_geometry(box, transform=turn, node_name="one", geom_name="box")
    scene.add_geometry(box, transform=trimesh.transformations.scale_matrix(100.0, [1, 0, 0]), geom_name="box")
    scene.export(tmp_path / "theirs.glb")
    read = load_mesh(tmp_path / "theirs.glb")
    whole = scene.to_geometry()
    assert len(read.faces) == len(whole.faces) == 24
    assert np.allclose(np.sort(read.vertices, 0), np.sort(whole.vertices, 0), atol=1e-4)
    assert read.figures().volume == pytest.approx(whole.volume, rel=1e-4)


def test_we_read_what_pygltflib_writes(tmp_path: Path) -> None:
    """Sixteen-bit indices, no normals, no material, a node that scales."""
    points = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], "<f4")
    faces = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]], "<u2")
    blob = faces.tobytes() + points.tobytes()
    file = pygltflib.GLTF2(
        scene=0,
        scenes=[pygltflib.Scene(nodes=[0])],
        nodes=[pygltflib.Node(mesh=0, scale=[2.0, 2.0, 2.0], translation=[0.0, 0.0, 5.0])],
        meshes=[
            pygltflib.Mesh(primitives=[pygltflib.Primitive(attributes=pygltflib.Attributes(POSITION=1), indices=0)])
        ],
        accessors=[
            pygltflib.Accessor(bufferView=0, componentType=pygltflib.UNSIGNED_SHORT, count=12, type="SCALAR"),
            pygltflib.Accessor(
                bufferView=1, componentType=pygltflib.FLOAT, count=4, type="VEC3", max=[1, 1, 1], min=[0, 0, 0]
            ),
        ],
        bufferViews=[
            pygltflib.BufferView(buffer=0, byteOffset=0, byteLength=24),
            pygltflib.BufferView(buffer=0, byteOffset=24, byteLength=48),
        ],
        buffers=[pygltflib.Buffer(byteLength=len(blob))],
    )
    file.set_binary_blob(blob)
    file.save_binary(str(tmp_path / "theirs.glb"))
    read = load_mesh(tmp_path / "theirs.glb")
    assert np.allclose(read.vertices, 2 * points + [0, 0, 5])
    assert np.array_equal(read.faces, faces)
    assert np.allclose(read.colors, 1)
    assert read.figures().volume == pytest.approx(8 / 6)
