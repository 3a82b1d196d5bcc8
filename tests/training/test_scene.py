"""The scene loop: wiring, randomness by step, exact resume, and that it goes where the teacher points."""

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dreamkit.config import Schedule
from dreamkit.diffusion.condition import Condition
from dreamkit.diffusion.critic import CriticConfig
from dreamkit.diffusion.loading import load_teacher
from dreamkit.diffusion.schedule import NoiseSchedule
from dreamkit.diffusion.teacher import Query, Teacher
from dreamkit.errors import CheckpointError, ConfigError, TeacherError
from dreamkit.scenes.density import DensityConfig
from dreamkit.scenes.gaussian_config import GaussianConfig
from dreamkit.training.scene import SceneTrainer, seeded
from dreamkit.training.settings import SceneSettings

SIZE = 16


class PaintTeacher(Teacher):
    """A teacher that would rather see one colour everywhere, and notes what it was asked.

    Args:
        colour: RGB in [0, 1].
        supports_camera: whether it may be given poses.
    """

    def __init__(self, colour: tuple[float, float, float] = (0.9, 0.1, 0.2), supports_camera: bool = True) -> None:
        self.name = "paint"
        self.colour = torch.tensor(colour).view(1, 3, 1, 1)
        self.supports_camera = supports_camera
        self.schedule = NoiseSchedule.ddpm("cosine")
        self.prediction_type = "x0"
        self.sample_shape = (3, SIZE, SIZE)
        self.image_size = SIZE
        self.calls = 0
        self.prompts: list[list[str]] = []
        self.queries: list[Query] = []

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def encode_prompt(self, prompts: Sequence[str]) -> Condition:
        self.prompts.append(list(prompts))
        return Condition(torch.ones(len(prompts), 1, 1))

    def null_condition(self, n: int = 1) -> Condition:
        return Condition(torch.zeros(n, 1, 1))

    def encode_image(self, image: Tensor) -> Tensor:
        return 2 * image - 1

    def decode(self, x: Tensor) -> Tensor:
        return (x / 2 + 0.5).clamp(0, 1)

    def _forward(self, queries: Sequence[Query]) -> list[Tensor]:
        self.queries += queries
        return [(2 * self.colour - 1).expand_as(query.x_t) for query in queries]


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
    """A trainer, whose teacher has forgotten what it was asked while the run was checked."""
    teacher = teacher or PaintTeacher()
    run = SceneTrainer(settings(**options), teacher)
    teacher.prompts.clear()
    return run


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
        assert float(teacher.queries[1].condition.embeddings.sum()) == 1  # encoded, not the null condition

    def test_without_one_the_null_condition(self) -> None:
        teacher = PaintTeacher()
        trainer(teacher).step()
        assert float(teacher.queries[0].condition.embeddings.sum()) == 2  # of two views
        assert float(teacher.queries[1].condition.embeddings.abs().sum()) == 0

    def test_poses_reach_a_teacher_that_takes_them(self) -> None:
        teacher = PaintTeacher()
        trainer(teacher).step()
        camera = teacher.queries[0].camera
        assert camera is not None
        assert camera.shape == (2, 12)
        radius = camera.view(2, 3, 4)[:, :, 3].norm(dim=-1)
        assert bool(((radius >= 2.8) & (radius <= 3.2)).all())

    @pytest.mark.parametrize(("supports", "wanted"), [(False, True), (True, False)])
    def test_or_none_does(self, supports: bool, wanted: bool) -> None:
        teacher = PaintTeacher(supports_camera=supports)
        trainer(teacher, camera_conditioning=wanted).step()
        assert [query.camera for query in teacher.queries] == [None, None]


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
            trainer().load_state({name: t for name, t in state.items() if not name.startswith("upkeep")}, 1)
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
        (particle,) = second.particles
        particle.scene = SimpleNamespace(  # type: ignore[assignment]
            load_state=seen.update, make_optimizers=lambda: None, load_optimizer_state=seen.update
        )
        particle.upkeep = SimpleNamespace(load_state=seen.update)  # type: ignore[assignment]
        second.load_state(state, 1)
        assert seen["means"].device.type == "meta"
        assert seen["means.exp_avg"].device.type == "meta"
        assert seen["means.step"].device.type == "cpu"


class TestWhatObjectivesGet:
    """What reaches an objective besides x: each thing by the setting that asks for it."""

    def run(self, monkeypatch: pytest.MonkeyPatch, teacher: PaintTeacher | None = None, **options: Any) -> list[Any]:
        """The contexts of two steps; `self.x` is what the objective was given."""
        run = trainer(teacher, **options)
        seen: list[Any] = []
        self.x: list[Tensor] = []
        call = type(run.objective).__call__

        def note(objective: Any, x: Tensor, context: Any) -> Any:
            seen.append(context)
            self.x.append(x.detach())
            return call(objective, x, context)

        monkeypatch.setattr(type(run.objective), "__call__", note)
        for _ in range(2):
            run.step()
        return seen

    def test_without_a_negative_prompt_it_is_the_empty_one_itself(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for context in self.run(monkeypatch):
            assert context.negative is context.null
        for context in self.run(monkeypatch, negative="blurry"):
            assert context.negative is not context.null
            assert float(context.null.embeddings.abs().sum()) == 0

    def test_progress_and_the_runs_seed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        one, two = self.run(monkeypatch)
        assert (one.step, two.step, one.total) == (0, 1, 6)
        assert one.seed == two.seed
        assert one.generator.initial_seed() != two.generator.initial_seed()
        assert self.run(monkeypatch, seed=9)[0].seed != one.seed

    def test_the_critics_pose_is_there_whether_or_not_the_teacher_gets_one(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for supports in (True, False):
            context = self.run(monkeypatch, PaintTeacher(supports_camera=supports))[0]
            assert context.pose.shape == (2, 12)
            assert (context.camera is not None) == supports

    def test_perp_neg(self, monkeypatch: pytest.MonkeyPatch) -> None:
        teacher = PaintTeacher()
        (context, _) = self.run(monkeypatch, teacher, perp_neg=True)
        assert context.repulsion.weights.shape == (2, 2)
        assert len(context.positive) == 2
        assert all(len(condition) == 2 for condition in context.repulsion.conditions)
        assert self.run(monkeypatch)[0].repulsion is None

    def test_an_edit_gets_its_start_seen_by_the_same_cameras(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """At the first step the scene is its source still."""
        teacher = PaintTeacher()
        options = {"objective": "dds", "objective_options": {}, "source_prompt": "a blue cube"}
        first, second = self.run(monkeypatch, teacher, **options)
        assert ["a blue cube"] in teacher.prompts
        assert torch.equal(first.source.x, self.x[0])
        assert not first.source.x.requires_grad
        assert not torch.equal(first.source.x, second.source.x)  # other cameras
        assert self.run(monkeypatch)[0].source is None

    def test_the_source_stays_when_the_scene_moves(self) -> None:
        run = trainer(objective="dds", objective_options={})
        assert run._source is not None
        (means,) = run.scene.optimizers["means"].param_groups[0]["params"]
        before = run._source.state()["means"].clone()
        assert torch.equal(before, means)
        with torch.no_grad():
            means += 0.1
        run.step()
        assert torch.equal(run._source.state()["means"], before)

    def test_a_reference_is_encoded_once(self) -> None:
        picture = torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
        options = {"objective": "csm", "objective_options": {}}
        run = SceneTrainer(settings(**options), PaintTeacher(), picture)
        run.step()
        with pytest.raises(TeacherError, match="csm"):
            SceneTrainer(settings(), PaintTeacher(), picture)

    def test_a_critic_of_a_teacher_without_a_network(self) -> None:
        with pytest.raises(TeacherError, match="vsd needs a critic"):
            trainer(objective="vsd", objective_options={})

    @pytest.mark.parametrize(
        "options",
        [{"lambda": 2.0}, {"guidance": -1.0}, {"timesteps": {"t_min": 0.9, "t_max": 0.1}}, {"colour": "red"}],
        ids=str,
    )
    def test_bad_options_before_the_first_step(self, options: dict[str, Any]) -> None:
        with pytest.raises(ConfigError):
            trainer(objective="esd", objective_options=options)


class TestImageTerm:
    """HiFA's image-space term: besides g, the loop adds strength / 2 ||image - decode(x0)||^2 / views."""

    def means_gradient(self, strength: float, resolution: int = SIZE, teacher: PaintTeacher | None = None) -> Tensor:
        options = {"guidance": 1.0, "weighting": "sigma_ratio", "image_term": strength}
        run = trainer(teacher, objective_options=options, resolution=resolution)
        grads: list[Tensor] = []
        (means,) = run.scene.optimizers["means"].param_groups[0]["params"]
        means.register_hook(lambda grad: grads.append(grad.clone()))
        run.step()
        return grads[0]

    def test_it_pulls_the_picture_itself_towards_what_the_teacher_sees(self) -> None:
        """The teacher paints one colour, so that both pulls are known: x = 2 image - 1, and so the surrogate pulls the
        image by 2 (x - x0) = 4 (image - colour), and the image term by strength (image - colour)."""
        plain, pulled = self.means_gradient(0.0), self.means_gradient(0.5)
        torch.testing.assert_close(pulled, plain * (4 + 0.5) / 4, rtol=1e-3, atol=1e-7)

    def test_a_picture_of_another_size_than_the_views(self) -> None:
        """What the teacher sees is brought to the views' size."""
        larger = 2 * SIZE

        class Shrinking(PaintTeacher):
            def encode_image(self, image: Tensor) -> Tensor:
                return 2 * torch.nn.functional.avg_pool2d(image, 2) - 1

        one, two = (self.means_gradient(strength, larger, Shrinking()) for strength in (0.0, 0.5))
        assert bool(torch.isfinite(two).all())
        assert not torch.allclose(one, two)


@pytest.fixture(scope="module")
def teacher(checkpoint: Any) -> Teacher:
    """A tiny network."""
    return load_teacher(str(checkpoint("toyworld")), "cpu")


class TestParticles:
    """Scenes that take turns and share a critic, on a tiny network."""

    def make(self, teacher: Teacher, **options: Any) -> SceneTrainer:
        critic = CriticConfig(rank=2, rate=Schedule.constant(1e-3))
        chosen = {"objective": "vsd", "objective_options": {}, "particles": 2, "critic": critic, "steps": 8}
        return SceneTrainer(settings(**chosen | options), teacher)

    def test_both_scenes_train(self, teacher: Teacher) -> None:
        run = self.make(teacher)
        before = [particle.scene.state()["means"].clone() for particle in run.particles]
        assert not torch.equal(*before)  # each starts as its own
        critic = run.critic.state()  # type: ignore[union-attr]
        metrics = run.step().metrics
        after = [particle.scene.state()["means"] for particle in run.particles]
        assert not torch.equal(before[0], after[0])
        assert torch.equal(before[1], after[1])  # its turn is next
        first = after[0].clone()
        run.step()
        assert torch.equal(first, run.particles[0].scene.state()["means"])
        assert not torch.equal(before[1], run.particles[1].scene.state()["means"])
        assert metrics["critic_loss"] > 0
        learned = run.critic.state()  # type: ignore[union-attr]
        assert any(not torch.equal(critic[name], learned[name]) for name in critic)
        assert run.scene is run.particles[0].scene

    @pytest.mark.parametrize("name", ["vsd", "esd"])
    @pytest.mark.parametrize("stop", [1, 4])
    def test_resuming_is_not_having_stopped(self, teacher: Teacher, name: str, stop: int) -> None:
        straight, first, second = (self.make(teacher, objective=name) for _ in range(3))
        for _ in range(6):
            straight.step()
        for _ in range(stop):
            first.step()
        saved = {key: tensor.clone() for key, tensor in first.state().items()}
        assert any(key.startswith("particle-1/scene/") for key in saved)
        assert any(key.startswith("critic/weight/") for key in saved)
        second.load_state(saved, first.step_index)
        for _ in range(6 - stop):
            second.step()
        assert states_equal(straight, second)

    def test_every_call_of_teacher_and_critic_counts(self, teacher: Teacher) -> None:
        run = self.make(teacher)
        before = run.calls
        run.step()
        views = 2
        assert run.calls - before == views * (2 + 1 + 1)  # E(y), E(n); the critic asked, and trained

    def test_states_of_another_number_of_particles(self, teacher: Teacher) -> None:
        run, single = self.make(teacher), self.make(teacher, particles=1)
        with pytest.raises(CheckpointError):
            run.load_state(single.state(), 0)
        with pytest.raises(CheckpointError):
            single.load_state(run.state(), 0)
        without = {key: value for key, value in run.state().items() if not key.startswith("critic/")}
        with pytest.raises(CheckpointError, match="critic"):
            run.load_state(without, 0)


def test_a_real_teacher_of_latents(checkpoint: Any) -> None:
    """Gradients pass an autoencoder on their way to the Gaussians."""
    teacher = load_teacher(str(checkpoint("sd15")), "cpu")
    run = SceneTrainer(replace(settings(), objective_options={}), teacher)
    before = run.scene.state()["means"]
    run.step()
    assert not torch.equal(before, run.scene.state()["means"])
    assert all(parameter.grad is None for parameter in teacher.vae.parameters())
