"""The page of live video in a real browser."""

import os
import shutil
from pathlib import Path

import pytest
from dreamkit_apps.live.limits import LiveLimits
from dreamkit_apps.server import make_app
from live_fakes import FakeModel, running, until

from dreamkit.errors import TeacherError

CHROMIUM = os.environ.get("DREAMKIT_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
pytest.importorskip("playwright", reason="playwright is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (DREAMKIT_CHROMIUM names one)"),
]


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """Open the page of a server in a fresh context; what the console complains of fails the test.

    Of a server that has stopped it always does: pages are closed after it.
    """
    contexts, complaints = [], []

    def listen(message):
        if message.type == "error" and "WebSocket connection to" not in message.text:
            complaints.append(message.text)

    def go(url, path="/live", width=1280, height=860, **options):
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        context.set_default_timeout(20_000)
        contexts.append(context)
        page = context.new_page()
        page.on("console", listen)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(url + path)
        return page

    yield go
    for context in contexts:
        context.close()
    assert not complaints


def begin(page, prompt="a red cube"):
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_role("button", name="Start", exact=True).click()
    until(lambda: shown(page) > 2)


def shown(page):
    return page.evaluate("dreamkit.player.frames")


def pixels(page):
    return page.evaluate("dreamkit.player.canvas.toDataURL()")


def test_a_prompt_starts_a_video_that_changes_and_follows(visit):
    model = FakeModel()
    with running(make_app(model)) as url:
        page = visit(url)
        assert page.get_by_text("What should it show?").is_visible()
        begin(page)
        before = pixels(page)
        until(lambda: pixels(page) != before)
        assert page.get_by_text("What should it show?").is_hidden()
        page.get_by_label("Prompt", exact=True).fill("a <b>blue</b> ball")
        page.keyboard.press("Enter")
        page.get_by_text("Now: a <b>blue</b> ball").wait_for()  # confirmed, and as text
        assert model.opened[0].prompt == "a <b>blue</b> ball"
        until(lambda: page.evaluate("dreamkit.player.latency") is not None)
        page.get_by_label("Prompt", exact=True).fill("nonsense")
        page.keyboard.press("Enter")
        page.get_by_text("knows no word").wait_for()
        count = shown(page)
        until(lambda: shown(page) > count + 3)


def test_keys_and_drags_steer_the_camera(visit):
    model = FakeModel()
    with running(make_app(model)) as url:
        page = visit(url)
        begin(page)
        page.locator("#canvas").focus()
        page.keyboard.down("ArrowRight")
        camera = until(lambda: model.opened[0].steered and model.opened[0].steered[-1].camera)
        assert (camera.orbit, camera.dolly) == (1.0, 0.0)
        page.keyboard.up("ArrowRight")
        until(lambda: model.opened[0].steered[-1].camera.orbit == 0.0)
        box = page.get_by_label("Camera joystick").bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 2)
        until(lambda: model.opened[0].steered[-1].camera.dolly == 1.0)
        page.mouse.up()
        until(lambda: model.opened[0].steered[-1].camera.dolly == 0.0)
        page.get_by_label("Prompt", exact=True).focus()
        count = len(model.opened[0].steered)
        page.keyboard.press("ArrowLeft")  # moves in the text
        page.wait_for_timeout(200)
        assert len(model.opened[0].steered) == count


def test_tracks_are_painted(visit):
    model = FakeModel()
    with running(make_app(model)) as url:
        page = visit(url)
        begin(page)
        page.get_by_role("button", name="Draw").click()
        box = page.locator("#canvas").bounding_box()
        at = [(box["x"] + box["width"] * share, box["y"] + box["height"] / 2) for share in (0.25, 0.5, 0.75)]
        page.mouse.move(*at[0])
        page.mouse.down()
        for place in at[1:]:
            page.wait_for_timeout(100)
            page.mouse.move(*place)
        page.mouse.up()
        until(lambda: model.opened[0].steered)
        tracks = model.opened[0].steered[-1].tracks
        assert tracks.shape[1:] == (1, 2)
        assert abs(float(tracks[0, 0, 0]) - 0.25) < 0.02
        assert abs(float(tracks[-1, 0, 0]) - 0.75) < 0.02
        page.get_by_role("button", name="Clear the tracks").click()
        until(lambda: model.opened[0].steered[-1].tracks is None)


def test_pause_moments_recording_and_seed(visit):
    model = FakeModel()
    with running(make_app(model)) as url:
        page = visit(url)
        begin(page)
        page.get_by_role("button", name="Record").click()
        until(lambda: shown(page) > 20)
        page.get_by_role("button", name="Stop").click()
        page.get_by_role("button", name="Pause").click()
        page.get_by_role("button", name="Play").wait_for()
        page.wait_for_timeout(300)
        count, picture = shown(page), pixels(page)
        page.wait_for_timeout(400)
        assert shown(page) == count
        with page.expect_download() as download:
            page.get_by_role("link", name="dreamkit-live-1.mp4").click()
        assert Path(download.value.path()).read_bytes()[4:8] == b"ftyp"
        page.get_by_role("button", name="Go back to frame 0").click()
        until(lambda: shown(page) > count and pixels(page) != picture)
        assert "rewind" in model.opened[0].calls
        page.get_by_label("Seed").fill("77")
        page.get_by_role("button", name="Restart").click()
        until(lambda: len(model.opened) == 2)
        assert model.opened[1].seed == 77


def test_it_comes_back_after_a_lost_connection_and_a_lost_session(visit, monkeypatch):
    monkeypatch.setattr("dreamkit_apps.live.hub._MAX_LOOK_S", 0.1)
    app = make_app(FakeModel())
    with running(app) as url:
        page = visit(url)
        begin(page)
        key = page.evaluate("dreamkit.page.key")
        page.evaluate("dreamkit.page.begunAt = -1e6")  # as if it had played for long
        page.request.delete(f"{url}/live/sessions?session={key}")
        until(lambda: page.evaluate("dreamkit.page.key") not in ("", key))
        count = shown(page)
        until(lambda: shown(page) > count + 3)
        page.get_by_text("was started again").wait_for()
        port = int(url.rpartition(":")[2])
    page.get_by_text("The server was stopped.").wait_for()
    with running(make_app(FakeModel()), port):
        count = shown(page)
        page.evaluate("dreamkit.page.begunAt = -1e6")
        until(lambda: shown(page) > count + 3, 40)


def test_a_link_to_watch_has_nothing_to_press(visit):
    with running(make_app(FakeModel())) as url:
        page = visit(url)
        begin(page)
        watch = page.evaluate("dreamkit.page.watch")
        other = visit(url, f"/live?session={watch}")
        until(lambda: shown(other) > 3)
        for name in ("Pause", "Record", "Keep", "Draw", "Restart", "Copy link to steer"):
            assert other.get_by_role("button", name=name, exact=True).is_disabled()
        page.get_by_text("You and 1 other watch.").wait_for()


def test_no_student_and_no_such_stream_are_said_in_words(visit):
    model = FakeModel()
    model.problem = TeacherError("The embedded video student is missing.", "Train one.")
    with running(make_app(model)) as url:
        page = visit(url)
        page.get_by_role("button", name="a red cube spinning").click()
        page.get_by_text("The embedded video student is missing.").wait_for()
        model.problem = None
        page.get_by_role("button", name="Try again").click()
        until(lambda: shown(page) > 2)
        gone = visit(url, "/live?session=nothing")
        gone.get_by_text("This stream has ended.").wait_for()


def test_without_websockets_it_plays_by_mjpeg(visit):
    model = FakeModel()
    with running(make_app(model)) as url:
        page = visit(url)
        page.evaluate(
            """() => {
                window.WebSocket = class {
                    constructor() { setTimeout(() => this.onclose({ code: 1006 })); }
                    close() {}
                };
            }"""
        )
        page.get_by_label("Prompt", exact=True).fill("a red cube")
        page.get_by_role("button", name="Start", exact=True).click()
        until(lambda: page.evaluate("document.getElementById('mjpeg').naturalWidth") == 64)
        page.get_by_role("button", name="Pause").click()
        page.get_by_role("button", name="Play").wait_for()
        assert model.opened[0].is_paused


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_scrolls_sideways_and_nothing_jumps(visit, width):
    with running(make_app(FakeModel(), limits=LiveLimits(record_mb=1))) as url:
        page = visit(url, width=width)
        fits = "document.documentElement.scrollWidth <= innerWidth"
        assert page.evaluate(fits)
        place = page.locator("#play").bounding_box()
        begin(page)
        page.get_by_role("button", name="Show speeds").click()
        page.get_by_text("31.0 FPS").wait_for()
        assert page.evaluate(fits)
        assert page.locator("#play").bounding_box()["y"] == place["y"]


def test_dark_and_light(visit):
    ground = "getComputedStyle(document.body).backgroundColor"
    with running(make_app(FakeModel())) as url:
        light = visit(url, color_scheme="light")
        dark = visit(url, color_scheme="dark")
        seen = light.evaluate(ground), dark.evaluate(ground)
        assert seen[0] != seen[1]
        light.get_by_role("button", name="Light or dark").click()
        assert light.evaluate(ground) == seen[1]
        light.reload()
        assert light.evaluate(ground) == seen[1]  # remembered


def test_every_control_has_a_name_and_can_be_reached(visit):
    with running(make_app(FakeModel())) as url:
        page = visit(url)
        begin(page)
        nameless = page.evaluate(
            """[...document.querySelectorAll("button, a, input, select, textarea, [tabindex], img")]
            .filter((e) => e.checkVisibility())
            .filter((e) => !(e.getAttribute("aria-label") || e.labels?.length || e.textContent.trim()
                             || e.closest("button, a")?.textContent.trim() || e.alt))
            .map((e) => e.outerHTML)"""
        )
        assert nameless == []
        reached = set()
        page.locator("body").click(position={"x": 2, "y": 2})
        for _ in range(45):
            page.keyboard.press("Tab")
            reached.add(page.evaluate("document.activeElement.id"))
        assert {"canvas", "play", "record", "keep", "draw", "speed", "scaling", "prompt", "joystick", "seed"} <= reached
        page.locator("#say").focus()
        page.keyboard.press("Shift+Tab")
        outline = page.evaluate("getComputedStyle(document.activeElement).boxShadow")
        assert outline != "none"
