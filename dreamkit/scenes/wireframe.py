"""The triangles of a mesh as lines over pale clay, without those that lie behind."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dreamkit.errors import SceneError
from dreamkit.scenes.cameras import Camera
from dreamkit.scenes.projection import clip_positions
from dreamkit.scenes.styles import over, shade_clay

_SAMPLES = 2  # rows and columns of samples in a pixel
_PIXELS = 2**20  # samples that are looked at together
_INK = 0.15
_PALE = 0.45  # how far clay is moved to white, so that lines stand out


@dataclass(frozen=True)
class Wireframe:
    """A mesh that is drawn as lines.

    Args:
        vertices: [V, 3] world units.
        faces: [F, 3] int32 or int64.
        normals: [V, 3] unit.
    """

    vertices: Tensor  # [V, 3]
    faces: Tensor  # [F, 3]
    normals: Tensor  # [V, 3]

    @classmethod
    def of_arrays(
        cls, vertices: NDArray[np.float32], faces: NDArray[np.int32], normals: NDArray[np.float32]
    ) -> Wireframe:
        """From the arrays of a `Mesh`.

        Raises:
            SceneError: there are no faces.
        """
        if not len(faces):
            raise SceneError("The mesh has no triangles to draw.", "Train the scene longer.")
        arrays = (np.ascontiguousarray(array) for array in (vertices, faces, normals))
        return cls(*(torch.from_numpy(array) for array in arrays))

    @torch.no_grad()
    def draw(
        self,
        cameras: Camera,
        background: Tensor,  # [3]
        line_width: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """The pictures: dark lines over pale clay (`shade_clay`) over the background.

        A sample that is d pixels from the nearest edge of the triangle it sees, and has w / 2 on each side of it for a
        line of width w, shows min(max((w + 1 / s) / 2 - d, 0) s, 1) of the line, with s samples a side of a pixel.

        Args:
            cameras: B views.
            background: [3] colour in [0, 1].
            line_width: pixels; half of it lies in each of the two triangles.

        Returns:
            pictures [B, 3, H, W] and coverage [B, 1, H, W], in [0, 1].
        """
        from dreamkit_kernels.mesh_rasterize import interpolate, rasterize

        fine = cameras.resized(_SAMPLES * cameras.height, _SAMPLES * cameras.width)
        clip = clip_positions(fine, self.vertices)
        fragments = rasterize(clip, self.faces, fine.height, fine.width)
        normals = interpolate(self.normals, self.faces, fragments).movedim(-1, 1)
        clay = shade_clay(torch.nn.functional.normalize(normals, dim=1), fine)
        clay = clay + _PALE * (1.0 - clay)
        lines = edge_coverage(clip, self.faces, fragments.faces, _SAMPLES * line_width)[:, None]
        alpha = (fragments.faces >= 0).float()[:, None]
        picture = over((clay + lines * (_INK - clay)).expand(-1, 3, -1, -1), alpha, background)
        return torch.nn.functional.avg_pool2d(picture, _SAMPLES), torch.nn.functional.avg_pool2d(alpha, _SAMPLES)


def edge_coverage(
    clip: Tensor,  # [B, V, 4] clip space
    faces: Tensor,  # [F, 3]
    seen: Tensor,  # [B, H, W] int32, -1 none
    line_width: float,
) -> Tensor:
    """How much of a line along the edges of the face that it sees each pixel shows: clamp((w + 1) / 2 - d, 0, 1).

    d is the distance in pixels from the pixel's centre to the nearest edge as projected; a face that reaches behind
    the camera has no such edge, and no line.

    Args:
        clip: corners in clip space.
        faces: numbers of the corners of each face.
        seen: the face at every pixel.
        line_width: w in pixels.

    Returns:
        [B, H, W] in [0, 1].
    """
    views, height, width = seen.shape
    size = clip.new_tensor([width, -height]) / 2.0
    screen = clip[..., :2] / clip[..., 3:] * size + size.abs()  # [B, V, 2] (u right, v down)
    screen = torch.where(clip[..., 3:] > 0, screen, torch.nan)
    covered = (seen.reshape(-1) >= 0).nonzero()[:, 0]
    coverage = clip.new_zeros(views * height * width)
    for pixels in covered.split(_PIXELS):
        view, place = pixels // (height * width), pixels % (height * width)
        centres = torch.stack([place % width, place // width], -1).to(clip) + 0.5
        corners = screen[view[:, None], faces.long()[seen.reshape(-1)[pixels].long()]]  # [P, 3, 2]
        along = corners.roll(-1, dims=1) - corners
        offset = centres[:, None] - corners
        twice_area = (along[..., 0] * offset[..., 1] - along[..., 1] * offset[..., 0]).abs()
        distance = (twice_area / along.norm(dim=-1).clamp_min(1e-6)).amin(-1)
        shown = ((line_width + 1.0) / 2.0 - distance).clamp(0.0, 1.0)
        coverage[pixels] = torch.nan_to_num(shown, nan=0.0)
    return coverage.reshape(seen.shape)
