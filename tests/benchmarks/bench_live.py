"""Live video in Chromium: shown frames a second, the time from a prompt to its first pixel, idle viewers: prints JSON.

`python tests/benchmarks/bench_live.py [--model NAME] [--seconds 20] [--prompts 10] [--picture FILE] [--chromium PATH]`

Two servers, each a process of its own: `student` streams the model, `transport` pictures of 832x480 that cost nothing,
60 a second, so that what is measured is the way from the server to the screen. `idle` is the processor time of a server
with 20 viewers of a paused stream.
"""

import argparse
import asyncio
import contextlib
import json
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from statistics import quantiles
from tempfile import TemporaryDirectory
from typing import Any

from dreamkit_kernels.bench import machine

_VIEWERS = 20
_PATIENCE_S = 120.0
_SIZE, _FPS = (480, 832), 60


def serve_pictures() -> None:
    """A server of pictures that cost nothing."""
    import torch

    sys.path.insert(0, str(Path(__file__).parents[1] / "apps"))
    from dreamkit_apps.live.source import ModelInfo
    from dreamkit_apps.server import listen, make_app, serve
    from live_fakes import FakeModel

    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(8, 3, 30, 52, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=_SIZE, mode="bicubic").clamp(0, 1)
    pictures = (255 * smooth).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    model = FakeModel(
        ModelInfo("pictures", *_SIZE, _FPS, True, None), picture=lambda number, prompt, seed: pictures[number % 8]
    )
    listener = listen("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    serve(make_app(model), listener, lambda: print(json.dumps({"url": url}), flush=True))


@contextlib.contextmanager
def server(words: list[str]) -> Iterator[tuple[str, int]]:
    """A server in a process of its own; gives its address and its process."""
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"], process.pid
    finally:
        process.terminate()
        process.wait()


def until(condition: Any) -> Any:
    """Wait for something to become true; its value."""
    end = time.monotonic() + _PATIENCE_S
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.01)
    raise TimeoutError("it did not happen")


def cpu_share(pid: int, seconds: float) -> float:
    """Processor time of a process, percent of one core."""
    import psutil

    process = psutil.Process(pid)
    before = process.cpu_times()
    time.sleep(seconds)
    after = process.cpu_times()
    return 100 * (after.user + after.system - before.user - before.system) / seconds


def watch(
    url: str, pid: int, browser: Any, seconds: float, prompts: int, picture: Path | None = None
) -> dict[str, Any]:
    """What Chromium shows of a server's stream; `picture` is where to keep a look at the page."""
    page = browser.new_page(viewport={"width": 1280, "height": 860})
    page.goto(f"{url}live")
    paint = until(lambda: page.evaluate("performance.getEntriesByName('first-contentful-paint')[0]?.startTime"))
    page.get_by_label("Prompt", exact=True).fill("a red cube")
    asked = time.monotonic()
    page.get_by_role("button", name="Start", exact=True).click()
    until(lambda: page.evaluate("dreamkit.player.frames") > 0)
    first = time.monotonic() - asked
    time.sleep(3)
    frames, start = page.evaluate("dreamkit.player.frames"), time.monotonic()
    busy = cpu_share(pid, seconds)
    shown = (page.evaluate("dreamkit.player.frames") - frames) / (time.monotonic() - start)
    if picture is not None:
        page.screenshot(path=picture)
    latencies = []
    for number in range(prompts):
        page.evaluate("dreamkit.player.latency = null")
        page.get_by_label("Prompt", exact=True).fill(f"a {('red', 'blue')[number % 2]} ball {number}")
        page.keyboard.press("Enter")
        latencies.append(until(lambda: page.evaluate("dreamkit.player.latency")))
    numbers = page.evaluate("dreamkit.page.numbers")
    page.close()
    cuts = quantiles(latencies, n=20, method="inclusive")
    return {
        "first_paint_ms": round(paint),
        "first_frame_s": round(first, 2),
        "shown_fps": round(shown, 2),
        "denoise_fps": numbers.get("denoise"),
        "end_to_end_fps": numbers.get("end"),
        "frame_round_trip_ms": numbers.get("trip"),
        "prompt_to_pixel_ms": {"p50": round(cuts[9]), "p95": round(cuts[18]), "count": len(latencies)},
        "server_cpu_percent": round(busy, 1),
    }


async def idle(url: str, pid: int, seconds: float) -> dict[str, Any]:
    """Processor time of a server with viewers of a paused stream."""
    from websockets.asyncio.client import connect

    def post(path: str, content: dict[str, Any]) -> Any:
        request = urllib.request.Request(url + path, json.dumps(content).encode(), method="POST")
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    async def look(socket: Any) -> None:
        async for message in socket:
            if isinstance(message, bytes):
                await socket.send(json.dumps({"type": "ack", "frame": int.from_bytes(message[4:8], "little")}))
                seen.set()

    seen = asyncio.Event()
    keys = post("live/sessions", {"prompt": "a red cube"})
    address = f"{url.replace('http', 'ws', 1)}live/ws?session={keys['watch']}"
    async with contextlib.AsyncExitStack() as stack:
        sockets = [await stack.enter_async_context(connect(address, compression=None)) for _ in range(_VIEWERS)]
        looks = [asyncio.create_task(look(socket)) for socket in sockets]
        await asyncio.wait_for(seen.wait(), _PATIENCE_S)
        await asyncio.to_thread(post, f"live/command?session={keys['session']}", {"type": "pause"})
        await asyncio.sleep(3)
        share = await asyncio.to_thread(cpu_share, pid, seconds)
    await asyncio.gather(*looks)
    return {"viewers": _VIEWERS, "cpu_percent": round(share, 2)}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--prompts", type=int, default=10)
    parser.add_argument("--picture", type=Path, default=None, help="where to keep a look at the student's page")
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    parser.add_argument("--serve-pictures", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve_pictures:
        serve_pictures()
        return
    from playwright.sync_api import sync_playwright

    words = ["-m", "dreamkit.cli.main", "studio", "--port", "0", "--json", "--workers", "0", "--model", options.model]
    report: dict[str, Any] = {"machine": machine(), "model": options.model}
    with TemporaryDirectory() as out, sync_playwright() as playwright:
        servers = {"student": [*words, "--out", out], "transport": [__file__, "--serve-pictures"]}
        browser = playwright.chromium.launch(executable_path=options.chromium, args=["--no-sandbox", "--disable-gpu"])
        for name, words in servers.items():
            with server(words) as (url, pid):
                picture = options.picture if name == "student" else None
                report[name] = watch(url, pid, browser, options.seconds, options.prompts, picture)
        for made_up in ("denoise_fps", "end_to_end_fps"):
            del report["transport"][made_up]
        browser.close()
    with TemporaryDirectory() as out, server([*words, "--out", out]) as (url, pid):
        report["idle"] = asyncio.run(idle(url, pid, options.seconds))
    print(json.dumps(report))


if __name__ == "__main__":
    main()
