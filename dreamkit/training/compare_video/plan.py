"""What a comparison of video students runs: a cell for every student, prompt and seed, each with a key."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from dreamkit._version import __version__
from dreamkit.checks import require_integer, require_number
from dreamkit.errors import ConfigError, TeacherError
from dreamkit.files import plain
from dreamkit.training.compare_video.measures import SPEED, STREAM, TEACHER
from dreamkit.training.compare_video.prompts import Case, read_cases
from dreamkit.training.compare_video.students import (
    TEACHER_NAME,
    Student,
    folder_digest,
    open_student,
    parse_students,
    text_digest,
)
from dreamkit.video.students import INDEX_FILE

FORMAT_VERSION = 1
COMPARISON = "video students"
"""What the plan of such a comparison says it is."""


@dataclass(frozen=True)
class CompareVideoOptions:
    """What `dreamkit compare-video` takes.

    Raises:
        ConfigError: a number out of range.
    """

    students: tuple[str, ...]
    teacher: str = ""
    prompts: str = "10"
    frames: int = 1000
    seeds: int = 1
    steps: int = 50
    guidance: float = 4.0
    speed_frames: int = 120
    shown: int = 3
    jobs: int = 1
    out: str = "outputs/compare-video"
    device: str = "auto"

    def __post_init__(self) -> None:
        for name, low, high in (
            ("frames", 1, 1_000_000), ("seeds", 1, 10_000), ("steps", 1, 1000), ("speed_frames", 1, 100_000),
            ("shown", 0, 100), ("jobs", 1, 1024),
        ):  # fmt: skip
            require_integer(f"--{name.replace('_', '-')}", getattr(self, name), low, high)
        require_number("--guidance", self.guidance, 0, 100)


@dataclass(frozen=True)
class Task:
    """A cell of a comparison.

    Args:
        key: names its row: a digest of everything that decides it.
        kind: `STREAM`, `TEACHER` or `SPEED`.
        student: its row in the tables.
        digest: of the model.
        source: of the model, see `Student`.
        case: the prompt; of a speed, any.
        seed: of the comparison.
        frames: of the stream.
        folder: of the comparison.
        device: where to compute.
        shown: whether clips are kept for the report.
        steps: of a teacher's clip.
        guidance: of a teacher's clip.
        size: height and width of a teacher's clip.
    """

    key: str
    kind: str
    student: str
    digest: str
    source: str
    case: Case
    seed: int
    frames: int
    folder: Path
    device: str
    shown: bool = False
    steps: int = 0
    guidance: float = 1.0
    size: tuple[int, int] = (64, 64)

    @property
    def identity(self) -> dict[str, Any]:
        """What tells its row from the others of a comparison."""
        if self.kind == SPEED:
            return {"kind": self.kind, "student": self.student, "prompt": "", "seed": 0}
        return {"kind": self.kind, "student": self.student, "prompt": self.case.prompt, "seed": self.seed}

    @property
    def title(self) -> str:
        """The cell in a few words."""
        what = "speed" if self.kind == SPEED else f"{self.case.prompt}, seed {self.seed}"
        return f"{self.student}, {what}"

    @property
    def noise_seed(self) -> int:
        """Of the noise: the same for all students, another for each prompt."""
        return int(text_digest(f"{self.seed} {self.case.prompt}")[:12], 16)


@dataclass(frozen=True)
class Plan:
    """All of a comparison.

    Args:
        tasks: the teacher's clips, the students' streams, the first seed of all before the next, and the speeds.
        students: in their order.
        teacher: digest and source of the teacher, `None` without one.
        cases: the prompts.
        shared: what all rows have in common.
    """

    tasks: list[Task]
    students: list[Student]
    teacher: dict[str, str] | None
    cases: list[Case]
    shared: dict[str, Any]


def judge_digest() -> str:
    """Of the embedded video judge, which decides a row as well."""
    return folder_digest(Path(str(files("dreamkit_assets"))) / "motion-judge")


def make_plan(options: CompareVideoOptions) -> Plan:
    """Every cell of a comparison, checked.

    Raises:
        ConfigError: no students, two of one name, frames of different sizes, or no prompts.
        PromptError: a prompt that can't be used.
        TeacherError: a folder that holds no student, or no model.
        CheckpointError: a file of a model is missing or damaged.
    """
    named, cases = parse_students(options.students), read_cases(options.prompts)
    students = [open_student(name, source) for name, source in named]
    _require_one_size(students)
    shared = {"frames": options.frames, "judge": judge_digest(), "dreamkit_version": __version__}
    maker = _Maker(options, shared)
    teacher = None
    tasks: list[Task] = []
    if options.teacher:
        teacher = _open_teacher(options)
        size = {"steps": options.steps, "guidance": options.guidance, "size": students[0].config.size}
        tasks += [
            maker.task(TEACHER, TEACHER_NAME, teacher["digest"], teacher["source"], case, seed, index, **size)
            for seed in range(options.seeds)
            for index, case in enumerate(cases)
        ]
    tasks += [
        maker.task(STREAM, student.name, student.digest, student.source, case, seed, index)
        for seed in range(options.seeds)
        for student in students
        for index, case in enumerate(cases)
    ]
    tasks += [
        maker.task(SPEED, student.name, student.digest, student.source, cases[0], 0, None) for student in students
    ]
    return Plan(tasks, students, teacher, cases, shared)


def _require_one_size(students: list[Student]) -> None:
    """Motion and sharpness are of pixels: frames of different sizes can't be compared."""
    sizes = {student.config.size: student.name for student in students}
    if len(sizes) > 1:
        named = ", ".join(f"{name} {height}x{width}" for (height, width), name in sizes.items())
        raise ConfigError(f"The students' frames have different sizes: {named}.", "Compare students of one size.")


def _open_teacher(options: CompareVideoOptions) -> dict[str, str]:
    """Source and digest of the yardstick, whose steps and guidance are part of what it is."""
    folder = Path(options.teacher).expanduser()
    if not (folder / INDEX_FILE).is_file():
        raise TeacherError(f"{folder} holds no video teacher: it has no {INDEX_FILE}.", "Give its pipeline folder.")
    digest = text_digest(f"{folder_digest(folder)} {options.steps} {options.guidance}")
    return {"source": str(folder), "digest": digest, "steps": str(options.steps), "guidance": f"{options.guidance:g}"}


class _Maker:
    """Makes tasks with their keys.

    Args:
        options: of the comparison.
        shared: what all rows have in common.
    """

    def __init__(self, options: CompareVideoOptions, shared: dict[str, Any]) -> None:
        self.options, self.shared = options, shared

    def task(
        self, kind: str, name: str, digest: str, source: str, case: Case, seed: int, index: int | None, **more: Any
    ) -> Task:
        """A cell.

        Args:
            kind: of the row.
            name: of the student.
            digest: of the model.
            source: of the model.
            case: its prompt.
            seed: of the comparison.
            index: of the prompt; `None` for a speed, which any prompt serves.
            more: fields of the task that matter to this kind alone.
        """
        options = self.options
        frames = options.speed_frames if index is None else options.frames
        content = {
            "format_version": FORMAT_VERSION,
            "shared": self.shared,
            "kind": kind,
            "student": name,
            "digest": digest,
            "case": None if index is None else plain(case),
            "seed": seed,
            "frames": frames,
            "more": plain(more),
        }
        key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
        shown = index is not None and index < options.shown and seed == 0
        folder = Path(options.out).expanduser()
        return Task(key, kind, name, digest, source, case, seed, frames, folder, options.device, shown=shown, **more)
