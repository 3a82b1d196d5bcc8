"""A finished mesh that cameras can look at: vertex colours or a texture, with antialiased outlines."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from dreamkit.scenes.cameras import Camera
from dreamkit.scenes.projection import clip_positions
from dreamkit.scenes.rendering import Rendering, expand_background
from dreamkit.scenes.triangles import Mesh, TexturedMesh

ShadeFunction = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
_LAYERS = 8  # red, green, blue, alpha, depth, normal


def layered(
    cameras: Camera,
    vertices: Tensor,  # [V, 3] world units
    faces: Tensor,  # [F, 3]
    attributes: Tensor,  # [V, C]
    shade: ShadeFunction,
    background: Tensor,  # [B, 3]
) -> Rendering:
    """Rasterise, shade what is seen, put it before the background and smooth the outlines.

    Args:
        cameras: B views.
        vertices: gradients reach them.
        faces: of the mesh.
        attributes: what `shade` wants to know; gradients reach them.
        shade: from attributes [S, C], points [S, 3] and views [S] of what is seen to colours [S, 3] and unit normals
            [S, 3].
        background: colours behind.
    """
    from dreamkit_kernels.mesh_rasterize import antialias, interpolate, rasterize  # type: ignore[import-not-found]

    clip = clip_positions(cameras, vertices)
    fragments = rasterize(clip, faces, cameras.height, cameras.width)
    found = interpolate(torch.cat([vertices, attributes], dim=1), faces, fragments)  # [B, H, W, 3 + C]
    seen = fragments.faces >= 0
    views = seen.nonzero()[:, 0]
    points, known = found[seen].tensor_split([3], dim=1)
    colors, normals = shade(known, points, views)
    along = ((points - cameras.position[views]) * cameras.forward[views]).sum(dim=1, keepdim=True)
    filled = torch.cat([colors, torch.ones_like(along), along, normals], dim=1)
    empty = functional.pad(background, (0, _LAYERS - 3))[:, None, None].expand(*seen.shape, _LAYERS)
    picture = empty.masked_scatter(seen[..., None], filled)
    picture = antialias(picture, fragments, clip, faces).permute(0, 3, 1, 2)
    image, alpha, depth, normal = picture.split([3, 1, 1, 3], dim=1)
    return Rendering(image, alpha, depth, normal)


class StaticMesh:
    """A mesh as a `Scene`.

    Args:
        mesh: vertex-coloured or textured.
        device: where to render.
    """

    def __init__(self, mesh: Mesh, device: torch.device | str = "cpu") -> None:
        self.mesh = mesh
        self.vertices = torch.from_numpy(mesh.vertices).float().to(device)
        self.faces = torch.from_numpy(mesh.faces).long().to(device)
        self.normals = torch.from_numpy(mesh.normals).float().to(device)
        self._texture: Tensor | None = None
        paint = mesh.colors
        if isinstance(mesh, TexturedMesh):
            self._texture = torch.from_numpy(mesh.texture).float().to(device).permute(2, 0, 1)[None]
            paint = mesh.uvs
        self._paint = torch.from_numpy(paint).float().to(device)

    def render(self, cameras: Camera, background: Tensor | None = None) -> Rendering:
        """Render from B cameras over [3] or [B, 3] background colours (gray by default)."""
        cameras = cameras.to(self.vertices.device)
        behind = torch.full((3,), 0.5) if background is None else background
        attributes = torch.cat([self.normals, self._paint], dim=1)
        return layered(
            cameras, self.vertices, self.faces, attributes, self._shade,
            expand_background(behind.to(self.vertices), len(cameras)),
        )  # fmt: skip

    def _shade(self, known: Tensor, points: Tensor, views: Tensor) -> tuple[Tensor, Tensor]:
        normals, paint = known.tensor_split([3], dim=1)
        if self._texture is not None:
            # grid_sample counts from the top, and -1 to 1 from edge to edge.
            place = torch.stack([2 * paint[:, 0] - 1, 1 - 2 * paint[:, 1]], dim=1)
            picked = functional.grid_sample(
                self._texture, place[None, None], mode="bilinear", padding_mode="border", align_corners=False
            )
            paint = picked[0, :, 0].T
        return paint, functional.normalize(normals, dim=1, eps=1e-12)
