"""The studio inside a server: its files, its look, and Gradio's own routes, with nothing from elsewhere."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from dreamkit_apps.jobs.errors import NotFoundError
from dreamkit_apps.jobs.gallery import RunFolders
from dreamkit_apps.jobs.settings import Rules
from dreamkit_apps.jobs.store import JobStore
from dreamkit_apps.studio.examples import PICTURES, example_prompts
from dreamkit_apps.studio.look import make_theme, theme_variables
from dreamkit_apps.studio.page import make_studio
from dreamkit_apps.web import ExplainedRoute
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import FileResponse, Response

STATIC = Path(__file__).parent / "static"
_SHARED = tuple(Path(__file__).parents[1] / "live" / "static" / name for name in ("theme.js", "icon.svg"))
"""What live video's page has too."""
_KEPT = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
_KEY = re.compile(r"[A-Za-z0-9_\-]{1,120}")
_MAX_TURN = 16 * 2**20  # bytes
_MAX_FRAMES, _MAX_SIDE, _MAX_STRIP = 128, 512, 16_383  # WebP's largest side


def mount_studio(
    app: FastAPI,
    store: JobStore,
    rules: Rules,
    *,
    path: str = "/studio",
    api_prefix: str = "/api/v1",
    live_path: str | None = "/live",
    user_of: Callable[[Request], str] = lambda request: "local",
) -> FastAPI:
    """Mount the interface, and what its page needs, into an application that has the API.

    Args:
        app: the application; it is changed.
        store: the queue.
        rules: what a job may ask for, and where the runs are.
        path: where the interface goes.
        api_prefix: where the API is.
        live_path: where live video is; `None` where there is none.
        user_of: who calls.

    Returns:
        The application.
    """
    app.include_router(make_files(rules.runs, path))  # before Gradio, which takes everything below its path
    app.add_api_route("/favicon.ico", _icon, include_in_schema=False)
    blocks = make_studio(store, rules, live_path=live_path, user_of=user_of)
    return gr.mount_gradio_app(
        app,
        blocks,
        path=path,
        theme=make_theme(),
        css=theme_variables(),
        head=_head(path, api_prefix, live_path),
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        show_error=False,
        max_file_size="1kb",
        app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None},
    )


def _icon() -> FileResponse:
    """What browsers ask for before they have read the page."""
    return FileResponse(_SHARED[1], media_type="image/svg+xml", headers=_KEPT)


def _head(path: str, api_prefix: str, live_path: str | None) -> str:
    """What the page loads before Gradio starts: all of it ours."""
    files = f"{path}/dk"
    page: dict[str, Any] = {
        "module": f"{files}/studio.js",
        "place": {"api": api_prefix, "studio": path, "live": live_path or ""},
        "examples": example_prompts(),
    }
    content = json.dumps(page).replace("<", "\\u003c")
    names = ("studio", "dom", "api", "job", "viewer", "painter", "splats", "chart", "results", "dialogs", "queue")
    preloads = "".join(f'<link rel="modulepreload" href="{escape(files)}/{name}.js">' for name in names)
    return (
        f'<script src="{escape(files)}/theme.js"></script><link rel="stylesheet" href="{escape(files)}/studio.css">'
        f'<link rel="icon" href="{escape(files)}/icon.svg" type="image/svg+xml">{preloads}'
        f"<script>window.dreamkitPage = {content};</script>"
    )


def make_files(runs: RunFolders, path: str) -> APIRouter:
    """The router of the page's files, and of turntables as strips.

    Args:
        runs: where comparisons are.
        path: of the studio.
    """
    router = APIRouter(prefix=f"{path}/dk", route_class=ExplainedRoute, include_in_schema=False)
    files = {file.name: file for file in (*STATIC.iterdir(), *_SHARED) if file.is_file()}
    files |= {file.name: file for file in PICTURES.glob("*.webp")}

    @router.get("/strips/{run_id}/{key}")
    def strip(run_id: str, key: str) -> Response:
        """The turntable of a comparison's row, its pictures side by side."""
        if not _KEY.fullmatch(key):
            raise NotFoundError(f"There is no turntable {key[:100]!r}.")
        file = runs.file(run_id, f"views/{key}.webp")
        about = file.stat()
        return Response(_strip(file, about.st_mtime_ns, about.st_size), media_type="image/webp", headers=_KEPT)

    @router.get("/{name}")
    def static(name: str) -> Response:
        if name not in files:
            raise NotFoundError(f"There is no file {name[:100]!r}.")
        return FileResponse(files[name], headers=_KEPT)

    return router


@lru_cache(maxsize=32)
def _strip(file: Path, _changed: int, size: int) -> bytes:
    """All pictures of an animated WebP side by side, as a WebP; a browser turns them with a slider."""
    from PIL import Image, ImageSequence, UnidentifiedImageError

    broken = NotFoundError(f"The turntable {file.name} can't be read.", "Run the comparison again.")
    if size > _MAX_TURN:
        raise broken
    try:
        with Image.open(file, formats=["WEBP"]) as film:
            width, height = film.size
            count = getattr(film, "n_frames", 1)
            if max(width, height) > _MAX_SIDE or count > _MAX_FRAMES:
                raise broken
            side = min(width, height, _MAX_STRIP // count)
            strip = Image.new("RGB", (side * count, side))
            for index, frame in enumerate(ImageSequence.Iterator(film)):
                strip.paste(frame.convert("RGB").resize((side, side)), (index * side, 0))
    except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise broken from error
    buffer = io.BytesIO()
    strip.save(buffer, "WEBP", quality=85, method=2)
    return buffer.getvalue()
