"""The pool of clips that the video models learn from, of drawn squares."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from toy_clips import CONFIG, SquareWorld, fill_here, write_autoencoder

from dreamkit.errors import CheckpointError, ConfigError, RunError
from dreamkit.toyworld.motion import MotionConfig, build_motion_cache, relative_cameras
from dreamkit.training import video_clips
from dreamkit.training.video_clips import ClipPool, PoolRecipe, ShardMaker, growing_pool
from dreamkit.video.autoencoders import load_autoencoder

pytestmark = pytest.mark.usefixtures("one_thread", "tiny")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_clips, "MotionWorld", SquareWorld)
    monkeypatch.setattr(video_clips, "_start", fill_here)


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_autoencoder(tmp_path_factory.mktemp("autoencoder") / "vae")


@pytest.fixture(scope="module")
def recipe(vae: Path) -> PoolRecipe:
    return PoolRecipe(CONFIG, Path("motion-none.safetensors"), vae, clips=10, shard=4)


@pytest.fixture(scope="module")
def place(recipe: PoolRecipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(video_clips, "MotionWorld", SquareWorld)
        fill_here(recipe, folder, 2)
    return folder


class TestPool:
    def test_a_shard_holds_what_the_world_shows(self, recipe: PoolRecipe, place: Path) -> None:
        pool = ClipPool(place)
        assert pool.shards == recipe.shards == 3
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + 2)
        autoencoder, world = load_autoencoder(recipe.autoencoder), SquareWorld(Path(), CONFIG)
        file, names = pool._files[2], pool._captions[2]
        assert len(names) == 4  # ten clips make three whole shards of four
        for row in range(4):
            clips = world.sample(1, generator)
            assert names[row] == clips.captions[0]
            assert torch.equal(file.get_tensor("latents")[row], autoencoder.encode(clips.frames)[0].half())
            assert torch.equal(file.get_tensor("cameras")[row], clips.cameras[0])
            assert torch.equal(file.get_tensor("visible")[row].bool(), clips.visible[0])
            assert torch.equal(file.get_tensor("shapes")[row], (127 * clips.shapes[0]).round().to(torch.int8))

    def test_who_makes_a_shard_and_when_does_not_matter(self, recipe: PoolRecipe, place: Path, tmp_path: Path) -> None:
        fill_here(recipe, tmp_path, 1)
        ShardMaker(recipe).make(1, tmp_path)  # over what is there
        for path in place.iterdir():
            assert (tmp_path / path.name).read_bytes() == path.read_bytes()

    def test_draws_are_parts_of_clips(self, place: Path) -> None:
        pool = ClipPool(place)
        whole = {
            name: torch.cat([f.get_tensor(name) for f in pool._files[: pool.shards]]) for name in ("latents", "tracks")
        }
        drawn = pool.draw(30, 3, torch.Generator().manual_seed(0))
        assert drawn.latents.shape == (30, 4, 3, 4, 4)
        starts = set()
        for latents, tracks in zip(drawn.latents, drawn.tracks, strict=True):
            found = [
                (row, start)
                for row in range(12)
                for start in range(4)
                if torch.equal(whole["latents"][row, :, start : start + 3].float(), latents)
                and torch.equal(whole["tracks"][row, start : start + 3], tracks)
            ]
            assert len(found) == 1
            starts.add(found[0][1])
        assert starts == {0, 1, 2, 3}
        assert torch.equal(drawn.cameras, relative_cameras(drawn.cameras))
        torch.testing.assert_close(drawn.cameras[:, :, 3], torch.arange(3.0).expand(30, 3))
        assert drawn.visible.dtype == torch.bool

    def test_draws_follow_seed_and_number_of_shards(self, place: Path) -> None:
        pool = ClipPool(place)

        def draw(seed: int, shards: int | None = None) -> Tensor:
            return pool.draw(20, 2, torch.Generator().manual_seed(seed), shards).latents

        assert torch.equal(draw(0), draw(0))
        assert torch.equal(draw(0), draw(0, 3))
        assert not torch.equal(draw(0), draw(1))
        assert not torch.equal(draw(0), draw(0, 1))

    def test_the_key(self, recipe: PoolRecipe) -> None:
        changes: list[dict[str, Any]] = [
            {"seed": 1},
            {"shard": 5},
            {"world": replace(CONFIG, frames=5)},
            {"meshes": Path("motion-other.safetensors")},
        ]
        keys = {recipe.key, *(replace(recipe, **change).key for change in changes)}
        assert len(keys) == 5
        assert replace(recipe, clips=999).key == recipe.key  # a pool grows
        with pytest.raises(CheckpointError, match="no autoencoder"):
            _ = replace(recipe, autoencoder=Path("nowhere")).key

    def test_growing(self, recipe: PoolRecipe, tmp_path: Path) -> None:
        with growing_pool(recipe, tmp_path) as pool:
            assert pool.shards == 3
            times = {path: path.stat().st_mtime_ns for path in pool.folder.iterdir()}
        with growing_pool(recipe, tmp_path) as pool:
            assert {path: path.stat().st_mtime_ns for path in pool.folder.iterdir()} == times
        with growing_pool(replace(recipe, clips=14), tmp_path) as pool:
            assert pool.shards == 4
        with growing_pool(recipe, tmp_path) as pool:  # what a larger pool added is not drawn from
            assert pool.shards == 3

    def test_a_process_that_fails(self, recipe: PoolRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(video_clips, "_start", lambda *_: [])
        with pytest.raises(RunError, match="0 of 2 shards"), growing_pool(recipe, tmp_path, wait_for=5):
            pass
        with pytest.raises(ConfigError, match="shards"):
            ClipPool(tmp_path).draw(1, 1, torch.Generator())

    @pytest.mark.slow
    def test_processes_fill_a_pool_of_the_real_world(
        self, vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.undo()
        world = MotionConfig(frames=4, size=32, points=4, shapes=1, faces=800, resolution=80)
        recipe = PoolRecipe(world, build_motion_cache(world, tmp_path, 2), vae, clips=5, shard=2)
        told: list[tuple[int, int]] = []
        with growing_pool(recipe, tmp_path, 2, report=lambda *counts: told.append(counts)) as pool:
            assert pool.shards == 3
            ShardMaker(recipe).make(2, tmp_path)
            assert (tmp_path / "shard-00002.safetensors").read_bytes() == (
                pool.folder / "shard-00002.safetensors"
            ).read_bytes()
        assert told[0] == (0, 6)

    def test_damage_and_too_many_frames(self, place: Path, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="number of frames"):
            ClipPool(place).draw(1, 7, torch.Generator())
        (tmp_path / "shard-00000.safetensors").write_bytes(b"x" * 100)
        with pytest.raises(CheckpointError, match="damaged"):
            _ = ClipPool(tmp_path).shards
