"""Filming a video again: pairs in one pass over a clip, chunk by chunk over a cache, and in a session."""

from dataclasses import replace
from pathlib import Path

import imageio.v3
import numpy as np
import pytest
import torch
from dreamkit_kernels.stream_attention import Stream

from dreamkit.cli.main import main
from dreamkit.errors import ConfigError, TeacherError
from dreamkit.video.camera_paths import CameraTrail, camera_path
from dreamkit.video.controls import Controls
from dreamkit.video.pairs import (
    interleave,
    paired_controls,
    paired_stream,
    source_chunk,
    sources,
    target_levels,
    targets,
)
from dreamkit.video.pipeline import VideoTeacher
from dreamkit.video.random_models import random_student
from dreamkit.video.rollout import chunk_flow, chunk_noise, denoise_chunk, prepared_cache
from dreamkit.video.source_video import encode_source, read_video
from dreamkit.video.stream import StreamSession
from dreamkit.video.stream_config import StreamConfig
from dreamkit.video.stream_controls import Steering

pytestmark = pytest.mark.usefixtures("one_thread")
SIZE = (16, 16)


@pytest.fixture(scope="module")
def student() -> VideoTeacher:
    return replace(random_student("tiny-random"), pairs=True, half_precision=False)


def config(**options: object) -> StreamConfig:
    return StreamConfig(**{"size": SIZE, "overlap": False, "window": 4, "chunk": 2, "sink": 2, **options})


def video(frames: int, seed: int = 3) -> torch.Tensor:
    return torch.rand(frames, 3, *SIZE, generator=torch.Generator().manual_seed(seed))


def film(student: VideoTeacher, source: torch.Tensor, camera: str = "orbit-left", **options: object) -> torch.Tensor:
    controls = Steering(camera_path(camera)) if camera else None
    with StreamSession(student, "a red cube", controls, 1, config(**options), source=source) as session:
        return torch.stack([frame.pixels for frame in session])


def test_pairs_take_turns() -> None:
    source, target = torch.zeros(2, 1, 3, 1, 1), torch.arange(1.0, 7).view(2, 1, 3, 1, 1)
    pairs = interleave(source, target)
    assert pairs[0].flatten().tolist() == [0, 1, 0, 2, 0, 3]
    assert torch.equal(sources(pairs), source)
    assert torch.equal(targets(pairs), target)
    assert target_levels(torch.full((1, 4), 0.3)).tolist() == [pytest.approx([0.0, 0.3, 0.0, 0.3])]
    assert paired_stream(Stream(2, 2, 3, 1, 5)) == Stream(2, 2, 6, 2, 10)
    with pytest.raises(ConfigError, match="The source's shape is"):
        interleave(source, target[:1])


def test_a_source_that_has_ended_stands_still() -> None:
    latents = torch.arange(3.0).view(1, 1, 3, 1, 1)
    assert source_chunk(latents, 1, 4).flatten().tolist() == [1, 2, 2, 2]


def test_only_targets_have_a_camera() -> None:
    assert paired_controls(None, 1, 2).camera.tolist() == [[[0.0] * 12, torch.eye(3, 4).flatten().tolist()] * 2]
    with pytest.raises(ConfigError, match="tracks of pairs"):
        paired_controls(Controls(None, torch.rand(1, 2, 1, 2)), 1, 2)


@pytest.mark.parametrize("chunks", [1, 4])  # the last one past sink and window
def test_a_chunk_over_the_cache_is_that_of_one_pass(student: VideoTeacher, chunks: int) -> None:
    """What streams is what was taught: the flow of the last chunk behind clean pairs."""
    settings, generator = config(), torch.Generator().manual_seed(0)
    shape = (1, student.autoencoder.channels, 2 * chunks, 8, 8)
    source, made, noise = (torch.randn(shape, generator=generator) for _ in range(3))
    camera = torch.randn(1, 2 * chunks, 12, generator=generator)
    features = student.features(paired_controls(Controls(camera), 1, 2 * chunks), source)
    text, t = student.encode_prompt(["a red cube"]), 0.6
    cache = prepared_cache(student, settings)
    tokens = cache.stream.tokens * 4
    with torch.no_grad():
        for chunk in range(chunks):
            own = slice(2 * chunk, 2 * chunk + 2)
            seen = features[:, chunk * tokens : (chunk + 1) * tokens]
            x_t = (1 - t) * made[:, :, own] + t * noise[:, :, own]
            flow = chunk_flow(student.network, x_t, t, text, cache, seen, source=source[:, :, own])
            chunk_flow(student.network, made[:, :, own], 0.0, text, cache, seen, write=True, source=source[:, :, own])
        noisy = interleave(source, (1 - t) * made + t * noise)
        levels = target_levels(torch.full((1, 4 * chunks), 1000 * t))
        whole = student.network.forward_teacher_forced(
            noisy, interleave(source, made), levels, text, paired_stream(Stream(4, 4, 2, 2, 4)), features
        )
    torch.testing.assert_close(flow, targets(whole)[:, :, -2:], rtol=1e-5, atol=1e-5)


def test_a_session_is_a_loop_of_paired_steps(student: VideoTeacher) -> None:
    source, settings = video(5), config()
    latents = encode_source(student.autoencoder, source, SIZE)
    cache, trail = prepared_cache(student, settings), CameraTrail(None, 1)
    trail.follow(camera_path("orbit-left"))
    shift = student.shift
    times = [shift * t / (1 + (shift - 1) * t) for t in settings.times]
    text, parts = student.encode_prompt(["a red cube"]), []
    with torch.no_grad():
        for chunk in range(3):
            noise = chunk_noise(1, chunk, len(times), (1, student.autoencoder.channels, 2, 8, 8))
            features = student.features(paired_controls(Controls(trail.next(2)), 1, 2), noise[0])
            beside = source_chunk(latents, 2 * chunk, 2)
            x0 = denoise_chunk(student.network, noise, times, text, cache, features, source=beside)
            chunk_flow(student.network, x0, 0.0, text, cache, features, write=True, source=beside)
            parts.append(x0)
        expected = student.decode(torch.cat(parts, dim=2))[0, :5]
    made = film(student, source).permute(0, 3, 1, 2)
    assert torch.equal(made, (255 * expected).round().to(torch.uint8))


def test_source_and_camera_decide_what_is_seen(student: VideoTeacher) -> None:
    first = film(student, video(6))
    assert not torch.equal(first, film(student, video(6, seed=4)))
    assert not torch.equal(first, film(student, video(6), "dolly-in"))
    later = torch.cat([video(6)[:4], video(2, seed=5)])
    assert torch.equal(first[:4], film(student, later)[:4])  # it is causal in its source too


@pytest.mark.parametrize("overlap", [False, True])
def test_going_back_films_the_same_again(student: VideoTeacher, overlap: bool) -> None:
    with StreamSession(
        student, "a red cube", Steering(camera_path("orbit-left")), 1, config(overlap=overlap), source=video(10)
    ) as session:
        frames = [next(session).pixels for _ in range(7)]
        session.rewind(3)
        again = [next(session).pixels for _ in range(4)]
    assert all(torch.equal(old, new) for old, new in zip(frames[3:], again, strict=True))


def test_the_stream_ends_with_its_source(student: VideoTeacher) -> None:
    assert len(film(student, video(5))) == 5
    with StreamSession(student, "a red cube", None, 1, config(), 3, video(5)) as session:
        assert len(list(session)) == 3


def test_poses_are_relative_to_the_first_frame() -> None:
    """However long the stream, and also where nobody steers."""
    trail, whole = CameraTrail(None, 1), CameraTrail(1000, 1)
    for item in (trail, whole):
        item.follow(camera_path("orbit-left"))
    parts = [trail.next(3) for _ in range(20)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole.next(60), rtol=0, atol=1e-5)
    trail.follow(None)
    still = trail.next(2)
    torch.testing.assert_close(still, parts[-1][:, -1:].expand_as(still), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("source", "changes", "said"),
    [
        (None, {}, "films a video again, and there is none"),
        (torch.rand(4, 3, 8, 8), {}, "The source's shape"),
        (torch.rand(0, 3, 16, 16), {}, "at least one frame"),
        (video(4), {"context_time": 0.1}, "The context's level"),
        (video(4), {"buffer": 2, "sink": 0}, "The buffer of a model"),
    ],
)
def test_what_cannot_be_filmed(
    student: VideoTeacher, source: torch.Tensor | None, changes: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        StreamSession(student, "a red cube", None, 1, config(**changes), source=source)


def test_tracks_and_other_models_are_refused(student: VideoTeacher) -> None:
    tracks = Steering(tracks=torch.rand(2, 1, 2))
    with pytest.raises(TeacherError, match="knows no tracks"):
        StreamSession(student, "a red cube", tracks, 1, config(), source=video(4))
    with pytest.raises(ConfigError, match="can't film one again"):
        StreamSession(replace(student, pairs=False), "a red cube", None, 1, config(), source=video(4))


def test_a_wan_source_is_filled_up_to_a_latent_frame() -> None:
    wan = random_student("tiny-wan-random")
    factor, stride = wan.autoencoder.spatial_factor, wan.autoencoder.temporal_factor
    size = (8 * factor, 8 * factor)
    frames = torch.rand(stride + 2, 3, *size)
    latents = encode_source(wan.autoencoder, frames, size)
    assert latents.shape[2] == 3
    whole = torch.cat([frames, frames[-1:].expand(stride - 1, -1, -1, -1)])
    torch.testing.assert_close(latents, wan.encode(whole[None]))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide frames: red to the left, green in the middle, blue to the right; later ones darker."""
    path = tmp_path_factory.mktemp("videos") / "wide.mp4"
    pictures = np.zeros((6, 64, 128, 3), np.uint8)
    for channel, columns in enumerate((slice(0, 32), slice(32, 96), slice(96, 128))):
        pictures[:, :, columns, channel] = np.linspace(250, 100, 6)[:, None, None]
    imageio.v3.imwrite(path, pictures, plugin="FFMPEG", fps=12, quality=9)
    return path


def test_the_middle_is_cut_out_and_scaled(file: Path) -> None:
    frames = read_video(file, (16, 16), 4)
    assert frames.shape == (4, 3, 16, 16)
    red, green, blue = frames.mean(dim=(0, 2, 3)).tolist()
    assert green > 0.6 > 0.2 > max(red, blue)
    assert float(frames[0, 1].mean()) > float(frames[3, 1].mean()) + 0.2
    assert read_video(file, (16, 32), 100).shape == (6, 3, 16, 32)


def test_what_is_no_video(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="There is no file"):
        read_video(tmp_path / "none.mp4", SIZE, 4)
    text = tmp_path / "text.mp4"
    text.write_text("not a video")
    with pytest.raises(ConfigError, match="can't be read as a video"):
        read_video(text, SIZE, 4)


def test_a_model_of_sentences_takes_no_source(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["stream", "a red cube", "--model", "tiny-random", "--source", str(file), "--size", "16x16"]
    assert main(words) == 2
    assert "can't film one again" in capsys.readouterr().err
    assert main([*words, "--endless"]) == 2
    assert "--endless goes on" in capsys.readouterr().err
