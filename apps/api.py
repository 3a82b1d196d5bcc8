"""The HTTP API of jobs, runs and their files, under /api/v1.

Whoever may call it is decided before (see `dreamkit_apps.guard`); what it takes from a caller it checks itself.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from enum import Enum
from functools import cache
from typing import Annotated, Any

import anyio
from dreamkit_apps import api_models as forms
from dreamkit_apps.jobs.commands import shown_command
from dreamkit_apps.jobs.errors import JobStateError, NotFoundError, QueueFullError
from dreamkit_apps.jobs.job import ENDED, STATES, Job
from dreamkit_apps.jobs.settings import EMBEDDED, MAX_REQUEST, PRESETS, SCENES, Rules, read_settings
from dreamkit_apps.jobs.store import JobStore
from dreamkit_apps.web import ExplainedRoute, file_response, read_object
from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from dreamkit._version import __version__
from dreamkit.errors import ConfigError, DreamkitError

PREFIX = "/api/v1"
_PING = 15.0  # seconds without an event after which a stream says that it lives
_LONGEST_STREAM = 3600.0  # seconds; a browser's EventSource comes back by itself
_ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"model": forms.Explained, "description": text}
    for code, text in ((404, "Not there"), (409, "In no state for that"), (422, "Can't be used"), (503, "Queue broken"))
}

Tags = list[str | Enum]
JobId = Annotated[str, Path(max_length=64)]
RunId = Annotated[str, Path(max_length=400)]
Search = Annotated[str, Query(max_length=200, description="Words that must all be in the prompt.")]
Offset = Annotated[int, Query(ge=0, le=10**9)]


def make_api(
    store: JobStore,
    rules: Rules,
    user_of: Callable[[Request], str] = lambda request: "local",
    max_priority: int = 0,
    max_streams: int = 64,
    poll: float = 0.5,
    stopping: Callable[[], bool] = lambda: False,
) -> APIRouter:
    """The routes.

    Args:
        store: the queue.
        rules: what a job may ask for, and where the runs are.
        user_of: who calls; limits and fairness go by it.
        max_priority: the highest priority a caller may give a job.
        max_streams: streams of events at once.
        poll: seconds between two looks at a job that is streamed.
        stopping: whether the server is going down: streams then end.
    """
    router = APIRouter(prefix=PREFIX, route_class=ExplainedRoute, responses=_ERRORS)
    _add_submit(router, store, rules, user_of, max_priority)
    _add_jobs(router, store, rules)
    _add_events(router, store, max_streams, poll, stopping)
    _add_runs(router, store, rules)
    _add_choices(router, store, rules)
    return router


def job_view(job: Job, rules: Rules, command: bool = False) -> dict[str, Any]:
    """A job as a stranger may see it: no path of the server.

    Args:
        job: which.
        rules: see `make_api`.
        command: whether to add the same job for a shell.
    """
    content = job.public()
    content["settings"] = {**job.settings, "teacher": rules.teacher_name(str(job.settings.get("teacher", EMBEDDED)))}
    for name in ("error", "hint"):
        if content[name]:
            content[name] = content[name].replace(str(rules.runs.root), rules.runs.root.name)
    if command:
        try:
            content["command"] = shown_command(job, rules)
        except DreamkitError:  # the run that an edit started from is gone
            content["command"] = None
    return content


def _add_submit(
    router: APIRouter, store: JobStore, rules: Rules, user_of: Callable[[Request], str], max_priority: int
) -> None:

    @router.post(
        "/jobs", status_code=201, response_model=forms.JobView, tags=["jobs"], openapi_extra=forms.JOB_REQUEST,
        summary="Queue a job",
    )  # fmt: skip
    async def submit(request: Request, response: Response) -> dict[str, Any]:
        content = await read_object(request, MAX_REQUEST)
        if unknown := sorted(set(content) - {"kind", "settings", "priority"}):
            raise ConfigError(f"A job has no {unknown[0][:100]!r}.", "It has kind, settings and priority.")
        kind, settings, priority = content.get("kind", "generate"), content.get("settings"), content.get("priority", 0)
        if not isinstance(kind, str) or not isinstance(settings, dict):
            raise ConfigError("A job needs settings, an object.", "See /openapi.json for an example.")
        if isinstance(priority, bool) or not isinstance(priority, int) or priority > max_priority:
            raise ConfigError("This priority can't be.", f"Use a whole number from -100 to {max_priority}.")
        checked = await run_in_threadpool(read_settings, kind, settings, rules)
        job = await run_in_threadpool(store.submit, checked, user_of(request), priority)
        response.headers["Location"] = f"{PREFIX}/jobs/{job.id}"
        return job_view(job, rules, command=True)


def _add_jobs(router: APIRouter, store: JobStore, rules: Rules) -> None:
    tags: Tags = ["jobs"]

    @router.get("/jobs", response_model=forms.JobPage, tags=tags, summary="List jobs, the newest first")
    def find(
        search: Search = "",
        state: Annotated[str, Query(max_length=100, description="States, separated by commas.")] = "",
        kind: Annotated[str | None, Query(max_length=20)] = None,
        limit: Annotated[int, Query(ge=1, le=500)] = 50,
        offset: Offset = 0,
    ) -> dict[str, Any]:
        asked = [part.strip() for part in state.split(",") if part.strip()]
        states = [known for known in STATES if known in asked]
        if len(states) < len(set(asked)):
            raise ConfigError(f"One of the states {state[:100]!r} is not known.", f"Known: {', '.join(STATES)}.")
        store.expire()
        page = store.find(states, search, kind=kind, limit=limit, offset=offset)
        return {"jobs": [job_view(job, rules) for job in page.jobs], "total": page.total}

    @router.get("/jobs/{job_id}", response_model=forms.JobView, tags=tags, summary="One job")
    def get(job_id: JobId) -> dict[str, Any]:
        store.expire()
        return job_view(store.get(job_id), rules, command=True)

    @router.post(
        "/jobs/{job_id}/cancel", response_model=forms.JobView, tags=tags, summary="Cancel; what there is is kept"
    )
    def cancel(job_id: JobId) -> dict[str, Any]:
        return job_view(store.cancel(job_id), rules)

    @router.post("/jobs/{job_id}/retry", response_model=forms.JobView, tags=tags, summary="Queue an ended job again")
    def retry(job_id: JobId, fresh: Annotated[bool, Query(description="Begin a new run.")] = False) -> dict[str, Any]:
        return job_view(store.retry(job_id, fresh), rules)

    @router.delete("/jobs/{job_id}", status_code=204, tags=tags, summary="Forget a job; its run stays")
    def delete(job_id: JobId) -> None:
        store.delete(job_id)


def _add_events(
    router: APIRouter, store: JobStore, max_streams: int, poll: float, stopping: Callable[[], bool]
) -> None:
    streams = 0

    @router.get(
        "/jobs/{job_id}/events", tags=["jobs"], response_class=StreamingResponse,
        summary="How a job goes, as server-sent events `progress` and at last `end`",
    )  # fmt: skip
    async def events(request: Request, job_id: JobId) -> StreamingResponse:
        await run_in_threadpool(store.get, job_id)  # 404 at once, if it isn't there
        if streams >= max_streams:
            raise QueueFullError(f"{max_streams} streams of events are open, which is all there may be.", "Wait a bit.")
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", "X-Content-Type-Options": "nosniff"}
        return StreamingResponse(follow(request, job_id), media_type="text/event-stream", headers=headers)

    async def follow(request: Request, job_id: str) -> AsyncIterator[str]:
        nonlocal streams
        streams += 1
        try:
            async for event in _events(store, job_id, poll):
                yield event
                if stopping() or await request.is_disconnected():
                    return
        finally:
            streams -= 1


async def _events(store: JobStore, job_id: str, poll: float) -> AsyncIterator[str]:
    """An event for every change of a job until it ends; an empty comment now and then, to find out who has gone."""
    last, began, said = "", time.monotonic(), time.monotonic()
    while time.monotonic() - began < _LONGEST_STREAM:
        try:
            await run_in_threadpool(store.expire)
            job = await run_in_threadpool(store.get, job_id)
        except NotFoundError:
            yield _event("end", {"id": job_id, "state": "deleted"})
            return
        except DreamkitError as error:  # the queue's file: maybe it comes back
            yield _event("trouble", {"error": error.message, "hint": error.hint})
            return
        names = ("id", "state", "attempts", "run", "error", "hint", "progress")
        event = _event("end" if job.state in ENDED else "progress", {name: job.public()[name] for name in names})
        now = time.monotonic()
        if event != last or now - said > _PING:
            yield event if event != last else ": still here\n\n"
            last, said = event, now
        if job.state in ENDED:
            return
        await anyio.sleep(poll)


def _event(name: str, content: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(content)}\n\n"  # ASCII, without a line break


def _add_runs(router: APIRouter, store: JobStore, rules: Rules) -> None:
    tags: Tags = ["runs"]
    runs = rules.runs

    @router.get("/runs", response_model=forms.RunPage, tags=tags, summary="List runs, the newest first")
    def find(
        search: Search = "", limit: Annotated[int, Query(ge=1, le=200)] = 50, offset: Offset = 0
    ) -> dict[str, Any]:
        found, total = runs.find(search, limit, offset)
        return {"runs": [asdict(run) for run in found], "total": total}

    @router.get("/runs/{run_id}", response_model=forms.RunView, tags=tags, summary="One run")
    def get(run_id: RunId) -> dict[str, Any]:
        return asdict(runs.summary(run_id))

    @router.delete("/runs/{run_id}", status_code=204, tags=tags, summary="Delete a run with all its files")
    def delete(run_id: RunId) -> None:
        runs.folder(run_id)
        if store.uses_run(run_id):
            raise JobStateError(f"A job works on the run {run_id}.", "Cancel the job first.")
        runs.delete(run_id)

    @router.get("/runs/{run_id}/files", response_model=list[forms.FileView], tags=tags, summary="The files of a run")
    def files(run_id: RunId) -> list[dict[str, Any]]:
        return [asdict(file) for file in runs.files(run_id)]

    @router.head("/runs/{run_id}/files/{name:path}", include_in_schema=False)
    @router.get("/runs/{run_id}/files/{name:path}", tags=tags, summary="A file of a run")
    def file(
        run_id: RunId,
        name: str,
        download: Annotated[bool, Query(description="Store it, even if a browser could show it.")] = False,
    ) -> Response:
        path = runs.file(run_id, name)
        return file_response(path, is_report=runs.is_report(run_id, name), download=download)


def _add_choices(router: APIRouter, store: JobStore, rules: Rules) -> None:
    tags: Tags = ["choices"]

    def choices(about: dict[str, str]) -> list[dict[str, str]]:
        return [{"name": name, "about": text} for name, text in about.items()]

    @router.get("/presets", response_model=list[forms.Choice], tags=tags, summary="Quality against time")
    def presets() -> list[dict[str, str]]:
        return choices(PRESETS)

    @router.get("/scenes", response_model=list[forms.Choice], tags=tags, summary="What an asset is made of")
    def scenes() -> list[dict[str, str]]:
        return choices(SCENES)

    @router.get("/objectives", response_model=list[forms.Choice], tags=tags, summary="How a teacher is distilled")
    def objectives() -> list[dict[str, str]]:
        return choices(objective_titles())

    @router.get("/teachers", response_model=list[forms.Choice], tags=tags, summary="Diffusion models to distil")
    def teachers() -> list[dict[str, str]]:
        own = dict.fromkeys(rules.teachers, "a teacher that this server was started with")
        return choices({EMBEDDED: "the embedded teacher of the toy world", **own})

    @router.get("/health", response_model=forms.Health, tags=["server"], summary="How the server is")
    def health() -> dict[str, Any]:
        return {"status": "ok", "version": __version__, "workers": store.workers(), "jobs": store.counts()}


@cache
def objective_titles() -> dict[str, str]:
    """Objective -> the first line of what it says about itself."""
    from dreamkit.objectives import objective_class, objective_names
    from dreamkit.objectives.describe import describe

    return {name: describe(objective_class(name))["title"] for name in objective_names()}
