"""`gsplat_compat.rasterization` against gsplat's own torch code, and under its own training strategy, on a CPU."""

import inspect
import math
from typing import Any

import gsplat
import nerfacc
import pytest
import torch
from dreamkit_kernels.gsplat_compat import rasterization
from gsplat.cuda._torch_impl import (
    _fully_fused_projection,
    _isect_tiles,
    _quat_scale_to_covar_preci,
    _spherical_harmonics,
    accumulate,
)
from torch import Tensor

WIDTH, HEIGHT = 33, 26
PARAMETERS = ("means", "quats", "scales", "opacities", "colors", "viewmats", "backgrounds")


def look_at(position: Tensor) -> Tensor:
    """World to camera, OpenCV axes, looking at the origin."""
    forward = -position / position.norm()
    right = torch.linalg.cross(forward, position.new_tensor([0.0, 1.0, 0.0]))
    right = right / right.norm()
    matrix = torch.eye(4, dtype=position.dtype)
    matrix[:3, :3] = torch.stack([right, torch.linalg.cross(forward, right), forward])
    matrix[:3, 3] = -matrix[:3, :3] @ position
    return matrix


def make_scene(
    count: int = 40,
    cameras: int = 2,
    dtype: torch.dtype = torch.float64,
    sh: int | None = None,
    per_camera: bool = False,
) -> dict[str, Any]:
    """Gaussians of all shapes, some opaque, some behind or outside; lenses that are neither square nor centred."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    places = [[0.4, 0.9, 2.6], [-2.3, -0.6, 1.2], [0.3, 2.6, 0.9]][:cameras]
    extra = (cameras,) if per_camera else ()
    shape = (*extra, count, 3) if sh is None else (*extra, count, (sh + 1) ** 2, 3)
    focal = torch.tensor([[31.0, 0.0, 19.3], [0.0, 40.0, 11.1], [0.0, 0.0, 1.0]], dtype=dtype)
    means = normal(count, 3) * torch.tensor([0.7, 0.7, 0.7], dtype=dtype)
    means[:3] *= 5  # past the borders, and behind
    opacities = torch.rand(count, generator=generator, dtype=dtype)
    opacities[3:8] = torch.tensor([1.0, 1.0, 0.9999, 0.003, 0.05], dtype=dtype)  # the clamp, and below 1 / 255
    return {
        "means": means,
        "quats": normal(count, 4),
        "scales": 0.15 * torch.exp(0.7 * normal(count, 3)),
        "opacities": opacities,
        "colors": normal(*shape).sigmoid() if sh is None else 0.5 * normal(*shape),
        "viewmats": torch.stack([look_at(torch.tensor(place, dtype=dtype)) for place in places]),
        "Ks": focal.repeat(cameras, 1, 1) * torch.tensor([1.0, 1.0, 1.0], dtype=dtype),
        "width": WIDTH,
        "height": HEIGHT,
        "sh_degree": sh,
    }


def weights_from_alpha(alphas: Tensor, ray_indices: Tensor, n_rays: int) -> tuple[Tensor, Tensor]:
    """nerfacc's function on a CPU: w_i = alpha_i prod_{j<i} (1 - alpha_j) along each ray, samples in order."""
    longest = int(torch.bincount(ray_indices, minlength=n_rays).max())
    order = torch.argsort(ray_indices, stable=True)
    starts = torch.bincount(ray_indices, minlength=n_rays).cumsum(0) - torch.bincount(ray_indices, minlength=n_rays)
    slot = torch.empty_like(ray_indices)
    slot[order] = torch.arange(len(order)) - starts[ray_indices[order]]
    dense = alphas.new_zeros(n_rays, longest).index_put((ray_indices, slot), alphas)
    before = torch.cumprod(torch.cat([torch.ones_like(dense[:, :1]), 1 - dense[:, :-1]], dim=1), dim=1)
    return alphas * before[ray_indices, slot], before[ray_indices, slot]


@torch.no_grad()
def pairs(means2d: Tensor, conics: Tensor, opacities: Tensor, depths: Tensor, radii: Tensor) -> tuple[Tensor, ...]:
    """Which Gaussians count at which pixels: the rules of gsplat's CUDA kernel, one by one, front to back."""
    u, v = torch.meshgrid(torch.arange(WIDTH) + 0.5, torch.arange(HEIGHT) + 0.5, indexing="xy")
    pixels = torch.stack([u, v], dim=-1).reshape(-1, 2).to(means2d)
    found: list[Tensor] = []
    for image in range(len(means2d)):
        order = torch.argsort(depths[image], stable=True)
        rest = torch.ones(len(pixels), dtype=means2d.dtype)
        done = torch.zeros(len(pixels), dtype=torch.bool)
        for index in order[(radii[image, order] > 0).all(dim=-1)]:
            x, y = (pixels - means2d[image, index]).unbind(-1)
            a, b, c = conics[image, index]
            sigma = 0.5 * (a * x * x + c * y * y) + b * x * y
            alpha = (opacities[image, index] * torch.exp(-sigma)).clamp_max(0.999)
            counts = (sigma >= 0) & (alpha >= 1 / 255) & ~done
            after = rest * (1 - alpha)
            done = done | (counts & (after <= 1e-4))
            counts = counts & ~done
            rest = torch.where(counts, after, rest)
            where = counts.nonzero()[:, 0]
            found.append(torch.stack([torch.full_like(where, int(index)), where, torch.full_like(where, image)]))
    gaussians, places, images = torch.cat(found, dim=1)
    return gaussians, places, images


def theirs(scene: dict[str, Any], options: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """gsplat's torch code, step by step as its `rasterization` calls them: colours, depths, alphas and the rest."""
    covars, _ = _quat_scale_to_covar_preci(scene["quats"], scene["scales"], True, False)
    limits = {"near_plane": options.get("near_plane", 0.01), "far_plane": options.get("far_plane", 1e10)}
    antialiased = options.get("rasterize_mode") == "antialiased"
    radii, means2d, depths, conics, factors = _fully_fused_projection(
        scene["means"], covars, scene["viewmats"], scene["Ks"], WIDTH, HEIGHT, eps2d=options.get("eps2d", 0.3),
        calc_compensations=antialiased, camera_model=options.get("camera_model", "pinhole"), **limits,
    )  # fmt: skip
    cameras, count = depths.shape
    opacities = scene["opacities"].expand(cameras, count) * (1 if factors is None else factors)
    # Of the CUDA kernel but not of the torch code: the box by opacity, and the clip of small ones.
    variances = torch.stack([conics[..., 2], conics[..., 0]], dim=-1) / (
        conics[..., 0] * conics[..., 2] - conics[..., 1] ** 2
    ).unsqueeze(-1)
    extent = torch.sqrt(2 * torch.log(opacities.clamp_min(1 / 255) * 255)).clamp_max(3.33)
    boxes = torch.ceil(extent[..., None] * variances.sqrt()).detach()
    inside = ((means2d + boxes > 0) & (means2d - boxes < torch.tensor([WIDTH, HEIGHT]))).all(dim=-1)
    keep = (radii > 0).all(dim=-1) & (opacities >= 1 / 255) & inside
    keep = keep & (boxes > options.get("radius_clip", 0.0)).any(dim=-1)
    radii = torch.where(keep[..., None], boxes, 0).int()
    colors = scene["colors"]
    if scene["sh_degree"] is not None:
        directions = scene["means"] - torch.inverse(scene["viewmats"])[:, None, :3, 3]
        coefficients = colors if colors.dim() == 4 else colors.expand(cameras, *colors.shape)
        colors = torch.clamp_min(_spherical_harmonics(scene["sh_degree"], directions, coefficients) + 0.5, 0.0)
    colors = colors if colors.dim() == 3 else colors.expand(cameras, *colors.shape)
    means2d.retain_grad()
    which = pairs(means2d, conics, opacities, depths, radii)
    features = torch.cat([colors, depths[..., None]], dim=-1)
    sums, alphas = accumulate(means2d, conics, opacities, features, *which, WIDTH, HEIGHT)
    image, depth = sums[..., :-1], sums[..., -1:]
    if scene.get("backgrounds") is not None:
        image = image + scene["backgrounds"][:, None, None] * (1 - alphas)
    about = {"means2d": means2d, "radii": radii, "depths": depths, "conics": conics, "opacities": opacities}
    return image, depth, alphas, about


def leaves(scene: dict[str, Any], dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """A copy whose parameters want gradients."""
    copy = {name: value.to(dtype) if isinstance(value, Tensor) else value for name, value in scene.items()}
    return copy | {name: copy[name].detach().clone().requires_grad_() for name in PARAMETERS if name in copy}


def rigid(gradient: Tensor, viewmats: Tensor) -> Tensor:
    """[C, 6] what a gradient says about turns and shifts: a camera's place is -R^T t here and from an inverse there,
    which differ for matrices that are no poses."""
    moves = torch.zeros(6, 4, 4, dtype=torch.float64)
    for axis in range(3):
        moves[axis, (axis + 2) % 3, (axis + 1) % 3], moves[axis, (axis + 1) % 3, (axis + 2) % 3] = 1.0, -1.0
        moves[3 + axis, axis, 3] = 1.0
    return torch.einsum("cij,kil,clj->ck", gradient.double(), moves, viewmats.detach().double())


def close(mine: Tensor, expected: Tensor, tolerance: float, name: str) -> None:
    scale = max(1.0, float(expected.abs().max()))
    error = float((mine.double() - expected.double()).abs().max()) / scale
    assert error < tolerance, f"{name} is off by {error:.2g} of its largest value"


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "harmonics": ({"sh": 3}, {}),
    "a low degree": ({"sh": 1}, {"eps2d": 0.05}),
    "a colour a camera": ({"per_camera": True}, {"eps2d": 1.5}),
    "harmonics a camera": ({"sh": 2, "per_camera": True}, {}),
    "antialiased": ({}, {"rasterize_mode": "antialiased"}),
    "orthographic": ({}, {"camera_model": "ortho", "eps2d": 0.1}),
    "clipped": ({}, {"near_plane": 2.4, "far_plane": 3.1, "radius_clip": 4.0}),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_pictures_and_gradients_are_gsplats(
    case: str, dtype: torch.dtype, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """float32 runs on the native kernels, float64 on the torch reference."""
    monkeypatch.setattr(nerfacc, "render_weight_from_alpha", weights_from_alpha)
    about, options = CASES[case]
    scene = make_scene(**about) | {"backgrounds": torch.tensor([[0.2, 0.5, 0.9], [0.7, 0.1, 0.3]], dtype=torch.float64)}
    if options.get("camera_model") == "ortho":
        scene["Ks"] = scene["Ks"] * torch.tensor([[0.35], [0.35], [1.0]], dtype=torch.float64)
        scene["Ks"][:, :2, 2] /= 0.35
    one, other = leaves(scene), leaves(scene, dtype)
    image, depth, alpha, their = theirs(one, options)
    mine, mine_alpha, meta = rasterization(**other, **options, packed=packed, render_mode="RGB+D")
    meta["means2d"].retain_grad()
    tolerance = 1e-9 if dtype == torch.float64 else 2e-4
    assert mine.shape == (2, HEIGHT, WIDTH, 4)
    assert 0.2 < float(alpha.detach().mean()) < 0.99
    for name, value, expected in (
        ("colours", mine[..., :3], image),
        ("depth", mine[..., 3:], depth),
        ("alpha", mine_alpha, alpha),
    ):
        close(value.detach(), expected.detach(), tolerance, name)
    seen = (their["radii"] > 0).all(dim=-1)
    assert 10 < int(seen.sum()) < seen.numel()
    where = torch.where(seen)
    for name in ("means2d", "radii", "depths", "conics", "opacities"):
        value = meta[name] if packed else meta[name][where]
        close(value.detach(), their[name][where].detach(), tolerance if name != "radii" else 1e-6, name)
    if packed:
        assert torch.equal(meta["camera_ids"], where[0])
        assert torch.equal(meta["gaussian_ids"], where[1])
    generator = torch.Generator().manual_seed(1)
    incoming = [torch.randn(value.shape, generator=generator, dtype=torch.float64) for value in (image, depth, alpha)]
    sum((value * weight).sum() for value, weight in zip((image, depth, alpha), incoming, strict=True)).backward()
    parts = (mine[..., :3], mine[..., 3:], mine_alpha)
    sum((value * weight.to(dtype)).sum() for value, weight in zip(parts, incoming, strict=True)).backward()
    for name in PARAMETERS:
        if name == "viewmats":
            turns = [rigid(parts[name].grad, parts[name]) for parts in (other, one)]
            close(*turns, 5 * tolerance, "the gradient of poses")
            continue
        close(other[name].grad, one[name].grad, 5 * tolerance, f"the gradient of {name}")
    pull = meta["means2d"].grad if packed else meta["means2d"].grad[where]
    close(pull, their["means2d"].grad[where], 5 * tolerance, "the gradient of means2d")


@pytest.mark.parametrize("mode", ["RGB", "D", "ED", "RGB+D", "RGB+ED"])
def test_render_modes(mode: str) -> None:
    scene = make_scene(dtype=torch.float32)
    both, alpha, _ = rasterization(**scene, render_mode="RGB+D")
    expected = both[..., 3:] / alpha.clamp(min=1e-10) if "ED" in mode else both[..., 3:]
    expected = torch.cat([both[..., :3], expected], dim=-1) if mode.startswith("RGB+") else expected
    picture, same, _ = rasterization(**scene, render_mode=mode, packed=False)
    assert torch.equal(picture, both[..., :3] if mode == "RGB" else expected)
    assert torch.equal(same, alpha)


@pytest.mark.parametrize(("packed", "dtype"), [(False, torch.float32), (True, torch.float32), (True, torch.float64)])
def test_absolute_gradients(packed: bool, dtype: torch.dtype) -> None:
    """sum_p |dL/d means2d at p|: the sum over pixels, each with a loss of its own."""
    scene = leaves(make_scene(count=8, dtype=dtype) | {"width": 11, "height": 9}, dtype)
    scene["Ks"] = scene["Ks"] * torch.tensor([[0.34], [0.34], [1.0]], dtype=dtype)
    picture, _, meta = rasterization(**scene, packed=packed, absgrad=True)
    meta["means2d"].retain_grad()
    weights = torch.randn(picture.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)
    (picture * weights).sum().backward()
    total = torch.zeros_like(meta["means2d"])
    at, _, again = rasterization(**scene, packed=packed)
    for row in range(9):
        for column in range(11):  # of both cameras: no Gaussian in one view is seen by the other's pixel
            loss = (at * weights)[:, row, column].sum()
            (pull,) = torch.autograd.grad(loss, again["means2d"], retain_graph=True)
            total += pull.abs()
    assert float(total.max()) > 0.01
    close(meta["means2d"].absgrad, total, 1e-5, "absgrad")
    assert (meta["means2d"].absgrad >= meta["means2d"].grad.abs() * 0.999 - 1e-5).all()


def test_leading_dimensions_are_scenes_of_their_own() -> None:
    scenes = [make_scene(count=20, dtype=torch.float32, sh=1), make_scene(count=20, dtype=torch.float32, sh=1)]
    scenes[1]["means"] = scenes[1]["means"].flip(0)
    scenes[1]["viewmats"] = scenes[1]["viewmats"].flip(0)
    names = ("means", "quats", "scales", "opacities", "colors", "viewmats", "Ks")
    stacked = scenes[0] | {name: torch.stack([s[name] for s in scenes])[:, None] for name in names}
    stacked = leaves(stacked, torch.float32)
    for packed in (False, True):
        picture, alpha, meta = rasterization(**stacked, packed=packed, render_mode="RGB+ED")
        assert picture.shape == (2, 1, 2, HEIGHT, WIDTH, 4)
        assert alpha.shape == (2, 1, 2, HEIGHT, WIDTH, 1)
        assert (meta["n_batches"], meta["n_cameras"]) == (2, 2)
        parts = [rasterization(**leaves(s, torch.float32), packed=packed, render_mode="RGB+ED") for s in scenes]
        for index, (one, one_alpha, one_meta) in enumerate(parts):
            assert torch.equal(picture[index, 0], one)
            assert torch.equal(alpha[index, 0], one_alpha)
            if packed:
                mine = meta["batch_ids"] == index
                assert torch.equal(meta["gaussian_ids"][mine], one_meta["gaussian_ids"])
                assert torch.equal(meta["means2d"][mine], one_meta["means2d"])
            else:
                assert torch.equal(meta["radii"][index, 0], one_meta["radii"])
    gradient = torch.autograd.grad(picture.sum(), stacked["means"])[0]
    assert gradient.shape == (2, 1, 20, 3)


def test_tiles_are_gsplats() -> None:
    scene = make_scene(dtype=torch.float32)
    _, _, meta = rasterization(**scene, packed=False, tile_size=8)
    counts, _, _ = _isect_tiles(
        meta["means2d"], meta["radii"], meta["depths"], 8, meta["tile_width"], meta["tile_height"]
    )
    assert (meta["tile_width"], meta["tile_height"], meta["tile_size"]) == (5, 4, 8)
    assert torch.equal(meta["tiles_per_gauss"], counts)


def test_sparse_gradients_train_with_sparse_adam() -> None:
    scene = leaves(make_scene(dtype=torch.float32), torch.float32)
    dense = leaves(scene, torch.float32)
    picture, _, meta = rasterization(**scene, sparse_grad=True)
    picture.square().sum().backward()
    rasterization(**dense)[0].square().sum().backward()
    for name in ("means", "quats", "scales"):
        assert scene[name].grad.is_sparse
        assert torch.equal(scene[name].grad.to_dense(), dense[name].grad)
    assert set(scene["means"].grad.coalesce().indices()[0].tolist()) == set(meta["gaussian_ids"].tolist())
    before = scene["means"].detach().clone()
    torch.optim.SparseAdam([scene["means"]], lr=0.1).step()
    unseen = torch.ones(len(before), dtype=torch.bool)
    unseen[meta["gaussian_ids"]] = False
    assert torch.equal(scene["means"][unseen], before[unseen])
    assert not torch.equal(scene["means"][~unseen], before[~unseen])


def test_the_signature_is_gsplats() -> None:
    ours, real = (inspect.signature(f).parameters for f in (rasterization, gsplat.rasterization))
    assert list(ours) == list(real)
    for name, parameter in real.items():
        if name != "rolling_shutter":  # an enumeration of gsplat's, by which it means none
            assert ours[name].default == parameter.default, name
    scene = make_scene(count=9, dtype=torch.float32)
    rasterization(**scene, rolling_shutter=real["rolling_shutter"].default, channel_chunk=1, segmented=True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"distributed": True}, "distributed"),
        ({"covars": torch.zeros(40, 3, 3)}, "covars"),
        ({"with_ut": True}, "with_ut"),
        ({"with_eval3d": True}, "with_eval3d"),
        ({"radial_coeffs": torch.zeros(2, 6)}, "radial_coeffs"),
        ({"tangential_coeffs": torch.zeros(2, 2)}, "tangential_coeffs"),
        ({"thin_prism_coeffs": torch.zeros(2, 4)}, "thin_prism_coeffs"),
        ({"ftheta_coeffs": object()}, "ftheta_coeffs"),
        ({"viewmats_rs": torch.zeros(2, 4, 4)}, "viewmats_rs"),
        ({"camera_model": "fisheye"}, "camera_model.*pinhole, ortho.*'fisheye'"),
        ({"render_mode": "RGBD"}, "render_mode"),
        ({"rasterize_mode": "fast"}, "rasterize_mode"),
        ({"sh_degree": 4}, "colors must have shape"),
        ({"near_plane": 0.0}, "near"),
        ({"far_plane": float("nan")}, "far"),
        ({"eps2d": -1.0}, "eps2d"),
        ({"radius_clip": float("inf")}, "radius_clip"),
        ({"tile_size": 0}, "tile_size"),
        ({"width": 0}, "width"),
        ({"means": torch.zeros(3)}, "means"),
        ({"quats": torch.zeros(40, 3)}, "quats"),
        ({"scales": torch.zeros(39, 3)}, "scales"),
        ({"opacities": torch.zeros(40, 1)}, "opacities"),
        ({"colors": torch.zeros(40, 0)}, "colors"),
        ({"colors": torch.zeros(3, 40, 3)}, "colors"),
        ({"viewmats": torch.zeros(4, 4)}, "viewmats"),
        ({"viewmats": torch.full((2, 4, 4), float("nan"))}, "finite"),
        ({"Ks": torch.zeros(1, 3, 3)}, "Ks"),
        ({"Ks": torch.tensor([[30.0, 1, 5], [0, 30, 5], [0, 0, 1]]).repeat(2, 1, 1)}, "skew"),
        ({"backgrounds": torch.zeros(3)}, "backgrounds"),
    ],
)
def test_what_it_does_not_take_is_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        rasterization(**(make_scene(dtype=torch.float32) | options))


def test_wrong_kinds_are_named() -> None:
    scene = make_scene(dtype=torch.float32)
    for changes, said in (
        ({"means": [1.0]}, "means"),
        ({"scales": scene["scales"].half()}, "scales"),
        ({"width": 3.0}, "width"),
    ):
        with pytest.raises(TypeError, match=said):
            rasterization(**(scene | changes))
    with pytest.raises(ValueError, match="sh_degree must be 0 to 3"):
        rasterization(**(scene | {"sh_degree": 4, "colors": torch.zeros(40, 25, 3)}))


@pytest.mark.parametrize("packed", [False, True])
def test_nothing_to_see_has_gradients_too(packed: bool) -> None:
    for count in (0, 9):
        scene = make_scene(count=9, dtype=torch.float32)
        scene = {name: v[:count] if name in PARAMETERS[:5] else v for name, v in scene.items()}
        scene["means"] = scene["means"] + 100
        scene = leaves(scene, torch.float32)
        picture, alpha, meta = rasterization(**scene, packed=packed, absgrad=True)
        meta["means2d"].retain_grad()
        assert not picture.any()
        assert not alpha.any()
        (picture.sum() + alpha.sum()).backward()
        assert float(scene["means"].grad.abs().sum()) == 0.0


def targets() -> tuple[dict[str, Any], Tensor]:
    """Three pictures of a striped ball."""
    generator = torch.Generator().manual_seed(5)
    points = torch.nn.functional.normalize(torch.randn(600, 3, generator=generator), dim=1)
    stripes = (torch.sin(9 * points[:, :1]) > 0).float()
    scene = make_scene(count=600, cameras=3, dtype=torch.float32)
    scene |= {"means": 0.7 * points, "quats": torch.tensor([[1.0, 0, 0, 0]]).repeat(600, 1), "width": 48, "height": 48}
    scene |= {"scales": torch.full((600, 3), 0.05), "opacities": torch.full((600,), 0.95)}
    scene["colors"] = stripes * torch.tensor([0.9, 0.2, 0.1]) + (1 - stripes) * torch.tensor([0.1, 0.3, 0.9])
    scene["Ks"] = torch.tensor([[60.0, 0, 24], [0, 60, 24], [0, 0, 1]]).repeat(3, 1, 1)
    return scene, rasterization(**scene)[0]


@pytest.mark.parametrize(("packed", "absgrad"), [(False, False), (True, True)])
def test_a_gsplat_training_script(packed: bool, absgrad: bool, one_thread: None) -> None:
    """As gsplat's simple_trainer: its optimisers, its DefaultStrategy, our rasterisation."""
    scene, pictures = targets()
    torch.manual_seed(0)  # the strategy splits by the global generator
    count = 150
    start = {
        "means": 0.8 * torch.randn(count, 3),
        "scales": torch.full((count, 3), math.log(0.08)),
        "quats": torch.randn(count, 4),
        "opacities": torch.full((count,), 0.1).logit(),
        "colors": torch.zeros(count, 3),
    }
    start["opacities"][:10] = -7.0  # to be pruned
    params = torch.nn.ParameterDict({name: torch.nn.Parameter(value) for name, value in start.items()})
    rates = {"means": 1e-2, "scales": 1e-2, "quats": 1e-2, "opacities": 5e-2, "colors": 5e-2}
    optimizers = {name: torch.optim.Adam([params[name]], lr=rate) for name, rate in rates.items()}
    grow = 4e-3 if absgrad else 1.5e-3
    strategy = gsplat.DefaultStrategy(
        refine_start_iter=10, refine_every=20, refine_stop_iter=90, reset_every=10_000, grow_grad2d=grow,
        grow_scale3d=0.08, absgrad=absgrad, refine_scale2d_stop_iter=90, grow_scale2d=0.3, verbose=False,
    )  # fmt: skip
    strategy.check_sanity(params, optimizers)
    state = strategy.initialize_state(scene_scale=1.0)
    grown = {"dupli": 0, "split": 0, "pruned": 0}
    originals = strategy._grow_gs, strategy._prune_gs

    def grow_gs(*arguments: Any) -> tuple[int, int]:
        more = originals[0](*arguments)
        grown["dupli"], grown["split"] = grown["dupli"] + more[0], grown["split"] + more[1]
        return more

    def prune_gs(*arguments: Any) -> int:
        fewer = originals[1](*arguments)
        grown["pruned"] += fewer
        return fewer

    strategy._grow_gs, strategy._prune_gs = grow_gs, prune_gs  # type: ignore[method-assign]
    losses = []
    for step in range(120):
        picture, _, info = rasterization(
            params["means"], params["quats"], params["scales"].exp(), params["opacities"].sigmoid(),
            params["colors"].sigmoid(), scene["viewmats"], scene["Ks"], 48, 48, packed=packed, absgrad=absgrad,
        )  # fmt: skip
        strategy.step_pre_backward(params, optimizers, state, step, info)
        loss = (picture - pictures).abs().mean()
        loss.backward()
        strategy.step_post_backward(params, optimizers, state, step, info, packed=packed)
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert grown["dupli"] > 5
    assert grown["split"] > 5
    assert grown["pruned"] >= 10
    assert len(params["means"]) == count + grown["dupli"] + grown["split"] - grown["pruned"]
    assert losses[-1] < 0.25 * losses[0]


def test_the_mcmc_strategy_needs_a_gpu_whoever_renders() -> None:
    """gsplat's own noise and relocation are CUDA kernels; if that changes, the docstring must too."""
    if torch.cuda.is_available():
        pytest.skip("there is one")
    scene = leaves(make_scene(dtype=torch.float32), torch.float32)
    params = torch.nn.ParameterDict(
        {n: torch.nn.Parameter(scene[n].detach()) for n in ("means", "quats", "scales", "opacities")}
    )
    optimizers: dict[str, torch.optim.Optimizer] = {n: torch.optim.Adam([p]) for n, p in params.items()}
    strategy = gsplat.MCMCStrategy(verbose=False)
    strategy.check_sanity(params, optimizers)
    state = strategy.initialize_state()
    _, _, info = rasterization(**scene)
    with pytest.raises((ImportError, AttributeError, RuntimeError, TypeError, OSError)):
        strategy.step_post_backward(params, optimizers, state, 1, info, lr=1e-3)
