"""What each kind of scene can do on this machine: fits to ground truth, surfaces, meshes, and text-to-3D drafts."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from dreamkit.errors import RunError
from dreamkit.metrics.geometry import chamfer_distance
from dreamkit.scenes.cameras import Camera
from dreamkit.scenes.capture import Capture
from dreamkit.scenes.export import export_mesh, load_mesh
from dreamkit.scenes.nerf_config import NerfConfig
from dreamkit.scenes.static_mesh import StaticMesh
from dreamkit.scenes.trainable import TrainableScene
from dreamkit.scenes.triangles import sample_surface
from dreamkit.toyworld.capture import capture_cameras, capture_object
from dreamkit.toyworld.geometry import Placed
from dreamkit.toyworld.geometry import sample_surface as sample_truth
from dreamkit.toyworld.objects import get_object
from dreamkit.training.assets import AssetOptions, as_mesh
from dreamkit.training.fit import FitOptions, fit_gaussians, fit_nerf, held_out_psnr
from dreamkit.training.fit_settings import FITS

_VIEWS, _HELD_OUT = 24, 12
_SURFACE_POINTS = 200_000
"""Two samplings of one surface are then about 0.1 % of its size apart."""


@dataclass(frozen=True)
class BenchObject:
    """What is fitted."""

    name: str = "mug"
    colour: str = "red"
    material: str = "striped"
    size: int = 128


def bench_fits(
    subject: BenchObject, kinds: Sequence[str] = tuple(FITS), share: float = 1.0
) -> Iterator[dict[str, Any]]:
    """Fit each kind of scene to 24 views and measure it on 12 others.

    Args:
        subject: the object and the side of the pictures.
        kinds: of `FITS`.
        share: of the usual steps.

    Yields:
        A row a kind: kind, seconds, steps, psnr (dB on held-out views), and for an sdf the row of `bench_surface`.
    """
    capture = _capture(subject, capture_cameras(_VIEWS, subject.size))
    held_out = _capture(subject, capture_cameras(_HELD_OUT, subject.size, turn=77.0))
    for kind in kinds:
        options = FitOptions(steps=max(1, round(FITS[kind] * share)))
        started = time.perf_counter()
        scene = _fitter(kind)(capture, options)
        seconds = time.perf_counter() - started
        row = {"kind": kind, "seconds": seconds, "steps": options.steps, "psnr": held_out_psnr(scene, held_out)}
        if kind == "sdf":
            row |= bench_surface(scene, subject, held_out)
        yield row


def bench_surface(scene: TrainableScene, subject: BenchObject, views: Capture) -> dict[str, Any]:
    """Cut, texture, write and read back the mesh of a scene that was fitted to a ground-truth object.

    Returns:
        chamfer (share of the object's size, against points all over the analytic surface), glb_psnr (dB of
        the file's pictures against the scene's own), mesh_seconds, and the mesh's figures.
    """
    started = time.perf_counter()
    mesh = as_mesh(scene, AssetOptions())
    with TemporaryDirectory() as folder:
        path = Path(folder) / "mesh.glb"
        export_mesh(mesh, path)
        mesh = load_mesh(path)
    seconds = time.perf_counter() - started
    with torch.no_grad():
        own = scene.render(views.cameras, views.background).image
        from_file = StaticMesh(mesh).render(views.cameras, views.background).image
    error = (own - from_file).square().mean(dim=(1, 2, 3))
    generator = torch.Generator().manual_seed(0)
    truth, _ = sample_truth([Placed(get_object(subject.name))], _SURFACE_POINTS, generator)
    points, _, _ = sample_surface(mesh, _SURFACE_POINTS, generator)
    size = float((truth.amax(dim=0) - truth.amin(dim=0)).norm())
    return {
        "chamfer": float(chamfer_distance(points, truth)) / size,
        "glb_psnr": float(-10 * error.log10().mean()),
        "mesh_seconds": seconds,
        "figures": asdict(mesh.figures()),
    }


def bench_generate(
    kinds: Sequence[str], prompts: Sequence[str], preset: str = "draft", options: Sequence[str] = (), jobs: int = 1
) -> Iterator[dict[str, Any]]:
    """Make prompts with every kind of scene, each in a process of its own, so that memory is its own.

    Args:
        kinds: of scene.
        prompts: what to make.
        preset: quality.
        options: NAME=VALUE each, for every run.
        jobs: runs at once; `seconds` are then longer than a run alone takes.

    Yields:
        A row a run: kind, prompt, seconds, peak_rss_mb, r_precision, object, colour, janus.

    Raises:
        RunError: a run failed; with the end of what it said.
    """
    changes = [word for option in options for word in ("--option", option)]
    start = "import sys; from dreamkit.cli.main import main; sys.exit(main(sys.argv[1:]))"

    def make(kind: str, prompt: str, folder: str) -> dict[str, Any]:
        words = ["generate", prompt, "--scene", kind, "--preset", preset, "--out", folder, "--json", *changes]
        done = subprocess.run([sys.executable, "-c", start, *words], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RunError(f"{kind}, {prompt!r}: {done.stderr.strip()[-500:]}", "Try the command by itself.")
        result = json.loads(done.stdout.strip().splitlines()[-1])
        costs = {name: result[name] for name in ("seconds", "peak_rss_mb")}
        return {"kind": kind, "prompt": prompt} | costs | result["scores"]

    with TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        pairs = [(kind, prompt) for kind in kinds for prompt in prompts]
        yield from pool.map(lambda pair: make(pair[0], pair[1], folder), pairs)


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The mean of every measure of `bench_generate`'s rows, a row a kind; the peak of memory is the largest."""
    kinds = dict.fromkeys(row["kind"] for row in rows)
    result = []
    for kind in kinds:
        own = [row for row in rows if row["kind"] == kind]
        line: dict[str, Any] = {"kind": kind, "runs": len(own)}
        for name in ("seconds", "r_precision", "object", "colour", "janus"):
            known = [row[name] for row in own if row.get(name) is not None]
            line[name] = sum(known) / len(known) if known else None
        result.append(line | {"peak_rss_mb": max(row["peak_rss_mb"] for row in own)})
    return result


def _capture(subject: BenchObject, cameras: Camera) -> Capture:
    return capture_object(subject.colour, subject.name, cameras, subject.material)


def _fitter(kind: str) -> Callable[[Capture, FitOptions], TrainableScene]:
    if kind == "gaussians":
        return fit_gaussians
    geometry = NerfConfig(geometry="neus") if kind == "sdf" else NerfConfig()
    return lambda capture, options: fit_nerf(capture, options, geometry)
