import asyncio
import json
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import pytest
from dreamkit_apps.api import make_api
from dreamkit_apps.api_models import JOB_REQUEST
from dreamkit_apps.jobs.gallery import RunFolders
from dreamkit_apps.jobs.job import Progress
from dreamkit_apps.jobs.settings import GenerateSettings, Rules
from dreamkit_apps.jobs.store import JobStore, Limits
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from dreamkit.runs import Run

JOBS = "/api/v1/jobs"


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(tmp_path / "q", Limits(jobs=20, per_user=10), busy=0.2)


@pytest.fixture
def rules(tmp_path: Path) -> Rules:
    return Rules(RunFolders(tmp_path / "outputs"), {"sd15": "/secret/models/sd15"})


@pytest.fixture
def app(store: JobStore, rules: Rules) -> FastAPI:
    app = FastAPI()
    app.include_router(
        make_api(store, rules, user_of=lambda request: request.headers.get("x-user", "local"), poll=0.01)
    )
    return app


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app) as client:
        yield client


def submit(client: TestClient, **settings: Any) -> dict[str, Any]:
    answer = client.post(JOBS, json={"settings": {"prompt": "a red mug", **settings}})
    assert answer.status_code == 201, answer.text
    return answer.json()


def test_a_job_is_submitted_and_found(client: TestClient) -> None:
    job = submit(client, prompt=" a  red mug ", steps=3, teacher="sd15")
    assert (job["state"], job["prompt"], job["user"], job["kind"]) == ("queued", "a red mug", "local", "generate")
    assert job["command"] == "dreamkit generate --teacher=sd15 --steps=3 -- 'a red mug'"
    assert "secret" not in json.dumps(job)
    assert "worker" not in job
    assert client.get(f"{JOBS}/{job['id']}").json() == job
    listed = client.get(JOBS, params={"search": "MUG", "state": "queued,running", "limit": 1}).json()
    assert listed["total"] == 1
    assert listed["jobs"][0] == {**job, "command": None}
    assert client.get(JOBS, params={"search": "duck"}).json() == {"jobs": [], "total": 0}


def test_the_location_of_a_new_job_is_told(client: TestClient) -> None:
    answer = client.post(JOBS, json={"settings": {"prompt": "a mug"}})
    assert client.get(answer.headers["location"]).json()["id"] == answer.json()["id"]


def test_edits_and_comparisons(client: TestClient, rules: Rules) -> None:
    run_id = rules.runs.run_id(Run.create(rules.runs.root, "a-mug", "sds", {"prompt": "a mug"}).path)
    edit = client.post(JOBS, json={"kind": "edit", "settings": {"source": run_id, "prompt": "a blue mug"}}).json()
    assert edit["command"].startswith("dreamkit edit -- outputs/a-mug/sds/")
    settings = {"prompt": "a mug", "objectives": ["sds", "csd"]}
    assert client.post(JOBS, json={"kind": "compare", "settings": settings}).json()["kind"] == "compare"
    client.delete(f"{JOBS}/{edit['id']}")
    again = client.post(JOBS, json={"kind": "edit", "settings": {"source": run_id, "prompt": "a blue mug"}}).json()
    shutil.rmtree(rules.runs.root)
    assert client.get(f"{JOBS}/{again['id']}").json()["command"] is None


def test_cancel_retry_and_delete(client: TestClient, store: JobStore) -> None:
    path = f"{JOBS}/{submit(client)['id']}"
    assert client.post(f"{path}/cancel").json()["state"] == "cancelled"
    assert client.post(f"{path}/cancel").status_code == 409
    assert client.post(f"{path}/retry?fresh=true").json()["state"] == "queued"
    assert client.post(f"{path}/retry").status_code == 409
    store.claim("w", 60)
    assert client.delete(path).status_code == 409
    assert client.post(f"{path}/cancel").json()["state"] == "cancelling"
    store.finish(path.rpartition("/")[2], "w", "cancelled")
    assert client.delete(path).status_code == 204
    for answer in (client.get(path), client.delete(path), client.post(f"{path}/cancel"), client.get(f"{path}/events")):
        assert answer.status_code == 404
        assert set(answer.json()) == {"error", "hint"}


@pytest.mark.parametrize(
    ("body", "status", "problem"),
    [
        (b"", 400, "not a JSON object"),
        (b"[]", 400, "not a JSON object"),
        (b"null", 400, "not a JSON object"),
        (b"{", 400, "not a JSON object"),
        (b"\xff\xfe", 400, "not a JSON object"),
        (b"[" * 60_000, 400, "not a JSON object"),
        (b'{"settings": {"prompt": "a", "guidance": NaN}}', 400, "not a JSON object"),
        (b'{"settings": {"prompt": "a", "guidance": 1e999}}', 422, "guidance"),
        (b'{"settings": {"prompt": "a", "seed": 1' + b"0" * 5000 + b"}}", 400, "not a JSON object"),
        (b"{}", 422, "needs settings"),
        (b'{"settings": []}', 422, "needs settings"),
        (b'{"kind": 3, "settings": {}}', 422, "needs settings"),
        (b'{"kind": "rm", "settings": {"prompt": "a"}}', 422, "kind of job"),
        (b'{"settings": {"prompt": "a"}, "user": "root"}', 422, "no 'user'"),
        (b'{"settings": {"prompt": "a"}, "priority": 5}', 422, "priority"),
        (b'{"settings": {"prompt": "a"}, "priority": -1000000}', 422, "priority"),
        (b'{"settings": {"prompt": "a"}, "priority": true}', 422, "priority"),
        (b'{"settings": {"prompt": "a \\u202e b"}}', 422, "U+202E"),
        (b'{"settings": {"prompt": "a \\u0007 b"}}', 422, "U+0007"),
        (b'{"settings": {"prompt": "a \\ud800 b"}}', 422, "U+D800"),
        (b'{"settings": {"prompt": "a", "\\ud800": 1}}', 422, "no setting"),
        (b'{"\\ud800": 1}', 422, "A job has no"),
        (b'{"settings": {"prompt": "a", "preset": "\\ud800"}}', 422, "preset"),
        (b'{"settings": {"prompt": "a", "stages": "\\ud800:x"}}', 422, ""),
    ],
)
def test_a_bad_body_is_explained(client: TestClient, store: JobStore, body: bytes, status: int, problem: str) -> None:
    answer = client.post(JOBS, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status
    assert problem in answer.json()["error"]
    assert answer.json()["hint"]
    assert store.find().total == 0


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_a_form_of_a_foreign_page_is_no_request(client: TestClient, kind: str) -> None:
    body = b'{"settings": {"prompt": "a"}}'
    assert client.post(JOBS, content=body, headers={"content-type": kind}).status_code == 415


async def call(app: FastAPI, method: str, path: str, chunks: list[bytes], headers: list[tuple[bytes, bytes]]) -> tuple:
    """What an app answers to a request as it is, byte for byte; and how many chunks it took."""
    taken, sent = 0, []

    async def receive() -> dict[str, Any]:
        nonlocal taken
        taken += 1
        more = taken < len(chunks)
        return {"type": "http.request", "body": chunks[taken - 1] if taken <= len(chunks) else b"", "more_body": more}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    raw, _, query = path.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(raw),  # as uvicorn does
        "raw_path": raw.encode("utf-8", errors="replace"),
        "query_string": query.encode(),
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    await app(scope, receive, send)
    body = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], dict(sent[0]["headers"]), body, taken


@pytest.mark.parametrize("announced", [True, False])
def test_five_megabytes_are_refused_unread(app: FastAPI, announced: bool) -> None:
    chunks = [b'{"settings": {"prompt": "' + b"x" * 65_536] + [b"x" * 65_536] * 80
    headers = [(b"content-type", b"application/json")]
    if announced:
        headers.append((b"content-length", str(sum(map(len, chunks))).encode()))
    status, _, body, taken = asyncio.run(call(app, "POST", JOBS, chunks, headers))
    assert status == 413
    assert b"65,536 bytes" in body
    assert taken <= (0 if announced else 2)


def test_limits_are_429(client: TestClient) -> None:
    for _ in range(10):
        submit(client)
    refused = client.post(JOBS, json={"settings": {"prompt": "a mug"}})
    assert refused.status_code == 429
    assert "retry-after" in refused.headers
    assert client.post(JOBS, json={"settings": {"prompt": "a mug"}}, headers={"x-user": "ada"}).status_code == 201


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=501",
        "limit=x",
        "offset=-1",
        "offset=99999999999999999999",
        "state=lost",
        "search=" + "x" * 999,
    ],
)
def test_a_bad_query_is_explained(client: TestClient, query: str) -> None:
    answer = client.get(f"{JOBS}?{query}")
    assert answer.status_code == 422
    assert set(answer.json()) == {"error", "hint"}


def test_a_broken_queue_is_503(client: TestClient, store: JobStore) -> None:
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    answer = client.post(JOBS, json={"settings": {"prompt": "a mug"}})
    assert answer.status_code == 503
    assert "locked" in answer.json()["error"]


def events_of(text: str) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for block in text.split("\n\n"):
        if block.startswith("event: "):
            name, data = block.split("\n")
            found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def test_events_tell_every_change_and_end(app: FastAPI, store: JobStore) -> None:
    job_id = store.submit(GenerateSettings(prompt="a mug")).id

    async def follow() -> str:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            answer, _ = await asyncio.gather(client.get(f"{JOBS}/{job_id}/events"), change())
        assert answer.headers["content-type"].startswith("text/event-stream")
        return answer.text

    async def change() -> None:
        await asyncio.sleep(0.2)
        store.claim("w", 60)
        for step in (1, 2):
            store.heartbeat(job_id, "w", 60, Progress("optimising", step, 2))
            await asyncio.sleep(0.2)
        store.finish(job_id, "w", "done")

    events = events_of(asyncio.run(follow()))
    assert [name for name, _ in events] == ["progress"] * (len(events) - 1) + ["end"]
    assert [data["state"] for _, data in events][:2] == ["queued", "running"]
    assert [data["progress"]["step"] for _, data in events][-3:] == [1, 2, 2]
    assert events[-1][1]["state"] == "done"


def test_events_of_an_ended_and_of_a_deleted_job(client: TestClient, store: JobStore) -> None:
    job_id = submit(client)["id"]
    store.cancel(job_id)
    assert [name for name, _ in events_of(client.get(f"{JOBS}/{job_id}/events").text)] == ["end"]


def test_streams_are_bounded_and_end_with_their_client(store: JobStore, rules: Rules) -> None:
    app = FastAPI()
    app.include_router(make_api(store, rules, max_streams=1, poll=0.01))
    job_id = store.submit(GenerateSettings(prompt="a mug")).id

    async def leave_soon() -> int:
        """Open a stream, ask for a second one, leave; then ask again."""
        gone = asyncio.Event()
        first_event = asyncio.Event()

        async def receive() -> dict[str, Any]:
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            if message.get("body"):
                first_event.set()

        path = f"{JOBS}/{job_id}/events"
        scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b"",
                 "headers": [], "asgi": {"version": "3.0", "spec_version": "2.3"}, "root_path": "",
                 "scheme": "http", "http_version": "1.1", "client": ("1.1.1.1", 1), "server": ("x", 80)}  # fmt: skip
        stream = asyncio.create_task(app(scope, receive, send))
        await asyncio.wait_for(first_event.wait(), 10)
        status, _, _, _ = await call(app, "GET", path, [b""], [])
        assert status == 429
        gone.set()
        await asyncio.wait_for(stream, 10)
        store.cancel(job_id)
        status, _, _, _ = await call(app, "GET", path, [b""], [])
        return status

    assert asyncio.run(leave_soon()) == 200


def test_streams_end_when_the_server_goes(store: JobStore, rules: Rules) -> None:
    app = FastAPI()
    app.include_router(make_api(store, rules, poll=0.01, stopping=lambda: True))
    job_id = store.submit(GenerateSettings(prompt="a mug")).id
    assert [name for name, _ in events_of(TestClient(app).get(f"{JOBS}/{job_id}/events").text)] == ["progress"]


def test_choices_and_health(client: TestClient, store: JobStore) -> None:
    for name, member in (("presets", "draft"), ("scenes", "mesh"), ("objectives", "vsd"), ("teachers", "sd15")):
        listed = client.get(f"/api/v1/{name}").json()
        assert member in [choice["name"] for choice in listed]
        assert all(choice["about"] and "\n" not in choice["about"] for choice in listed)
        assert "secret" not in json.dumps(listed)
    store.greet("w")
    submit(client)
    health = client.get("/api/v1/health").json()
    assert (health["status"], health["workers"], health["jobs"]["queued"]) == ("ok", 1, 1)


def test_it_is_documented(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    submit_docs = described["paths"][JOBS]["post"]
    assert set(submit_docs["requestBody"]["content"]["application/json"]["examples"]) == {"generate", "edit", "compare"}
    for path, methods in described["paths"].items():
        for method, about in methods.items():
            assert about["tags"], (path, method)
            assert about["summary"], (path, method)


def test_the_examples_work(client: TestClient, rules: Rules) -> None:
    run = Run.create(rules.runs.root, "a-red-mug", "sds", {"prompt": "a red mug"}).path
    for example in JOB_REQUEST["requestBody"]["content"]["application/json"]["examples"].values():
        body = json.loads(json.dumps(example["value"]).replace("20261128T030254Z", run.name))
        assert client.post(JOBS, json=body).status_code == 201


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    ["prompt", "steps", "seed", "guidance", "options", "stages", "teacher", "region", "objectives"]
)


@given(st.sampled_from(["generate", "edit", "compare"]), st.dictionaries(FIELDS, JSON, max_size=4))
def test_no_settings_break_the_server(tmp_path_factory: pytest.TempPathFactory, kind: str, settings: dict) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    app = FastAPI()
    app.include_router(make_api(JobStore(folder / "q", Limits(10**6, 10**6)), Rules(RunFolders(folder))))
    body = json.dumps({"kind": kind, "settings": {"prompt": "a mug", **settings}})
    answer = TestClient(app).post(JOBS, content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (201, 400, 404, 422)  # 404: an edit of a run that isn't there
    assert answer.status_code == 201 or set(answer.json()) == {"error", "hint"}
