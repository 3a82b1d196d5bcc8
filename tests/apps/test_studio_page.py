"""The studio's page on the server's side: what its form does, what it serves, and what it never lets out."""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from dreamkit_apps.api import make_api
from dreamkit_apps.jobs.gallery import RunFolders
from dreamkit_apps.jobs.settings import Rules
from dreamkit_apps.jobs.store import JobStore, Limits
from dreamkit_apps.studio import form, look, make_studio, mount_studio
from dreamkit_apps.studio.examples import PICTURES, example_prompts
from dreamkit_apps.studio.mount import STATIC
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image

FILES = "/studio/dk"


@pytest.fixture
def rules(tmp_path: Path) -> Rules:
    return Rules(RunFolders(tmp_path / "outputs"), {"sd15": "/secret/models/sd15"})


@pytest.fixture
def store(rules: Rules) -> JobStore:
    return JobStore(rules.runs.root / ".jobs" / "queue.sqlite3", Limits(jobs=3, per_user=2), busy=0.2)


@pytest.fixture
def web(store: JobStore, rules: Rules) -> Iterator[TestClient]:
    app = FastAPI()
    app.include_router(make_api(store, rules))
    mount_studio(app, store, rules, user_of=lambda request: request.headers.get("x-user", "local"))
    with TestClient(app) as client:
        yield client


def filled(**values):
    return {**form.DEFAULTS, "prompt": "a red mug", **values}


def test_the_form_queues_a_job_and_runs_nothing(store, rules):
    answer = form.submit(store, rules, filled(teacher="sd15", seed=4, options="lambda=0.3\n\n"), "ada")
    assert set(answer) == {"error", "hint"}  # sds has no lambda
    answer = form.submit(
        store, rules, filled(objective="esd", teacher="sd15", seed=4, options=" lambda=0.3\n\n"), "ada"
    )
    job = store.get(answer["job"])
    assert (job.state, job.user, job.kind) == ("queued", "ada", "generate")
    assert job.settings["options"] == ["lambda=0.3"]
    assert job.settings["teacher"] == "/secret/models/sd15"
    assert (job.settings["seed"], job.settings["steps"], job.settings["guidance"]) == (4, None, None)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": " \n"}, "prompt is empty"),
        ({"prompt": "a" * 5_000_000}, ""),
        ({"prompt": 7}, "prompt"),
        ({"teacher": "/etc"}, "teacher"),
        ({"scene": "rm -rf"}, "scene"),
        ({"objective": "../x"}, "objective"),
        ({"preset": None, "steps": 10**9}, "steps"),
        ({"steps": 1.5}, "steps"),
        ({"steps": "many"}, "steps is 'many'"),
        ({"steps": "9" * 100_000}, "steps"),
        ({"seed": "-1"}, "seed"),
        ({"guidance": "nan"}, "guidance"),
        ({"guidance": float("nan")}, "guidance"),
        ({"options": "a=1\n" * 100}, "options"),
        ({"options": "reference=/etc/passwd"}, ""),
        ({"stages": "mesh:sds,nerf:sds"}, "stage"),
    ],
)
def test_what_can_not_be_is_explained(store, rules, values, problem):
    answer = form.submit(store, rules, filled(**values), "ada")
    assert problem in answer["error"]
    assert len(answer["error"]) < 1000
    assert store.find().total == 0


def test_numbers_are_written_as_text(store, rules):
    asked = form.settings_of(filled(steps=" 30 ", seed=str(2**62), guidance="7.5", views=""))
    assert (asked["steps"], asked["seed"], asked["guidance"]) == (30, 2**62, 7.5)
    assert "views" not in asked


def test_a_full_queue_is_explained(store, rules):
    for _ in range(2):
        assert "job" in form.submit(store, rules, filled(), "ada")
    assert "as many as one user may have" in form.submit(store, rules, filled(), "ada")["error"]
    assert "job" in form.submit(store, rules, filled(), "bob")
    assert "The queue is full" in form.submit(store, rules, filled(), "eve")["error"]


def handler(web: TestClient) -> dict:
    config = web.get("/studio/config").json()
    # Besides the form's there are only the endpoints of gradio_client, which have names.
    handlers = [item for item in config["dependencies"] if item["backend_fn"]]
    (found,) = [item for item in handlers if item["api_name"] not in ("generate", "job")]
    assert len(handlers) == 3
    return found


def test_the_handler_knows_who_asks(web, store):
    found = handler(web)
    body = {"data": list(filled().values()), "fn_index": found["id"], "session_hash": "s"}
    assert web.post("/studio/gradio_api/queue/join", json=body, headers={"x-user": "ada"}).status_code == 200
    with web.stream("GET", "/studio/gradio_api/queue/data?session_hash=s") as events:
        text = "".join(events.iter_text())
    assert '"success":true' in text
    (job,) = store.find().jobs
    assert (job.user, job.prompt) == ("ada", "a red mug")


def test_nothing_on_the_page_is_from_elsewhere_and_nothing_is_told(web):
    page = web.get("/studio/").text
    loaded = re.findall(r"<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=\"([^\"]*)\"", page)
    assert loaded
    assert not [address for address in loaded if re.match(r"(https?:)?//", address)]
    config = web.get("/studio/config").json()
    assert config["analytics_enabled"] is False
    assert not config.get("show_api") or config["footer_links"] == []
    assert "/secret" not in page
    for file in STATIC.iterdir():
        assert not re.search(r"https?://(?!www\.w3\.org/)", file.read_text()), file


def test_our_scripts_never_make_html_of_text():
    for file in STATIC.glob("*.js"):
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", file.read_text()), file


def test_files_of_the_page_and_nothing_else(web):
    for name in ("studio.js", "viewer.js", "studio.css", "theme.js", "icon.svg"):
        assert web.get(f"{FILES}/{name}").status_code == 200
    for name in ("nothing.js", "..%2Fmount.py", "%2e%2e/mount.py", ".", "theme.css%00"):
        assert web.get(f"{FILES}/{name}").status_code == 404
    assert web.get("/favicon.ico").headers["content-type"] == "image/svg+xml"


def test_gradio_gives_no_file_of_the_server_and_takes_none(web, store):
    for path in (store.path, Path(__file__), Path("/etc/passwd")):
        assert web.get(f"/studio/gradio_api/file={path}").status_code in (403, 404)
    large = {"files": ("a.txt", io.BytesIO(b"x" * 5000))}
    assert web.post("/studio/gradio_api/upload", files=large).status_code >= 400


def test_scripts_import_only_scripts_that_are_there():
    for file in STATIC.glob("*.js"):
        for name in re.findall(r"from \"\./([a-z]+\.js)\"", file.read_text()):
            assert (STATIC / name).is_file()


def comparison(rules: Rules) -> Path:
    folder = rules.runs.new_folder("a-mug", "compare", "20261128T000000Z-abcdef12")
    (folder / "views").mkdir(parents=True)
    (folder / "plan.json").write_text(json.dumps({"prompts": ["a mug"]}))
    return folder


def test_a_turntable_becomes_a_strip(web, rules):
    folder = comparison(rules)
    frames = [Image.new("RGB", (16, 16), (40 * index, 0, 0)) for index in range(6)]
    frames[0].save(folder / "views" / "k-1.webp", save_all=True, append_images=frames[1:], duration=50, lossless=True)
    answer = web.get(f"{FILES}/strips/a-mug~compare~{folder.name}/k-1")
    assert answer.headers["content-type"] == "image/webp"
    with Image.open(io.BytesIO(answer.content)) as strip:
        assert strip.size == (96, 16)
        reds = [strip.convert("RGB").getpixel((16 * index + 8, 8))[0] for index in range(6)]
    assert reds == [pytest.approx(40 * index, abs=12) for index in range(6)]


def test_a_strip_of_what_is_no_turntable(web, rules, tmp_path):
    folder = comparison(rules)
    (folder / "views" / "torn.webp").write_bytes(b"RIFF\x10\x00\x00\x00WEBPVP8 ")
    Image.new("RGB", (8, 8)).save(folder / "views" / "png.webp", "PNG")
    Image.new("RGB", (600, 600)).save(folder / "views" / "large.webp")
    (tmp_path / "outside.webp").write_bytes(b"x")
    (folder / "views" / "link.webp").symlink_to(tmp_path / "outside.webp")
    for key in ("torn", "png", "large", "link", "none", "..", "a%2Fb", "a.b"):
        assert web.get(f"{FILES}/strips/a-mug~compare~{folder.name}/{key}").status_code == 404
    assert web.get(f"{FILES}/strips/nothing/none").status_code == 404


def test_the_look_uses_colours_that_are_there():
    defined = set(re.findall(r"(--dk-[a-z-]+):", look.theme_variables()))
    styles = (STATIC / "studio.css").read_text()
    used = set(re.findall(r"var\((--dk-[a-z-]+)\)", styles)) | {f"--dk-{name}" for name in look._COLOURS.values()}
    assert used <= defined
    assert "button" not in look.theme_variables()


def test_a_paper_in_short():
    title = 'SDS (Poole et al., "DreamFusion: Text-to-3D using 2D Diffusion", arXiv 2209.14988), and more.'
    assert form.paper(title) == "DreamFusion (Poole et al.)"
    assert form.paper("Something else.") == "Something else"


def test_examples_have_small_pictures():
    for example in example_prompts():
        assert example["picture"], example
        assert (PICTURES / example["picture"]).stat().st_size < 30_000
    assert len(example_prompts()) <= 6


def test_the_interface_needs_no_live_video(store, rules):
    blocks = make_studio(store, rules, live_path=None)
    tabs = [block.label for block in blocks.blocks.values() if type(block).__name__ == "Tab"]
    assert tabs == ["Text to 3D", "Gallery", "Compare"]
