"""Roll-outs in training: what a stream would have made, and gradients from the exit's calls alone."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from dreamkit_kernels.stream_attention import Stream
from tiny_video import CHANNELS, SIDE, write_pipeline

from dreamkit.training.rollouts import Roller
from dreamkit.training.student_networks import StudentNetworks, load_networks
from dreamkit.video.attention_cache import AttentionCache
from dreamkit.video.controls import Controls
from dreamkit.video.pipeline import VideoTeacher, load_video_teacher
from dreamkit.video.rollout import denoise_chunk
from dreamkit.video.sparse_attention import Sparsity

pytestmark = pytest.mark.usefixtures("one_thread")

STREAM = Stream(2, 2, chunk=2, sink=1, window=3)
LEVELS = (1.0, 0.75, 0.5)
SPARSE = Sparsity(keep=0.3, block=2)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> VideoTeacher:
    return load_video_teacher(write_pipeline(tmp_path_factory.mktemp("rollouts") / "teacher"))


@pytest.fixture
def networks(teacher: VideoTeacher) -> StudentNetworks:
    return load_networks(Path(teacher.name), "cpu").train().requires_grad_(True)


def shape(batch: int, frames: int) -> tuple[int, int, int, int, int]:
    return batch, CHANNELS, frames, SIDE, SIDE


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("sparsity", [None, SPARSE])
@pytest.mark.parametrize("seed", [0, 1, 2])  # exits at each of the levels
def test_it_is_what_a_stream_makes(
    teacher: VideoTeacher, networks: StudentNetworks, seed: int, sparsity: Sparsity | None
) -> None:
    """The same noise through `denoise_chunk` over a cache, with the levels up to the exit."""
    text = teacher.encode_prompt(["a red ball"])
    roller = Roller(STREAM, LEVELS, sparsity=sparsity)
    made = roller.on_itself(networks, shape(1, 7), text, None, seeded(seed), trained=True)
    generator = seeded(seed)
    exit_at = int(torch.randint(3, (), generator=generator))
    assert float(made.levels[0, 0]) == LEVELS[exit_at]
    cache = networks.transformer.new_cache(STREAM, sparsity=sparsity)
    parts = []
    with torch.no_grad():
        for size in (2, 2, 2, 1):
            noise = torch.randn(3, *shape(1, size), generator=generator)[: exit_at + 1]
            x0 = denoise_chunk(networks.transformer, noise, LEVELS[: exit_at + 1], text, cache)
            networks.transformer.step(x0, torch.zeros(1), text, cache, write=True)
            parts.append(x0)
    torch.testing.assert_close(made.x.detach(), torch.cat(parts, dim=2), rtol=1e-5, atol=1e-6)


def test_chunks_before_carry_the_cache_along(teacher: VideoTeacher, networks: StudentNetworks) -> None:
    text = teacher.encode_prompt(["a red ball"])
    roller = Roller(STREAM, (1.0,))
    whole = roller.on_itself(networks, shape(1, 10), text, None, seeded(), trained=False)
    end = roller.on_itself(networks, shape(1, 4), text, None, seeded(), trained=True, before=3)
    torch.testing.assert_close(end.x.detach(), whole.x[:, :, 6:].detach())
    assert end.x.requires_grad
    assert not whole.x.requires_grad


def test_a_switch_of_prompts_is_a_recache(teacher: VideoTeacher, networks: StudentNetworks) -> None:
    """As long as nothing has left the window: the history read with the new prompt, as if it had been its own."""
    red, blue = (teacher.encode_prompt([f"a {colour} ball"]) for colour in ("red", "blue"))
    roller = Roller(STREAM, (1.0,))
    switched = roller.on_itself(networks, shape(1, 2), blue, None, seeded(), False, before=1, text_before=red)
    generator = seeded()
    torch.randint(1, (), generator=generator)
    first, second = (torch.randn(1, *shape(1, 2), generator=generator) for _ in range(2))
    transformer, cache = networks.transformer, networks.transformer.new_cache(STREAM)
    with torch.no_grad():
        history = denoise_chunk(transformer, first, (1.0,), red, cache)
        transformer.step(history, torch.zeros(1), blue, cache, write=True)
        expected = denoise_chunk(transformer, second, (1.0,), blue, cache)
    torch.testing.assert_close(switched.x, expected, rtol=1e-5, atol=1e-6)
    kept = roller.on_itself(networks, shape(1, 2), red, None, seeded(), False, before=1, text_before=red)
    assert not torch.allclose(kept.x, switched.x)


@pytest.mark.parametrize(("half", "sparsity"), [(False, None), (True, None), (False, SPARSE)])
def test_the_gradient_is_that_of_the_exits_calls(
    teacher: VideoTeacher, networks: StudentNetworks, half: bool, sparsity: Sparsity | None
) -> None:
    """Against one call by hand for each chunk on the same cache, everything else fixed; in bfloat16 about the same."""
    text = teacher.encode_prompt(["a red ball"] * 2)
    networks.half_precision = half
    stream = replace(STREAM, chunk=1)  # so that the second chunk leaves something out
    roller = Roller(stream, LEVELS, sparsity=sparsity)
    made = roller.on_itself(networks, shape(2, 4), text, None, seeded(1), trained=True)
    weight = torch.randn(made.x.shape, generator=seeded(5))
    (made.x * weight).sum().backward()
    got = {name: p.grad.clone() for name, p in networks.named_parameters() if p.grad is not None}
    networks.zero_grad()
    networks.half_precision = False
    generator = seeded(1)
    exit_at = int(torch.randint(3, (), generator=generator))
    assert exit_at > 0  # there are calls without gradients
    cache = networks.transformer.new_cache(stream, batch=2, sparsity=sparsity)
    total = torch.zeros(())
    for index in range(4):
        noise = torch.randn(3, *shape(2, 1), generator=generator)
        with torch.no_grad():
            x0 = denoise_chunk_rows(networks, noise[:exit_at], text, cache)
        t = LEVELS[exit_at]
        x_t = (1 - t) * x0 + t * noise[exit_at]
        x0 = x_t - t * networks.transformer.step(x_t, torch.full((2,), 1000 * t), text, cache)
        total = total + (x0 * weight[:, :, index : index + 1]).sum()
        with torch.no_grad():
            networks.transformer.step(x0, torch.zeros(2), text, cache, write=True)
    total.backward()
    expected = {name: p.grad for name, p in networks.named_parameters() if p.grad is not None}
    assert set(got) == set(expected)
    for name, value in expected.items():
        if not half:
            torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")
        else:
            assert float((got[name] - value).norm()) < 0.1 * float(value.norm()) + 1e-4, name


def denoise_chunk_rows(
    networks: StudentNetworks, noise: torch.Tensor, text: torch.Tensor, cache: AttentionCache
) -> torch.Tensor:
    x0 = noise[0]
    for eps, t in zip(noise, LEVELS, strict=False):
        x_t = (1 - t) * x0 + t * eps if t < 1 else eps
        x0 = x_t - t * networks.transformer.step(x_t, torch.full((len(eps),), 1000 * t), text, cache)
    return x0


def test_controls_are_those_of_the_chunks_frames(teacher: VideoTeacher, networks: StudentNetworks) -> None:
    text = teacher.encode_prompt(["a red ball"])
    camera = torch.randn(1, 6, 12, generator=seeded(3))
    roller = Roller(STREAM, (1.0,))
    steered = roller.on_itself(networks, shape(1, 6), text, Controls(camera), seeded(), trained=True)
    changed = camera.clone()
    changed[:, 4:] += 1
    other = roller.on_itself(networks, shape(1, 6), text, Controls(changed), seeded(), trained=True)
    assert torch.equal(steered.x[:, :, :4], other.x[:, :, :4])
    assert not torch.equal(steered.x[:, :, 4:], other.x[:, :, 4:])
    steered.x.sum().backward()
    assert networks.controls is not None
    assert any(p.grad is not None and bool(p.grad.any()) for p in networks.controls.parameters())


def test_behind_the_datas_history(teacher: VideoTeacher, networks: StudentNetworks) -> None:
    """x0 = x_t - t v at the student's levels, one for each chunk, chunks behind noisy ones."""
    text = teacher.encode_prompt(["a red ball"] * 3)
    data = torch.randn(*shape(3, 5), generator=seeded(9))
    made = Roller(STREAM, LEVELS).on_data(networks, data, text, None, seeded(), trained=True)
    assert made.x.shape == data.shape
    assert made.x.requires_grad
    assert set(made.levels.unique().tolist()) <= set(LEVELS)
    assert len(made.levels.unique()) > 1
    assert torch.equal(made.levels[:, 0], made.levels[:, 1])
    later = data.clone()
    later[:, :, 4:] += 1
    other = Roller(STREAM, LEVELS).on_data(networks, later, text, None, seeded(), trained=False)
    torch.testing.assert_close(other.x[:, :, :4], made.x[:, :, :4].detach())


def test_behind_the_datas_history_some_blocks_are_seen(teacher: VideoTeacher, networks: StudentNetworks) -> None:
    text, data = teacher.encode_prompt(["a red ball"]), torch.randn(*shape(1, 6), generator=seeded(9))
    dense, sparse = (
        Roller(STREAM, LEVELS, sparsity=sparsity).on_data(networks, data, text, None, seeded(), trained=False)
        for sparsity in (None, SPARSE)
    )
    assert torch.equal(dense.x[:, :, :2], sparse.x[:, :, :2])  # a first chunk sees itself
    assert not torch.allclose(dense.x[:, :, 4:], sparse.x[:, :, 4:])
