"""The students of a comparison: what they are, by their folders, and what their training cost, by its runs."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dreamkit.errors import CheckpointError, ConfigError, RunError, TeacherError
from dreamkit.files import plain, read_jsonl
from dreamkit.training.checkpoints import MANIFEST_FILE, list_checkpoints
from dreamkit.training.compare.work import total_cost
from dreamkit.training.student import FOLDER
from dreamkit.training.student_losses import OBJECTIVES as CLIP_OBJECTIVES
from dreamkit.video.pipeline import PAIRS_KEY
from dreamkit.video.random_models import RANDOM_MODELS
from dreamkit.video.stream_config import StreamConfig
from dreamkit.video.students import EMBEDDED, INDEX_FILE, embedded_folder, read_stream_config

TEACHER_NAME = "teacher"
_LONGEST_NAME = 40
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Traits:
    """What tells a student from others, read from its stream's settings and its run's options, never from its name.

    Args:
        objective: it was trained by; `None` where no run tells.
        history: what it saw before a chunk in training: `self`, what it made, or `data`; `None` where no run tells.
        sink: kind of the sink it streams with, `none` without one.
        trained_sink: kind of the sink it was trained with.
        sink_frames: latent frames of the sink.
        window: latent frames before a chunk that it sees.
        chunk: latent frames that are made together.
        calls: denoising calls of a chunk.
    """

    objective: str | None
    history: str | None
    sink: str
    trained_sink: str
    sink_frames: int
    window: int
    chunk: int
    calls: int


@dataclass(frozen=True)
class Cost:
    """What a training cost: its own run, and those of the students it began with.

    Args:
        runs: their names, its own first.
        steps: of them all.
        seconds: of them all.
        samples: clips that they learned from, those of the critic's steps included.
        complete: whether every student on the way to the teacher was found.
    """

    runs: tuple[str, ...]
    steps: int
    seconds: float
    samples: int
    complete: bool


@dataclass(frozen=True)
class Student:
    """A student that is compared.

    Args:
        name: in tables.
        source: `embedded`, a random model's name, or a folder.
        digest: of its weights and settings.
        config: how it is streamed.
        traits: what it is.
        parameters: of its transformer.
        calls: rows through its network for a chunk, the pass that fills the cache included; guidance doubles them.
        cost: of its training, `None` where no run is found.
    """

    name: str
    source: str
    digest: str
    config: StreamConfig
    traits: Traits
    parameters: int | None
    calls: int
    cost: Cost | None

    def described(self) -> dict[str, Any]:
        """For JSON."""
        return plain(self)


def parse_students(items: Sequence[str]) -> list[tuple[str, str]]:
    """Names and sources of `NAME=FOLDER`.

    Raises:
        ConfigError: none, another form, a name that can't be used, or one that is there twice.
    """
    if not items:
        raise ConfigError("No student is given.", "Give --student NAME=FOLDER, several times to compare several.")
    found: dict[str, str] = {}
    for item in items:
        name, sign, source = (part.strip() for part in item.partition("="))
        if not sign or not name or not source:
            raise ConfigError(f"--student {item!r} is not understood.", "Write NAME=FOLDER.")
        if len(name) > _LONGEST_NAME or not name.isprintable():
            raise ConfigError(f"The student's name {name!r} can't be used.", f"Use 1 to {_LONGEST_NAME} characters.")
        if name == TEACHER_NAME:
            raise ConfigError(f"A student can't be called {TEACHER_NAME}.", "That is the row of --teacher.")
        if name in found:
            raise ConfigError(f"Two students are called {name!r}.", "Give each a name of its own.")
        found[name] = source
    return list(found.items())


def open_student(name: str, source: str) -> Student:
    """What a student is.

    Args:
        name: in tables.
        source: `embedded`, a random model's name, or a folder.

    Raises:
        TeacherError: no such folder, or one that holds no student.
        CheckpointError: a file is missing or damaged.
    """
    if source in RANDOM_MODELS:
        config = StreamConfig(size=RANDOM_MODELS[source].size)
        return Student(name, source, text_digest(source), config, _traits(config, {}), None, _calls(config), None)
    folder = embedded_folder() if source == EMBEDDED else Path(source).expanduser()
    found = _stream_config(folder)
    return Student(
        name=name,
        source=str(folder),
        digest=folder_digest(folder),
        config=found,
        traits=_traits(found, run_options(folder.resolve().parent)),
        parameters=count_parameters(folder / "transformer"),
        calls=_calls(found),
        cost=training_cost(folder),
    )


def _stream_config(folder: Path) -> StreamConfig:
    if not folder.is_dir():
        raise TeacherError(f"There is no folder {folder}.", "Give a folder that `dreamkit distill video` made.")
    inner = folder / FOLDER
    if not (folder / INDEX_FILE).exists():
        hint = f"Did you mean {inner}?" if (inner / INDEX_FILE).exists() else "Give the student's own folder."
        raise TeacherError(f"{folder} holds no student: it has no {INDEX_FILE}.", hint)
    config = read_stream_config(folder)
    if config is None:
        raise TeacherError(
            f"{folder} holds no student: its {INDEX_FILE} does not say how it is streamed.",
            "Give a folder that `dreamkit distill video` made; a teacher goes to --teacher.",
        )
    if json.loads((folder / INDEX_FILE).read_text(encoding="utf-8")).get(PAIRS_KEY) is True:
        raise TeacherError(
            f"The student in {folder} films a video again; a comparison has only sentences.",
            "Play it with `dreamkit stream --source FILE`.",
        )
    return config


def _calls(config: StreamConfig) -> int:
    # A moving buffer goes through its levels side by side, and fills no cache.
    calls = len(config.times) // config.buffer if config.buffer else len(config.times) + 1
    return calls * (1 if config.guidance == 1 else 2)


def _traits(config: StreamConfig, options: Mapping[str, Any]) -> Traits:
    objective = options.get("objective")
    objective = objective if isinstance(objective, str) else None
    history = options.get("history")
    if history is None and objective in CLIP_OBJECTIVES:
        history = "data"
    sink = config.sink_kind if config.sink else "none"
    # A training on clips knows a first sink only, whatever it exports (`StudentOptions.sink_kind`).
    trained = "first" if objective in CLIP_OBJECTIVES and sink != "none" else sink
    return Traits(
        objective, history, sink, trained, config.sink if sink != "none" else 0, config.window, config.chunk,
        len(config.times),
    )  # fmt: skip


def text_digest(text: str) -> str:
    """16 hexadecimal digits of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def folder_digest(folder: Path) -> str:
    """16 hexadecimal digits of all files of a folder, and of their names.

    Raises:
        CheckpointError: a file that can't be read.
    """
    digest = hashlib.sha256()
    try:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            digest.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0".encode())
            with open(path, "rb") as file:
                while block := file.read(_BLOCK):
                    digest.update(block)
    except OSError as error:
        raise CheckpointError(f"{folder} can't be read: {error}.", "Check the files' rights.") from error
    return digest.hexdigest()[:16]


def count_parameters(folder: Path) -> int:
    """Numbers in the safetensors of a folder, by their heads alone.

    Raises:
        CheckpointError: there are none, or one can't be read.
    """
    from safetensors import SafetensorError, safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder} holds no safetensors.", "Copy the folder again.")
    total = 0
    for path in files:
        try:
            with safe_open(path, "pt") as tensors:
                total += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path} can't be read: {error}.", "Copy the folder again.") from error
    return total


def run_options(run: Path) -> dict[str, Any]:
    """The options that the training of a student recorded in its newest checkpoint; empty where there is none."""
    for checkpoint in list_checkpoints(run / "checkpoints"):
        try:
            meta = json.loads((checkpoint / MANIFEST_FILE).read_text(encoding="utf-8"))["meta"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # what can't be read tells nothing; the one before it may
        if isinstance(meta, dict) and isinstance(meta.get("objective"), str):
            return meta
    return {}


def training_cost(folder: Path) -> Cost | None:
    """What a student's training cost, with that of the students it began with, up to their teacher.

    The run is the folder that the student's lies in. What it began with is the recorded `start`, `student` or
    `teacher`, where that is a student too; the training of the teacher at the end is not counted.

    Args:
        folder: the student's.

    Returns:
        `None` where the folder lies in no run.
    """
    run = folder.resolve().parent
    options = run_options(run)
    if not options:
        return None
    cost = Cost((run.name,), *_own_cost(run, options), complete=True)
    seen = {run}
    waiting = [(run, value) for value in _parents(options)]
    while waiting:
        child, named = waiting.pop(0)
        parent = _found(child, named)
        if parent is None:
            cost = replace(cost, complete=False)
            continue
        run = parent.parent
        if run in seen or not _is_student(parent):
            continue
        seen.add(run)
        options = run_options(run)
        if not options:
            cost = replace(cost, complete=False)
            continue
        steps, seconds, samples = _own_cost(run, options)
        cost = Cost(
            (*cost.runs, run.name), cost.steps + steps, cost.seconds + seconds, cost.samples + samples, cost.complete
        )
        waiting += [(run, value) for value in _parents(options)]
    return cost


def _is_student(folder: Path) -> bool:
    try:
        return read_stream_config(folder) is not None
    except CheckpointError:
        return False


def _parents(options: Mapping[str, Any]) -> list[str]:
    """Folders of the models that a run began with."""
    named = (options.get(name) for name in ("start", "student", "teacher"))
    return list(dict.fromkeys(name for name in named if isinstance(name, str) and name))


def _found(run: Path, named: str) -> Path | None:
    """A folder that a run names, as it is named, or of the same name beside the run: runs are moved together."""
    path = Path(named).expanduser()
    places = (path, run.parent / path.parent.name / path.name)
    return next((place.resolve() for place in places if (place / INDEX_FILE).is_file()), None)


def _own_cost(run: Path, options: Mapping[str, Any]) -> tuple[int, float, int]:
    """Steps, seconds and clips of one run; a file of metrics that is damaged counts as none."""
    try:
        rows = read_jsonl(run / "metrics.jsonl")
    except RunError:
        rows = []
    steps = max((int(row["step"]) for row in rows if "step" in row), default=0)
    passes = 1 + int(options.get("critic_steps") or 0)
    clips = int(options.get("batch") or 0) * int(options.get("accumulate") or 1) * passes
    return steps, round(total_cost(rows, "seconds"), 2), steps * clips
