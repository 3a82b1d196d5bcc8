"""The embedded video student: that it is there, small, and streams what it is asked for."""

import pytest
import torch

from dreamkit.metrics.video import frame_hits
from dreamkit.metrics.video_judge import load_video_judge
from dreamkit.video.pipeline import VideoTeacher
from dreamkit.video.stream import StreamSession
from dreamkit.video.stream_config import StreamConfig
from dreamkit.video.students import embedded_folder, load_student, read_stream_config


@pytest.fixture(scope="module")
def student() -> VideoTeacher:
    return load_student()


@pytest.fixture(scope="module")
def config() -> StreamConfig:
    found = read_stream_config(embedded_folder())
    assert found is not None
    return found


def play(student: VideoTeacher, config: StreamConfig, prompt: str, frames: int) -> torch.Tensor:
    with StreamSession(student, prompt, None, 1, config, frames) as session:
        assert session.warnings == []
        return torch.stack([frame.pixels for frame in session]).permute(0, 3, 1, 2).float() / 255


def test_its_folder(config: StreamConfig) -> None:
    weights = sum(file.stat().st_size for file in embedded_folder().rglob("*.safetensors"))
    assert weights <= 20e6
    assert (embedded_folder() / "README.md").read_text().startswith("# The embedded video student")
    assert len(config.times) <= 4
    assert config.guidance == 1
    assert config.size == (64, 64)


def test_the_same_seed_gives_the_same_frames(student: VideoTeacher, config: StreamConfig) -> None:
    first, again = (play(student, config, "a red ball", 7) for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize("prompt", ["a red ball", "a blue cube", "a white snowman"])
def test_it_shows_what_it_is_asked_for(student: VideoTeacher, config: StreamConfig, prompt: str) -> None:
    """Far above chance, a twelfth for colours and a sixteenth for objects; its card has the numbers."""
    hits = frame_hits(load_video_judge().frames(play(student, config, prompt, 30)), prompt)
    assert float(hits["colour"].float().mean()) > 0.7
    assert float(hits["object"].float().mean()) > 0.5
