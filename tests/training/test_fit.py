"""Fits to posed pictures, and what `bench scenes` measures of them."""

import json
import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from dreamkit.cli.main import main
from dreamkit.errors import ConfigError, SceneError
from dreamkit.scenes.capture import Capture
from dreamkit.scenes.field_config import HashNetworkConfig
from dreamkit.scenes.gaussian_config import GaussianConfig
from dreamkit.scenes.nerf_config import NerfConfig
from dreamkit.toyworld.capture import capture_cameras, capture_object
from dreamkit.training import scene_bench
from dreamkit.training.fit import FitOptions, fit_gaussians, fit_nerf, held_out_psnr, over

TINY = HashNetworkConfig(levels=4, log2_size=11, coarsest=4, finest=32, hidden=16)


@pytest.fixture(scope="module")
def views() -> Capture:
    return capture_object("red", "cube", capture_cameras(8, 32))


def test_gaussians_come_close(views: Capture) -> None:
    losses: list[float] = []
    config = GaussianConfig(count=600, initial_opacity=0.3)
    scene = fit_gaussians(views, FitOptions(steps=120), config, on_step=lambda step, loss: losses.append(loss))
    assert len(losses) == 120
    assert held_out_psnr(scene, views) > 22


@pytest.mark.parametrize("geometry", ["density", "volsdf"])
def test_fields_come_close_and_repeat(views: Capture, geometry: str) -> None:
    config = NerfConfig(grid=TINY, geometry=geometry, step=0.05, occupancy_resolution=16)  # type: ignore[arg-type]
    one, two = (fit_nerf(views, FitOptions(steps=80, rays=512, seed=3), config) for _ in range(2))
    assert held_out_psnr(one, views) > 17
    first, second = one.state(), two.state()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_psnr_by_hand(views: Capture) -> None:
    class Gray:
        def render(self, cameras: object, background: torch.Tensor) -> object:
            return type("Rendering", (), {"image": torch.full((1, 3, 32, 32), 0.6)})()

    black = replace(views, images=torch.full_like(views.images, 0.5))
    assert held_out_psnr(Gray(), black) == pytest.approx(20.0, abs=1e-3)  # type: ignore[arg-type]


def test_another_background(views: Capture) -> None:
    behind = torch.tensor([[1.0, 0.0, 0.0]])
    moved = over(views.images[:1], views.alphas[:1], views.background, behind)
    assert torch.allclose(moved[0, :, 0, 0], behind[0])
    back = over(moved, views.alphas[:1], behind[0], views.background[None])
    assert torch.allclose(back, views.images[:1], atol=1e-6)


def test_what_diverges_says_so(views: Capture) -> None:
    broken = replace(views, images=views.images * math.nan)
    with pytest.raises(SceneError, match="not finite"):
        fit_nerf(broken, FitOptions(steps=2, rays=64), NerfConfig(grid=TINY, occupancy_resolution=16))
    with pytest.raises(ConfigError, match="steps"):
        FitOptions(steps=0)


def test_the_bench_measures_every_kind(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(scene_bench, "BenchObject", partial(scene_bench.BenchObject, material="plain", size=32))
    assert main(["bench", "scenes", "--object", "cube", "--kinds", "gaussians,sdf", "--share", "0.01", "--json"]) == 0
    content = json.loads(capsys.readouterr().out.splitlines()[-1])
    kinds = {row["kind"]: row for row in content["fits"]}
    assert set(kinds) == {"gaussians", "sdf"}
    assert kinds["sdf"]["figures"]["watertight"]
    assert 0 < kinds["sdf"]["chamfer"] < 0.5
    assert kinds["gaussians"]["psnr"] > 5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--kinds", "cloud"], "cloud"),
        (["--object", "dragon"], "dragon"),
        (["--share", "0"], "share"),
        (["--generate", "cloud"], "cloud"),
        (["--prompts", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_bad_input_of_the_bench(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "scenes", *words]) == 2
    assert said in capsys.readouterr().err
