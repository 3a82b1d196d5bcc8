"""`dreamkit studio`: the studio in a browser."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from dreamkit.checks import require_integer, require_number
from dreamkit.cli.output import print_json
from dreamkit.cli.parsing import Device, Integer, parse, require_device
from dreamkit.cli.stream import ModelName
from dreamkit.errors import ConfigError, DreamkitError

_NEEDED = ("fastapi", "uvicorn", "websockets")
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
        require_device(self.device)
        if not self.host.strip():
            raise ConfigError("--host is empty.", "Use --host 127.0.0.1.")


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
    from dreamkit_apps.guard import GuardPolicy
    from dreamkit_apps.live.limits import LiveLimits
    from dreamkit_apps.live.source import StudentModel
    from dreamkit_apps.server import check_exposure, listen, make_app, serve

    auth = Auth(read_credentials(command.auth)) if command.auth else None
    check_exposure(command.host, auth, command.allow_public)
    listener = listen(command.host, command.port)
    hosts = frozenset(name.lower().rstrip(".") for name in command.allow_host)
    limits = LiveLimits(sessions=command.sessions, idle_s=_MINUTE * command.idle_minutes)
    model = StudentModel(command.model, command.device)
    app = make_app(model, auth=auth, policy=GuardPolicy(hosts=hosts), limits=limits)
    address = _address(command.host, listener.getsockname()[1])

    def tell() -> None:
        if command.json:
            print_json({"url": address})
        else:
            print(f"DreamKit Studio: {address}", flush=True)
            print("Ctrl-C stops it.", file=sys.stderr, flush=True)

    serve(app, listener, tell)
    return 0


def _address(host: str, port: int) -> str:
    """What to open in a browser."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)
    return f"http://{f'[{shown}]' if ':' in shown and not shown.startswith('[') else shown}:{port}/"
