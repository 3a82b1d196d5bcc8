"""Times of the studio: `python tests/benchmarks/bench_studio.py` prints JSON."""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from dreamkit_apps.api import make_api
from dreamkit_apps.jobs.gallery import RunFolders
from dreamkit_apps.jobs.settings import GenerateSettings, Rules
from dreamkit_apps.jobs.store import JobStore, Limits
from dreamkit_kernels.bench import machine
from fastapi import FastAPI
from fastapi.testclient import TestClient


def milliseconds(function: Callable[[], object], repeats: int) -> dict[str, float]:
    """Median and longest time of a call."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(1000 * (time.perf_counter() - start))
    return {"median_ms": round(statistics.median(times), 2), "longest_ms": round(max(times), 2)}


def listing(jobs: int, repeats: int) -> dict[str, dict[str, float]]:
    """Times to list so many jobs of a queue of five times as many, from the queue and through the API."""
    with tempfile.TemporaryDirectory() as folder:
        store = JobStore(Path(folder) / "queue", Limits(10**6, 10**6))
        for number in range(5 * jobs):
            store.submit(GenerateSettings(prompt=f"a red mug, number {number}"), user=f"user {number % 7}")
        app = FastAPI()
        app.include_router(make_api(store, Rules(RunFolders(folder))))
        with TestClient(app) as client:
            url = f"/api/v1/jobs?limit={jobs}&search=red+mug"
            assert len(client.get(url).json()["jobs"]) == jobs
            measured = {
                "queue": milliseconds(lambda: store.find(search="red mug", limit=jobs), repeats),
                "api": milliseconds(lambda: client.get(url), repeats),
            }
        store.close()
        return measured


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    figures = {f"list_{options.jobs}_jobs": listing(options.jobs, options.repeats)}
    print(json.dumps({"machine": machine(), **figures}, indent=2))


if __name__ == "__main__":
    main()
