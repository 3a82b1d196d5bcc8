"""The studio from a Python program, through `gradio_client` and the whole server."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio_client
import pytest
from dreamkit_apps.api import make_api
from dreamkit_apps.jobs.gallery import RunFolders
from dreamkit_apps.jobs.settings import Rules
from dreamkit_apps.jobs.store import QUEUE_FILE, JobStore
from dreamkit_apps.server import make_app
from dreamkit_apps.studio import mount_studio
from live_fakes import FakeModel, running


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(tmp_path / QUEUE_FILE)


@pytest.fixture
def client(store: JobStore, tmp_path: Path) -> Iterator[Any]:
    rules = Rules(RunFolders(tmp_path))
    app = make_app(FakeModel(), routers=[make_api(store, rules)], interface=lambda app: mount_studio(app, store, rules))
    with running(app) as url:
        yield gradio_client.Client(f"{url}/studio/", verbose=False, analytics_enabled=False, download_files=False)


def test_a_job_is_queued_and_asked_for(client: Any, store: JobStore) -> None:
    job = client.predict("a red mug", seed=3, scene="nerf", api_name="/generate")
    assert store.get(job).settings["seed"] == 3
    assert store.get(job).settings["scene"] == "nerf"
    told = client.predict(job, api_name="/job")
    assert (told["state"], told["prompt"]) == ("queued", "a red mug")


def test_mistakes_come_back_in_words(client: Any) -> None:
    with pytest.raises(Exception, match="The prompt is empty"):
        client.predict("", api_name="/generate")
    with pytest.raises(Exception, match="There is no job"):
        client.predict("none", api_name="/job")


def test_nothing_else_is_offered(client: Any) -> None:
    named = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert set(named) == {"/generate", "/job"}
