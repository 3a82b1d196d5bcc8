"""A studio of toy jobs (`toy_jobs`), and browsers that visit it: what the tests of its page share."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import uvicorn
from dreamkit_apps.api import make_api
from dreamkit_apps.guard import GRADIO_CSP, STRICT_CSP, Guard, GuardPolicy
from dreamkit_apps.jobs.gallery import RunFolders
from dreamkit_apps.jobs.settings import GenerateSettings, Rules
from dreamkit_apps.jobs.store import QUEUE_FILE, JobStore, Limits
from dreamkit_apps.studio import mount_studio
from fastapi import FastAPI
from PIL import Image

from dreamkit.files import atomic_path
from dreamkit.scenes.gaussian_config import GaussianConfig
from dreamkit.scenes.gaussians import GaussianScene
from dreamkit.scenes.splat_files import write_ply, write_splat

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
TOYS = Path(__file__).parents[1] / "toy_jobs.py"
# A machine without a GPU draws WebGL in software.
FLAGS = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--no-sandbox"]

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")


@dataclass
class Studio:
    url: str
    out: Path
    store: JobStore

    def queue(self, **settings: Any) -> str:
        return self.store.submit(GenerateSettings(**{"prompt": "a red mug", **settings})).id

    def run_of(self, job: str) -> Path:
        return until(lambda: (found := self.store.get(job).run) and self.out.joinpath(*found.split("~")))


def until(holds: Callable[[], Any], patience: float = 30.0) -> Any:
    deadline = time.monotonic() + patience
    while not (found := holds()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    out = tmp_path_factory.mktemp("outputs")
    store = JobStore(out / QUEUE_FILE, Limits(jobs=6, per_user=6))
    rules = Rules(RunFolders(out))
    app = FastAPI()
    app.include_router(make_api(store, rules))
    mount_studio(app, store, rules, live_path=None)
    app.add_middleware(Guard, policy=GuardPolicy(csp={"": STRICT_CSP, "/studio": GRADIO_CSP}))
    server = uvicorn.Server(uvicorn.Config(app, "127.0.0.1", 0, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield Studio(f"http://127.0.0.1:{port}", out, store)
    server.should_exit = True
    thread.join(20)


@pytest.fixture
def worker(studio: Studio) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, str(TOYS), "worker", str(studio.out)])
    yield
    process.terminate()
    process.wait(20)


@pytest.fixture(autouse=True)
def empty_queue(studio: Studio) -> Iterator[None]:
    yield
    for job in studio.store.find(limit=100).jobs:
        if job.is_active:
            studio.store.cancel(job.id)
    studio.store.expire()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Any, studio: Studio) -> Iterator[Callable[..., Any]]:
    """Opens a page as a user of its own. In the end nothing may have gone wrong on any, or left this machine."""
    problems: list[str] = []
    contexts = []

    def open_page(path: str = "", width: int = 1280, height: int = 900, expected: str = "", **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("console", lambda said: said.type == "error" and note(said.text, expected))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda shown: (problems.append(f"dialog {shown.message}"), shown.dismiss()))
        page.on("request", lambda asked: check_address(asked.url))
        page.goto(f"{studio.url}/studio/{path}")
        page.wait_for_selector("#dk-prompt textarea")
        page.wait_for_selector(".dk-job")
        return page

    def note(text: str, expected: str) -> None:
        if text != expected and "WebGPU" not in text:  # Gradio's view of meshes tries that first
            problems.append(text)

    def check_address(url: str) -> None:
        if not url.startswith((studio.url, "data:", "blob:")):
            problems.append(f"went to {url}")

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


def keep(page: Any, name: str) -> None:
    """Keep what a page looks like in the folder that DREAMKIT_SCREENSHOTS names: the README's pictures."""
    folder = os.environ.get("DREAMKIT_SCREENSHOTS")
    if folder:
        page.wait_for_timeout(1000)
        page.screenshot(path=Path(folder) / f"{name}.png")


def splats(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    config = GaussianConfig(count=300, initial_opacity=0.9)
    write_splat(GaussianScene.initialise(config, torch.Generator().manual_seed(0)), path)


def preview(run: Path, version: int = 1) -> None:
    """What `dreamkit.training.previews` would have written."""
    splats(run / "preview" / "scene.splat")
    Image.new("RGB", (64, 32), (200, 30, 30)).save(run / "preview" / "view.png")
    state = {
        "version": version, "stage": "optimising", "step": 40, "total": 3000, "eta": 60.0, "seconds": 2.0,
        "teacher_calls": 1234, "view": True, "target": True, "splats": 300,
        "losses": [[step, 100.0 / step] for step in range(1, 40)],
    }  # fmt: skip
    with atomic_path(run / "preview" / "state.json") as temporary:
        temporary.write_text(json.dumps(state))


def finished_run(studio: Studio, prompt: str, name: str) -> str:
    folder = studio.out / "a-mug" / "sds" / name
    for part in ("exports", "renders"):
        (folder / part).mkdir(parents=True)
    config = {"format_version": 1, "config": {"prompt": prompt, "scene": "gaussians", "preset": "draft"}}
    (folder / "config.yaml").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(0)
    write_ply(GaussianScene.initialise(GaussianConfig(count=300), generator), folder / "exports" / "scene.ply")
    Image.new("RGB", (1054, 570), (90, 90, 200)).save(folder / "renders" / "contact_sheet.png")
    return f"a-mug~sds~{name}"


def generate(page: Any, prompt: str) -> str:
    page.fill("#dk-prompt textarea", prompt)
    page.click("#dk-generate")
    page.wait_for_url("**/?job=*")
    return page.url.rpartition("job=")[2]


def press(page: Any, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def has_state(page: Any, text: str) -> None:
    page.wait_for_selector(f".dk-chip:text-is('{text}')")


def shows_splats(page: Any, count: int) -> None:
    page.wait_for_selector(f"canvas[data-splats='{count}']", state="attached")


def comparison(studio: Studio) -> str:
    folder = studio.out / "a-mug" / "compare" / "20261128T000005Z-abcdef12"
    for part in ("rows", "views"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "plan.json").write_text(json.dumps({"prompts": ["a mug"]}))
    (folder / "report.html").write_text("<h1>Report</h1>")
    for key in ("sds", "csd"):
        row = {"key": key, "objective": key, "prompt": "a mug", "seed": 0, "r_precision": 0.5, "seconds": 3.0}
        (folder / "rows" / f"{key}.json").write_text(json.dumps(row))
        frames = [Image.new("RGB", (64, 64), (20 * index, 0, 0)) for index in range(12)]
        frames[0].save(folder / "views" / f"{key}.webp", save_all=True, append_images=frames[1:], duration=50)
    return folder.name
