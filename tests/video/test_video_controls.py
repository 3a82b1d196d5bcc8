"""Camera and tracks: where a track is laid down, what changes nothing, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

from dreamkit.errors import CheckpointError, ConfigError
from dreamkit.video.causal_transformer import CausalTransformer
from dreamkit.video.controls import ControlEncoder, Controls, splat_tracks, track_identities

GRID = (3, 4)


def some_controls(batch: int = 2, frames: int = 3, points: int = 5) -> Controls:
    generator = torch.Generator().manual_seed(0)
    return Controls(
        camera=torch.randn(batch, frames, 12, generator=generator),
        tracks=torch.rand(batch, frames, points, 2, generator=generator),
        visible=torch.rand(batch, frames, points, generator=generator) < 0.7,
    ).check_values()


def trained(**sizes: int) -> ControlEncoder:
    """An encoder whose heads are no longer zero."""
    encoder = ControlEncoder(**{"dim": 6, "track_dim": 8, "hidden": 5, **sizes})
    generator = torch.Generator().manual_seed(1)
    for parameter in encoder.parameters():
        parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator)
    return encoder.requires_grad_(False)


class TestIdentities:
    def test_they_are_fixed_and_differ(self) -> None:
        some = track_identities(1000, 64)
        assert torch.equal(some[:10], track_identities(10, 64))
        torch.testing.assert_close(some.norm(dim=-1), torch.ones(1000))
        overlap = (some @ some.T).fill_diagonal_(0).abs()
        assert float(overlap.max()) < 0.45
        assert float(overlap.square().mean().sqrt()) == pytest.approx(1 / 8, abs=0.01)  # as of random directions


class TestSplats:
    def at(self, x: float, y: float) -> Tensor:
        """The weights [3, 4] of a point."""
        return splat_tracks(torch.tensor([[[[x, y]]]]), None, torch.ones(1, 1), GRID).reshape(3, 4)

    def test_a_centre_is_one_token(self) -> None:
        expected = torch.zeros(3, 4)
        expected[1, 2] = 1
        torch.testing.assert_close(self.at(2.5 / 4, 1.5 / 3), expected)

    def test_between_four_centres(self) -> None:
        expected = torch.zeros(3, 4)
        expected[1:3, 0:2] = torch.tensor([[0.75 * 0.6, 0.25 * 0.6], [0.75 * 0.4, 0.25 * 0.4]])
        torch.testing.assert_close(self.at((0.5 + 0.25) / 4, (1.5 + 0.4) / 3), expected)

    def test_corners(self) -> None:
        for x, y, row, column in ((0, 0, 0, 0), (1, 0, 0, 3), (0, 1, 2, 0), (1, 1, 2, 3)):
            assert float(self.at(x, y)[row, column]) == 1

    @settings(max_examples=50)
    @given(st.floats(0, 1), st.floats(0, 1))
    def test_weights_sum_to_one_around_the_place(self, x: float, y: float) -> None:
        weights = self.at(x, y).double()
        assert float(weights.sum()) == pytest.approx(1, abs=1e-5)
        assert bool((weights >= 0).all())
        column = float((weights.sum(dim=0) * (torch.arange(4) + 0.5)).sum()) / 4
        row = float((weights.sum(dim=1) * (torch.arange(3) + 0.5)).sum()) / 3
        assert column == pytest.approx(min(max(x, 0.5 / 4), 3.5 / 4), abs=1e-5)
        assert row == pytest.approx(min(max(y, 0.5 / 3), 2.5 / 3), abs=1e-5)

    def test_tracks_add_up_and_invisible_ones_are_absent(self) -> None:
        controls = some_controls()
        assert controls.tracks is not None
        assert controls.visible is not None
        identities = track_identities(5, 8)
        lost = torch.where(controls.visible[..., None], controls.tracks, torch.nan)
        got = splat_tracks(lost, controls.visible, identities, GRID)
        expected = torch.zeros_like(got)
        for batch, frame, point in controls.visible.nonzero().tolist():
            x, y = controls.tracks[batch, frame, point].tolist()
            expected[batch, frame] += self.at(x, y).reshape(12, 1) * identities[point]
        torch.testing.assert_close(got, expected)

    def test_gradients_of_places(self) -> None:
        tracks = torch.tensor([[[[0.3, 0.41], [0.7, 0.55]]]], dtype=torch.float64, requires_grad=True)
        identities = track_identities(2, 4).double()
        assert gradcheck(lambda places: splat_tracks(places, None, identities, GRID), (tracks,))


class TestEncoder:
    def test_it_begins_at_zero_and_can_learn(self) -> None:
        encoder = ControlEncoder(6, track_dim=8, hidden=5)
        features = encoder(some_controls(), GRID)
        assert features.shape == (2, 3, 12, 6)
        assert not features.any()
        features.sum().backward()
        for head in (encoder.camera, encoder.tracks):
            last = head[1].weight.grad
            assert last is not None
            assert last.abs().max() > 0

    def test_what_is_absent_adds_nothing(self) -> None:
        encoder, controls = trained(), some_controls()
        assert encoder(Controls(), GRID) is None
        both = encoder(controls, GRID)
        camera, tracks = (
            encoder(Controls(camera=controls.camera), GRID),
            encoder(Controls(tracks=controls.tracks, visible=controls.visible), GRID),
        )
        torch.testing.assert_close(both, camera + tracks)
        assert torch.equal(camera, camera[:, :, :1].expand_as(camera))
        assert not encoder(Controls(camera=torch.zeros(2, 3, 12)), GRID).any()
        assert controls.visible is not None
        hidden = Controls(tracks=controls.tracks, visible=torch.zeros_like(controls.visible))
        assert not encoder(hidden, GRID).any()

    def test_frames_are_encoded_alone(self) -> None:
        encoder, controls = trained(), some_controls()
        whole = encoder(controls, GRID)
        torch.testing.assert_close(encoder(controls.frames(1, 3), GRID), whole[:, 1:3])
        assert controls.to("cpu").shape == (2, 3)

    def test_the_transformer_takes_the_features(self) -> None:
        sizes = {"num_attention_heads": 1, "attention_head_dim": 6, "in_channels": 2, "out_channels": 2, "text_dim": 3}
        config = {**sizes, "freq_dim": 4, "ffn_dim": 8, "num_layers": 1}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = CausalTransformer.from_config(config).requires_grad_(False)
        x, text, timesteps = torch.randn(2, 2, 3, 6, 8), torch.randn(2, 2, 3), torch.tensor([1.0, 999.0])
        plain = network(x, timesteps, text)
        silent = ControlEncoder(6, track_dim=8, hidden=5)(some_controls(), GRID).detach()
        assert torch.equal(network(x, timesteps, text, silent), plain)
        features = trained()(some_controls(), GRID)
        steered = network(x, timesteps, text, features)
        assert not torch.allclose(steered, plain)
        assert torch.equal(network(x, timesteps, text, features.flatten(1, 2)), steered)

    def test_folder(self, tmp_path: Path) -> None:
        encoder = trained()
        encoder.save_pretrained(tmp_path / "controls", dtype=torch.float32)
        loaded = ControlEncoder.from_pretrained(tmp_path / "controls")
        assert torch.equal(loaded(some_controls(), GRID), encoder(some_controls(), GRID))
        assert loaded.config == encoder.config
        assert (
            ControlEncoder.from_pretrained(tmp_path / "controls", dtype=torch.float64).camera[0].weight.dtype
            == torch.float64
        )

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"_class_name": "WanTransformer3DModel"}, "holds no ControlEncoder"),
            ({"track_dim": 7}, "track width is 7"),
            ({"dim": "6"}, "width is 6"),
            ({"layers": 2}, "does not fit"),
            ({"hidden": 9}, r"camera.0.weight has the shape \[5, 12\]"),
        ],
    )
    def test_damaged_folders(self, tmp_path: Path, change: dict[str, Any], message: str) -> None:
        trained().save_pretrained(tmp_path)
        path = tmp_path / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
        with pytest.raises(CheckpointError, match=message):
            ControlEncoder.from_pretrained(tmp_path)


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"camera": torch.zeros(1, 2, 16)}, r"camera's shape is \[1, 2, 16\]"),
            ({"camera": torch.zeros(2, 12)}, "camera's shape"),
            ({"camera": torch.zeros(1, 2, 12, dtype=torch.int64)}, "camera's dtype"),
            ({"tracks": torch.zeros(1, 2, 5, 3)}, r"tracks' shape is \[1, 2, 5, 3\]"),
            ({"tracks": torch.zeros(1, 2, 5, 2, dtype=torch.bool)}, "tracks' dtype"),
            ({"visible": torch.ones(1, 2, 5, dtype=torch.bool)}, "visibility's shape"),
            (
                {"tracks": torch.zeros(1, 2, 5, 2), "visible": torch.ones(1, 2, 4, dtype=torch.bool)},
                "visibility's shape",
            ),
            ({"tracks": torch.zeros(1, 2, 5, 2), "visible": torch.ones(1, 2, 5)}, "visibility's dtype"),
            ({"camera": torch.zeros(1, 3, 12), "tracks": torch.zeros(1, 2, 5, 2)}, r"\[batch, frames\] is \[1, 2\]"),
        ],
    )
    def test_shapes(self, given: dict[str, Tensor], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            Controls(**given)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"camera": torch.full((1, 2, 12), torch.nan)}, "pose is not finite"),
            ({"tracks": torch.full((1, 2, 5, 2), torch.inf)}, "track is not finite"),
            ({"tracks": torch.tensor([[[[0.5, 1.25]]]])}, r"at \(0.5, 1.25\), outside of the picture"),
        ],
    )
    def test_values(self, given: dict[str, Tensor], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            Controls(**given).check_values()

    def test_an_invisible_point_may_be_anywhere(self) -> None:
        tracks = torch.tensor([[[[torch.nan, 3.0], [0.5, 0.5]]]])
        Controls(tracks=tracks, visible=torch.tensor([[[False, True]]])).check_values()

    def test_sizes(self) -> None:
        with pytest.raises(ConfigError, match="hidden width is 0"):
            ControlEncoder(6, hidden=0)
