"""Pictures of a run while it is optimised: they change nothing, cost little, and tell what there is to see."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from dreamkit.files import read_jsonl
from dreamkit.metrics import judge
from dreamkit.runs import Run, RunInterrupted
from dreamkit.scenes.gaussian_config import GaussianConfig
from dreamkit.scenes.gaussians import GaussianScene
from dreamkit.scenes.pictures import read_image
from dreamkit.scenes.splat_files import read_splat, write_splat
from dreamkit.training import generate, previews
from dreamkit.training.callbacks import Callback
from dreamkit.training.generate import GenerateOptions
from dreamkit.training.previews import MAX_LOSSES, Losses, Previews, side_by_side

SMALL = ("resolution=16", "gaussians.count=200", "checkpoint_every=100")


@pytest.fixture(autouse=True)
def only_the_optimisation(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    monkeypatch.setattr(generate, "render_scene", lambda *arguments: {})
    monkeypatch.setattr(generate, "_score", lambda *arguments: {})
    monkeypatch.setattr(judge, "load_judge", None)


def options(out: Path, checkpoint, kind: str = "toyworld", **changes) -> GenerateOptions:
    base = GenerateOptions(
        "a red mug", steps=6, views=1, out=str(out), device="cpu", teacher=str(checkpoint(kind)), options=SMALL
    )
    return replace(base, **changes)


def with_previews(given: GenerateOptions, every: int) -> GenerateOptions:
    return replace(given, options=(*given.options, f"preview_every={every}"))


def state_of(run: Path) -> dict:
    return json.loads((run / "preview" / "state.json").read_text())


@pytest.mark.parametrize("kind", ["toyworld", "sd15"])
def test_the_result_has_the_same_bytes_with_and_without(tmp_path, checkpoint, kind):
    given = options(tmp_path, checkpoint, kind)
    plain = generate.generate(given)
    watched = generate.generate(with_previews(given, 1))
    assert plain.exports["ply"].read_bytes() == watched.exports["ply"].read_bytes()
    assert plain.teacher_calls == watched.teacher_calls
    assert not (plain.run / "preview").exists()
    assert {path.name for path in (watched.run / "preview").iterdir()} == {"view.png", "scene.splat", "state.json"}


def test_what_is_told_is_there(tmp_path, checkpoint):
    run = generate.generate(with_previews(options(tmp_path, checkpoint), 2)).run
    state = state_of(run)
    assert (state["stage"], state["step"], state["total"], state["eta"]) == ("done", 6, 6, None)
    assert state["teacher_calls"] > 0
    assert state["losses"] == [
        [row["step"], pytest.approx(row["loss"], rel=1e-4)] for row in read_jsonl(run / "metrics.jsonl")
    ]
    assert (state["view"], state["target"]) == (True, True)
    assert read_image(run / "preview" / "view.png").shape == (3, 16, 32)
    assert len(read_splat(run / "preview" / "scene.splat")) == state["splats"]
    assert not list((run / "preview").glob(".*"))


def test_a_field_has_a_picture_but_no_splats(tmp_path, checkpoint, monkeypatch):
    monkeypatch.setattr(generate, "export_assets", lambda *arguments: {})
    given = options(tmp_path, checkpoint, scene="nerf", steps=2, options=("resolution=16", "preview_every=1"))
    run = generate.generate(given).run
    assert state_of(run)["splats"] is None
    assert (run / "preview" / "view.png").exists()
    assert not (run / "preview" / "scene.splat").exists()


class StopAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, step, total, metrics) -> None:
        if step == self.step:
            raise KeyboardInterrupt


def test_a_resumed_run_goes_on_telling(tmp_path, checkpoint):
    given = options(tmp_path, checkpoint, options=(*SMALL[:2], "checkpoint_every=2", "preview_every=1"))
    with pytest.raises((KeyboardInterrupt, RunInterrupted)):
        generate.generate(given, [StopAt(5)])
    run = next(tmp_path.glob("*/*/*Z"))
    before = state_of(run)
    generate.resume(str(run))
    state = state_of(run)
    assert [step for step, _ in state["losses"]] == [1, 2, 3, 4, 5, 6]
    assert state["teacher_calls"] > before["teacher_calls"]
    assert state["seconds"] >= before["seconds"]


class Trainer:
    calls = 7

    def __init__(self) -> None:
        self.scene = GaussianScene.initialise(GaussianConfig(count=20), torch.Generator().manual_seed(0))


def test_they_come_less_often_where_they_cost_more(tmp_path, monkeypatch):
    now = [0.0]
    shown = Previews(tmp_path, Trainer(), 1, "optimising", clock=lambda: now[0])
    written = []

    def write(*arguments) -> None:
        written.append(shown._step)
        now[0] += 1.0

    monkeypatch.setattr(shown, "_write_pictures", write)
    monkeypatch.setattr(shown, "_write_state", lambda: None)
    shown.on_stage("optimising", 200)
    for step in range(1, 201):
        shown.wants("target", step, 200)
        now[0] += 1.0
        shown.on_step(step, 200, {"loss": 1.0})
    assert written[0] == 1
    assert written[-1] == 200
    assert 5 <= len(written) <= 9  # 3 % of 200 s, the first and the last


def test_losses_are_bounded_and_spread_over_the_run(tmp_path):
    losses = Losses(tmp_path / "none.jsonl")
    for step in range(1, 20_001):
        losses.add(step, 1.0 / step)
    losses.add(20_002, None)
    steps = [step for step, _ in losses.points]
    assert MAX_LOSSES // 2 <= len(steps) <= MAX_LOSSES
    gaps = {after - before for before, after in pairwise(steps)}
    assert len(gaps) == 1
    assert steps[0] <= min(gaps)
    assert steps[-1] > 20_000 - min(gaps)


def test_pictures_of_two_sizes_stand_side_by_side():
    view, target = torch.zeros(3, 1024, 1024), torch.full((3, 8, 8), float("nan"))
    pair = side_by_side(view, target)
    assert pair.shape == (3, 512, 1024)
    assert bool(torch.isfinite(pair).all())
    assert torch.equal(side_by_side(torch.ones(3, 4, 4), None), torch.ones(3, 4, 4))


def test_a_damaged_state_of_an_earlier_process_is_passed_over(tmp_path):
    for text in ("[1]", "{", '{"seconds": "x", "teacher_calls": null}'):
        (tmp_path / "preview").mkdir(exist_ok=True)
        (tmp_path / "preview" / "state.json").write_text(text)
        assert previews._earlier(tmp_path / "preview" / "state.json") == {"seconds": 0.0, "teacher_calls": 0.0}


def test_a_snapshot_keeps_the_most_important(tmp_path):
    scene = Trainer().scene
    write_splat(scene, tmp_path / "all.splat")
    write_splat(scene, tmp_path / "some.splat", 5)
    assert (tmp_path / "some.splat").read_bytes() == (tmp_path / "all.splat").read_bytes()[: 5 * 32]


def test_a_run_without_previews_is_asked_for_nothing(tmp_path, checkpoint):
    run = generate.generate(options(tmp_path, checkpoint, steps=1)).run
    assert Run.open(run).config["preview_every"] == 0
