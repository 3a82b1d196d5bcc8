"""The cache of traced geometry and the samples made from it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toy_caches import write_cache

from dreamkit.scenes.cameras import Camera, view_name
from dreamkit.toyworld import dataset, shading
from dreamkit.toyworld.captions import HELD_OUT, OBJECTS, SIZES, Thing
from dreamkit.toyworld.dataset import Batch, GeometryConfig, ToyWorld, build_cache, random_cameras
from dreamkit.toyworld.geometry import SUPPORTS

TINY = GeometryConfig(singles=1, pairs=4, views=2, size=32, seed=5)
SCENES = len(OBJECTS) + TINY.pairs


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny cache, traced by two processes as users' are."""
    told: list[tuple[int, int]] = []
    path = build_cache(TINY, tmp_path_factory.mktemp("geometry"), 2, lambda done, total: told.append((done, total)))
    assert told == [(done + 1, SCENES) for done in range(SCENES)]
    return path


@pytest.fixture(scope="module")
def world(cache: Path) -> ToyWorld:
    return ToyWorld(cache)


@pytest.fixture(scope="module")
def batch(world: ToyWorld) -> Batch:
    return world.sample(400, torch.Generator().manual_seed(0))


class TestCache:
    def test_content(self, cache: Path) -> None:
        tensors = load_file(cache)
        rows = SCENES * TINY.views
        shapes = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
        assert shapes == {
            "normal": ((rows, 32, 32, 3), torch.int8),
            "code": ((rows, 32, 32), torch.uint8),
            "pattern": ((rows, 32, 32), torch.uint8),
            "pose": ((rows, 12), torch.float32),
            "angles": ((rows, 2), torch.float32),
            "label": ((rows, 4), torch.int64),
        }
        hit = tensors["code"] != shading.NOTHING
        share = hit.float().mean(dim=(1, 2))
        assert float(share.min()) > 0.03  # every view shows something
        assert float(share.max()) < 0.8
        length = (tensors["normal"].float() / 127).norm(dim=-1)[hit]
        torch.testing.assert_close(length, torch.ones_like(length), rtol=0, atol=0.02)

    def test_only_the_file_is_left(self, cache: Path) -> None:
        assert [path.name for path in cache.parent.iterdir()] == [f"geometry-{TINY.key}.safetensors"]

    def test_it_is_found_again(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(dataset, "ProcessPoolExecutor", None)  # tracing again would call it
        before = cache.stat().st_mtime_ns
        assert build_cache(TINY, cache.parent) == cache
        assert cache.stat().st_mtime_ns == before

    def test_scenes_are_the_same_whoever_traces_them(self, cache: Path) -> None:
        tensors = load_file(cache)
        threads = torch.get_num_threads()
        for index in (0, 12, 29, SCENES - 1):
            try:
                again = dataset._trace_scene(index, TINY)
            finally:
                torch.set_num_threads(threads)  # tracing sets one, meant for a worker
            for name, values in again.items():
                rows = slice(index * TINY.views, (index + 1) * TINY.views)
                assert torch.equal(torch.from_numpy(values), tensors[name][rows]), (index, name)

    @pytest.mark.parametrize("change", [{"singles": 2}, {"pairs": 5}, {"views": 3}, {"size": 64}, {"seed": 6}])
    def test_another_configuration_is_another_file(self, change: dict[str, int]) -> None:
        assert replace(TINY, **change).key != TINY.key  # type: ignore[arg-type]
        assert replace(TINY).key == TINY.key

    def test_the_order_of_names_is_part_of_the_key(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Labels are positions: a cache of other names would put wrong words under pictures."""
        before = TINY.key
        monkeypatch.setattr(dataset, "OBJECTS", OBJECTS[::-1])
        assert before != TINY.key

    def test_every_object_once_and_pairs_that_stand(self, cache: Path) -> None:
        labels = load_file(cache)["label"][:: TINY.views].tolist()
        assert [label[0] for label in labels[: len(OBJECTS)]] == list(range(len(OBJECTS)))
        assert all(label[1:3] == [-1, 0] and 0 <= label[3] < len(SIZES) for label in labels[: len(OBJECTS)])
        for _, second, relation, size in labels[len(OBJECTS) :]:
            assert relation in (1, 2)
            assert second >= 0
            assert relation == 2 or OBJECTS[second] in SUPPORTS
            assert size == 1

    def test_what_stands_on_something_is_above_it(self, cache: Path) -> None:
        tensors = load_file(cache)
        checked = 0
        for row in torch.nonzero(tensors["label"][:, 2] == 1)[:, 0].tolist():
            slot = tensors["code"][row] // shading.PARTS
            heights = [torch.nonzero(slot == which)[:, 0].float().mean() for which in (0, 1)]
            assert heights[0] < heights[1]  # rows count downwards
            checked += 1
        assert checked > 0

    def test_angles_and_poses_agree(self, cache: Path) -> None:
        tensors = load_file(cache)
        position = tensors["pose"].view(-1, 3, 4)[:, :, 3]
        radius = position.norm(dim=-1)
        azimuth, elevation = tensors["angles"].unbind(-1)
        torch.testing.assert_close(torch.asin(position[:, 1] / radius).rad2deg(), elevation, rtol=0, atol=1e-3)
        torch.testing.assert_close(torch.atan2(position[:, 0], position[:, 2]).rad2deg(), azimuth, rtol=0, atol=1e-3)
        assert 2.8 - 1e-4 <= float(radius.min()) <= float(radius.max()) <= 3.2 + 1e-4
        assert -10.001 <= float(elevation.min()) <= float(elevation.max()) <= 60.001


def test_random_cameras_cover_the_range() -> None:
    cameras = random_cameras(2000, 16, torch.Generator().manual_seed(0))
    histogram = torch.histc(cameras.azimuth, 8, -180, 180)
    assert float(histogram.min()) > 180  # of 250
    assert float(cameras.elevation.min()) < -9
    assert float(cameras.elevation.max()) > 59
    assert isinstance(cameras, Camera)


class TestSamples:
    def test_shapes_and_range(self, batch: Batch, world: ToyWorld) -> None:
        assert batch.images.shape == (400, 3, 16, 16)
        assert batch.images.dtype == torch.float32
        assert float(batch.images.min()) >= 0
        assert float(batch.images.max()) <= 1
        assert len(batch.captions) == len(batch.things) == len(batch.views) == 400
        assert torch.equal(batch.poses, world.cache["pose"][batch.rows])
        assert len(world) == SCENES * TINY.views

    def test_captions_name_what_the_rows_show(self, batch: Batch, world: ToyWorld) -> None:
        for row, scene, view, caption in zip(
            batch.rows.tolist(), batch.things, batch.views, batch.captions, strict=True
        ):
            first, second, relation, size = world.cache["label"][row].tolist()
            names = [OBJECTS[first]] + ([OBJECTS[second]] if relation else [])
            assert [thing.name for thing in scene] == names
            assert scene[0].size == tuple(SIZES)[size]
            assert view_name(*world.cache["angles"][row].tolist()) == f"{view} view"
            assert (" on " in caption) == (relation == 1)
            assert ("beside" in caption or "next to" in caption) == (relation == 2)
            assert not any(said in caption for said in {"front", "side", "back", "overhead"} - {view, "side"})

    def test_both_kinds_of_scene(self, batch: Batch, world: ToyWorld) -> None:
        assert {len(scene) for scene in batch.things} == {1, 2}
        singles = world.sample(100, torch.Generator().manual_seed(1), singles_only=True)
        assert {len(scene) for scene in singles.things} == {1}

    @pytest.mark.parametrize(("colour", "channel"), [("red", 0), ("green", 1), ("blue", 2)])
    def test_pictures_have_the_colour_that_the_caption_says(self, world: ToyWorld, colour: str, channel: int) -> None:
        rows = torch.arange(0, len(OBJECTS) * TINY.views, 7)
        things = [[Thing(OBJECTS[int(row) // TINY.views], colour)] for row in rows]
        images = world.render(rows, things, torch.Generator().manual_seed(0))
        code = world.cache["code"][rows].view(len(rows), 16, 2, 16, 2)
        body = (code == 0).all(dim=4).all(dim=2)
        mean = (images * body[:, None]).sum(dim=(2, 3)) / body.sum(dim=(1, 2))[:, None].clamp_min(1)
        shown = body.sum(dim=(1, 2)) > 4
        assert int(shown.sum()) > len(rows) // 2
        assert bool((mean[shown].argmax(dim=1) == channel).all())

    def test_same_seed_same_bytes(self, world: ToyWorld, batch: Batch) -> None:
        again = world.sample(400, torch.Generator().manual_seed(0))
        assert torch.equal(again.images, batch.images)
        assert again.captions == batch.captions
        other = world.sample(400, torch.Generator().manual_seed(1))
        assert not torch.equal(other.images, batch.images)

    def test_the_same_row_looks_different_every_time(self, world: ToyWorld) -> None:
        rows = torch.zeros(2, dtype=torch.int64)
        images = world.render(rows, [[Thing("cube", "red")]] * 2, torch.Generator().manual_seed(0))
        assert float((images[0] - images[1]).abs().mean()) > 0.01

    def test_holding_out(self, cache: Path, batch: Batch) -> None:
        assert not any(thing.held_out for scene in batch.things for thing in scene)
        free = ToyWorld(cache, hold_out=False).sample(3000, torch.Generator().manual_seed(0))
        drawn = {(thing.colour, thing.name) for scene in free.things for thing in scene}
        assert set(HELD_OUT) & drawn


class TestShapes:
    def test_they_are_in_the_axes_of_the_camera(self, tmp_path: Path) -> None:
        """The drawn cache turns the normals of a ball, known in camera axes, into the world's."""
        world = ToyWorld(write_cache(tmp_path / "drawn.safetensors", size=64, views=4, pairs=0))
        shapes = world.shapes(torch.arange(len(world)))
        assert shapes.shape == (len(world), 4, 16, 16)
        covered, normal = shapes[:, 0], shapes[:, 1:]
        assert float(covered.min()) == 0
        assert float(covered.max()) == 1
        inside = covered == 1
        assert float(normal[:, 2][inside].min()) > 0  # what is seen faces the camera
        left, right = normal[:, 0, :, :8].sum(dim=(1, 2)), normal[:, 0, :, 8:].sum(dim=(1, 2))
        top, bottom = normal[:, 1, :8].sum(dim=(1, 2)), normal[:, 1, 8:].sum(dim=(1, 2))
        for one, other in ((left, right), (bottom, top)):
            assert float(one.max()) < -1
            torch.testing.assert_close(one, -other, rtol=0.05, atol=0.1)

    def test_traced_shapes_face_the_camera(self, world: ToyWorld) -> None:
        shapes = world.shapes(torch.arange(len(world)))
        inside = shapes[:, 0] == 1
        assert float((shapes[:, 3][inside] > 0).float().mean()) > 0.97
