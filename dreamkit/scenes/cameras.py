"""Cameras: one convention, batched, and every way this project makes them.

World: right-handed, y up; an object sits about the origin in the unit sphere, its FRONT facing +z (glTF).
Camera: OpenGL axes, x right, y up, z BACKWARD (the camera looks along its own -z). Angles are in degrees at
every public function. With azimuth a, elevation e and radius r the camera sits at

    target + r * (cos e sin a, sin e, cos e cos a)

so azimuth 0 looks at the front, 90 stands on +x, 180 looks at the back, and elevation > 0 looks down on it.
Pixels: (u, v) with u to the right and v DOWN, pixel centres at half-integers, the principal point at the
image's centre, square pixels: focal = (height / 2) / tan(fov_y / 2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dreamkit.errors import ConfigError, SceneError

Angles = Tensor | Sequence[float] | float
"""One value, a list of them or a [B] tensor."""


def _vector(value: Angles, name: str) -> Tensor:
    """`value` as a finite floating [B] tensor (B = 1 for a number)."""
    tensor = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float32)
    if not tensor.is_floating_point():
        tensor = tensor.float()
    if tensor.ndim > 1:
        raise SceneError(f"The camera's {name} has shape {tuple(tensor.shape)}.", "Give a number or a [B] tensor.")
    tensor = tensor.reshape(-1)
    # A check on a GPU tensor would stall the queue at every step; the samplers make theirs on the CPU.
    if not tensor.is_cuda and not bool(torch.isfinite(tensor).all()):
        raise SceneError(f"The camera's {name} is not finite: {tensor.tolist()}.", "Use finite numbers.")
    return tensor


@dataclass(frozen=True, eq=False)
class Camera:
    """A batch of B pinhole cameras that share an image size.

    Args:
        camera_to_world: [B, 4, 4] rigid transforms, OpenGL axes (columns: right, up, backward, position).
        fov_y: [B] vertical fields of view in degrees, between 0 and 180.
        height: image height in pixels, >= 1.
        width: image width in pixels, >= 1.
        near: nearest depth that is drawn, world units, > 0.
        far: farthest depth that is drawn, world units, > near.

    Raises:
        SceneError: a wrong shape, an empty image, or near and far out of order.
    """

    camera_to_world: Tensor  # [B, 4, 4] OpenGL
    fov_y: Tensor  # [B] degrees
    height: int
    width: int
    near: float = 0.01
    far: float = 100.0

    def __post_init__(self) -> None:
        matrices, fov_y = self.camera_to_world, self.fov_y
        if matrices.ndim != 3 or matrices.shape[1:] != (4, 4) or fov_y.shape != matrices.shape[:1]:
            raise SceneError(
                f"A camera needs camera_to_world [B, 4, 4] and fov_y [B], not {tuple(matrices.shape)} "
                f"and {tuple(fov_y.shape)}.",
                "Make cameras with Camera.orbit.",
            )
        if self.height < 1 or self.width < 1:
            raise SceneError(
                f"An image of {self.width}x{self.height} pixels has none.",
                "Use a width and height of at least 1.",
            )
        if not 0.0 < self.near < self.far:
            raise SceneError(f"near {self.near} and far {self.far} are out of order.", "Use 0 < near < far.")

    @classmethod
    def orbit(
        cls,
        azimuth: Angles,
        elevation: Angles,
        radius: Angles,
        fov_y: Angles = 40.0,
        height: int = 64,
        width: int = 64,
        target: Tensor | None = None,
        near: float = 0.01,
        far: float = 100.0,
    ) -> Camera:
        """Cameras on a sphere about `target`, looking at it, upright.

        The axes come from the angles in closed form, so that straight up and down are no special cases.

        Args:
            azimuth: degrees, 0 in front (+z), 90 at +x; [B], a list or a number (all four broadcast).
            elevation: degrees, -90 to 90, > 0 above the object.
            radius: distance to the target, world units, > 0.
            fov_y: vertical field of view in degrees, between 0 and 180.
            height: image height in pixels.
            width: image width in pixels.
            target: [3] or [B, 3] point to look at, the origin by default.
            near: nearest depth that is drawn.
            far: farthest depth that is drawn.

        Returns:
            B cameras on the device of the tensors given.

        Raises:
            SceneError: a value that is not finite, or out of range, or batches that don't broadcast.
        """
        names = ("azimuth", "elevation", "radius", "fov_y")
        vectors = [_vector(v, n) for v, n in zip((azimuth, elevation, radius, fov_y), names, strict=True)]
        device = next((v.device for v in vectors if v.device.type != "cpu"), vectors[0].device)
        dtype = torch.promote_types(vectors[0].dtype, vectors[1].dtype)
        try:
            vectors = list(torch.broadcast_tensors(*(v.to(device, dtype) for v in vectors)))
        except RuntimeError:
            sizes = ", ".join(f"{n} {v.numel()}" for n, v in zip(names, vectors, strict=True))
            raise SceneError(f"The camera's values don't broadcast: {sizes}.", "Give B values or one.") from None
        _check_orbit(*vectors[1:])
        a, e = torch.deg2rad(vectors[0]), torch.deg2rad(vectors[1])
        zero = torch.zeros_like(a)
        right = torch.stack([a.cos(), zero, -a.sin()], -1)
        up = torch.stack([-e.sin() * a.sin(), e.cos(), -e.sin() * a.cos()], -1)
        backward = torch.stack([e.cos() * a.sin(), e.sin(), e.cos() * a.cos()], -1)
        position = vectors[2][:, None] * backward
        if target is not None:
            position = position + target.to(device, dtype).reshape(-1, 3)
        matrices = torch.zeros(len(a), 4, 4, device=device, dtype=dtype)
        matrices[:, :3] = torch.stack([right, up, backward, position], -1)
        matrices[:, 3, 3] = 1.0
        return cls(matrices, vectors[3].clone(), int(height), int(width), near, far)

    @classmethod
    def cat(cls, cameras: Sequence[Camera]) -> Camera:
        """One batch of all the cameras, in order.

        Raises:
            SceneError: the list is empty, or the image sizes or depth ranges differ.
        """
        if not cameras:
            raise SceneError("There are no cameras to join.", "Give at least one.")
        first = cameras[0]
        for other in cameras[1:]:
            if (other.height, other.width, other.near, other.far) != (
                first.height,
                first.width,
                first.near,
                first.far,
            ):
                raise SceneError(
                    f"Cameras of {first.width}x{first.height} and {other.width}x{other.height} pixels "
                    "(or of other depth ranges) don't make one batch.",
                    "Use Camera.resized first.",
                )
        return replace(
            first,
            camera_to_world=torch.cat([c.camera_to_world for c in cameras]),
            fov_y=torch.cat([c.fov_y for c in cameras]),
        )

    @property
    def position(self) -> Tensor:
        """[B, 3] where the cameras are, world units."""
        return self.camera_to_world[:, :3, 3]

    @property
    def forward(self) -> Tensor:
        """[B, 3] unit, where the cameras look."""
        return -self.camera_to_world[:, :3, 2]

    @property
    def radius(self) -> Tensor:
        """[B] distance to the origin, world units."""
        return self.position.norm(dim=-1)

    @property
    def elevation(self) -> Tensor:
        """[B] degrees above the horizon as seen from the origin, -90 to 90."""
        horizontal = torch.hypot(self.position[:, 0], self.position[:, 2])
        return torch.rad2deg(torch.atan2(self.position[:, 1], horizontal))

    @property
    def azimuth(self) -> Tensor:
        """[B] degrees about the y axis as seen from the origin, in (-180, 180], 0 in front and 90 at +x.

        Straight above or below the origin the position says nothing, and the camera's right axis is asked.
        """
        x, z = self.position[:, 0], self.position[:, 2]
        right = self.camera_to_world[:, :3, 0]
        at_pole = torch.hypot(x, z) < 1e-5 * self.radius
        angle = torch.rad2deg(
            torch.where(at_pole, torch.atan2(-right[:, 2], right[:, 0]), torch.atan2(x, z)),
        )
        return torch.where(angle <= -180.0, angle + 360.0, angle)

    @property
    def pose(self) -> Tensor:
        """[B, 12] the upper rows of `camera_to_world`, row-major: what camera-conditioned teachers read.

        The layout of MVDream (arXiv 2308.16512).
        """
        return self.camera_to_world[:, :3, :].reshape(-1, 12)

    @property
    def focal(self) -> Tensor:
        """[B] focal length in pixels, (height / 2) / tan(fov_y / 2)."""
        return 0.5 * self.height / torch.tan(0.5 * torch.deg2rad(self.fov_y))

    @property
    def intrinsics(self) -> Tensor:
        """[B, 3, 3] pinhole matrices in pixels, principal point at the image's centre."""
        matrices = torch.zeros(len(self), 3, 3, device=self.fov_y.device, dtype=self.fov_y.dtype)
        matrices[:, 0, 0] = matrices[:, 1, 1] = self.focal
        matrices[:, 0, 2] = 0.5 * self.width
        matrices[:, 1, 2] = 0.5 * self.height
        matrices[:, 2, 2] = 1.0
        return matrices

    @property
    def view_matrix(self) -> Tensor:
        """[B, 4, 4] world to camera in OpenCV axes (x right, y DOWN, z FORWARD), what rasterisers read."""
        flip = self.camera_to_world.new_tensor([1.0, -1.0, -1.0])
        rotation = (self.camera_to_world[:, :3, :3] * flip).transpose(1, 2)
        matrices = torch.zeros_like(self.camera_to_world)
        matrices[:, :3, :3] = rotation
        matrices[:, :3, 3] = -(rotation @ self.position[..., None])[..., 0]
        matrices[:, 3, 3] = 1.0
        return matrices

    def rays(self) -> tuple[Tensor, Tensor]:
        """The ray through every pixel's centre.

        Returns:
            origins [B, H, W, 3] (world units) and unit directions [B, H, W, 3].
        """
        device, dtype = self.fov_y.device, self.fov_y.dtype
        rows = torch.arange(self.height, device=device, dtype=dtype) + 0.5
        columns = torch.arange(self.width, device=device, dtype=dtype) + 0.5
        v, u = torch.meshgrid(rows, columns, indexing="ij")
        focal = self.focal[:, None, None]
        x = (u - 0.5 * self.width) / focal
        y = -(v - 0.5 * self.height) / focal
        local = torch.stack([x, y, -torch.ones_like(x)], -1)  # [B, H, W, 3] camera axes
        directions = torch.einsum("bij,bhwj->bhwi", self.camera_to_world[:, :3, :3], local)
        directions = directions / directions.norm(dim=-1, keepdim=True)
        return self.position[:, None, None, :].expand_as(directions), directions

    def project(
        self,
        points: Tensor,  # [N, 3] world units
    ) -> tuple[Tensor, Tensor]:
        """Where points appear: pixels = K R (p - position) / depth.

        Args:
            points: [N, 3] world positions.

        Returns:
            pixels [B, N, 2] as (u right, v down), and depth [B, N] along the viewing axis (<= 0: behind).
        """
        view = self.view_matrix
        local = torch.einsum("bij,nj->bni", view[:, :3, :3], points) + view[:, None, :3, 3]
        depth = local[..., 2]
        homogeneous = torch.einsum("bij,bnj->bni", self.intrinsics, local)
        return homogeneous[..., :2] / depth[..., None], depth

    def view_names(self) -> list[str]:
        """The name of each camera's view, see `view_name`."""
        angles = zip(self.azimuth.tolist(), self.elevation.tolist(), strict=True)
        return [view_name(azimuth, elevation) for azimuth, elevation in angles]

    def resized(self, height: int, width: int) -> Camera:
        """The same views at another image size (the vertical field of view stays)."""
        return replace(self, height=int(height), width=int(width))

    def to(self, device: torch.device | str) -> Camera:
        """The same cameras on `device`."""
        return replace(self, camera_to_world=self.camera_to_world.to(device), fov_y=self.fov_y.to(device))

    def __len__(self) -> int:
        return int(self.camera_to_world.shape[0])

    def __getitem__(self, index: int | slice | Tensor) -> Camera:
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(f"camera {index} of {len(self)}")
            index = slice(index, index + 1 or None)
        return replace(self, camera_to_world=self.camera_to_world[index], fov_y=self.fov_y[index])


def _check_orbit(elevation: Tensor, radius: Tensor, fov_y: Tensor) -> None:
    """Refuse values that no camera can have (CPU tensors only: a check on a GPU would stall it)."""
    if elevation.is_cuda:
        return
    if bool((elevation.abs() > 90.0).any()):
        raise SceneError(f"An elevation of {elevation.tolist()} degrees is past the pole.", "Use -90 to 90.")
    if bool((radius <= 0.0).any()):
        raise SceneError(f"A camera radius of {radius.tolist()} is not positive.", "Use a radius above 0.")
    if bool(((fov_y <= 0.0) | (fov_y >= 180.0)).any()):
        raise SceneError(f"A field of view of {fov_y.tolist()} degrees is no pinhole.", "Use 0 to 180 degrees.")


def view_name(azimuth: float, elevation: float) -> str:
    """The view's name, as captions and view-dependent prompts use it.

    Args:
        azimuth: degrees, any turn (it is wrapped).
        elevation: degrees.

    Returns:
        "overhead view" from 45 degrees up; else "front view" within 45 degrees of the front, "back view"
        within 45 degrees of the back, "side view" between.
    """
    if elevation >= 45.0:
        return "overhead view"
    wrapped = abs((azimuth + 180.0) % 360.0 - 180.0)
    if wrapped <= 45.0:
        return "front view"
    return "back view" if wrapped >= 135.0 else "side view"


@dataclass(frozen=True)
class CameraSampler:
    """Random cameras about the object, for training: azimuths stratified, the rest uniform."""

    azimuth_range: tuple[float, float] = (-180.0, 180.0)
    """Degrees; the whole turn by default."""
    elevation_range: tuple[float, float] = (-10.0, 60.0)
    """Degrees, -90 to 90; the teacher of the toy world saw -10 to 60."""
    radius_range: tuple[float, float] = (2.8, 3.2)
    """Distance to the origin, world units."""
    fov_range: tuple[float, float] = (40.0, 40.0)
    """Vertical field of view, degrees, between 0 and 180."""
    jitter: float = 1.0
    """How much of its stratum an azimuth may use, 0 (equal spacing) to 1 (anywhere in it)."""

    def __post_init__(self) -> None:
        bounds = {
            "azimuth_range": (-360.0, 360.0),
            "elevation_range": (-90.0, 90.0),
            "radius_range": (1e-3, 1e6),
            "fov_range": (1e-3, 179.0),
        }
        for name, (low, high) in bounds.items():
            first, second = getattr(self, name)
            # NaN fails the comparison, as it should.
            if not low <= first <= second <= high:
                raise ConfigError(
                    f"The camera's {name} is ({first}, {second}).",
                    f"Use two numbers in order, between {low:g} and {high:g}.",
                )
        if not 0.0 <= self.jitter <= 1.0:
            raise ConfigError(f"The camera's jitter is {self.jitter}.", "Use a number from 0 to 1.")

    def sample(self, n: int, generator: torch.Generator, height: int, width: int) -> Camera:
        """Draw `n` cameras, spread over the azimuth range so that every step sees all sides.

        azimuth_i = low + (high - low) * frac(offset + (i + 1/2 + jitter * (u_i - 1/2)) / n), with offset and
        u_i ~ U[0, 1)

        Args:
            n: how many, >= 1.
            generator: the only source of randomness; its device is the cameras' device.
            height: image height in pixels.
            width: image width in pixels.

        Returns:
            `n` cameras.

        Raises:
            ConfigError: `n` is below 1.
        """
        if n < 1:
            raise ConfigError(f"{n} views a step is none.", "Use at least 1.")
        draws = torch.rand(4, n, generator=generator, device=generator.device)
        offset = torch.rand(1, generator=generator, device=generator.device)
        index = torch.arange(n, device=generator.device, dtype=torch.float32)
        strata = (index + 0.5 + self.jitter * (draws[0] - 0.5)) / n
        azimuth = _lerp(self.azimuth_range, torch.remainder(offset + strata, 1.0))
        return Camera.orbit(
            azimuth,
            _lerp(self.elevation_range, draws[1]),
            _lerp(self.radius_range, draws[2]),
            _lerp(self.fov_range, draws[3]),
            height,
            width,
        )


def _lerp(bounds: tuple[float, float], fraction: Tensor) -> Tensor:
    """The point at `fraction` of the way between the bounds."""
    return bounds[0] + fraction * (bounds[1] - bounds[0])


def turntable(
    n: int,
    elevation: float = 15.0,
    radius: float = 3.0,
    fov_y: float = 40.0,
    height: int = 64,
    width: int = 64,
) -> Camera:
    """`n` cameras at equal steps round the object, the first in front, azimuth growing.

    Args:
        n: how many, >= 1.
        elevation: degrees.
        radius: world units.
        fov_y: degrees.
        height: image height in pixels.
        width: image width in pixels.

    Returns:
        `n` cameras.

    Raises:
        SceneError: `n` is below 1, or a value out of range.
    """
    if n < 1:
        raise SceneError(f"A turntable of {n} views has none.", "Use at least 1.")
    azimuth = [math.fmod(360.0 * i / n, 360.0) for i in range(n)]
    return Camera.orbit(azimuth, elevation, radius, fov_y, height, width)
