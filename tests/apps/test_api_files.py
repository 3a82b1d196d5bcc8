import asyncio
import os
from pathlib import Path
from urllib.parse import quote

import pytest
from dreamkit_apps.api import make_api
from dreamkit_apps.jobs.gallery import RunFolders
from dreamkit_apps.jobs.settings import GenerateSettings, Rules
from dreamkit_apps.jobs.store import JobStore
from dreamkit_apps.web import disposition
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from test_api import call
from test_jobs_gallery import PROBES, id_of, make_run

SECRET = b"nobody may see this"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "secret.txt").write_bytes(SECRET)
    (tmp_path / "outputs" / ".jobs").mkdir(parents=True)
    (tmp_path / "outputs" / ".jobs" / "secret.txt").write_bytes(SECRET)
    run = make_run(tmp_path / "outputs")
    (run / ".lock").write_bytes(SECRET)
    (run / "link.txt").symlink_to(tmp_path / "secret.txt")
    (run / "up").symlink_to(tmp_path)
    os.mkfifo(run / "pipe")
    return run


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(tmp_path / "q")


@pytest.fixture
def app(tmp_path: Path, store: JobStore) -> FastAPI:
    app = FastAPI()
    app.include_router(make_api(store, Rules(RunFolders(tmp_path / "outputs"))))
    return app


@pytest.fixture
def client(app: FastAPI) -> TestClient:
    return TestClient(app)


def url(run: Path, name: str = "") -> str:
    return f"/api/v1/runs/{id_of(run)}/files/{name}"


def test_runs_and_their_files(client: TestClient, run: Path) -> None:
    listed = client.get("/api/v1/runs", params={"search": "red"}).json()
    assert [item["id"] for item in listed["runs"]] == [id_of(run)]
    assert client.get(f"/api/v1/runs/{id_of(run)}").json() == listed["runs"][0]
    files = client.get(f"/api/v1/runs/{id_of(run)}/files").json()
    assert {"name": "exports/scene.ply", "size": 3} in files
    for file in files:
        answer = client.get(url(run, file["name"]))
        assert answer.status_code == 200
        assert len(answer.content) == file["size"]


@pytest.mark.parametrize(
    ("name", "kind", "shown"),
    [
        ("picture.png", "image/png", True),
        ("FILM.MP4", "video/mp4", True),
        ("notes.yaml", "text/plain; charset=utf-8", True),
        ("numbers.json", "application/json", True),
        ("scene.ply", "application/octet-stream", False),
        ("mesh.glb", "model/gltf-binary", False),
        ("page.html", "application/octet-stream", False),
        ("page.HTM", "application/octet-stream", False),
        ("page.xhtml", "application/octet-stream", False),
        ("drawing.svg", "application/octet-stream", False),
        ("script.js", "application/octet-stream", False),
        ("feed.xml", "application/octet-stream", False),
        ("paper.pdf", "application/octet-stream", False),
        ("page.html.png", "image/png", True),
        ("noending", "application/octet-stream", False),
        ("report.html", "application/octet-stream", False),
    ],
)
def test_types_are_ours_and_nothing_runs(client: TestClient, run: Path, name: str, kind: str, shown: bool) -> None:
    (run / name).write_bytes(b"<script>alert(1)</script>")
    answer = client.get(url(run, name))
    assert answer.headers["content-type"] == kind
    assert answer.headers["content-disposition"].startswith("inline" if shown else "attachment")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"] == "sandbox; default-src 'none'"
    stored = client.get(url(run, name) + "?download=true")
    assert stored.headers["content-disposition"].startswith("attachment")


def test_a_comparisons_report_is_shown_in_a_sandbox(client: TestClient, tmp_path: Path) -> None:
    folder = tmp_path / "outputs" / "a-mug" / "compare" / "1"
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text("{}")
    (folder / "runs").mkdir()
    for name in ("report.html", "runs/report.html"):
        (folder / name).write_text("<p>hello")
    answer = client.get(url(folder, "report.html"))
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("sandbox allow-scripts; default-src 'none'")
    assert "allow-same-origin" not in policy
    assert client.get(url(folder, "runs/report.html")).headers["content-disposition"].startswith("attachment")
    assert client.get(url(folder, "report.html?download=1")).headers["content-disposition"].startswith("attachment")


def test_odd_names_are_safe_in_headers(app: FastAPI, run: Path) -> None:
    for name in ('quo"te;.png', "new line 日本.png", "Ünï “x”.ply", "a%20b.png", "semi;colon='x'.png"):
        (run / name).write_bytes(b"123")
        _, headers, body, _ = asyncio.run(call(app, "GET", url(run, quote(name, safe="")), [b""], []))
        assert body == b"123", name
        header = headers[b"content-disposition"].decode("ascii")
        assert header.count('"') == 2
        assert quote(name, safe="") in header


@given(st.text(max_size=40))
def test_any_name_makes_one_plain_header(name: str) -> None:
    header = disposition(name, shown=False)
    assert header.isascii()
    assert header.isprintable()
    assert header.count('"') == 2
    assert "\\" not in header


def test_films_can_be_read_in_parts(client: TestClient, run: Path) -> None:
    (run / "film.mp4").write_bytes(bytes(range(100)))
    answer = client.get(url(run, "film.mp4"), headers={"range": "bytes=10-19"})
    assert (answer.status_code, answer.content) == (206, bytes(range(10, 20)))
    assert client.head(url(run, "film.mp4")).headers["content-length"] == "100"
    assert client.get(url(run, "film.mp4"), headers={"range": "bytes=200-"}).status_code == 416


RAW = [
    # The router drops a line break at the end: what is served is config.yaml.
    *(probe for probe in PROBES if probe != "config.yaml\n"),
    *("%2e%2e/%2e%2e/%2e%2e/%2e%2e/secret.txt", "..%2f..%2f..%2f..%2fsecret.txt", "%2fetc%2fpasswd", "..%5csecret.txt"),
    *(
        "%252e%252e/secret.txt",
        "..%252fsecret.txt",
        "%c0%ae%c0%ae/secret.txt",
        "%00",
        "config.yaml%00",
        "up/secret.txt",
    ),
    *("link.txt", "%2elock", "../../../.jobs/secret.txt", "exports/..;/config.yaml", "....//config.yaml", "%ff%fe"),
]


@pytest.mark.parametrize("name", RAW)
def test_no_path_leads_out(app: FastAPI, run: Path, name: str) -> None:
    status, headers, body, _ = asyncio.run(call(app, "GET", url(run, name.replace("?", "%3f")), [b""], []))
    assert status in (404, 307), body
    assert SECRET not in body
    assert status == 307 or headers[b"content-type"] == b"application/json"


PIECES = [
    "..",
    ".",
    "/",
    "%2e",
    "%2f",
    "%5c",
    "%00",
    "up",
    "link.txt",
    "secret.txt",
    "exports",
    ".lock",
    "outputs",
    "%25",
]


@given(st.lists(st.one_of(st.sampled_from(PIECES), st.text("abc~%/.", max_size=3)), max_size=10).map("".join))
def test_no_secret_is_ever_served(tmp_path_factory: pytest.TempPathFactory, path: str) -> None:
    base = tmp_path_factory.getbasetemp() / "probed"
    run = next(iter((base / "outputs").glob("*/*/*")), None) or make_run(base / "outputs")
    (base / "secret.txt").write_bytes(SECRET)
    (run / ".lock").write_bytes(SECRET)
    if not (run / "up").is_symlink():
        (run / "up").symlink_to(base)
        (run / "link.txt").symlink_to(base / "secret.txt")
    app = FastAPI()
    app.include_router(make_api(JobStore(base / "q"), Rules(RunFolders(base / "outputs"))))
    for start in (url(run), "/api/v1/runs/"):
        status, _, body, _ = asyncio.run(call(app, "GET", start + path, [b""], []))
        assert status in (200, 307, 404, 422)
        assert SECRET not in body


def test_a_run_is_deleted_unless_somebody_works_on_it(client: TestClient, store: JobStore, run: Path) -> None:
    path = f"/api/v1/runs/{id_of(run)}"
    job = store.submit(GenerateSettings(prompt="a mug"))
    store.claim("w", 60)
    store.heartbeat(job.id, "w", 60, run=id_of(run))
    assert client.delete(path).status_code == 409
    assert run.exists()
    store.finish(job.id, "w", "done")
    assert client.delete(path).status_code == 204
    assert not run.exists()
    assert (run.parents[3] / "secret.txt").exists()  # behind a link in the run
    for answer in (
        client.get(path),
        client.delete(path),
        client.get(f"{path}/files"),
        client.get(url(run, "config.yaml")),
    ):
        assert answer.status_code == 404


@pytest.mark.parametrize("run_id", ["..%2f..~a~b", "..~..~..", ".jobs", "%00~a~b", "a~b~c%2f..", "x" * 500])
def test_no_id_deletes_anything_else(client: TestClient, run: Path, run_id: str) -> None:
    assert client.delete(f"/api/v1/runs/{run_id}").status_code in (404, 405, 422)
    assert run.exists()
    assert (run.parents[2] / ".jobs" / "secret.txt").exists()
