"""What an edit must leave alone: no loss at the start, nothing outside the region moves."""

from dataclasses import replace

import pytest
import torch

from dreamkit.errors import ConfigError
from dreamkit.objectives import Gradient
from dreamkit.scenes.cameras import Camera
from dreamkit.scenes.rendering import Rendering
from dreamkit.training.confinement import Confinement
from dreamkit.training.edit_config import EditConfig

CAMERAS = Camera.orbit([0.0, 90.0], 10.0, 3.0, 40.0, 16, 16)


def seen(generator: int = 0) -> Rendering:
    """Random pictures of something opaque near the origin."""
    draw = torch.Generator().manual_seed(generator)
    alpha = torch.rand(2, 1, 16, 16, generator=draw)
    return Rendering(torch.rand(2, 3, 16, 16, generator=draw), alpha, 3 * alpha, torch.zeros(2, 3, 16, 16))


def test_the_start_costs_nothing() -> None:
    confinement = Confinement(EditConfig("ball:0,0,0,0.3", shape_weight=2.0))
    source = seen()
    assert float(confinement.loss(source, source, confinement.masks(CAMERAS, source))) == 0


def test_the_formula() -> None:
    confinement = Confinement(EditConfig("box:-1,-1,-1,0,1,1", keep_weight=3.0, shape_weight=2.0))
    source, now = seen(), seen(1)
    masks = confinement.masks(CAMERAS, source)
    assert masks is not None
    assert 0 < float(masks.kept.mean()) < 1
    outside = 3.0 * (masks.kept * (now.image - source.image) ** 2).sum()
    shape = 2.0 * ((now.alpha - source.alpha) ** 2 + ((now.depth - source.depth) / 0.1) ** 2).sum()
    assert torch.isclose(confinement.loss(now, source, masks), (outside + shape) / (2 * 2))


def test_the_gradient_counts_under_the_mask_alone() -> None:
    confinement = Confinement(EditConfig("box:-1,-1,-1,0,1,1"))
    masks = confinement.masks(CAMERAS, seen())
    assert masks is not None
    mask = masks.changing
    gradient = Gradient(torch.ones(2, 3, 16, 16), torch.zeros(2, 3, 16, 16))
    assert torch.equal(confinement.confined(gradient, masks).grad, mask.expand(2, 3, 16, 16))
    latent = confinement.confined(replace(gradient, grad=torch.ones(2, 4, 4, 4)), masks).grad
    assert torch.allclose(latent.mean(), mask.mean())  # a latent pixel counts by its covered share


def test_what_stands_behind_an_empty_part_of_the_region_is_neither_pulled_at_nor_held() -> None:
    """A wall through the origin, and a region that floats before its upper half: only growing may hide that half."""
    confinement = Confinement(EditConfig("box:-1,0,0.3,1,1,0.8"))
    camera = Camera.orbit(0.0, 0.0, 3.0, 40.0, 16, 16)
    opaque = torch.ones(1, 1, 16, 16)
    wall = Rendering(torch.rand(1, 3, 16, 16), opaque, 3 * opaque, torch.zeros(1, 3, 16, 16))
    masks = confinement.masks(camera, wall)
    assert masks is not None
    assert float(masks.changing.sum()) == 0
    assert float(masks.kept[0, 0, :6].sum()) == 0
    assert float(masks.kept[0, 0, 9:].mean()) == 1
    nothing = Rendering(wall.image, 0 * opaque, 0 * opaque, wall.normal)
    masks = confinement.masks(camera, nothing)
    assert masks is not None
    assert torch.equal(masks.changing, 1 - masks.kept)
    assert float(masks.changing[0, 0, :6].mean()) > 0.5


def test_a_surface_in_the_region_changes() -> None:
    confinement = Confinement(EditConfig("box:-1,0,-0.5,1,1,0.5"))
    camera = Camera.orbit(0.0, 0.0, 3.0, 40.0, 16, 16)
    opaque = torch.ones(1, 1, 16, 16)
    wall = Rendering(torch.rand(1, 3, 16, 16), opaque, 3 * opaque, torch.zeros(1, 3, 16, 16))
    masks = confinement.masks(camera, wall)
    assert masks is not None
    assert float(masks.changing[0, 0, 1:7, 1:-1].mean()) == 1
    assert float(masks.kept[0, 0, 1:7, 1:-1].sum()) == 0
    assert float(masks.changing[0, 0, 9:].sum()) == 0


def test_without_a_region_everything_may_change() -> None:
    confinement = Confinement(EditConfig(shape_weight=1.0))
    gradient = Gradient(torch.ones(2, 3, 16, 16), torch.zeros(2, 3, 16, 16))
    assert confinement.masks(CAMERAS, seen()) is None
    assert confinement.confined(gradient, None) is gradient


@pytest.mark.parametrize("change", [{"keep_weight": -1.0}, {"shape_weight": float("nan")}])
def test_bad_weights(change: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="edit's"):
        EditConfig(**change)  # type: ignore[arg-type]
