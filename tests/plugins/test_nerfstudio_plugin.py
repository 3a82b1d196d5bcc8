"""DreamKit inside nerfstudio: its Trainer takes the same steps as our loop, its checkpoints resume, cameras agree.

Runs in the environment that `bash .ci/nerfstudio` makes.
"""

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("nerfstudio", reason="nerfstudio has an environment of its own: bash .ci/nerfstudio")

from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.engine.trainer import Trainer
from nerfstudio.utils import writer

import dreamkit.nerfstudio as plugin
from dreamkit.diffusion.loading import load_teacher
from dreamkit.errors import ConfigError, DreamkitError, PromptError, SceneError
from dreamkit.scenes.cameras import Camera
from dreamkit.scenes.nerf import NerfScene
from dreamkit.training.generate import GenerateOptions, settings_for
from dreamkit.training.scene import SceneTrainer

TINY_NERF = ("nerf.step=0.1", "nerf.occupancy_resolution=8", "nerf.occupancy_interval=2", "nerf.grid.log2_size=10")
TINY_GAUSSIANS = (
    *("gaussians.count=60", "density.start=0", "density.stop=1", "density.interval=1", "density.max_count=80"),
    *("density.min_count=20", "gaussians.initial_opacity=0.5"),
)


def config_for(objective: str, teacher: Path, out: Path, steps: int = 3, **model: Any) -> Any:
    config = plugin.method(objective).config
    config.output_dir, config.timestamp, config.vis = out, "now", "tensorboard"
    config.max_num_iterations, config.machine.device_type = steps, "cpu"
    config.logging.local_writer.enable = False
    options = TINY_GAUSSIANS if model.get("scene") == "gaussians" else TINY_NERF
    named = {"prompt": "a red mug", "teacher": str(teacher), "views": 2, "resolution": 16, "export": (), **model}
    for name, value in ({"options": options} | named).items():
        setattr(config.pipeline.model, name, value)
    config.pipeline.datamanager.eval_views, config.pipeline.datamanager.eval_resolution = 2, 16
    return config


def trained(config: Any) -> Trainer:
    """What `ns-train` does with a configuration."""
    writer.EVENT_WRITERS.clear()
    writer.EVENT_STORAGE.clear()
    writer.GLOBAL_BUFFER.clear()
    config.get_base_dir().mkdir(parents=True, exist_ok=True)
    config.save_config()
    trainer: Trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    trainer.train()
    return trainer


def state_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    return trainer.pipeline.model.get_extra_state()


def own_loop(config: Any, steps: int) -> SceneTrainer:
    """The same run by `dreamkit generate`'s loop."""
    model = config.pipeline.model
    names = ("prompt", "objective", "scene", "teacher", "views", "resolution", "options")
    options = GenerateOptions(**{name: getattr(model, name) for name in names}, steps=steps, device="cpu")
    teacher = load_teacher(model.teacher, "cpu")
    loop = SceneTrainer(settings_for(options, teacher), teacher)
    for _ in range(steps):
        loop.step()
    return loop


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("objective", "scene"), [("sds", "nerf"), ("vsd", "nerf"), ("esd", "nerf"), ("sds", "gaussians"), ("vsd", "mesh")]
)
def test_nerfstudios_trainer_takes_our_loops_steps(
    objective: str, scene: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    config = config_for(objective, checkpoint("toyworld"), tmp_path, scene=scene)
    if scene == "mesh":
        config.pipeline.model.options = ("mesh.resolution=12",)
    trainer = trained(config)
    reached = state_of(trainer)
    wanted = {name: value for name, value in own_loop(config, 3).state().items() if not name.startswith("optimizer/")}
    assert set(reached) == {*wanted, "step"}
    for name, value in wanted.items():
        assert torch.equal(reached[name], value), name
    assert ("critic/" in " ".join(reached)) == (objective != "sds")
    started = own_loop(config, 1).state()
    moved = [name for name, value in wanted.items() if name.startswith("scene/")]
    assert any(not torch.equal(reached[name], started[name]) for name in moved if name in started)


@pytest.mark.usefixtures("one_thread")
def test_losses_and_numbers_are_finite(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    options = (*TINY_NERF, "nerf.opacity_weight=0.1")
    trainer = trained(config_for("esd", checkpoint("toyworld"), tmp_path, options=options))
    loss, losses, metrics = trainer.train_iteration(3)
    assert math.isfinite(float(loss))
    assert set(losses) == {"distillation", "opacity"}
    assert {"critic_loss", "guidance", "t", "occupied"} <= set(metrics)
    assert all(math.isfinite(float(value)) for value in metrics.values())


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("scene", ["nerf", "gaussians"])
def test_a_checkpoint_resumes_exactly(scene: str, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    teacher = checkpoint("toyworld")
    # Without schedules that stretch over the run, 2 + 2 steps are the 4 of one run.
    whole = (
        "guidance=2",
        "timesteps={level: 0.5, jitter: 0}",
        "critic.rate=1e-3",
        "nerf.opacity_weight=0",
        "nerf.sharpness=20",
    )
    rates = [f"nerf.{name}_rate=1e-2" for name in ("table", "network")] + ["gaussians.means_rate=1e-3"]
    options = (*(TINY_NERF if scene == "nerf" else TINY_GAUSSIANS), *whole, *rates)
    one = trained(config_for("vsd", teacher, tmp_path / "one", steps=4, scene=scene, options=options))
    first = config_for("vsd", teacher, tmp_path / "first", steps=2, scene=scene, options=options)
    folder = trained(first).checkpoint_dir
    assert [path.name for path in folder.iterdir()] == ["step-000000001.ckpt"]
    second = config_for("vsd", teacher, tmp_path / "second", steps=2, scene=scene, options=options)
    second.load_dir = folder
    rest = trained(second)
    assert rest.step == 3
    for name, value in state_of(one).items():
        if scene == "gaussians" and name.startswith("upkeep"):
            continue  # what density control adds up may be counted per run
        assert torch.equal(state_of(rest)[name], value), name


@pytest.mark.usefixtures("one_thread")
def test_views_are_those_of_the_scene(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    config = config_for("sds", checkpoint("toyworld"), tmp_path, export=("ply",))
    trainer = trained(config)
    assert (tmp_path / "a-red-mug" / "dreamkit-sds" / "now" / "config.yml").is_file()
    assert [path.name for path in (trainer.base_dir / "exports").iterdir()] in (["scene.ply"], [])
    pipeline = trainer.pipeline
    metrics, images = pipeline.get_eval_image_metrics_and_images(step=0)
    assert metrics["num_rays"] == 256
    assert images["img"].shape == (16, 16, 3)
    assert set(pipeline.get_average_eval_image_metrics()) == {"coverage", "num_rays_per_sec", "fps"}
    scene = pipeline.model.scene
    assert isinstance(scene, NerfScene)
    camera = Camera.orbit(30.0, 20.0, 3.0, 40.0, 12, 18)
    seen = pipeline.model.get_outputs_for_camera(plugin.to_nerfstudio(camera))
    with torch.no_grad():
        own = scene.render(camera)
    torch.testing.assert_close(seen["rgb"], own.image[0].permute(1, 2, 0).clamp(0, 1), atol=1e-3, rtol=0)
    torch.testing.assert_close(seen["accumulation"], own.alpha[0].permute(1, 2, 0), atol=1e-3, rtol=0)
    middle = seen["depth"][6, 9, 0]
    assert 2.0 < float(middle) < 4.0


def test_rays_agree() -> None:
    camera = Camera.orbit([0.0, 75.0, -160.0], [10.0, -40.0, 88.0], [3.0, 2.0, 4.0], [40.0, 25.0, 70.0], 10, 14)
    theirs = plugin.to_nerfstudio(camera)
    turn = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
    origins, directions = camera.rays()
    for view in range(3):
        rays = theirs.generate_rays(view, keep_shape=True)
        torch.testing.assert_close(rays.origins @ turn.T, origins[view])
        torch.testing.assert_close(rays.directions @ turn.T, directions[view], atol=1e-5, rtol=0)
    torch.testing.assert_close(turn @ turn.T, torch.eye(3))
    assert torch.det(turn) == 1  # no mirror
    assert (turn @ torch.tensor([0.0, 0.0, 1.0])).tolist() == [0.0, 1.0, 0.0]  # their up is ours
    back = plugin.from_nerfstudio(theirs)
    torch.testing.assert_close(back.camera_to_world, camera.camera_to_world)
    torch.testing.assert_close(back.fov_y, camera.fov_y)
    assert (back.height, back.width) == (10, 14)


def test_one_camera_without_a_batch_is_read_and_odd_ones_are_refused() -> None:
    one = plugin.to_nerfstudio(Camera.orbit([10.0, 20.0], 0.0, 3.0, 40.0, 8, 8))
    assert len(plugin.from_nerfstudio(one[1])) == 1
    matrices = one.camera_to_worlds
    for odd in (
        Cameras(matrices, 10.0, 20.0, 4.0, 4.0, 8, 8),
        Cameras(matrices, 10.0, 10.0, 1.0, 4.0, 8, 8),
        Cameras(matrices, 10.0, 10.0, 4.0, 4.0, 8, 8, camera_type=CameraType.FISHEYE),
    ):
        with pytest.raises(SceneError, match="pinhole"):
            plugin.from_nerfstudio(odd)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"prompt": None}, PromptError),
        ({"options": ("particles=2",)}, ConfigError),
        ({"options": ("x=2",)}, ConfigError),
    ],
)
def test_mistakes_are_explained(
    changes: dict[str, Any], kind: type[DreamkitError], checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    config = config_for("sds", checkpoint("toyworld"), tmp_path, **changes)
    with pytest.raises(kind):
        config.pipeline.setup(device="cpu", world_size=1)


def test_ns_train_knows_the_methods_and_takes_a_prompt(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    program = str(Path(sys.executable).with_name("ns-train"))
    listed = subprocess.run([program, "--help"], capture_output=True, text=True, check=True).stdout
    assert all(f"dreamkit-{name}" in listed for name in ("sds", "vsd", "esd"))
    words = f"dreamkit-esd --vis tensorboard --machine.device-type cpu --max-num-iterations 2 --output-dir {tmp_path}"
    model = (
        f"--pipeline.model.teacher {checkpoint('toyworld')} --pipeline.model.resolution 16 --pipeline.model.export ply"
    )
    command = [program, *words.split(), "--prompt", "a red mug", *model.split()]
    command += ["--pipeline.model.options", *TINY_NERF, "--timestamp", "now"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert list((tmp_path / "a-red-mug" / "dreamkit-esd" / "now" / "nerfstudio_models").glob("*.ckpt"))
