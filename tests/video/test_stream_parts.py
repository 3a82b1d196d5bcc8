"""The parts of a stream: settings, queue, snapshots on a shelf, numbers of frames, metrics."""

import threading
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dreamkit.errors import ConfigError, PromptError
from dreamkit.prompts import check_prompt
from dreamkit.video.pipeline import TextEncoder
from dreamkit.video.random_models import random_student
from dreamkit.video.stream import StreamSession
from dreamkit.video.stream_config import StreamConfig
from dreamkit.video.stream_engine import Frames, Shelf
from dreamkit.video.stream_metrics import StreamMeter, frame_statistics
from dreamkit.video.stream_queue import BoundedQueue, Closed


def test_a_chunk_larger_than_the_window_is_refused():
    with pytest.raises(ConfigError, match="A chunk of 4 frames does not fit into a window of 3"):
        StreamConfig(chunk=4, window=3)


@pytest.mark.parametrize(
    "options",
    [
        {"chunk": 0},
        {"window": True, "chunk": 1},
        {"sink": -1},
        {"sink_kind": "last"},
        {"size": (0, 64)},
        {"fps": 0},
        {"times": ()},
        {"times": (0.9, 0.5)},
        {"times": (1.0, 0.5, 0.5)},
        {"times": (1.0, 0.0)},
        {"times": (1.0, float("nan"))},
        {"shift": 0.0},
        {"shift": float("nan")},
        {"context_time": 1.0},
        {"guidance": -1.0},
        {"guidance": float("inf")},
        {"switch": "jump"},
        {"blend_chunks": 0},
        {"ahead": 0},
        {"snapshot_every": 0},
        {"snapshot_mb": -1},
        {"sink_decay": 1.0},
        {"sparsity": "keep=0"},
        {"sparsity": {"block": 4}},
    ],
)
def test_settings_out_of_range_are_refused(options):
    with pytest.raises(ConfigError):
        StreamConfig(**options)


# The queue -----------------------------------------------------------------------------------------------------------


def test_a_queue_keeps_order_and_its_bound():
    queue = BoundedQueue(3)
    sizes = []

    def write():
        for number in range(50):
            queue.put(number)
            sizes.append(len(queue))

    writer = threading.Thread(target=write)
    writer.start()
    assert [queue.get() for _ in range(50)] == list(range(50))
    writer.join(60)
    assert max(sizes) <= 3


@pytest.mark.parametrize("is_full", [False, True])
def test_closing_a_queue_wakes_who_waits(is_full):
    queue = BoundedQueue(1)
    if is_full:
        queue.put(0)
    woken = []

    def wait():
        try:
            queue.put(1) if is_full else queue.get()
        except Closed:
            woken.append(True)

    waiter = threading.Thread(target=wait)
    waiter.start()
    queue.close()
    waiter.join(60)
    assert woken == [True]
    for use in (queue.get, lambda: queue.put(1)):
        with pytest.raises(Closed):
            use()


# Numbers of frames ---------------------------------------------------------------------------------------------------


@given(stride=st.integers(1, 5), chunk=st.integers(1, 5), frame=st.integers(0, 500))
def test_every_frame_is_in_the_chunk_that_begins_at_it_or_before(stride, chunk, frame):
    frames = Frames(stride, chunk)
    number = frames.chunk_of(frame)
    assert frames.first(number) <= frame < frames.first(number + 1)
    # As a clip of so many latent frames has: 1 + stride (n - 1).
    latents = (number + 1) * chunk
    assert frames.first(number + 1) == 1 + stride * (latents - 1)


# Snapshots -----------------------------------------------------------------------------------------------------------


def kept(chunk, is_wanted=False):
    return SimpleNamespace(chunk=chunk, frame=10 * chunk, is_wanted=is_wanted)


def test_a_shelf_lets_go_of_the_oldest_that_nobody_asked_for():
    shelf = Shelf(3, 1_000_000)
    for item in (kept(1), kept(2, True), kept(3), kept(4)):
        shelf.add(item)
    assert shelf.frames == [20, 30, 40]
    shelf.add(kept(5, True))
    shelf.add(kept(6, True))
    assert shelf.frames == [20, 50, 60]
    shelf.add(kept(7, True))
    assert shelf.frames == [50, 60, 70]
    assert shelf.latest(6).chunk == 6
    assert shelf.latest(4) is None
    shelf.forget_after(5)
    assert shelf.frames == [50]


def test_a_shelf_without_memory_keeps_the_newest():
    shelf = Shelf(0, 1_000_000)
    assert shelf.room == 0
    for chunk in (1, 2):
        shelf.add(kept(chunk, True))
    assert shelf.frames == [20]


# Metrics -------------------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_speeds_leave_out_the_first_chunk_and_pauses():
    clock = Clock()
    meter = StreamMeter(12, warm_chunks=2, clock=clock)
    clock.now = 200.0
    meter.open()
    clock.now = 205.0
    meter.chunk(3, 4.0)
    for _ in range(3):
        meter.frame()
    for chunk in range(1, 6):
        clock.now += 1.0
        meter.chunk(3, 0.5 + 0.1 * chunk)
        if chunk == 3:
            meter.pause()
            clock.now += 50.0
            assert meter.read().seconds == pytest.approx(8.0)
            meter.resume()
        for _ in range(3):
            meter.frame()
    metrics = meter.read()
    assert metrics.frames == 18
    assert metrics.seconds == pytest.approx(10.0)
    assert metrics.first_frame_s == pytest.approx(5.0)
    assert metrics.denoise_fps == pytest.approx(15 / (0.6 + 0.7 + 0.8 + 0.9 + 1.0))
    assert metrics.end_to_end_fps == pytest.approx(3.0)
    assert metrics.chunk_ms_first == pytest.approx(850)  # the median of 0.7, 0.8, 0.9, 1.0
    assert metrics.chunk_ms_last == pytest.approx(850)  # of all six
    assert metrics.recent_denoise_fps == pytest.approx(18 / 8.0)
    assert metrics.recent_end_to_end_fps == pytest.approx(17 / 5.0)


def test_nothing_is_told_before_it_is_known():
    metrics = StreamMeter(12, 4, Clock()).read()
    assert metrics.frames == 0
    for name in ("denoise_fps", "end_to_end_fps", "first_frame_s", "chunk_ms_first", "chunk_ms_last", "drift"):
        assert getattr(metrics, name) is None


def test_the_last_chunks_are_told_apart_from_the_first():
    meter = StreamMeter(12, warm_chunks=4, clock=Clock())
    for chunk in range(1000):
        meter.chunk(3, 1.0 if chunk < 4 else 2.0 if chunk < 14 else 3.0)
    metrics = meter.read()
    assert (metrics.chunk_ms_first, metrics.chunk_ms_last) == (2000, 3000)


def test_statistics_of_pictures_that_are_known():
    flat = torch.tensor([255, 0, 51], dtype=torch.uint8).expand(4, 6, 3)
    statistics = frame_statistics(flat)
    assert statistics.colour == pytest.approx((1, 0, 0.2))
    assert statistics.contrast == pytest.approx(0, abs=1e-6)
    assert statistics.sharpness == 0
    stripes = torch.zeros(8, 8, 3, dtype=torch.uint8)
    stripes[:, ::2] = 255
    statistics = frame_statistics(stripes)
    assert statistics.contrast == pytest.approx(0.5)
    assert statistics.sharpness == pytest.approx(0.5)  # across 1, down 0


def test_drift_is_told_against_the_first_seconds():
    meter = StreamMeter(fps=2, warm_chunks=1, clock=Clock())
    picture = torch.zeros(8, 8, 3, dtype=torch.uint8)
    picture[:, ::2] = 100
    for number in range(0, 12, 3):
        meter.look(number, picture)
    drift = meter.read().drift
    assert (drift.colour, drift.contrast, drift.sharpness) == pytest.approx((0, 0, 0))
    for number in range(12, 60, 3):
        meter.look(number, 2 * picture)
    drift = meter.read().drift
    assert drift.colour == pytest.approx(50 / 255)
    assert drift.contrast == pytest.approx(1)
    assert drift.sharpness == pytest.approx(1)


# Prompts -------------------------------------------------------------------------------------------------------------


def word_tokenizer(words, **options):
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", **options)


def text_encoder(tokenizer):
    config = SimpleNamespace(model_type="clip_text_model", max_position_embeddings=5, hidden_size=4)
    encoder = torch.nn.Identity()
    encoder.config, encoder.device = config, torch.device("cpu")
    return TextEncoder(tokenizer, encoder)


def test_a_model_of_few_words_says_what_it_does_not_understand():
    words = ["[UNK]", "a", "red", "ball", "rolling"]
    text = text_encoder(word_tokenizer(words, dreamkit_content_words=["red", "ball", "rolling"], model_max_length=4))
    with pytest.raises(PromptError, match=r"no word of 'a giraffe'.*ball, red, rolling.*--model FOLDER"):
        check_prompt(text, "a giraffe", "--model FOLDER")
    unknown, dropped = check_prompt(text, "a red giraffe ball rolling", "--model FOLDER")
    assert "does not know 'giraffe'" in unknown
    assert "'rolling'" in dropped


def test_a_session_passes_that_on(monkeypatch):
    student = random_student("tiny-random")
    monkeypatch.setattr(type(student.text), "content_words", lambda self: ["ball"])
    monkeypatch.setattr(
        type(student.text), "unknown_words", lambda self, prompt: [w for w in prompt.split() if w == "odd"]
    )
    with StreamSession(student, " a  ball ") as session:
        assert session.warnings == []
        assert "'odd'" in session.say("an odd ball")[0]
        with pytest.raises(PromptError, match="no word of"):
            session.say("a giraffe")
        with pytest.raises(PromptError, match=r"control character U\+0007"):
            session.say("a\x07 ball")
    with pytest.raises(PromptError, match="at most 2,000"):
        StreamSession(student, "ball " * 1000)
