"""How the studio looks and moves in a browser: its 3D view, comparisons, phones, and who can't use a mouse."""

import math
from collections.abc import Callable
from io import BytesIO
from typing import Any

import pytest
import torch
from PIL import Image
from studio_browser import (
    browser,
    comparison,
    empty_queue,
    finished_run,
    needs_chromium,
    press,
    shows_splats,
    studio,
    visit,
)

from dreamkit.scenes.cameras import Camera
from dreamkit.scenes.gaussian_config import GaussianConfig
from dreamkit.scenes.gaussians import GaussianScene
from dreamkit.scenes.splat_files import write_ply, write_splat

__all__ = ["browser", "empty_queue", "studio", "visit"]  # fixtures
pytestmark = [pytest.mark.slow, needs_chromium]
NAMED_ROLES = {
    *("button", "link", "textbox", "searchbox", "combobox", "checkbox", "radio", "slider", "tab", "spinbutton"),
    *("application", "progressbar", "dialog", "video"),
}


def test_the_view_turns_by_pointer_wheel_and_keys(visit, studio):
    run = finished_run(studio, "a turned mug", "20261128T000004Z")
    page = visit(f"?run={run}", reduced_motion="reduce")
    shows_splats(page, 300)
    canvas = page.locator(".dk-stage canvas")
    canvas.scroll_into_view_if_needed()
    looks = {canvas.screenshot()}
    box = canvas.bounding_box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)

    def turned(act: Callable[[], Any]) -> None:
        act()
        page.wait_for_timeout(600)
        look = canvas.screenshot()
        assert look not in looks
        looks.add(look)

    def drag() -> None:
        page.mouse.move(*middle)
        page.mouse.down()
        page.mouse.move(middle[0] + 90, middle[1] + 30, steps=3)
        page.mouse.up()

    turned(drag)
    turned(lambda: page.mouse.wheel(0, 300))
    turned(lambda: canvas.press("ArrowLeft"))
    turned(lambda: canvas.press("+"))
    canvas.press("Home")
    page.wait_for_timeout(600)
    page.mouse.move(5, 5)
    colours = Image.open(BytesIO(canvas.screenshot())).convert("RGB").getcolors(2**24)
    assert len(colours) > 50  # not an empty stage


def some_gaussians() -> GaussianScene:
    scene = GaussianScene.initialise(GaussianConfig(count=120, initial_opacity=0.8), torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, spread in (("log_scales", 0.5), ("quaternions", 1.0), ("rgb_logits", 1.5)):
            parameter = scene.parameters_dict()[name]
            parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
    return scene


PAINT = """async ([url, camera, side]) => {
    const { Painter } = await import("/studio/dk/painter.js");
    const { readSplats } = await import("/studio/dk/splats.js");
    const canvas = Object.assign(document.createElement("canvas"), { width: side, height: side });
    const painter = new Painter(canvas);
    painter.load(readSplats(await (await fetch(url)).arrayBuffer()));
    painter.paint(camera);
    const pixels = new Uint8Array(4 * side * side);
    painter.gl.readPixels(0, 0, side, side, painter.gl.RGBA, painter.gl.UNSIGNED_BYTE, pixels);
    return [...pixels];
}"""


@pytest.mark.parametrize("name", ["preview/scene.splat", "exports/scene.ply"])
@pytest.mark.parametrize("azimuth", [0.0, 130.0])
def test_the_view_is_the_renderers(visit, studio, name, azimuth):
    run = finished_run(studio, "an oracle", f"20261128T00002{int(azimuth) // 100}Z-{name[:2]}")
    scene, path = some_gaussians(), studio.out.joinpath(*run.split("~"), name)
    path.parent.mkdir(exist_ok=True)
    (write_ply if path.suffix == ".ply" else write_splat)(scene, path)
    camera = {"azimuth": math.radians(azimuth), "elevation": math.radians(20.0), "radius": 3.0}
    painted = visit().evaluate(PAINT, [f"/api/v1/runs/{run}/files/{name}", camera, 96])
    shown = torch.tensor(painted, dtype=torch.float32).view(96, 96, 4).flip(0)[..., :3].permute(2, 0, 1) / 255
    view = Camera.orbit(azimuth, 20.0, 3.0, 40.0, 96, 96)
    with torch.no_grad():
        wanted = scene.render(view, torch.zeros(3)).image[0].clamp(0, 1)
    assert float(wanted.mean()) > 0.02
    assert float((shown - wanted).square().mean()) < 10**-3  # 30 dB


def test_damaged_3d_files_are_refused(visit, studio):
    page = visit()
    read = """async (bytes) => {
        const { readSplats } = await import("/studio/dk/splats.js");
        try { return readSplats(new Uint8Array(bytes).buffer).count; } catch (error) { return error.message; }
    }"""
    head = b"ply\nformat binary_little_endian 1.0\nelement vertex 900000000\n"
    columns = b"".join(b"property float %s\n" % name for name in (b"x", b"y", b"z"))
    assert page.evaluate(read, list(b"")) == "The splat file is cut off."
    assert page.evaluate(read, list(b"x" * 31)) == "The splat file is cut off."
    assert page.evaluate(read, list(b"ply\n")) == "The file is no PLY of Gaussians."
    assert page.evaluate(read, list(head + columns + b"end_header\n1234")) == "The PLY is cut off."
    assert page.evaluate(read, list(b"\xff" * 64)) == 2  # not finite: invisible, but no reason to show nothing


def test_comparisons_turn_together(visit, studio):
    comparison(studio)
    page = visit()
    page.get_by_role("tab", name="Compare").click()
    page.wait_for_selector(".dk-strip img >> nth=1")
    page.wait_for_function(
        "[...document.querySelectorAll('.dk-strip img')].every((image) => image.naturalWidth === 768)"
    )
    slider = page.get_by_role("slider", name="Turn all")
    slider.focus()
    slider.press("End")
    places = page.eval_on_selector_all(".dk-strip img", "images => images.map((image) => image.style.translate)")
    slider.press("Home")
    before = page.eval_on_selector_all(".dk-strip img", "images => images.map((image) => image.style.translate)")
    assert len(set(places)) == len(set(before)) == 1
    slider.fill("180")
    after = page.eval_on_selector_all(".dk-strip img", "images => images.map((image) => image.style.translate)")
    assert after[0] == after[1] == "-50%"
    assert page.get_by_role("link", name="Open its report").get_attribute("href").endswith("/files/report.html")
    press(page, "New comparison")
    dialog = page.locator("dialog")
    dialog.get_by_label("Prompt").fill("a mug")
    dialog.get_by_text("vsd", exact=True).click()
    dialog.get_by_role("button", name="Start the comparison").click()
    page.wait_for_url("**job=*")
    assert studio.store.find().jobs[0].settings["objectives"] == ["sds", "vsd"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_has_no_sideways_scrolling(visit, studio, scheme):
    comparison(studio)
    run = finished_run(studio, "a mug of " + "verylongword" * 12, f"20261128T00001{len(scheme)}Z")
    page = visit(f"?run={run}", width=390, height=844, color_scheme=scheme, has_touch=True)
    shows_splats(page, 300)
    for tab in ("Text to 3D", "Gallery", "Compare"):
        page.get_by_role("tab", name=tab).click()
        page.wait_for_timeout(400)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, tab
    page_is = "getComputedStyle(document.body).backgroundColor"
    dark = "rgb(15, 15, 22)"
    assert (page.evaluate(page_is) == dark) == (scheme == "dark")
    page.get_by_role("button", name="Light or dark").click()
    assert (page.evaluate(page_is) == dark) == (scheme == "light")
    page.reload()
    page.wait_for_selector(".dk-job", state="attached")
    assert (page.evaluate(page_is) == dark) == (scheme == "light")


def test_everything_has_a_name_and_the_keyboard_reaches_it(visit, studio):
    comparison(studio)
    run = finished_run(studio, "a named mug", "20261128T000006Z")
    page = visit(f"?run={run}")
    shows_splats(page, 300)
    page.click("#dk-advanced button")
    session = page.context.new_cdp_session(page)
    for tab in ("Text to 3D", "Gallery", "Compare"):
        page.get_by_role("tab", name=tab).click()
        page.wait_for_timeout(500)
        nodes = session.send("Accessibility.getFullAXTree")["nodes"]
        shown = [node for node in nodes if not node.get("ignored") and node["role"]["value"] in NAMED_ROLES]
        assert len(shown) > 8
        assert not [node for node in shown if not node.get("name", {}).get("value", "").strip()], tab
        assert page.locator("img:not([alt])").count() == 0
    page.get_by_role("tab", name="Text to 3D").click()
    page.focus("#dk-prompt textarea")
    reached = set()
    focused = "(({ id, textContent, tagName }) => id || textContent.trim() || tagName)(document.activeElement)"
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate(focused))
    assert {"dk-generate", "Edit this", "CANVAS", "scene.ply", "Turn"} <= reached


def test_nothing_jumps_while_the_page_loads(visit, studio):
    page = visit(f"?run={finished_run(studio, 'a still mug', '20261128T000008Z')}")
    shows_splats(page, 300)
    page.wait_for_timeout(500)
    shifts = """new Promise((resolve) => new PerformanceObserver((list) => resolve(
        list.getEntries().filter((entry) => !entry.hadRecentInput).reduce((sum, entry) => sum + entry.value, 0)
    )).observe({ type: "layout-shift", buffered: true }) ?? setTimeout(() => resolve(0), 1000))"""
    assert page.evaluate(shifts) < 0.25
