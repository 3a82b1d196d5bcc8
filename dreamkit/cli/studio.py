"""`dreamkit studio`: the studio in a browser."""

from __future__ import annotations

import importlib.util
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from dreamkit.checks import require_integer, require_number
from dreamkit.cli.output import print_json
from dreamkit.cli.parsing import Device, Folder, Integer, parse, require_device, require_folder_name
from dreamkit.cli.stream import ModelName
from dreamkit.errors import ConfigError, DreamkitError

if TYPE_CHECKING:
    from dreamkit_apps.auth import Auth
    from fastapi import FastAPI

_NEEDED = ("fastapi", "gradio", "uvicorn", "websockets")
_MINUTE = 60.0


@dataclass(frozen=True)
class Studio:
    """Serve the studio to a browser, on this machine alone unless told otherwise, until Ctrl-C."""

    host: Annotated[str, tyro.conf.arg(metavar="H")] = "127.0.0.1"
    """Where to listen; 0.0.0.0 is everywhere."""
    port: Integer = 7860
    """Which port, 0 is a free one."""
    auth: Annotated[str, tyro.conf.arg(metavar="USER:PASSWORD|FILE", help_behavior_hint="(default: none)")] = ""
    """Who may come in. Others on this machine see a command's words: a file, a line for each user, is safer."""
    allow_public: bool = False
    """Listen on other addresses than this machine's own without a password."""
    allow_host: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="NAME")] = ()
    """A name that browsers may know this server by, such as a proxy's; may be given several times."""
    out: Folder = "outputs"
    """Where runs go, and the queue of jobs, which `dreamkit jobs` sees too."""
    workers: Integer = 1
    """Processes that run jobs, 0 to 64; they go with the server. With 0 `dreamkit jobs worker` runs them."""
    teacher: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="NAME=FOLDER")] = ()
    """Another teacher that may be asked for, by a name; may be given several times."""
    max_jobs: Integer = 200
    """Jobs that may wait and run, 1 to 100,000."""
    max_jobs_each: Integer = 50
    """The same of each user."""
    model: ModelName = "embedded"
    """The causal student of live video: the embedded one, a folder in diffusers layout, or random weights."""
    sessions: Integer = 4
    """Live videos at the same time, 1 to 64."""
    idle_minutes: Annotated[float, tyro.conf.arg(metavar="F")] = 5.0
    """After which a live video that nobody watches is closed, 0.1 to 1440."""
    device: Device = "auto"
    """Where to compute; auto takes a GPU if there is one."""
    json: bool = False
    """Print one JSON object with the address, once it can be opened."""

    def check(self) -> None:
        """Check every option.

        Raises:
            ConfigError: an option out of range.
        """
        require_integer("--port", self.port, 0, 65535)
        require_integer("--sessions", self.sessions, 1, 64)
        require_number("--idle-minutes", self.idle_minutes, 0.1, 1440)
        require_integer("--workers", self.workers, 0, 64)
        require_integer("--max-jobs", self.max_jobs, 1, 100_000)
        require_integer("--max-jobs-each", self.max_jobs_each, 1, 100_000)
        require_folder_name("--out", self.out)
        require_device(self.device)
        self.teachers()
        if not self.host.strip():
            raise ConfigError("--host is empty.", "Use --host 127.0.0.1.")

    def teachers(self) -> dict[str, str]:
        """Folders of the other teachers by their names.

        Raises:
            ConfigError: not NAME=FOLDER, a name that is taken, or no such folder.
        """
        found: dict[str, str] = {}
        for item in self.teacher:
            name, _, folder = item.partition("=")
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,39}", name) or not folder:
                raise ConfigError(f"--teacher {item!r} is not understood.", "Write --teacher NAME=FOLDER.")
            if name in found or name == "toyworld":
                raise ConfigError(f"Two teachers are called {name}.", "Give each a name of its own.")
            path = Path(folder).expanduser().absolute()
            if not path.is_dir():
                raise ConfigError(f"There is no folder {folder}.", "Give a teacher's pipeline folder.")
            found[name] = str(path)
        return found


def run(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: what follows `studio`.

    Returns:
        The exit code.
    """
    command = parse(Studio, "studio", arguments)
    command.check()
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise DreamkitError(
            f"The studio needs {', '.join(missing)}, which this installation lacks.",
            "Install it: pip install 'dreamkit[studio]'",
        )
    from dreamkit_apps.auth import Auth, read_credentials
    from dreamkit_apps.jobs.worker import say_on_stderr, worker_words
    from dreamkit_apps.server import check_exposure, listen, serve
    from dreamkit_apps.workers import Workers

    auth = Auth(read_credentials(command.auth)) if command.auth else None
    check_exposure(command.host, auth, command.allow_public)
    listener = listen(command.host, command.port)
    address = _address(command.host, listener.getsockname()[1])

    def tell() -> None:
        if command.json:
            print_json({"url": address})
        else:
            print(f"DreamKit Studio: {address}", flush=True)
            print("Ctrl-C stops it.", file=sys.stderr, flush=True)

    words = worker_words(command.out, None, command.device)
    try:
        with _application(command, auth) as app, Workers(words, command.workers, say=say_on_stderr):
            serve(app, listener, tell)
    finally:
        listener.close()
    return 0


@contextmanager
def _application(command: Studio, auth: Auth | None) -> Iterator[FastAPI]:
    """The server's application, with the queue open as long as it is used."""
    from dreamkit_apps.api import make_api
    from dreamkit_apps.guard import GuardPolicy, user_of
    from dreamkit_apps.jobs.gallery import RunFolders
    from dreamkit_apps.jobs.settings import Rules
    from dreamkit_apps.jobs.store import QUEUE_FILE, JobStore, Limits
    from dreamkit_apps.live.limits import LiveLimits
    from dreamkit_apps.live.source import StudentModel
    from dreamkit_apps.server import make_app
    from dreamkit_apps.studio import mount_studio

    stopping = threading.Event()
    rules = Rules(RunFolders(command.out), command.teachers())
    limits = Limits(command.max_jobs, command.max_jobs_each)
    with closing(JobStore(Path(command.out) / QUEUE_FILE, limits)) as store:
        yield make_app(
            StudentModel(command.model, command.device),
            auth=auth,
            policy=GuardPolicy(hosts=frozenset(name.lower().rstrip(".") for name in command.allow_host)),
            limits=LiveLimits(sessions=command.sessions, idle_s=_MINUTE * command.idle_minutes),
            routers=[make_api(store, rules, user_of=user_of, stopping=stopping.is_set)],
            interface=lambda app: mount_studio(app, store, rules, user_of=user_of),
            on_stop=stopping.set,
        )


def _address(host: str, port: int) -> str:
    """What to open in a browser."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)
    return f"http://{f'[{shown}]' if ':' in shown and not shown.startswith('[') else shown}:{port}/"
