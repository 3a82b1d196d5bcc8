"""Lenses of real cameras, and pictures resampled as an ideal pinhole with square pixels would have taken them.

With x and y to the right and DOWN on the plane at depth 1 (OpenCV's axes) and r^2 = x^2 + y^2:

    perspective   g = 1 + k1 r^2 + k2 r^4 + k3 r^6
                  x' = x g + 2 p1 x y + p2 (r^2 + 2 x^2),   y' = y g + p1 (r^2 + 2 y^2) + 2 p2 x y
    fisheye       t = atan r,   t' = t (1 + k1 t^2 + k2 t^4 + k3 t^6 + k4 t^8),   (x', y') = (x, y) t' / r
    pixel         u = fx x' + cx,   v = fy y' + cy       (pixel centres at half-integers)

Brown's model and the equidistant one of Kannala and Brandt, as OpenCV, COLMAP and nerfstudio have them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from dreamkit.errors import SceneError

_GRID = 33  # points along a side at which a lens is looked at
_WIDEST = 2.0  # tangent of half the widest field of view of a pinhole made of a fisheye: 127 degrees
_NEWTON = 50
_SETTLED = 1e-14
_MOST_SAMPLES = 4  # along a side of a pixel


@dataclass(frozen=True)
class Lens:
    """Intrinsics of one picture.

    Args:
        width: pixels.
        height: pixels.
        fx: focal length along a row, pixels.
        fy: focal length along a column, pixels.
        cx: principal point, pixels from the left edge.
        cy: principal point, pixels from the upper edge.
        radial: k1, k2, k3 (perspective) or k1 to k4 (fisheye).
        tangential: p1, p2 (perspective).
        fisheye: which of the two models.
    """

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    radial: tuple[float, ...] = ()
    tangential: tuple[float, float] = (0.0, 0.0)
    fisheye: bool = False

    @property
    def is_pinhole(self) -> bool:
        """Whether straight lines stay straight."""
        return not (self.fisheye or any(self.radial) or any(self.tangential))

    @property
    def is_ideal(self) -> bool:
        """Whether it is a `Camera`'s already: a pinhole with square pixels about the picture's centre."""
        centred = abs(self.cx - 0.5 * self.width) < 1e-3 and abs(self.cy - 0.5 * self.height) < 1e-3
        return self.is_pinhole and centred and abs(self.fx - self.fy) < 1e-6 * self.fy

    def resized(self, width: int, height: int) -> Lens:
        """The same lens before a picture of another size."""
        return self.stretched(width, height, width / self.width, height / self.height)

    def stretched(self, width: int, height: int, x: float, y: float) -> Lens:
        """The same lens before a picture whose pixels are 1/x times as wide and 1/y times as high."""
        return replace(self, width=width, height=height, fx=self.fx * x, fy=self.fy * y, cx=self.cx * x, cy=self.cy * y)

    def distort(
        self,
        points: Tensor,  # [..., 2] on the plane at depth 1
    ) -> Tensor:
        """Where the lens moves points of the plane, [..., 2]: the formulas of the module's docstring."""
        x, y = points.unbind(-1)
        square = x.square() + y.square()
        if self.fisheye:
            radius = square.sqrt().clamp_min(1e-12)
            angle = torch.atan(radius)
            return points * (angle * self._gain(angle.square()) / radius)[..., None]
        gain = self._gain(square)
        p1, p2 = self.tangential
        return torch.stack(
            [
                x * gain + 2 * p1 * x * y + p2 * (square + 2 * x.square()),
                y * gain + p1 * (square + 2 * y.square()) + 2 * p2 * x * y,
            ],
            -1,
        )

    def undistort(
        self,
        points: Tensor,  # [..., 2]
    ) -> Tensor:
        """The inverse of `distort`, [..., 2], by Newton's method; what no point is moved to comes out as NaN."""
        if self.is_pinhole:
            return points
        wanted = points.double()
        found = self._unbent(wanted) if self.fisheye else self._unmoved(wanted)
        wrong = (self.distort(found) - wanted).norm(dim=-1) > 1e-6 * (1 + wanted.norm(dim=-1))
        return found.masked_fill(wrong[..., None] | ~found.isfinite(), torch.nan).to(points.dtype)

    def project(
        self,
        points: Tensor,  # [..., 2] on the plane at depth 1
    ) -> Tensor:
        """Pixels (u, v) [..., 2] of points of the plane."""
        scale, shift = points.new_tensor([self.fx, self.fy]), points.new_tensor([self.cx, self.cy])
        return self.distort(points) * scale + shift

    def plane(
        self,
        pixels: Tensor,  # [..., 2]
    ) -> Tensor:
        """The points of the plane that pixels show; the inverse of `project`."""
        scale, shift = pixels.new_tensor([self.fx, self.fy]), pixels.new_tensor([self.cx, self.cy])
        return self.undistort((pixels - shift) / scale)

    def _gain(self, square: Tensor) -> Tensor:
        gain = torch.zeros_like(square)
        for coefficient in reversed(self.radial):
            gain = (gain + coefficient) * square
        return 1 + gain

    def _gain_slope(self, square: Tensor) -> Tensor:
        """The derivative of the gain in its argument."""
        slope = torch.zeros_like(square)
        for power, coefficient in reversed(list(enumerate(self.radial, start=1))):
            slope = slope * square + power * coefficient
        return slope

    def _unbent(self, wanted: Tensor) -> Tensor:
        """Points of the plane of a fisheye's image."""
        length = wanted.norm(dim=-1).clamp_min(1e-12)
        angle = length.clamp_max(1.5)
        for _ in range(_NEWTON):
            square = angle.square()
            value = angle * self._gain(square) - length
            if bool((value.abs() < _SETTLED).all()):
                break
            slope = self._gain(square) + 2 * square * self._gain_slope(square)
            angle = (angle - value / slope).clamp(0.0, 1.57)
        return wanted * (angle.tan() / length)[..., None]

    def _unmoved(self, wanted: Tensor) -> Tensor:
        """Points of the plane of a perspective lens's image."""
        p1, p2 = self.tangential
        found = wanted.clone()
        for _ in range(_NEWTON):
            x, y = found.unbind(-1)
            square = x.square() + y.square()
            gain, slope = self._gain(square), self._gain_slope(square)
            xx = gain + 2 * x.square() * slope + 2 * p1 * y + 6 * p2 * x
            xy = 2 * x * y * slope + 2 * p1 * x + 2 * p2 * y
            yy = gain + 2 * y.square() * slope + 6 * p1 * y + 2 * p2 * x
            determinant = xx * yy - xy.square()
            wrong = self.distort(found) - wanted
            if bool((wrong.abs() < _SETTLED).all()):
                break
            a, b = wrong.unbind(-1)
            found = found - torch.stack([yy * a - xy * b, xx * b - xy * a], -1) / determinant[..., None]
        # Beyond the fold a lens shows mirror images, which formulas know and pictures don't.
        folded = ~((determinant > 0) & (gain > 0))
        return found.masked_fill(folded[..., None], torch.nan)


def ideal_focal(lens: Lens, height: int, width: int) -> float:
    """The focal length, in its pixels, of the widest pinhole of a picture size that sees only what the lens saw.

    Args:
        lens: of the picture.
        height: of the pinhole's picture, pixels.
        width: of the pinhole's picture, pixels.

    Raises:
        SceneError: there is none: the principal point lies outside the picture, or the lens folds it.
    """
    if lens.is_ideal and lens.width * height == lens.height * width:
        return lens.fy * height / lens.height
    low, high = 0.0, 0.0
    for tangent in torch.logspace(-3, 0, 200).mul(_WIDEST).tolist():  # of half the longer side
        if not _sees(lens, tangent, height, width):
            high = tangent
            break
        low = tangent
    if low == 0.0:
        raise SceneError(
            f"A lens with its principal point at ({lens.cx:.6g}, {lens.cy:.6g}) in a picture of "
            f"{lens.width}x{lens.height} pixels, fx {lens.fx:.6g}, fy {lens.fy:.6g}, sees nothing there.",
            "Check the intrinsics: they are in pixels of the picture's own size.",
        )
    for _ in range(40 if high else 0):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if _sees(lens, middle, height, width) else (low, middle)
    return 0.5 * max(height, width) / low


def _sees(lens: Lens, tangent: float, height: int, width: int) -> bool:
    """Whether a pinhole of this half field lies in the picture, without folds."""
    longer = max(height, width)
    x, y = (torch.linspace(-1, 1, _GRID, dtype=torch.float64) * (tangent * side / longer) for side in (width, height))
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    pixels = lens.project(torch.stack([columns, rows], -1))
    u, v = pixels.unbind(-1)
    slack = 1e-6
    inside = (u >= -slack) & (u <= lens.width + slack) & (v >= -slack) & (v <= lens.height + slack)
    across, down = pixels.diff(dim=1)[:-1], pixels.diff(dim=0)[:, :-1]
    upright = across[..., 0] * down[..., 1] - across[..., 1] * down[..., 0] > 0
    return bool(inside.all()) and bool(upright.all())


def resample(
    layers: Tensor,  # [C, h, w]
    lens: Lens,
    focal: float,
    height: int,
    width: int,
) -> Tensor:
    """What a pinhole about the centre would have taken of a picture, [C, height, width].

    Each pixel is the mean of enough bilinear samples that no pixel of the picture falls between them.

    Args:
        layers: [C, h, w], of the lens's size; colours premultiplied by alpha.
        lens: of the picture.
        focal: of the pinhole, pixels.
        height: of its picture.
        width: of its picture.
    """
    if lens.is_ideal and (lens.height, lens.width) == (height, width) and abs(focal - lens.fy) < 1e-6 * focal:
        return layers
    ratio = max(lens.fx, lens.fy) / focal
    samples = min(_MOST_SAMPLES, max(1, round(ratio + 0.45)))
    down, right = ((torch.arange(n * samples, dtype=torch.float64) + 0.5) / samples for n in (height, width))
    rows, columns = torch.meshgrid(down - 0.5 * height, right - 0.5 * width, indexing="ij")
    pixels = lens.project(torch.stack([columns, rows], -1) / focal)
    size = pixels.new_tensor([lens.width, lens.height])
    grid = (2 * pixels / size - 1).to(layers.dtype)
    fine = functional.grid_sample(layers[None], grid[None], "bilinear", "border", align_corners=False)
    return functional.avg_pool2d(fine, samples)[0]
