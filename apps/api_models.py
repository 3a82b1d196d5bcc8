"""The forms of the API's answers, for its documentation."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field


class Explained(BaseModel):
    """What went wrong."""

    error: str = Field(examples=["The prompt is empty."])
    hint: str | None = Field(None, examples=['Say what to make, for example "a red mug".'])


class JobProgress(BaseModel):
    """How far a job is."""

    stage: str = Field(description="What is done now, in words.", examples=["optimising"])
    step: int = Field(examples=[120])
    total: int | None = Field(examples=[250])
    eta: float | None = Field(description="Seconds that the stage still takes.", examples=[31.5])
    loss: float | None = Field(examples=[0.12])


class JobView(BaseModel):
    """A job."""

    id: str = Field(examples=["5f0c3a9b4be24b6c8f0f3f9f5b1c2d3e"])
    kind: str = Field(examples=["generate"])
    user: str
    priority: int
    state: str = Field(description="queued, running, cancelling, done, cancelled, failed or quarantined")
    attempts: int = Field(description="Starts that came to nothing.")
    crashes: int
    created: float = Field(description="Seconds since 1970, as all times.")
    started: float | None
    ended: float | None
    run: str | None = Field(description="The id of its run.", examples=["a-red-mug~sds~20261128T030254Z"])
    prompt: str
    settings: dict[str, Any]
    error: str | None
    hint: str | None
    progress: JobProgress
    result: dict[str, Any]
    command: str | None = Field(
        None, description="The same job for a shell.", examples=["dreamkit generate -- 'a red mug'"]
    )


class JobPage(BaseModel):
    """Jobs, the newest first."""

    jobs: list[JobView]
    total: int = Field(description="How many there are on all pages.")


class RunView(BaseModel):
    """A run."""

    id: str = Field(examples=["a-red-mug~sds~20261128T030254Z"])
    prompt: str
    objective: str
    scene: str
    preset: str
    created: str
    finished: bool
    preview: str | None = Field(description="The name of a picture among its files.")


class RunPage(BaseModel):
    """Runs, the newest first."""

    runs: list[RunView]
    total: int


class FileView(BaseModel):
    """A file of a run."""

    name: str = Field(examples=["exports/mesh.glb"])
    size: int = Field(description="Bytes.")


class Choice(BaseModel):
    """Something to choose."""

    name: str
    about: str


class Health(BaseModel):
    """How the server is."""

    status: str
    version: str
    workers: int = Field(description="Workers that were heard of in the last 20 seconds.")
    jobs: dict[str, int] = Field(description="How many jobs there are in each state.")


JOB_REQUEST: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["settings"],
                    "additionalProperties": False,
                    "properties": {
                        "kind": {"type": "string", "enum": ["generate", "edit", "compare"], "default": "generate"},
                        "settings": {"type": "object", "required": ["prompt"]},
                        "priority": {"type": "integer", "minimum": -100, "default": 0},
                    },
                },
                "examples": {
                    "generate": {"value": {"settings": {"prompt": "a red mug", "preset": "draft", "seed": 1}}},
                    "edit": {
                        "value": {
                            "kind": "edit",
                            "settings": {"source": "a-red-mug~sds~20261128T030254Z", "prompt": "a blue mug"},
                        }
                    },
                    "compare": {
                        "value": {
                            "kind": "compare",
                            "settings": {"prompt": "a red mug", "objectives": ["sds", "csd"], "steps": 50},
                        }
                    },
                },
            }
        },
    }
}
"""The body of a new job: it is read by hand, with a limit, so FastAPI has to be told."""
