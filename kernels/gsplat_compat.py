"""`rasterization`: this rasteriser behind the call of `gsplat.rasterization` 1.5.3, so that its scripts run on a CPU.

```python
from dreamkit_kernels.gsplat_compat import rasterization  # instead of: from gsplat import rasterization
```

gsplat's rules (alpha at most 0.999 and skipped below 1/255, the stop at a transmittance of 1e-4, pixel centres at
halves, the low-pass `eps2d`, opacity-aware boxes, strict clipping planes) are those of `gaussian_rasterize`, so the
pictures and gradients are gsplat's to float precision, and `meta` has what its `DefaultStrategy` reads. Its
`MCMCStrategy` calls CUDA kernels of its own (relocation, noise) and needs a GPU whoever renders.

It differs where gsplat has no answer: rows that hold NaN are culled, and a zero quaternion is the identity. On a GPU
our Triton kernels run, or the torch reference: gsplat itself is there for who wants it.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .checks import check_float, check_like
from .dispatch import choose_backend
from .gaussian_rasterize import operators, reference
from .gaussian_rasterize.types import ALPHA_MIN, MAX_SH_DEGREE, Gaussians, Settings, View, check_arguments

RENDER_MODES = ("RGB", "D", "ED", "RGB+D", "RGB+ED")
_PROJECTIONS = {"pinhole": "perspective", "ortho": "orthographic"}
_CONIC, _OPACITY = slice(0, 3), 3  # columns of the operators' geometry


def rasterization(
    means: Tensor,  # [..., N, 3]
    quats: Tensor,  # [..., N, 4]
    scales: Tensor,  # [..., N, 3]
    opacities: Tensor,  # [..., N]
    colors: Tensor,  # [..., (C,) N, D] or [..., (C,) N, K, 3]
    viewmats: Tensor,  # [..., C, 4, 4]
    Ks: Tensor,  # [..., C, 3, 3]
    width: int,
    height: int,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    radius_clip: float = 0.0,
    eps2d: float = 0.3,
    sh_degree: int | None = None,
    packed: bool = True,
    tile_size: int = 16,
    backgrounds: Tensor | None = None,  # [..., C, D]
    render_mode: str = "RGB",
    sparse_grad: bool = False,
    absgrad: bool = False,
    rasterize_mode: str = "classic",
    channel_chunk: int = 32,
    distributed: bool = False,
    camera_model: str = "pinhole",
    segmented: bool = False,
    covars: Tensor | None = None,
    with_ut: bool = False,
    with_eval3d: bool = False,
    radial_coeffs: Tensor | None = None,
    tangential_coeffs: Tensor | None = None,
    thin_prism_coeffs: Tensor | None = None,
    ftheta_coeffs: Any = None,
    rolling_shutter: Any = None,
    viewmats_rs: Tensor | None = None,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Render Gaussians as `gsplat.rasterization` does; its documentation says what the arguments mean.

    What differs: `Ks` has no skew, `near_plane` is positive, `sh_degree` ends at 3; `channel_chunk` and `segmented`
    change nothing, `tile_size` only figures of `meta`; `distributed`, `covars` and all that follows it are refused.

    Returns:
        Colours [..., C, height, width, X], alphas [..., C, height, width, 1], and `meta` without gsplat's `isect_ids`,
        `flatten_ids` and `isect_offsets`. `meta["means2d"]` is on the way to the picture: after `retain_grad()` its
        `.grad` is the gradient per pixel, and with `absgrad` the backward pass gives it `.absgrad`.

    Raises:
        TypeError: an argument of the wrong kind or dtype (float32 or float64, all alike).
        ValueError: a wrong shape or range, or an option that is not there, by name.
    """
    _refuse(
        distributed=distributed, covars=covars, with_ut=with_ut, with_eval3d=with_eval3d, radial_coeffs=radial_coeffs,
        tangential_coeffs=tangential_coeffs, thin_prism_coeffs=thin_prism_coeffs, ftheta_coeffs=ftheta_coeffs,
        rolling_shutter=None if getattr(rolling_shutter, "name", "") == "GLOBAL" else rolling_shutter,
        viewmats_rs=viewmats_rs,
    )  # fmt: skip
    _check_choices(render_mode, rasterize_mode, camera_model)
    antialiased = rasterize_mode == "antialiased"
    settings = Settings(None, None, antialiased, float(eps2d), float(radius_clip), tile_size=int(tile_size))
    lens = (width, height, float(near_plane), float(far_plane), _PROJECTIONS[camera_model])
    call = _Call(means, quats, scales, opacities, colors, viewmats, Ks, backgrounds, sh_degree, lens, settings)
    call.check()
    return _render(call, packed, sparse_grad and packed, absgrad, render_mode)


def _refuse(**options: Any) -> None:
    for name, value in options.items():
        if value is not None and value is not False:
            raise ValueError(f"{name} is an option of gsplat that dreamkit's rasterization lacks: leave it out.")


def _check_choices(render_mode: str, rasterize_mode: str, camera_model: str) -> None:
    choices = {
        "render_mode": (render_mode, RENDER_MODES),
        "rasterize_mode": (rasterize_mode, ("classic", "antialiased")),
        "camera_model": (camera_model, tuple(_PROJECTIONS)),
    }
    for name, (value, known) in choices.items():
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}.")


@dataclass(frozen=True)
class _Call:
    """The arguments as gsplat names them, in its shapes."""

    means: Tensor
    quats: Tensor
    scales: Tensor
    opacities: Tensor
    colors: Tensor
    viewmats: Tensor
    Ks: Tensor
    backgrounds: Tensor | None
    sh_degree: int | None
    lens: tuple[Any, ...]  # width, height, near, far, projection
    settings: Settings

    @property
    def batch(self) -> tuple[int, ...]:
        """The leading dimensions: as many scenes, each with its own cameras."""
        return tuple(self.means.shape[:-2])

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Scenes, cameras of each, Gaussians in each."""
        return self.means.shape[:-2].numel(), self.viewmats.shape[-3], self.means.shape[-2]

    @property
    def per_camera(self) -> bool:
        """Whether every camera has colours of its own."""
        return self.colors.dim() == len(self.batch) + (3 if self.sh_degree is None else 4)

    def check(self) -> None:
        """Check shapes, dtypes and ranges.

        Raises:
            TypeError: an argument of the wrong kind or dtype, by name.
            ValueError: a wrong shape or range, by name.
        """
        for name in ("means", "quats", "scales", "opacities", "colors", "viewmats", "Ks"):
            check_float(name, getattr(self, name))
            check_like(name, getattr(self, name), "means", self.means)
        if self.means.dim() < 2 or self.viewmats.dim() < 3 or 0 in self.sizes[:2]:
            shapes = f"{list(self.means.shape)} and {list(self.viewmats.shape)}"
            raise ValueError(f"means must have shape [..., N, 3] and viewmats [..., C, 4, 4], C > 0, got {shapes}.")
        batch, (scenes, cameras, count) = self.batch, self.sizes
        _check_dimensions("means", self.means, (*batch, count, 3))
        _check_dimensions("quats", self.quats, (*batch, count, 4))
        _check_dimensions("scales", self.scales, (*batch, count, 3))
        _check_dimensions("opacities", self.opacities, (*batch, count))
        _check_dimensions("viewmats", self.viewmats, (*batch, cameras, 4, 4))
        _check_dimensions("Ks", self.Ks, (*batch, cameras, 3, 3))
        seen_by = (cameras,) if self.per_camera else ()
        tail = (None,) if self.sh_degree is None else (None, 3)
        _check_dimensions("colors", self.colors, (*batch, *seen_by, count, *tail))
        if self.sh_degree is not None and not (
            0 <= self.sh_degree <= MAX_SH_DEGREE and (self.sh_degree + 1) ** 2 <= self.colors.shape[-2]
        ):
            held = f"{self.colors.shape[-2]} coefficients"
            raise ValueError(f"sh_degree must be 0 to {MAX_SH_DEGREE} and fit the {held}, got {self.sh_degree}.")
        if self.backgrounds is not None:
            check_like("backgrounds", self.backgrounds, "means", self.means)
            _check_dimensions("backgrounds", self.backgrounds, (*batch, cameras, self.colors.shape[-1]))
        if bool((self.Ks[..., [0, 1], [1, 0]] != 0).any()):
            raise ValueError("Ks must have no skew: entries [..., 0, 1] and [..., 1, 0] are 0.")
        for scene in range(scenes):
            # Colours of every camera are more dimensions than `rasterize` takes; their own checks are above.
            gaussians = replace(self.gaussians(scene), colors=self.means.new_zeros(count, 1))
            check_arguments(gaussians, self.view(scene), self.settings)

    def of(self, tensor: Tensor, scene: int) -> Tensor:
        """A tensor's part of one scene."""
        return tensor.flatten(0, len(self.batch) - 1)[scene] if self.batch else tensor

    def gaussians(self, scene: int) -> Gaussians:
        """A scene's Gaussians, colours as [N, D], [N, K, 3], or with the cameras as a second dimension."""
        colors = self.of(self.colors, scene)
        if self.sh_degree is not None:
            colors = colors[..., : (self.sh_degree + 1) ** 2, :]
        if self.per_camera:
            colors = colors.movedim(0, 1)
        shape = (self.of(tensor, scene) for tensor in (self.means, self.quats, self.scales, self.opacities))
        return Gaussians(*shape, colors)

    def view(self, scene: int) -> View:
        """A scene's cameras."""
        return View(self.of(self.viewmats, scene), self.of(self.Ks, scene), *self.lens)


def _check_dimensions(name: str, tensor: Tensor, shape: tuple[int | None, ...]) -> None:
    """Check a shape in which None stands for any size above 0."""
    fits = tensor.dim() == len(shape) and all(
        (got > 0 if want is None else got == want) for want, got in zip(shape, tensor.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("*" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} must have shape [{wanted}], got {list(tensor.shape)}.")


class _Images(NamedTuple):
    """N Gaussians in I pictures; all zero where culled."""

    means2d: Tensor  # [I, N, 2] pixels
    geometry: Tensor  # [I, N, 8] conic (3), opacity, depth, normal (3)
    colors: Tensor  # [I or 1, N, D]
    radii: Tensor  # [I, N, 2] int32 pixels
    places: Tensor | None  # what the kernels' compositing wants besides


def _project(call: _Call, scene: int, backend: str, sparse: _SparseRows | None) -> _Images:
    """One scene in its cameras."""
    gaussians, view = call.gaussians(scene), call.view(scene)
    if sparse is not None:
        means, quats, scales = (sparse.of(t) for t in (gaussians.means, gaussians.quaternions, gaussians.scales))
        gaussians = replace(gaussians, means=means, quaternions=quats, scales=scales)
    if backend == "reference":
        gaussians = reference.usable_gaussians(gaussians)
        found = reference.project(gaussians, view, call.settings)
        rest = (found.opacities[..., None], found.depths[..., None], found.normals)
        geometry = torch.cat([found.conics, *rest], dim=-1)
        return _Images(found.means2d, geometry, _colors(call, gaussians, view, None, backend), found.radii, None)
    means2d, geometry, places, radii = operators.project_gaussians(gaussians, view, call.settings, backend)
    colors = _colors(call, gaussians, view, radii, backend)
    return _Images(means2d, geometry, colors, _boxes(geometry, radii), places)


def _colors(call: _Call, gaussians: Gaussians, view: View, radii: Tensor | None, backend: str) -> Tensor:
    """The colours [C or 1, N, D] that a scene shows to its cameras."""
    colors = gaussians.colors
    if call.sh_degree is None:
        return colors.movedim(1, 0) if call.per_camera else colors[None]

    def shade(coefficients: Tensor, some: slice) -> Tensor:
        matrices = view.view_matrices[some]
        if radii is None:
            return reference.shade(gaussians.means, coefficients, matrices, call.sh_degree)
        return operators.shade(gaussians.means, coefficients, matrices, radii[some], call.sh_degree, backend)

    if not call.per_camera:
        return shade(colors, slice(None))
    return torch.cat([shade(colors[:, camera], slice(camera, camera + 1)) for camera in range(colors.shape[1])])


@torch.no_grad()
def _boxes(
    geometry: Tensor,  # [C, N, 8]
    radii: Tensor,  # [C, N]
) -> Tensor:
    """Half the bounding boxes, [C, N, 2] int32, from the longer sides, which is what the kernels give."""
    conics, opacities = geometry[..., _CONIC], geometry[..., _OPACITY]
    determinant = conics[..., 0] * conics[..., 2] - conics[..., 1].square()
    variances = conics[..., [2, 0]] / determinant[..., None]
    extent = torch.sqrt(2.0 * torch.log(opacities.clamp_min(ALPHA_MIN) / ALPHA_MIN))
    sides = torch.ceil(extent[..., None] * variances.sqrt())
    longest = radii[..., None].to(sides.dtype)
    # The inverse of a needle's conic is inexact, but its longer side is known.
    sides = torch.where(sides >= sides.amax(dim=-1, keepdim=True), longest, sides).nan_to_num(nan=torch.inf)
    return torch.where(longest > 0, sides.clamp_min(1.0).minimum(longest), 0.0).to(torch.int32)


def _joined(call: _Call, parts: list[_Images]) -> _Images:
    """All scenes' pictures behind each other."""
    if len(parts) == 1:
        return parts[0]
    cameras = call.sizes[1]
    colors = torch.cat([part.colors.expand(cameras, -1, -1) for part in parts])
    places = None if parts[0].places is None else torch.cat([part.places for part in parts if part.places is not None])
    means2d, geometry, radii = (
        torch.cat(group) for group in zip(*((p.means2d, p.geometry, p.radii) for p in parts), strict=True)
    )
    return _Images(means2d, geometry, colors, radii, places)


def _render(
    call: _Call, packed: bool, sparse_grad: bool, absgrad: bool, render_mode: str
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    backend = choose_backend("gaussian_rasterize", None, call.means)
    if backend == "gsplat":
        backend = choose_backend("gaussian_rasterize", "triton", call.means)
    if sparse_grad and call.batch:
        raise ValueError("sparse_grad takes no leading dimensions before [N, 3]: leave it out.")
    sparse = _SparseRows() if sparse_grad else None
    scenes, cameras, _ = call.sizes
    images = _joined(call, [_project(call, scene, backend, sparse) for scene in range(scenes)])
    seen = torch.where((images.radii > 0).all(dim=-1)) if packed else None
    images, watched = _watch(call, images, seen)
    if sparse is not None and seen is not None:
        sparse.rows = seen[1].unique()
    absolute = torch.zeros_like(images.means2d) if absgrad else None
    if absolute is not None and watched.requires_grad:
        _give_absgrad(watched, absolute, seen)
    image, alpha, depth = _composite(call, images, absolute, backend)
    if render_mode in ("ED", "RGB+ED"):
        depth = depth / alpha.clamp_min(1e-10)
    parts = {"RGB": [image], "D": [depth], "ED": [depth]}.get(render_mode, [image, depth])
    shape = (*call.batch, cameras, call.lens[1], call.lens[0], -1)
    meta = _meta(call, images, seen) | {"means2d": watched}
    return torch.cat(parts, dim=-1).view(shape), alpha.view(shape), meta


def _watch(call: _Call, images: _Images, seen: tuple[Tensor, Tensor] | None) -> tuple[_Images, Tensor]:
    """The projected centres in the shape that gsplat gives them, and the pictures that are made from just those.

    Strategies ask them for gradients, so they must lie between the projection and the compositing.
    """
    if seen is not None:
        watched = images.means2d[seen]
        return images._replace(means2d=torch.zeros_like(images.means2d).index_put(seen, watched)), watched
    watched = images.means2d.view(*call.batch, *call.sizes[1:], 2)
    return images._replace(means2d=watched.view(images.means2d.shape)), watched


def _composite(call: _Call, images: _Images, absolute: Tensor | None, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    """Picture [I, H, W, D], alpha and depth [I, H, W, 1]."""
    width, height = call.lens[:2]
    means2d, geometry, colors = images.means2d, images.geometry, images.colors
    background = None if call.backgrounds is None else call.backgrounds.reshape(len(means2d), colors.shape[-1])
    if images.places is not None:
        tensors = (means2d, geometry, colors, background)
        keep = any(tensor is not None and tensor.requires_grad for tensor in tensors)
        radii = images.radii.amax(dim=-1)
        options = (width, height, False, keep, backend)
        image, alpha, depth, *_ = operators.composite(*tensors, images.places, radii, absolute, *options)
        return image, alpha, depth
    conics, opacities, depths, normals = geometry.split([3, 1, 1, 3], dim=-1)
    found = reference.Projection(means2d, conics, opacities[..., 0], depths[..., 0], normals, images.radii)
    features = torch.cat([colors.expand(len(means2d), -1, -1), depths], dim=-1)
    extras = reference.Extras(None, None if absolute is None else absolute.view(-1, 2))
    sums, rest = reference.composite(found, features, width, height, call.settings.tile_size, extras)
    image, depth = sums.split([sums.shape[-1] - 1, 1], dim=-1)
    if background is not None:
        image = image + rest[..., None] * background[:, None, None]
    return image, 1 - rest[..., None], depth


def _give_absgrad(watched: Tensor, absolute: Tensor, seen: tuple[Tensor, Tensor] | None) -> None:
    """Have the backward pass set `.absgrad` of the watched centres, once `absolute` is filled."""
    reference_to = weakref.ref(watched)  # a tensor that owned its own hook would never be freed

    def fill(gradient: Tensor) -> None:
        target = reference_to()
        if target is not None:
            target.absgrad = absolute.view(target.shape) if seen is None else absolute[seen]  # type: ignore[attr-defined]

    watched.register_hook(fill)


def _meta(call: _Call, images: _Images, seen: tuple[Tensor, Tensor] | None) -> dict[str, Any]:
    """What gsplat says about the way there, but for the lists of tiles."""
    scenes, cameras, count = call.sizes
    width, height = call.lens[:2]
    tile = call.settings.tile_size
    tiles = (-(-width // tile), -(-height // tile))
    with torch.no_grad():
        limits = images.means2d.new_tensor(tiles)
        low = ((images.means2d - images.radii) / tile).floor().clamp_min(0.0).minimum(limits)
        high = ((images.means2d + images.radii) / tile).ceil().clamp_min(0.0).minimum(limits)
        touched = ((high - low).prod(dim=-1) * (images.radii > 0).all(dim=-1)).to(torch.int32)
    values = {
        "radii": images.radii,
        "depths": images.geometry[..., operators.DEPTH_COLUMN],
        "conics": images.geometry[..., _CONIC],
        "opacities": images.geometry[..., _OPACITY],
        "tiles_per_gauss": touched,
    }
    if seen is None:
        shape = (*call.batch, cameras, count)
        values = {name: value.view(*shape, *value.shape[2:]) for name, value in values.items()}
        ids: dict[str, Tensor | None] = dict.fromkeys(("batch_ids", "camera_ids", "gaussian_ids"))
    else:
        values = {name: value[seen] for name, value in values.items()}
        ids = {"batch_ids": seen[0] // cameras, "camera_ids": seen[0] % cameras, "gaussian_ids": seen[1]}
    numbers = {"tile_width": tiles[0], "tile_height": tiles[1], "tile_size": tile, "width": width, "height": height}
    return {**values, **ids, **numbers, "n_batches": scenes, "n_cameras": cameras}


class _SparseRows:
    """Gradients in COO layout that hold the rows of what is seen, which is known after the projection."""

    def __init__(self) -> None:
        self.rows: Tensor | None = None

    def of(self, tensor: Tensor) -> Tensor:
        """The tensor, its gradient sparse."""
        return _SparseGradient.apply(tensor, self)


class _SparseGradient(torch.autograd.Function):
    """x, whose gradient has a COO layout."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, sparse: _SparseRows) -> Tensor:
        """The tensor itself."""
        ctx.sparse = sparse
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The rows of what is seen."""
        gradient, rows = gradients[0], ctx.sparse.rows
        sparse = torch.sparse_coo_tensor(
            rows[None], gradient[rows], gradient.shape, is_coalesced=True, check_invariants=False
        )
        return sparse, None
