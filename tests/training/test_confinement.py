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
    assert float(confinement.loss(source, source, confinement.mask(CAMERAS, source))) == 0


def test_the_formula() -> None:
    confinement = Confinement(EditConfig("box:-1,-1,-1,0,1,1", keep_weight=3.0, shape_weight=2.0))
    source, now = seen(), seen(1)
    mask = confinement.mask(CAMERAS, source)
    assert mask is not None
    assert 0 < float(mask.mean()) < 1
    outside = 3.0 * ((1 - mask) * (now.image - source.image) ** 2).sum()
    shape = 2.0 * ((now.alpha - source.alpha) ** 2 + ((now.depth - source.depth) / 0.1) ** 2).sum()
    assert torch.isclose(confinement.loss(now, source, mask), (outside + shape) / (2 * 2))


def test_the_gradient_counts_under_the_mask_alone() -> None:
    confinement = Confinement(EditConfig("box:-1,-1,-1,0,1,1"))
    mask = confinement.mask(CAMERAS, seen())
    assert mask is not None
    gradient = Gradient(torch.ones(2, 3, 16, 16), torch.zeros(2, 3, 16, 16))
    assert torch.equal(confinement.confined(gradient, mask).grad, mask.expand(2, 3, 16, 16))
    latent = confinement.confined(replace(gradient, grad=torch.ones(2, 4, 4, 4)), mask).grad
    assert torch.allclose(latent.mean(), mask.mean())  # a latent pixel counts by its covered share


def test_without_a_region_everything_may_change() -> None:
    confinement = Confinement(EditConfig(shape_weight=1.0))
    gradient = Gradient(torch.ones(2, 3, 16, 16), torch.zeros(2, 3, 16, 16))
    assert confinement.mask(CAMERAS, seen()) is None
    assert confinement.confined(gradient, None) is gradient


@pytest.mark.parametrize("change", [{"keep_weight": -1.0}, {"shape_weight": float("nan")}])
def test_bad_weights(change: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="edit's"):
        EditConfig(**change)  # type: ignore[arg-type]
