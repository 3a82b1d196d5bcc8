"""Run folders: complete or absent, and nothing a user or a machine does to them ends in a traceback."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamkit import files
from dreamkit.errors import RunError
from dreamkit.files import (
    append_jsonl,
    atomic_folder,
    atomic_path,
    plain,
    read_jsonl,
    remove_leftovers,
    write_json,
    write_yaml,
)
from dreamkit.runs import FORMAT_VERSION, Run

MOMENT = datetime(2026, 11, 22, 19, 55, 26, tzinfo=UTC)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | text
configurations = st.dictionaries(
    text, st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(text, inner), max_leaves=10)
)


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_create_makes_the_whole_layout(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "out", "a-red-mug", "sds", {"prompt": "a red mug", "steps": 3}, MOMENT)
    assert run.path == tmp_path / "out/a-red-mug/sds/20261122T195526Z"
    assert everything(run.path) == ["checkpoints", "config.yaml", "exports", "metrics.jsonl", "renders", "run.log"]
    content = yaml.safe_load(run.config_file.read_text())
    assert content["format_version"] == FORMAT_VERSION
    assert content["created"] == "2026-11-22T19:55:26+00:00"
    assert Run.open(run.path).config == {"prompt": "a red mug", "steps": 3}


def test_timestamps_are_utc(tmp_path: Path) -> None:
    local = MOMENT.astimezone(timezone(timedelta(hours=9)))
    assert Run.create(tmp_path, "a", "sds", {}, local).path.name == "20261122T195526Z"


def test_two_runs_of_one_second_do_not_share_a_folder(tmp_path: Path) -> None:
    names = [Run.create(tmp_path, "a", "sds", {}, MOMENT).path.name for _ in range(3)]
    assert names == ["20261122T195526Z", "20261122T195526Z-02", "20261122T195526Z-03"]


@given(configurations)
@settings(max_examples=60, deadline=None)
def test_any_configuration_comes_back_literally(tmp_path_factory: pytest.TempPathFactory, config: dict) -> None:
    run = Run.create(tmp_path_factory.mktemp("out"), "a", "sds", config)
    assert Run.open(run.path).config == config


@pytest.mark.parametrize(
    "prompt", ["${oc.env:HOME}", "!!python/object/apply:os.system ['true']", "*a &b", "\x85\u2028"]
)
def test_a_prompt_stays_literal(tmp_path: Path, prompt: str) -> None:
    run = Run.create(tmp_path, "a", "sds", {"prompt": prompt})
    assert Run.open(run.path).config["prompt"] == prompt


def test_latest_is_the_last_by_time(tmp_path: Path) -> None:
    later = Run.create(tmp_path, "a", "sds", {"n": 2}, MOMENT + timedelta(hours=1))
    Run.create(tmp_path, "b", "sds", {"n": 1}, MOMENT)
    assert Run.open("latest", tmp_path).path == later.path
    second = Run.create(tmp_path, "a", "sds", {"n": 3}, MOMENT + timedelta(hours=1))
    assert Run.open("latest", tmp_path).path == second.path


def test_no_latest(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run under"):
        Run.open("latest", tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["", "..", ".", "a/b", "a\0b"])
def test_a_slug_can_not_leave_the_output_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunError, match="not a folder name"):
        Run.create(tmp_path / "out", name, "sds", {})
    assert everything(tmp_path) == []


@pytest.mark.parametrize("below", ["", "deeper"])
def test_out_is_a_file(tmp_path: Path, below: str) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(RunError) as caught:
        Run.create(tmp_path / "out" / below, "a", "sds", {})
    assert caught.value.exit_code == 2
    assert "--out" in (caught.value.hint or "")
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("function", ["mkdir", "fsync", "rename", "replace"])
def test_a_refusing_file_system_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, function: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, function, refuse)
    with pytest.raises(RunError, match=os.strerror(number)):
        Run.create(tmp_path / "out", "a", "sds", {})
    monkeypatch.undo()
    assert everything(tmp_path) == []


def test_a_folder_nobody_can_write_to() -> None:
    with pytest.raises(RunError, match="Could not write"):
        Run.create("/proc/dreamkit", "a", "sds", {})


def test_a_write_that_the_system_cuts_off_leaves_the_old_file(tmp_path: Path) -> None:
    """A real refusal, not a patched one: the process may write files of 4 KiB at most."""
    target = tmp_path / "big.json"
    write_json(target, [1])
    (tmp_path / "metrics.jsonl").write_text("x" * 4096)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(RunError, match=r"big\.json"):
            write_json(target, list(range(10_000)))
        with pytest.raises(RunError, match="metrics"):
            append_jsonl(tmp_path / "metrics.jsonl", {"loss": 0.5})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    assert json.loads(target.read_text()) == [1]
    assert everything(tmp_path) == ["big.json", "metrics.jsonl"]


def test_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run folder"):
        Run.open(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"no config\.yaml"):
        Run.open(tmp_path)


@pytest.mark.parametrize("content", ["", "[1, 2]", "{", "a: b", "format_version: one\nconfig: {}", "\x00", "&a [*a]"])
def test_a_broken_configuration(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(RunError):
        Run.open(tmp_path)


def test_yaml_never_makes_objects(tmp_path: Path) -> None:
    bomb = "format_version: 1\nconfig: !!python/object/apply:os.mkdir ['made']\n"
    (tmp_path / "config.yaml").write_text(bomb)
    with pytest.raises(RunError, match="not valid YAML"):
        Run.open(tmp_path)


def test_a_newer_run_is_left_alone(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "a", "sds", {})
    write_yaml(run.config_file, {"format_version": FORMAT_VERSION + 1, "dreamkit_version": "9.9", "config": {}})
    before = run.config_file.read_bytes()
    with pytest.raises(RunError, match=r"written by DreamKit 9\.9") as caught:
        Run.open(run.path)
    assert "Upgrade" in (caught.value.hint or "")
    assert run.config_file.read_bytes() == before


def test_a_lock_is_held_by_one_process(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "a", "sds", {})
    attempt = (
        "import sys\nfrom dreamkit.runs import Run\nfrom dreamkit.errors import RunError\n"
        "try:\n    with Run.open(sys.argv[1]).lock():\n        print('mine')\n"
        "except RunError as error:\n    print(error.message)\n"
    )

    def other() -> str:
        command = [sys.executable, "-c", attempt, str(run.path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    with run.lock():
        assert "in use by another process" in other()
    assert other() == "mine\n"


def test_metrics_are_rewound(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "a", "sds", {})
    for step in range(1, 6):
        append_jsonl(run.metrics_file, {"step": step, "loss": 1 / step, "note": "\u2028 is no line end"})
    with run.metrics_file.open("a") as file:
        file.write('{"step": 6, "lo')  # the process died here
    run.rewind_metrics(3)
    append_jsonl(run.metrics_file, {"step": 4, "loss": 0.0})
    assert [row["step"] for row in read_jsonl(run.metrics_file)] == [1, 2, 3, 4]


def test_broken_lines_in_the_middle_are_reported(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(RunError, match="line 2"):
        read_jsonl(tmp_path / "metrics.jsonl")
    assert read_jsonl(tmp_path / "missing.jsonl") == []


def test_values_json_has_no_word_for_become_null(tmp_path: Path) -> None:
    append_jsonl(tmp_path / "m.jsonl", {"step": 1, "loss": float("nan"), "list": [float("inf"), 1.0]})
    assert read_jsonl(tmp_path / "m.jsonl") == [{"step": 1, "loss": None, "list": [None, 1.0]}]


def test_atomic_path_replaces_in_one_step(tmp_path: Path) -> None:
    target = tmp_path / "film.mp4"
    target.write_text("old")
    with atomic_path(target) as temporary:
        assert temporary.suffix == ".mp4"
        assert temporary.parent == tmp_path
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert everything(tmp_path) == ["film.mp4"]


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_atomic_path_keeps_the_old_file_when_the_writer_fails(tmp_path: Path, kind: type[BaseException]) -> None:
    target = tmp_path / "scene.ply"
    target.write_text("old")

    def write() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise kind

    with pytest.raises(kind):
        write()
    assert target.read_text() == "old"
    assert everything(tmp_path) == ["scene.ply"]


def test_atomic_path_notices_a_writer_that_wrote_nothing(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="Nothing was written"), atomic_path(tmp_path / "scene.ply"):
        pass


def test_atomic_folder_replaces_and_cleans(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with atomic_folder(tmp_path / "f") as temporary:
            (temporary / "a").write_text(content)
            (temporary / "sub").mkdir()
    assert (tmp_path / "f/a").read_text() == "new"
    assert everything(tmp_path) == ["f", "f/a", "f/sub"]


def test_leftovers_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    files.temporary_sibling(tmp_path / "a.ply").write_text("half")
    files.temporary_sibling(tmp_path / "step-1").mkdir()
    (tmp_path / "mine.txt").write_text("kept")
    remove_leftovers(tmp_path)
    assert everything(tmp_path) == ["mine.txt"]


def test_plain_takes_what_configurations_are_made_of() -> None:
    import numpy as np

    value = {"path": Path("a/b"), "pair": (1, 2), "set": {2, 1}, "number": np.float64(0.5), "step": np.int64(3)}
    assert plain(value) == {"path": "a/b", "pair": [1, 2], "set": [1, 2], "number": 0.5, "step": 3}
    with pytest.raises(TypeError, match="object"):
        plain(object())
