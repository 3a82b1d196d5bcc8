"""The form that a browser logs in with."""

from __future__ import annotations

import html
import string
from pathlib import Path
from urllib.parse import parse_qs

from dreamkit_apps.auth import COOKIE, COOKIE_SECONDS, Auth
from dreamkit_apps.guard import client_address
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

_PAGE = Path(__file__).parent / "login.html"
_NOT_STORED = {"cache-control": "no-store"}


def make_login(auth: Auth) -> APIRouter:
    """The router of /login and /logout.

    Args:
        auth: who may come in.
    """
    router = APIRouter(include_in_schema=False)
    page = string.Template(_PAGE.read_text(encoding="utf-8"))

    def form(problem: str, wanted: str, status: int = 200) -> HTMLResponse:
        filled = page.substitute(problem=problem, next=html.escape(wanted, quote=True))
        return HTMLResponse(filled, status, _NOT_STORED)

    @router.get("/login")
    async def show(request: Request) -> Response:
        return form("", local_path(request.query_params.get("next", "/")))

    @router.post("/login")
    async def enter(request: Request) -> Response:
        fields = parse_qs((await request.body()).decode("utf-8", "replace"), max_num_fields=10)
        wanted = local_path(fields.get("next", ["/"])[0])
        address = client_address(request.scope)
        if auth.throttle.is_blocked(address):
            return form("Too many attempts. Wait a minute and try again.", wanted, 429)
        user = fields.get("user", [""])[0]
        if not auth.knows(user, fields.get("password", [""])[0]):
            auth.throttle.fail(address)
            return form("User and password do not fit together.", wanted, 403)
        answer = RedirectResponse(wanted, 303, _NOT_STORED)
        is_secure = request.url.scheme == "https"
        answer.set_cookie(
            COOKIE, auth.new_cookie(user), COOKIE_SECONDS, httponly=True, samesite="lax", secure=is_secure
        )
        return answer

    @router.post("/logout")
    async def leave() -> Response:
        answer = RedirectResponse("/login", 303, _NOT_STORED)
        answer.delete_cookie(COOKIE, httponly=True, samesite="lax")
        return answer

    return router


def local_path(wanted: str) -> str:
    """Where to go after logging in: a path of this server, "/" for anything else."""
    is_local = wanted.startswith("/") and not wanted.startswith("//") and "\\" not in wanted and wanted.isprintable()
    return wanted if is_local else "/"
