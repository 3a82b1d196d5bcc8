"""`dreamkit toyworld capture` and `dreamkit fit`, from pictures to a run that the other commands take."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dreamkit.captures import read_capture
from dreamkit.cli.main import main
from dreamkit.runs import Run, RunInterrupted
from dreamkit.scenes.field_config import HashNetworkConfig
from dreamkit.scenes.gaussian_config import GaussianConfig
from dreamkit.scenes.nerf_config import NerfConfig
from dreamkit.scenes.paths import read_camera_path
from dreamkit.training import deliver, fit_run, fit_settings, generate
from dreamkit.training.checkpoints import load_latest
from dreamkit.training.poses import PoseConfig

TINY = HashNetworkConfig(levels=3, log2_size=10, coarsest=4, finest=16, hidden=8)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scenes and films that are done at once."""
    monkeypatch.setattr(deliver, "TURNTABLE_FRAMES", 8)
    monkeypatch.setattr(deliver, "PICTURE_SIZE", 32)
    monkeypatch.setattr(fit_run, "_ALIGN_STEPS", 2)
    real = fit_settings.fit_preset

    def tiny(scene: Any, *words: Any, **options: Any) -> fit_settings.FitSettings:
        geometry = "volsdf" if scene == "sdf" else "density"
        nerf = NerfConfig(grid=TINY, step=0.1, occupancy_resolution=8, geometry=geometry)  # type: ignore[arg-type]
        return real(scene, *words, nerf=nerf, gaussians=GaussianConfig(count=100), rays=64, **options)

    monkeypatch.setattr(fit_settings, "fit_preset", tiny)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "A Mug!"
    words = ["toyworld", "capture", "mug", str(folder), "--views", "9", "--size", "24"]
    assert main([*words, "--noise-degrees", "1"]) == 0
    return folder


def run_json(words: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*words, "--json"]) == code
    content: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return content


@pytest.mark.parametrize(("scene", "refine"), [("gaussians", True), ("nerf", True), ("sdf", False)])
def test_a_fit_is_a_run(
    small: None, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], scene: str, refine: bool
) -> None:
    words = ["fit", str(data), "--scene", scene, "--steps", "6", "--out", str(tmp_path / "out")]
    content = run_json([*words, "--refine-poses"] if refine else words, capsys)
    assert content["views"] == {"training": 8, "held_out": 1}
    assert content["size"] == [24, 24]
    assert content["peak_rss_mb"] > 10
    names = {"psnr", "ssim", "psnr_training", "ssim_training"}
    moved = {"psnr_aligned", "ssim_aligned"} | {
        f"{a}_{b}" for a in ("turned", "shifted") for b in ("training", "held_out")
    }
    assert set(content["scores"]) == (names | moved if refine else names)
    run = Path(content["run"])
    assert run.parent == tmp_path / "out" / "a-mug" / "fit"
    assert json.loads((run / "scores.json").read_text()) == content["scores"]
    assert Path(content["exports"]["ply"]).is_file()
    assert len(read_camera_path(run / "cameras.json", 24)) == 8
    out = ["--out", str(tmp_path / "out")]
    assert (
        main(["render", "latest", "--frames", "1", "--resolution", "16", "--output", str(tmp_path / "a.png"), *out])
        == 0
    )
    assert Image.open(tmp_path / "a.png").size == (16, 16)
    if scene != "gaussians":  # the rest takes any kind the same way, and fields take long
        return
    assert main(["render", str(run), "--path", str(run / "cameras.json"), "--resolution", "16", "--format", "png"]) == 0
    assert main(["export", str(run), "--format", "splat"]) == 0
    assert main(["resume", str(run)]) == 0  # done: renders and exports again
    capsys.readouterr()
    assert main(["evaluate", str(run)]) == 2
    assert "no prompt" in capsys.readouterr().err


def test_an_interrupted_fit_goes_on(
    small: None, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def words(name: str) -> list[str]:
        return ["fit", str(data), "--steps", "6", "--refine-poses", "--out", str(tmp_path / name)]

    whole = run_json(words("whole"), capsys)
    real = generate.guard_interrupts
    calls = []

    class Guard:
        @property
        def requested(self) -> bool:
            calls.append(1)
            return len(calls) > 2  # asked once a step: in the third

    class Context:
        def __enter__(self) -> Guard:
            return Guard()

        def __exit__(self, *error: object) -> None:
            pass

    monkeypatch.setattr(generate, "guard_interrupts", Context)
    assert main(words("broken")) == 130
    said = capsys.readouterr().err
    assert "dreamkit resume" in said
    monkeypatch.setattr(generate, "guard_interrupts", real)
    run = Run.open("latest", tmp_path / "broken")
    assert 0 < load_latest(run)[0].step < 6
    resumed = run_json(["resume", str(run.path)], capsys)
    assert resumed["scores"] == whole["scores"]
    first, second = (load_latest(Run.open("latest", tmp_path / name))[0].tensors for name in ("whole", "broken"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert issubclass(RunInterrupted, KeyboardInterrupt)


def test_the_same_seed_gives_the_same_bytes(
    small: None, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["fit", str(data), "--steps", "4", "--seed", "3"]
    one, two = (run_json([*words, "--out", str(tmp_path / name)], capsys) for name in ("a", "b"))
    assert Path(one["exports"]["ply"]).read_bytes() == Path(two["exports"]["ply"]).read_bytes()


def test_pictures_without_masks_warn(
    small: None, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (data / "images").iterdir():
        Image.open(path).convert("RGB").save(path)
    content = run_json(["fit", str(data), "--steps", "2", "--hold-out", "0", "--out", str(tmp_path / "out")], capsys)
    assert "mask" in content["warnings"][0]
    assert set(content["scores"]) == {"psnr_training", "ssim_training"}
    assert content["views"] == {"training": 9, "held_out": 0}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere"], "nowhere"),
        ([""], "empty"),
        ([".", "--scene", "mesh"], "mesh"),
        ([".", "--steps", "0"], "--steps"),
        ([".", "--max-size", "8"], "--max-size"),
        ([".", "--hold-out", "1"], "--hold-out"),
        ([".", "--normalise", "no"], "--normalise"),
        ([".", "--up", "x"], "--up"),
        ([".", "--seed", "-1"], "--seed"),
        ([".", "--device", "tpu"], "--device"),
    ],
)
def test_bad_input(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fit", *words]) == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_run_of_other_pictures_is_not_resumed(
    small: None, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = run_json(["fit", str(data), "--steps", "2", "--refine-poses", "--out", str(tmp_path / "out")], capsys)
    value = json.loads((data / "transforms.json").read_text())
    (data / "transforms.json").write_text(json.dumps({**value, "frames": value["frames"][:5]}))
    assert main(["resume", content["run"]]) == 2
    assert "corrections" in capsys.readouterr().err
    (data / "transforms.json").unlink()
    assert main(["resume", content["run"]]) == 2


@pytest.mark.parametrize("kind", ["transforms", "blender", "colmap"])
def test_captures_of_the_toy_world(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["toyworld", "capture", "duck", str(tmp_path / "set"), "--views", "5", "--size", "20", "--format", kind]
    content = run_json([*words, "--noise-degrees", "2", "--noise-distance", "0.1"], capsys)
    folder = Path(content["folder"])
    read = read_capture(folder)
    assert len(read.cameras) == (6 if kind == "blender" else 5)
    truth = read_capture(folder / "transforms_truth.json")
    assert torch.equal(read.images, truth.images)
    assert float((read.cameras.position - truth.cameras.position).norm(dim=1).min()) > 0.001
    torch.testing.assert_close(truth.cameras.radius, torch.full((len(truth.cameras),), 3.0))
    assert main(words) == 2
    assert "not empty" in capsys.readouterr().err


def test_pictures_through_a_bent_lens(tmp_path: Path) -> None:
    words = ["toyworld", "capture", "cube", "--views", "3", "--size", "64", "--material", "plain"]
    assert main([*words[:3], str(tmp_path / "plain"), *words[3:]]) == 0
    for kind in ("transforms", "colmap"):
        assert main([*words[:3], str(tmp_path / kind), *words[3:], "--distortion", "-0.3", "--format", kind]) == 0
        bent, plain = read_capture(tmp_path / kind), read_capture(tmp_path / "plain")
        for view in range(3):  # the same cube at the same place, up to the lens's field
            wide, narrow = plain.cameras[view], bent.cameras[view]
            scale = float(narrow.focal[0] / wide.focal[0])
            sizes = [float(c.alphas[view].sum()) for c in (bent, plain)]
            assert sizes[0] / sizes[1] == pytest.approx(scale**2, rel=0.02)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["dragon", "set"], "dragon"),
        (["mug", "set", "--views", "0"], "--views"),
        (["mug", "set", "--size", "8"], "--size"),
        (["mug", "set", "--colour", "infrared"], "infrared"),
        (["mug", "set", "--material", "wet"], "wet"),
        (["mug", "set", "--format", "obj"], "obj"),
        (["mug", "set", "--elevations", "50", "10"], "elevations"),
        (["mug", "set", "--noise-degrees", "90"], "--noise-degrees"),
        (["mug", "set", "--noise-distance", "nan"], "--noise-distance"),
        (["mug", "set", "--distortion", "3"], "--distortion"),
        (["mug", "set", "--distortion", "0.1", "--format", "blender"], "distortion"),
        (["mug", ""], "DIR"),
        (["mug", "/dev/null/set"], "set"),
    ],
)
def test_bad_captures(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["toyworld", "capture", *words]) == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_poses_are_kept_in_the_settings() -> None:
    from dreamkit.files import plain

    settings = fit_settings.fit_preset("nerf", True)
    assert settings.poses.enabled
    assert fit_settings.fit_settings(plain(settings)) == settings
    assert fit_settings.is_fit(plain(settings))
    assert fit_settings.fit_preset("gaussians").poses == PoseConfig()
