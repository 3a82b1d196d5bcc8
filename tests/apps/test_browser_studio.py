"""The studio in a browser: what people do with it, with toy jobs or, marked slow, a real one."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from studio_browser import (
    browser,
    empty_queue,
    finished_run,
    generate,
    has_state,
    keep,
    needs_chromium,
    press,
    preview,
    shows_splats,
    studio,
    until,
    visit,
    worker,
)

__all__ = ["browser", "empty_queue", "studio", "visit", "worker"]  # fixtures
pytestmark = [pytest.mark.slow, needs_chromium]
EVIL = 'a <img src=x onerror="window.pwned = 1"> <script>window.pwned = 1</script> mug'


def test_a_job_from_the_prompt_to_its_end(visit, studio, worker):
    page = visit()
    assert "What would you like to see?" in page.inner_text(".dk-job")
    page.click("#dk-advanced button")
    page.locator("#dk-steps").get_by_role("textbox").fill("3000")
    job = generate(page, "a red mug")
    has_state(page, "Running")
    page.wait_for_selector(".dk-progress:has-text('of 3000')")
    preview(studio.run_of(job))
    shows_splats(page, 300)
    page.wait_for_selector("text=1,234 teacher calls")
    assert page.get_attribute(".dk-pair img", "alt") == "Step 40: the scene, and what the teacher wants"
    assert "Loss" in page.get_attribute(".dk-chart", "aria-label")
    assert page.locator("polyline.dk-curve").count() == 1
    page.reload()  # in the middle: it is all there again
    has_state(page, "Running")
    shows_splats(page, 300)
    press(page, "Cancel")
    has_state(page, "Cancelled")
    assert (studio.run_of(job) / "kept").exists()
    shows_splats(page, 300)
    press(page, "Retry")
    has_state(page, "Running")
    press(page, "Cancel")
    has_state(page, "Cancelled")


def test_two_users_at_once(visit, studio, worker):
    ada, bob = visit(), visit()
    first, second = generate(ada, "a red mug"), generate(bob, "a blue duck")
    assert first != second
    has_state(ada, "Done")
    has_state(bob, "Done")
    assert (ada.inner_text(".dk-prompt"), bob.inner_text(".dk-prompt")) == ("a red mug", "a blue duck")
    with ada.expect_download() as loading:
        ada.click(".dk-files a:text-is('scene.ply')")
    assert Path(loading.value.path()).read_text() == "done"


def test_nobody_works_and_the_queue_is_full(visit, studio):
    page = visit()
    generate(page, "a red mug")
    has_state(page, "Waiting")
    page.wait_for_selector(".dk-notice:has-text('dreamkit jobs worker')")
    for _ in range(5):
        studio.queue()
    page.click("#dk-generate")
    page.wait_for_selector("#dk-form-problem:has-text('queue is full')")
    press(page, "Cancel")
    has_state(page, "Cancelled")
    page.fill("#dk-prompt textarea", " ")
    page.click("#dk-generate")
    page.wait_for_selector("#dk-form-problem:has-text('The prompt is empty')")


def test_mistakes_and_lost_jobs_are_explained(visit, studio, worker):
    page = visit(f"?job={studio.queue(prompt='a mistake')}")
    page.wait_for_selector(".dk-notice:has-text('Ask for something else.')")
    has_state(page, "Failed")
    page = visit(expected="Failed to load resource: the server responded with a status of 404 (Not Found)")
    page.goto(f"{studio.url}/studio/?run=no~such~run")
    page.wait_for_selector("text=What would you like to see?")
    assert "run=" not in page.url


def test_text_is_never_run(visit, studio, worker):
    run = finished_run(studio, EVIL, "20261128T000001Z")
    page = visit()
    generate(page, EVIL)
    has_state(page, "Done")
    assert page.inner_text(".dk-prompt") == EVIL
    page.get_by_role("tab", name="Gallery").click()
    page.wait_for_selector(".dk-card-title:has-text('onerror')")
    page.goto(f"{studio.url}/studio/?run={run}")
    has_state(page, "Done")
    assert page.evaluate("window.pwned") is None


def test_the_gallery_finds_opens_and_deletes(visit, studio):
    kept = finished_run(studio, "a violet teapot", "20261128T000002Z")
    gone = finished_run(studio, "a grey teapot", "20261128T000003Z")
    page = visit()
    page.get_by_role("tab", name="Gallery").click()
    page.get_by_role("searchbox").fill("teapot")
    page.wait_for_selector("text=2 runs")
    assert page.locator(".dk-thumb img").first.get_attribute("loading") == "lazy"
    page.get_by_role("button", name="Delete a grey teapot").click()
    page.locator("dialog").get_by_role("button", name="Cancel").click()
    assert studio.out.joinpath(*gone.split("~")).exists()
    page.get_by_role("button", name="Delete a grey teapot").click()
    page.locator("dialog").get_by_role("button", name="Delete").click()
    page.wait_for_selector("text=1 run")
    assert not studio.out.joinpath(*gone.split("~")).exists()
    page.get_by_role("searchbox").fill("nothing of the kind")
    page.wait_for_selector("text=Nothing fits.")
    page.get_by_role("searchbox").fill("violet")
    page.click(".dk-card-open:has-text('a violet teapot')")
    page.wait_for_url(f"**run={kept.replace('~', '*')}")
    shows_splats(page, 300)  # of the .ply
    page.go_back()
    page.wait_for_selector("text=What would you like to see?")


def test_settings_go_back_into_the_form(visit, studio):
    job = studio.queue(
        prompt="a green car", objective="csd", seed=7, steps=33, negative="blue", options=("guidance=3",)
    )
    page = visit(f"?job={job}")
    press(page, "Use these settings")
    page.wait_for_function("document.querySelector('#dk-prompt textarea').value === 'a green car'")
    page.click("#dk-advanced button")
    assert page.locator("#dk-seed").get_by_role("textbox").input_value() == "7"
    assert page.get_by_role("textbox", name="Negative prompt").input_value() == "blue"
    page.click("#dk-generate")
    page.wait_for_url(lambda url: job not in url)
    again = studio.store.get(page.url.rpartition("job=")[2]).settings
    assert again == studio.store.get(job).settings


def test_a_closed_page_asks_for_nothing_more(visit, studio, monkeypatch):
    asked = []
    get = studio.store.get
    monkeypatch.setattr(studio.store, "get", lambda job: (asked.append(job), get(job))[1])
    page = visit(f"?job={studio.queue()}")
    has_state(page, "Waiting")
    until(lambda: len(asked) >= 3)
    page.close()
    time.sleep(0.5)
    count = len(asked)
    time.sleep(2.5)
    assert len(asked) == count


def test_a_run_is_edited(visit, studio):
    run = finished_run(studio, "a red mug", "20261128T000007Z")
    page = visit(f"?run={run}")
    press(page, "Edit this")
    dialog = page.locator("dialog")
    dialog.get_by_label("It becomes").fill("a blue mug")
    dialog.get_by_role("button", name="Start the edit").click()
    page.wait_for_url("**job=*")
    (job,) = studio.store.find(["queued"]).jobs
    assert (job.kind, job.prompt, job.settings["source"]) == ("edit", "a blue mug", run)


def test_a_real_draft(visit, studio):
    words = [sys.executable, "-m", "dreamkit.cli.main", "jobs", "worker", f"--out={studio.out}", "--device=cpu"]
    process = subprocess.Popen(words)
    try:
        page = visit()
        if "DREAMKIT_SCREENSHOTS" not in os.environ:  # for a picture it takes all its steps
            page.click("#dk-advanced button")
            page.locator("#dk-steps").get_by_role("textbox").fill("40")
        generate(page, "a yellow duck")
        page.wait_for_selector(".dk-pair img:visible", timeout=120_000)
        page.wait_for_selector("canvas[data-splats]:not([data-splats='0'])", timeout=60_000)
        page.wait_for_selector(".dk-chip:text-is('Done')", timeout=300_000)
        assert page.locator(".dk-files a").count() >= 4
        keep(page, "studio")
        press(page, "Show the mesh")
        page.wait_for_selector("#dk-mesh canvas", timeout=60_000)
    finally:
        process.terminate()
        process.wait(60)
