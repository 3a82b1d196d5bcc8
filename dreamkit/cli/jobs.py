"""`dreamkit jobs ...`: the queue of jobs that the studio shows, from the command line."""

from __future__ import annotations

import getpass
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from dreamkit.checks import require_choice, require_integer, require_number
from dreamkit.cli.output import format_value, print_json, print_rows
from dreamkit.cli.parsing import (
    Device,
    Folder,
    Integer,
    PresetInteger,
    PresetNumber,
    Prompt,
    Setting,
    TeacherName,
    Text,
    parse,
    require_device,
    require_folder_name,
)

if TYPE_CHECKING:
    from dreamkit_apps.jobs.job import Job
    from dreamkit_apps.jobs.settings import Rules
    from dreamkit_apps.jobs.store import JobStore

JobId = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="ID")]
Queue = Annotated[str, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: .jobs/queue.sqlite3 in --out)")]
_STYLES = {"running": "cyan", "cancelling": "yellow", "done": "green", "failed": "red", "quarantined": "bold red"}


@dataclass(frozen=True, kw_only=True)
class QueueOptions:
    """Where the queue and the runs are."""

    out: Folder = "outputs"
    """Where run folders go."""
    queue: Queue = ""
    """The queue."""

    def open(self, busy: float = 5.0) -> JobStore:
        """Open the queue; it is made if it isn't there.

        Raises:
            QueueError: it can't be opened.
        """
        require_folder_name("--out", self.out)
        from dreamkit_apps.jobs.store import QUEUE_FILE, JobStore

        return JobStore(Path(self.queue) if self.queue else Path(self.out) / QUEUE_FILE, busy=busy)

    def rules(self) -> Rules:
        """What a job may ask for: at one's own command line any teacher."""
        from dreamkit_apps.jobs.gallery import RunFolders
        from dreamkit_apps.jobs.settings import Rules

        return Rules(RunFolders(self.out), any_teacher=True)


@dataclass(frozen=True)
class List(QueueOptions):
    """List the jobs, the newest first."""

    state: Annotated[str, tyro.conf.arg(metavar="STATE,...")] = ""
    """Only those that are queued, running, cancelling, done, cancelled, failed or quarantined."""
    search: Text = ""
    """Only those with these words in their prompts."""
    limit: Integer = 50
    """How many at most, 1 to 500."""
    json: bool = False
    """Print one JSON object as the last line of stdout."""


@dataclass(frozen=True)
class Show(QueueOptions):
    """Show everything about a job."""

    id: JobId
    """The job, or how its id begins."""
    json: bool = False
    """Print one JSON object as the last line of stdout."""


@dataclass(frozen=True)
class Cancel(QueueOptions):
    """Cancel a job; what there is of its run is kept."""

    id: JobId
    """The job, or how its id begins."""
    json: bool = False
    """Print one JSON object as the last line of stdout."""


@dataclass(frozen=True)
class Retry(QueueOptions):
    """Queue a failed, cancelled or quarantined job again; it goes on from its checkpoint."""

    id: JobId
    """The job, or how its id begins."""
    fresh: bool = False
    """Begin a new run instead."""
    json: bool = False
    """Print one JSON object as the last line of stdout."""


@dataclass(frozen=True)
class Work(QueueOptions):
    """Run jobs of the queue, one after another, until Ctrl-C. Several workers may share a queue."""

    device: Device = "auto"
    """Where to compute; auto takes a GPU if there is one."""
    until_empty: bool = False
    """End when no job waits."""
    time_limit: Annotated[float | None, tyro.conf.arg(metavar="SECONDS", help_behavior_hint="(default: none)")] = None
    """How long a job may take in one go."""


@dataclass(frozen=True)
class Submit(QueueOptions):
    """Queue a job: an asset of a sentence, or with --source an edit, or with --objectives a comparison."""

    prompt: Prompt
    """What to make, in words. Taken literally; quote it."""
    source: Annotated[str, tyro.conf.arg(metavar="RUN")] = ""
    """Edit: the run to change, a folder in --out or an id."""
    objectives: Annotated[str, tyro.conf.arg(metavar="NAME,NAME")] = ""
    """Compare: objectives separated by commas."""
    preset: Annotated[str, tyro.conf.arg(metavar="draft|standard|high")] = "draft"
    """Quality against time."""
    objective: Annotated[str, tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: sds, of an edit dds)")] = ""
    """How the teacher's opinion becomes a gradient."""
    scene: Annotated[str, tyro.conf.arg(metavar="gaussians|nerf|sdf|mesh|latent-nerf")] = "gaussians"
    """What the asset is made of while it is optimised."""
    stages: Annotated[str, tyro.conf.arg(metavar="SCENE:OBJECTIVE,...")] = ""
    """Several in a row; replaces --scene and --objective."""
    teacher: TeacherName = "toyworld"
    """The diffusion model to distil: the embedded one, a folder in diffusers layout, or a hub id."""
    negative: Text = ""
    """What to stay away from, in words."""
    region: Text = ""
    """Edit: where it may change, box:X0,Y0,Z0,X1,Y1,Z1 or ball:X,Y,Z,R."""
    guidance: PresetNumber = None
    """Classifier-free guidance, >= 0; 1 is no guidance."""
    steps: PresetInteger = None
    """Optimisation steps, >= 1."""
    views: PresetInteger = None
    """Cameras in each step, >= 1."""
    resolution: PresetInteger = None
    """Side of the rendered images in pixels, 16 to 512."""
    seed: Integer = 0
    """Seed of everything random, >= 0."""
    option: tyro.conf.UseAppendAction[tuple[Setting, ...]] = ()
    """Change an option of the objective, e.g. lambda=0.3; may be given several times."""
    priority: Integer = 0
    """The higher, the sooner, -100 to 100."""
    json: bool = False
    """Print one JSON object as the last line of stdout."""

    def settings(self) -> tuple[str, dict[str, Any]]:
        """Kind of the job, and whatever was given for it."""
        kind = "edit" if self.source else "compare" if self.objectives else "generate"
        names = ("prompt", "preset", "objective", "scene", "stages", "teacher", "negative", "region", "guidance")
        default = {item.name: item.default for item in self.__dataclass_fields__.values()}
        content: dict[str, Any] = {
            name: getattr(self, name)
            for name in (*names, "steps", "views", "resolution", "seed", "source")
            if getattr(self, name) != default[name]
        }
        if self.option:
            content["options"] = list(self.option)
        if self.objectives:
            content["objectives"] = [name.strip() for name in self.objectives.split(",") if name.strip()]
        return kind, content


def list_jobs(arguments: Sequence[str]) -> int:
    """Run `jobs list`; returns the exit code.

    Args:
        arguments: what follows it.
    """
    command = parse(List, "jobs list", arguments)
    from dreamkit_apps.jobs.job import STATES

    states = [state.strip() for state in command.state.split(",") if state.strip()]
    for state in states:
        require_choice("--state", state, STATES)
    with closing(command.open()) as store:
        store.expire()
        page = store.find([state for state in STATES if state in states], command.search, limit=command.limit)
    if command.json:
        print_json({"jobs": [job.public() for job in page.jobs], "total": page.total})
    elif page.jobs:
        _print_table(page.jobs, page.total)
    else:
        print('No jobs. Submit one with: dreamkit jobs submit "a red mug"')
    return 0


def show(arguments: Sequence[str]) -> int:
    """Run `jobs show`; returns the exit code.

    Args:
        arguments: what follows it.
    """
    command = parse(Show, "jobs show", arguments)
    with closing(command.open()) as store:
        store.expire()
        return _print_job(store.resolve(command.id), command, command.json)


def cancel(arguments: Sequence[str]) -> int:
    """Run `jobs cancel`; returns the exit code.

    Args:
        arguments: what follows it.
    """
    command = parse(Cancel, "jobs cancel", arguments)
    with closing(command.open()) as store:
        return _print_job(store.cancel(store.resolve(command.id).id), command, command.json)


def retry(arguments: Sequence[str]) -> int:
    """Run `jobs retry`; returns the exit code.

    Args:
        arguments: what follows it.
    """
    command = parse(Retry, "jobs retry", arguments)
    with closing(command.open()) as store:
        return _print_job(store.retry(store.resolve(command.id).id, command.fresh), command, command.json)


def submit(arguments: Sequence[str]) -> int:
    """Run `jobs submit`; returns the exit code.

    Args:
        arguments: what follows it.
    """
    command = parse(Submit, "jobs submit", arguments)
    require_integer("--priority", command.priority, -100, 100)
    from dreamkit_apps.jobs.settings import read_settings

    kind, content = command.settings()
    rules = command.rules()
    if kind == "edit" and Path(command.source).is_dir():
        content["source"] = rules.runs.run_id(Path(command.source).resolve()) or command.source
    settings = read_settings(kind, content, rules)
    with closing(command.open()) as store:
        return _print_job(store.submit(settings, _user(), command.priority), command, command.json)


def work(arguments: Sequence[str]) -> int:
    """Run `jobs worker`; returns the exit code.

    Args:
        arguments: what follows it.
    """
    command = parse(Work, "jobs worker", arguments)
    require_device(command.device)
    require_number("--time-limit", command.time_limit, 1)
    from dreamkit_apps.jobs.commands import Commands
    from dreamkit_apps.jobs.worker import Worker, WorkerOptions, say_on_stderr

    rules = command.rules()
    with closing(command.open(busy=2.0)) as store:  # less than a lease
        options = WorkerOptions(time_limit=command.time_limit)
        worker = Worker(store, rules.runs, Commands(rules, command.device), options, say=say_on_stderr)
        worker.stop_on_signals()
        worker.run(command.until_empty)
    return 0


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a number without a name, in a container
        return "local"


def _print_job(job: Job, command: QueueOptions, as_json: bool) -> int:
    """Print a job: one JSON object, or lines for people."""
    if as_json:
        print_json(job.public())
        return 0
    from dreamkit_apps.jobs.commands import shown_command

    content = job.public()
    rows: dict[str, Any] = {name: content[name] for name in ("id", "kind", "state", "prompt", "user", "priority")}
    rows |= {name: _moment(content[name]) for name in ("created", "started", "ended")}
    rows |= {name: content[name] for name in ("attempts", "run", "error", "hint") if content[name]}
    if job.progress.stage:
        rows["progress"] = _progress(job)
    rows["command"] = shown_command(job, command.rules())
    if job.result:
        rows["result"] = job.result
    print_rows(rows)
    return 0


def _print_table(jobs: Sequence[Job], total: int) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text as Words

    table = Table(box=None, pad_edge=False)
    for name in ("id", "state", "submitted", "user", "progress"):
        table.add_column(name, no_wrap=True)
    table.add_column("prompt", overflow="ellipsis", no_wrap=True)
    for job in jobs:
        cells = (job.id[:8], job.state, _moment(job.created), job.user, _progress(job), job.prompt)
        table.add_row(*(Words(cell, _STYLES.get(cell, "")) for cell in cells))
    Console(highlight=False).print(table)
    if total > len(jobs):
        print(f"{total - len(jobs)} more: --limit")


def _progress(job: Job) -> str:
    now = job.progress
    if not job.is_active or not now.stage:
        return ""
    return now.stage if now.total is None else f"{now.stage} {now.step}/{now.total}"


def _moment(seconds: float | None) -> str:
    if seconds is None:
        return format_value(None)
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")
