"""The scene loop: wiring, randomness by step, exact resume, and that it goes where the teacher points."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dreamkit.config import Schedule
from dreamkit.diffusion.condition import Condition
from dreamkit.diffusion.guidance import GuidedPrediction
from dreamkit.diffusion.schedule import NoiseSchedule
from dreamkit.errors import CheckpointError
from dreamkit.scenes.density import DensityConfig
from dreamkit.scenes.gaussian_config import GaussianConfig
from dreamkit.training.scene import SceneTrainer, seeded
from dreamkit.training.settings import SceneSettings

SIZE = 16


class PaintTeacher:
    """A teacher that would rather see one colour everywhere, and notes what it was asked.

    Args:
        colour: RGB in [0, 1].
        supports_camera: whether it may be given poses.
    """

    def __init__(self, colour: tuple[float, float, float] = (0.9, 0.1, 0.2), supports_camera: bool = True) -> None:
        self.colour = torch.tensor(colour).view(1, 3, 1, 1)
        self.supports_camera = supports_camera
        self.schedule = NoiseSchedule.ddpm("cosine")
        self.device = torch.device("cpu")
        self.prompts: list[list[str]] = []
        self.cameras: list[Tensor | None] = []
        self.negatives: list[Condition] = []

    def encode_prompt(self, prompts: list[str]) -> Condition:
        self.prompts.append(list(prompts))
        return Condition(torch.ones(len(prompts), 1, 1))

    def null_condition(self, n: int = 1) -> Condition:
        return Condition(torch.zeros(n, 1, 1))

    def encode_image(self, image: Tensor) -> Tensor:
        return 2 * image - 1

    def decode(self, x: Tensor) -> Tensor:
        return (x / 2 + 0.5).clamp(0, 1)

    def predict_guided(
        self, x_t: Tensor, t: Tensor, positive: Condition, negative: Condition, scale: float,
        camera: Tensor | None = None, rescale: float = 0.0,
    ) -> GuidedPrediction:  # fmt: skip
        self.cameras.append(camera)
        self.negatives.append(negative)
        x0 = (2 * self.colour - 1).expand_as(x_t)
        prediction = self.schedule.convert(x0, x_t, t, "x0")
        return GuidedPrediction(prediction, prediction, prediction)


def settings(**options: Any) -> SceneSettings:
    return SceneSettings(
        **{
            "prompt": "a red mug",
            "objective_options": {"guidance": 1.0, "weighting": "sigma_ratio"},
            "gaussians": GaussianConfig(count=150, initial_opacity=0.5),
            "density": DensityConfig(start=0.0, stop=1.0, interval=2, max_count=200, min_count=20),
            "steps": 6,
            "views": 2,
            "resolution": SIZE,
            **options,
        }
    )


def trainer(teacher: PaintTeacher | None = None, **options: Any) -> SceneTrainer:
    return SceneTrainer(settings(**options), teacher or PaintTeacher())  # type: ignore[arg-type]


def states_equal(one: SceneTrainer, two: SceneTrainer) -> bool:
    first, second = one.state(), two.state()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class TestSeeded:
    def test_a_triple_means_one_stream(self) -> None:
        one, two = (torch.rand(4, generator=seeded(3, 2, 7)) for _ in range(2))
        assert torch.equal(one, two)

    def test_different_triples_are_unrelated(self) -> None:
        triples = [(seed, stream, index) for seed in range(20) for stream in range(4) for index in range(50)]
        assert len({seeded(*triple).initial_seed() for triple in triples}) == len(triples)
        # Neighbours share no structure: the first draws are uniform.
        draws = torch.stack([torch.rand((), generator=seeded(0, 2, index)) for index in range(500)])
        assert float(draws.mean()) == pytest.approx(0.5, abs=0.06)
        assert abs(float(torch.corrcoef(torch.stack([draws[:-1], draws[1:]]))[0, 1])) < 0.15

    def test_every_seed_that_may_be_asked_for(self) -> None:
        for seed in (0, 1, 2**32, 2**63 - 1):
            torch.rand(1, generator=seeded(seed, 1))


class TestStep:
    def test_it_goes_where_the_teacher_points(self) -> None:
        """Seen on black and white backgrounds alike, the fog turns into the colour the teacher paints."""
        run = trainer(steps=80, views=4, density=DensityConfig(enabled=False))
        losses = [run.step().metrics["loss"] for _ in range(80)]
        assert losses[-1] < 0.5 * losses[0]
        colours = (run.scene.colors * run.scene.opacities[:, None]).sum(0) / run.scene.opacities.sum()
        assert float((colours.detach() - torch.tensor([0.9, 0.1, 0.2])).abs().max()) < 0.2

    def test_what_it_reports(self) -> None:
        run = trainer(gaussians=GaussianConfig(count=150, sparsity_weight=Schedule.constant(0.1)))
        result = run.step()
        assert {"loss", "t", "guidance", "grad_rms", "gaussians", "sparsity"} <= set(result.metrics)
        assert all(isinstance(value, float) and value == value for value in result.metrics.values())
        assert result.metrics["gaussians"] == len(run.scene)
        assert result.image.shape == (3, SIZE, SIZE)
        assert not result.image.requires_grad
        assert result.target is None
        assert run.step_index == 1

    def test_what_the_teacher_would_rather_see(self) -> None:
        target = trainer().step(show_target=True).target
        assert target is not None
        torch.testing.assert_close(target, torch.tensor([0.9, 0.1, 0.2])[:, None, None].expand(3, SIZE, SIZE))

    def test_the_regularisers_count(self) -> None:
        sparse = GaussianConfig(count=150, initial_opacity=0.5, sparsity_weight=Schedule.constant(1e4))
        plain, pressed = trainer(), trainer(gaussians=sparse)
        for _ in range(4):
            plain.step()
            pressed.step()
        assert float(pressed.scene.opacities.detach().mean()) < float(plain.scene.opacities.detach().mean()) - 0.02

    def test_density_control_changes_the_number(self) -> None:
        run = trainer()
        counts = [run.step().metrics["gaussians"] for _ in range(6)]
        assert counts[0] == 150
        assert counts[-1] != 150
        assert len(run.scene) == counts[-1]

    def test_learning_rates_follow_their_schedules(self) -> None:
        run = trainer(gaussians=GaussianConfig(count=20, means_rate=Schedule(0.0, 0.1, 0.01, 1.0, "exponential")))
        rates = []
        for _ in range(4):
            run.step()
            rates.append(run.scene.optimizers["means"].param_groups[0]["lr"])
        assert rates == pytest.approx([0.1 * 0.1 ** (step / 6) for step in range(4)])


class TestConditions:
    def test_prompts_name_the_view_of_each_camera(self) -> None:
        teacher = PaintTeacher()
        run = trainer(teacher, views=8)
        cameras = run.settings.cameras.sample(8, torch.Generator().manual_seed(0), SIZE, SIZE)
        run.conditions(cameras)
        assert teacher.prompts == [[f"a red mug, {name}" for name in cameras.view_names()]]
        assert len(set(teacher.prompts[0])) > 1

    def test_or_not(self) -> None:
        teacher = PaintTeacher()
        trainer(teacher, view_prompts=False).step()
        assert teacher.prompts == [["a red mug", "a red mug"]]

    def test_a_negative_prompt(self) -> None:
        teacher = PaintTeacher()
        trainer(teacher, negative="a blue car").step()
        assert ["a blue car"] in teacher.prompts
        assert float(teacher.negatives[0].embeddings.sum()) == 1  # encoded, not the null condition

    def test_without_one_the_null_condition(self) -> None:
        teacher = PaintTeacher()
        trainer(teacher).step()
        assert float(teacher.negatives[0].embeddings.abs().sum()) == 0

    def test_poses_reach_a_teacher_that_takes_them(self) -> None:
        teacher = PaintTeacher()
        trainer(teacher).step()
        camera = teacher.cameras[0]
        assert camera is not None
        assert camera.shape == (2, 12)
        radius = camera.view(2, 3, 4)[:, :, 3].norm(dim=-1)
        assert bool(((radius >= 2.8) & (radius <= 3.2)).all())

    @pytest.mark.parametrize(("supports", "wanted"), [(False, True), (True, False)])
    def test_or_none_does(self, supports: bool, wanted: bool) -> None:
        teacher = PaintTeacher(supports_camera=supports)
        trainer(teacher, camera_conditioning=wanted).step()
        assert teacher.cameras == [None]


class TestRepetition:
    def test_same_seed_same_bytes(self) -> None:
        one, two, other = trainer(seed=4), trainer(seed=4), trainer(seed=5)
        for _ in range(3):
            metrics = one.step().metrics
            assert two.step().metrics == metrics
            other.step()
        assert states_equal(one, two)
        assert not states_equal(one, other)

    @pytest.mark.parametrize("stop", [1, 3, 4, 5])
    def test_resuming_is_not_having_stopped(self, stop: int) -> None:
        """Stops before, between and after density control's changes, which come at steps 2, 4 and 6."""
        straight, first, second = trainer(), trainer(), trainer()
        for _ in range(6):
            straight.step()
        for _ in range(stop):
            first.step()
        saved = {name: tensor.clone() for name, tensor in first.state().items()}
        second.load_state(saved, first.step_index)
        for _ in range(6 - stop):
            second.step()
        assert second.step_index == straight.step_index == 6
        assert states_equal(straight, second)

    def test_the_global_generator_plays_no_part(self) -> None:
        torch.manual_seed(0)
        one = trainer()
        for _ in range(3):
            one.step()
        torch.manual_seed(1)
        two = trainer()
        for _ in range(3):
            torch.rand(5)
            two.step()
        assert states_equal(one, two)

    def test_a_state_of_something_else(self) -> None:
        run = trainer()
        run.step()
        state = run.state()
        with pytest.raises(CheckpointError, match="critic"):
            trainer().load_state(state | {"critic/weight": torch.zeros(1)}, 1)
        with pytest.raises(CheckpointError):
            trainer().load_state({name: t for name, t in state.items() if not name.startswith("density")}, 1)
        with pytest.raises(CheckpointError):
            trainer().load_state({name: t for name, t in state.items() if "means" not in name}, 1)

    def test_a_state_goes_to_the_teachers_device(self) -> None:
        """Steps of Adam, which have no dimension, stay on the CPU; all else goes where the teacher computes."""
        run = trainer()
        run.step()
        state = run.state()
        second = trainer()
        second.teacher = SimpleNamespace(device=torch.device("meta"))  # type: ignore[assignment]
        seen: dict[str, Tensor] = {}
        second.scene = SimpleNamespace(  # type: ignore[assignment]
            load_state=seen.update, make_optimizers=lambda: None, load_optimizer_state=seen.update
        )
        second.density = SimpleNamespace(load_state=seen.update)  # type: ignore[assignment]
        second.load_state(state, 1)
        assert seen["means"].device.type == "meta"
        assert seen["means.exp_avg"].device.type == "meta"
        assert seen["means.step"].device.type == "cpu"


def test_a_real_teacher_of_latents(checkpoint: Any) -> None:
    """Gradients pass an autoencoder on their way to the Gaussians."""
    from dreamkit.diffusion.loading import load_teacher

    teacher = load_teacher(str(checkpoint("sd15")), "cpu")
    run = SceneTrainer(replace(settings(), objective_options={}), teacher)
    before = run.scene.state()["means"]
    run.step()
    assert not torch.equal(before, run.scene.state()["means"])
    assert all(parameter.grad is None for parameter in teacher.vae.parameters())
