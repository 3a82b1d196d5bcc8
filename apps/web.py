"""What web pages and the API share: errors as JSON, bodies with a limit, and files that can't do harm in a browser."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dreamkit_apps.jobs.errors import JobStateError, NotFoundError, QueueError, QueueFullError
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.routing import APIRoute

from dreamkit.errors import DreamkitError, RunError

_STATUS: tuple[tuple[type[DreamkitError], int], ...] = (
    (NotFoundError, 404),
    (JobStateError, 409),
    (QueueFullError, 429),
    (QueueError, 503),
    (RunError, 503),
)
_SHOWN = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".gif": "image/gif",
    ".mp4": "video/mp4",
    ".webm": "video/webm",
    ".json": "application/json",
    **dict.fromkeys((".txt", ".log", ".yaml", ".jsonl", ".csv"), "text/plain; charset=utf-8"),
}
"""Suffix -> type of what a browser may show: nothing that can hold a script."""
_DOWNLOADED = {".glb": "model/gltf-binary", ".obj": "model/obj"}
"""Suffix -> type of what it may only store; everything else is a stream of bytes."""
_NOTHING = "sandbox; default-src 'none'"
_REPORT = (
    "sandbox allow-scripts; default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
)
"""For a page of our own, with everything inside it: no network, no cookies, an origin of its own."""


class BodyError(DreamkitError):
    """A request's body that can't be read.

    Args:
        status: the HTTP status that says so.
        message: what was wrong.
        hint: what to do.
    """

    def __init__(self, status: int, message: str, hint: str) -> None:
        super().__init__(message, hint)
        self.status = status


class ExplainedRoute(APIRoute):
    """A route whose errors are JSON: `{"error": ..., "hint": ...}` with a 4xx status (503 for the server's own)."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, with errors turned into answers."""
        handler = super().get_route_handler()

        async def explained(request: Request) -> Response:
            try:
                return await handler(request)
            except DreamkitError as error:
                return error_response(error)
            except RequestValidationError as error:
                first = error.errors()[0]
                where = ".".join(str(part) for part in first["loc"] if part not in ("query", "path", "body"))
                return JSONResponse({"error": f"{where}: {first['msg']}.", "hint": "See /openapi.json."}, 422)

        return explained


def error_response(error: DreamkitError) -> JSONResponse:
    """An error as an answer."""
    status = error.status if isinstance(error, BodyError) else 422
    for kind, code in _STATUS:
        if isinstance(error, kind):
            status = code
    headers = {"Retry-After": "30"} if status in (429, 503) else None
    return JSONResponse({"error": _sendable(error.message), "hint": _sendable(error.hint)}, status, headers)


def _sendable(text: str | None) -> str | None:
    """Text that UTF-8 can hold: of a lone surrogate, which an error may repeat, its number."""
    return None if text is None else text.encode("utf-8", errors="backslashreplace").decode("utf-8")


async def read_object(request: Request, limit: int) -> Mapping[str, Any]:
    """The JSON object that a request carries; what is longer than `limit` bytes is not even read to its end.

    Raises:
        BodyError: another type (415), too long (413), or no JSON object (400).
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise BodyError(415, "The body is not of the type application/json.", "Set the header Content-Type.")
    too_long = BodyError(413, f"The body has more than {limit:,} bytes.", "Send less.")
    announced = request.headers.get("content-length", "0")
    if not announced.isdecimal() or len(announced) > 18 or int(announced) > limit:
        raise too_long
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise too_long
    try:
        content = json.loads(bytes(body), parse_constant=_refuse)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise BodyError(400, "The body is not a JSON object.", "See /openapi.json for an example.")
    return content


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def file_response(path: Path, is_report: bool = False, download: bool = False) -> FileResponse:
    """A file, with a type that is ours and not guessed by a browser, and nothing in it allowed to run.

    Args:
        path: the file.
        is_report: whether it is a page that DreamKit made, which may be shown, in a sandbox.
        download: whether the browser shall store it whatever it is.

    Raises:
        NotFoundError: it is gone.
    """
    suffix = path.suffix.lower()
    kind = "text/html; charset=utf-8" if is_report else _SHOWN.get(suffix)
    shown = kind is not None and not download
    try:
        about = path.stat()
    except OSError as error:
        raise NotFoundError(f"The file {path.name!r} is gone.", "The list of the run's files names all.") from error
    headers = {
        "Content-Disposition": disposition(path.name, shown),
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": _REPORT if is_report and shown else _NOTHING,
        "Cache-Control": "no-cache",
        "Referrer-Policy": "no-referrer",
    }
    media_type = kind or _DOWNLOADED.get(suffix, "application/octet-stream")
    return FileResponse(path, headers=headers, media_type=media_type, stat_result=about)


def disposition(name: str, shown: bool) -> str:
    """A Content-Disposition header for a name of any characters (RFC 6266): an ASCII form, and the name in UTF-8."""
    plain = "".join(letter if letter.isascii() and (letter.isalnum() or letter in " ._-()") else "_" for letter in name)
    exact = quote(name, safe="", errors="replace")
    return f"{'inline' if shown else 'attachment'}; filename=\"{plain}\"; filename*=UTF-8''{exact}"
