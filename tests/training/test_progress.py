"""Progress displays and the writers of a run's own files."""

import io
import re
from pathlib import Path

import pytest

from dreamkit.errors import RunError
from dreamkit.files import read_jsonl
from dreamkit.training.callbacks import Callback, CallbackList, LogWriter, MetricsWriter
from dreamkit.training.progress import (
    LiveProgress,
    PlainProgress,
    format_duration,
    format_metrics,
    progress_display,
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run_job(callback: Callback, first: int = 1, total: int = 4) -> None:
    callback.on_stage("loading", None)
    callback.on_stage("optimising", total)
    for step in range(first, total + 1):
        callback.on_step(step, total, {"loss": 1 / step})
    callback.on_message("warning", "careful [bold]")
    callback.on_end(None)


def test_the_display_fits_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(progress_display(Terminal()), LiveProgress)
    assert isinstance(progress_display(io.StringIO()), PlainProgress)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(progress_display(Terminal()), PlainProgress)


def test_plain_lines_come_now_and_then() -> None:
    stream = io.StringIO()
    moments = iter(range(100))  # one second a call
    with PlainProgress(stream, interval=2, clock=lambda: next(moments)) as progress:
        run_job(progress)
    assert stream.getvalue().splitlines() == [
        "loading",
        "optimising (4 steps)",
        "  optimising 2/4  loss 0.5  1 steps/s  0:02 left",
        "  optimising 4/4  loss 0.25  1 steps/s  0:00 left",
        "warning: careful [bold]",
    ]


def test_a_resumed_job_s_rate_counts_its_own_steps_only() -> None:
    stream = io.StringIO()
    moments = iter(range(100))
    progress = PlainProgress(stream, interval=2, clock=lambda: next(moments))
    progress.on_stage("optimising", 100)
    for step in (91, 92):
        progress.on_step(step, 100, {})
    assert stream.getvalue().splitlines()[-1] == "  optimising 92/100  1 steps/s  0:08 left"


def test_the_live_display_shows_every_stage_and_message() -> None:
    stream = Terminal()
    progress = LiveProgress(stream)
    with progress:
        run_job(progress)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    assert "warning: careful [bold]" in shown
    assert "loading" in shown
    assert "4/4" in shown
    assert "loss 0.25" in shown


def test_the_live_display_gives_the_terminal_back_after_an_error() -> None:
    stream = Terminal()

    def fail() -> None:
        with LiveProgress(stream) as progress:
            progress.on_step(1, 2, {})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert stream.getvalue().rindex("\x1b[?25h") > stream.getvalue().rindex("\x1b[?25l")  # the cursor is back


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (7.4, "0:07"), (59.6, "1:00"), (754, "12:34"), (3723, "1:02:03")]
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_the_loss_is_shown_before_other_metrics() -> None:
    assert format_metrics({"grad": 3.0, "loss": 0.123456}) == "loss 0.1235"
    assert format_metrics({"grad": 3.0}) == "grad 3"
    assert format_metrics({}) == ""


def test_metrics_of_one_stage_are_written(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path / "metrics.jsonl", stage="optimising", every=3)
    run_job(writer)
    writer.on_stage("rendering", 2)
    writer.on_step(1, 2, {"loss": 9.0})
    rows = read_jsonl(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["loss"]) for row in rows] == [(3, 1 / 3), (4, 0.25)]
    assert all(row["seconds"] >= 0 for row in rows)


def test_the_log_has_stages_messages_and_the_end(tmp_path: Path) -> None:
    run_job(CallbackList([Callback(), LogWriter(tmp_path / "run.log")]))
    lines = (tmp_path / "run.log").read_text().splitlines()
    moment = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d"
    expected = ["INFO    loading", "INFO    optimising (4 steps)", "WARNING careful [bold]", "INFO    done"]
    assert len(lines) == len(expected)
    for line, text in zip(lines, expected, strict=True):
        assert re.fullmatch(f"{moment} {re.escape(text)}", line)


def test_writers_explain_a_folder_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="Could not write"):
        LogWriter(tmp_path / "gone/run.log").on_message("info", "hello")


def test_a_list_tells_all_in_order(tmp_path: Path) -> None:
    told: list[tuple[str, object]] = []

    class Noting(Callback):
        def on_run(self, path: Path) -> None:
            told.append(("run", path))

        def on_image(self, name: str, image: object) -> None:
            told.append((name, image))

    both = CallbackList([Noting(), Noting()])
    both.on_run(tmp_path)
    both.on_image("preview", None)
    assert told == [("run", tmp_path)] * 2 + [("preview", None)] * 2
