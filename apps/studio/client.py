"""What `gradio_client` may ask: to queue a job, and how one is. Everything else is in the HTTP API."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr
from dreamkit_apps.api import job_view
from dreamkit_apps.jobs.settings import Rules
from dreamkit_apps.jobs.store import JobStore
from dreamkit_apps.studio.form import DEFAULTS, submit
from fastapi import Request

from dreamkit.errors import DreamkitError


def add_endpoints(store: JobStore, rules: Rules, user_of: Callable[[Request], str]) -> None:
    """Add the endpoints `/generate` and `/job` to the Gradio blocks that are open.

    Args:
        store: the queue.
        rules: what a job may ask for.
        user_of: who calls.
    """

    def generate(
        prompt: str,
        negative: str = "",
        preset: str = str(DEFAULTS["preset"]),
        objective: str = str(DEFAULTS["objective"]),
        scene: str = str(DEFAULTS["scene"]),
        teacher: str = str(DEFAULTS["teacher"]),
        seed: int = 0,
        request: gr.Request | None = None,
    ) -> str:
        """Queue a job; returns its id."""
        asked: dict[str, Any] = {"prompt": prompt, "negative": negative, "preset": preset, "objective": objective}
        asked |= {"scene": scene, "teacher": teacher, "seed": seed}
        user = "local" if request is None else user_of(request.request)
        answer = submit(store, rules, asked, user)
        if "error" in answer:
            raise gr.Error(f"{answer['error']} {answer['hint']}".strip())
        return answer["job"]

    def job(id: str) -> dict[str, Any]:
        """How a job is: its state, its progress and, once it has one, the id of its run."""
        try:
            return job_view(store.get(id), rules)
        except DreamkitError as error:
            raise gr.Error(error.message) from error

    generate.__annotations__ = {**_TYPES, "request": gr.Request, "return": str}
    job.__annotations__ = {"id": str, "return": dict}
    gr.api(generate, api_name="generate")
    gr.api(job, api_name="job")


# Gradio reads them; strings, which they are in this file, would not do.
_TYPES: dict[str, type] = {
    **dict.fromkeys(("prompt", "negative", "preset", "objective", "scene", "teacher"), str),
    "seed": int,
}
