"""Training of the judge on a drawn world: targets, disturbances, learning, repetition."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from toy_caches import write_cache

from dreamkit.metrics.judge import (
    AZIMUTH_BINS,
    COMPOSITIONS,
    ELEVATION_BINS,
    VIEWS,
    Judge,
    JudgeNetwork,
    azimuth_bin,
    elevation_bin,
    load_judge,
)
from dreamkit.toyworld.captions import FRONTED, Thing
from dreamkit.toyworld.dataset import Batch, ToyWorld
from dreamkit.training import judge
from dreamkit.training.judge import (
    JudgeOptions,
    angle_loss,
    disturb,
    measure_judge,
    mirror,
    targets,
    train_judge,
    zoom,
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cache(tmp_path_factory.mktemp("world") / "cache.safetensors", size=128, views=2, pairs=3)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """A narrow network, a drawn world, and few pictures to measure on."""
    monkeypatch.setattr(judge, "JudgeNetwork", partial(JudgeNetwork, width=8, embedding=32))
    monkeypatch.setattr(judge, "build_cache", lambda config, folder, workers: cache)
    monkeypatch.setattr(judge, "measure_judge", partial(measure_judge, count=60))


def train(out: Path, **changes: Any) -> tuple[list[float], Path, dict[str, float]]:
    losses: list[float] = []
    folder, accuracy = train_judge(
        JudgeOptions(out=out, **{"steps": 3, "batch": 8} | changes),
        lambda step, metrics: losses.append(metrics["loss"]),
    )
    return losses, folder, accuracy


class TestTargets:
    def test_classes(self) -> None:
        batch = Batch(
            images=torch.zeros(3, 3, 4, 4),
            captions=["", "", ""],
            poses=torch.zeros(3, 12),
            things=[[Thing("mug", "red")], [Thing("cube", "blue", "striped", "big")], [Thing("ghost", "white")]],
            views=["back", "front", "overhead"],
            rows=torch.arange(3),
        )
        label, view, fronted = targets(batch)
        assert [COMPOSITIONS[index] for index in label.tolist()] == [
            ("red", "mug"),
            ("blue", "cube"),
            ("white", "ghost"),
        ]
        assert [VIEWS[index] for index in view.tolist()] == ["back", "front", "overhead"]
        assert fronted.tolist() == [True, False, True]

    def test_of_the_world(self, cache: Path) -> None:
        batch = ToyWorld(cache, hold_out=False).sample(200, torch.Generator().manual_seed(0), singles_only=True)
        label, view, fronted = targets(batch)
        assert [COMPOSITIONS[index][1] for index in label.tolist()] == [scene[0].name for scene in batch.things]
        assert [VIEWS[index] for index in view.tolist()] == batch.views
        assert fronted.tolist() == [scene[0].name in FRONTED for scene in batch.things]


class TestDisturb:
    images = torch.rand(64, 3, 16, 16, generator=torch.Generator().manual_seed(1))

    def test_range_and_shape(self) -> None:
        out = disturb(self.images, torch.Generator().manual_seed(0))
        assert out.shape == self.images.shape
        assert float(out.min()) >= 0
        assert float(out.max()) <= 1
        assert not torch.equal(out, self.images)

    def test_same_seed_same_bytes(self) -> None:
        one, two, other = (disturb(self.images, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
        assert torch.equal(one, two)
        assert not torch.equal(one, other)

    def test_it_leaves_its_input_alone(self) -> None:
        kept = self.images.clone()
        disturb(self.images, torch.Generator().manual_seed(0))
        assert torch.equal(kept, self.images)

    def test_it_is_mild(self) -> None:
        """A flat picture stays flat, within its gain and noise; a half-black one moves by three pixels at most."""
        flat = torch.full((200, 3, 16, 16), 0.5)
        out = disturb(flat, torch.Generator().manual_seed(0))
        gain = out.mean(dim=(1, 2, 3)) / 0.5
        assert 0.84 < float(gain.min()) < 0.9
        assert 1.1 < float(gain.max()) < 1.16
        assert float(out.std(dim=(1, 2, 3)).max()) < 0.03
        half = torch.zeros(100, 3, 16, 16)
        half[:, :, 4:12, 4:12] = 1.0
        for seed in range(5):
            moved = disturb(half, torch.Generator().manual_seed(seed)).mean(dim=(0, 1))
            assert float(moved[8, 8]) > 0.8
            assert float(moved[0, 0]) < 0.1


class TestMirrorAndZoom:
    def test_a_mirrored_picture_has_no_azimuth(self) -> None:
        images = torch.rand(300, 3, 4, 6, generator=torch.Generator().manual_seed(1))
        fronted = torch.arange(300) % 2 == 0
        out, counts = mirror(images, fronted, torch.Generator().manual_seed(0))
        flipped = (out == images.flip(-1)).flatten(1).all(dim=1)
        assert torch.equal(out[~flipped], images[~flipped])
        assert torch.equal(counts, fronted & ~flipped)
        assert 70 < int(flipped.sum()) < 130

    def test_zoom_changes_areas_within_bounds(self) -> None:
        square = torch.zeros(200, 1, 32, 32)
        square[:, :, 8:24, 8:24] = 1.0
        area = zoom(square, torch.Generator().manual_seed(0)).sum(dim=(1, 2, 3)) / 256
        assert 70 < int((area == 1).sum()) < 130
        assert float(area.min()) > 0.95 * (8 / 9) ** 2
        assert float(area.max()) < 1.05 * (9 / 8) ** 2
        assert float(area.max() - area.min()) > 0.3


class TestAngleLoss:
    def test_only_objects_with_a_front_have_an_azimuth(self) -> None:
        generator = torch.Generator().manual_seed(0)
        azimuth = torch.randn(6, AZIMUTH_BINS, generator=generator)
        elevation = torch.randn(6, ELEVATION_BINS, generator=generator)
        angles = torch.tensor([[-170.0, 0], [-50, 10], [0, 20], [60, 30], [100, 45], [179, 59]])
        fronted = torch.tensor([True, True, False, True, False, False])
        expected = functional.cross_entropy(azimuth[fronted], azimuth_bin(angles[fronted, 0]))
        expected = expected + functional.cross_entropy(elevation, elevation_bin(angles[:, 1]))
        torch.testing.assert_close(angle_loss(azimuth, elevation, angles, fronted), expected)


class TestTraining:
    def test_the_loss_falls(self, tmp_path: Path) -> None:
        losses, folder, accuracy = train(tmp_path, steps=40, batch=12, lr=1e-2)
        first, last = sum(losses[:5]) / 5, sum(losses[-5:]) / 5
        assert last < 0.93 * first, losses
        assert set(accuracy) == {"object", "colour", "composition", "view", "turn"}
        assert all(0 <= value <= 1 for value in accuracy.values())
        again = measure_judge(load_judge(folder), JudgeOptions(out=tmp_path), 60)
        assert again == pytest.approx(accuracy, abs=0.05)  # float16 on the disk

    def test_from_the_weights_of_another(self, tmp_path: Path) -> None:
        _, folder, _ = train(tmp_path / "one", steps=2)
        torch.manual_seed(3)
        _, kept, _ = train(tmp_path / "two", steps=1, start=folder, lr=0.0)
        assert (kept / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()

    def test_same_seed_same_file(self, tmp_path: Path) -> None:
        folders = [train(tmp_path / name, seed=seed)[1] for name, seed in (("one", 1), ("two", 1), ("other", 2))]
        one, two, other = ((folder / "model.safetensors").read_bytes() for folder in folders)
        assert one == two != other

    def test_a_batch_without_fronts_is_no_nan(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        plain = write_cache(tmp_path / "plain.safetensors", size=128, views=1, pairs=0, objects=12)
        monkeypatch.setattr(judge, "build_cache", lambda config, folder, workers: plain)
        losses, _, _ = train(tmp_path, steps=2, batch=2)
        assert all(loss == loss for loss in losses)

    def test_measuring_does_not_depend_on_how_it_is_chunked(self, cache: Path, tmp_path: Path) -> None:
        """More pictures than a chunk holds: every one is counted once."""
        seen = []

        class Counting(Judge):
            def verdicts(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                seen.append(len(images))
                return super().verdicts(images)

        accuracy = measure_judge(Counting(JudgeNetwork(width=8, embedding=32)), JudgeOptions(out=tmp_path), 260)
        assert seen == [250, 10]
        assert all(0 <= value <= 1 for value in accuracy.values())
