"""The loop of distribution matching, with students and critics that are Gaussians, so that every answer is known."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dreamkit.config import Schedule
from dreamkit.diffusion.exact import ExactTeacher, Mixture
from dreamkit.diffusion.schedule import NoiseSchedule
from dreamkit.errors import CheckpointError, ConfigError, DreamkitError
from dreamkit.objectives import Matching, MatchingContext, student_objective_names
from dreamkit.objectives.adversarial import Adversarial
from dreamkit.training.checkpoints import list_checkpoints, load_latest
from dreamkit.training.matching import Made, MatchingTrainer, matching_objective
from dreamkit.training.teacher_loop import run_training

pytestmark = pytest.mark.usefixtures("one_thread")

SCHEDULE = NoiseSchedule.ddpm("cosine")
MU, V = 0.7, 0.25
TEACHER = ExactTeacher({"": Mixture.gaussian(torch.full((1, 1, 1), MU).double(), V)}, SCHEDULE)


@dataclass(frozen=True)
class Options:
    out: Path = Path("unused")
    steps: int = 300
    cooldown: int = 100
    warmup: int = 10
    lr: float = 0.1
    lr_rest: float = 0.02
    critic_lr: float = 0.2
    critic_lr_rest: float = 0.05
    critic_steps: int = 2
    ema: float = 0.9
    seed: int = 0
    checkpoint_every: int = 3
    sample_every: int = 0
    batch: int = 64
    accumulate: int = 1


class Student(nn.Module):
    """x = m + s z. Muon trains s, AdamW m."""

    def __init__(self, mean: float = -0.5, spread: float = 0.9) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(mean))
        self.blocks = nn.ParameterList([nn.Parameter(torch.tensor([[spread]]))])

    def forward(self, z: Tensor) -> Tensor:
        return self.mean + self.blocks[0][0, 0] * z


class Critic(nn.Module):
    """The denoiser of N(m, s^2), and a discriminator a x_t + b."""

    def __init__(self) -> None:
        super().__init__()
        self.gaussian = Student()
        self.logit = nn.Parameter(torch.zeros(2))

    def predict(self, x_t: Tensor, levels: Tensor) -> Tensor:
        alpha, sigma = SCHEDULE.coefficients(levels, x_t)
        m, variance = self.gaussian.mean, self.gaussian.blocks[0][0, 0] ** 2
        return m + alpha * variance / (alpha**2 * variance + sigma**2) * (x_t - alpha * m)

    def pair(self, x_t: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
        return self.predict(x_t, levels), self.predict(x_t, levels)

    def discriminate(self, x_t: Tensor, levels: Tensor) -> Tensor:
        return self.logit[0] * x_t.flatten(1).mean(dim=1) + self.logit[1]


class Exact:
    """The teacher as objectives ask it."""

    def __init__(self, spoilt: bool = False) -> None:
        self.spoilt = spoilt

    def predict(self, x_t: Tensor, levels: Tensor) -> Tensor:
        x0 = TEACHER.predict(x_t, levels, TEACHER.null_condition(1), differentiable=True).x0
        return x0 * float("nan") if self.spoilt else x0

    def pair(self, x_t: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
        return self.predict(x_t, levels), self.predict(x_t, levels)


class Trainer(MatchingTrainer):
    """Notes what it is asked for."""

    def __init__(self, objective: Matching, options: Options = Options(), critic: bool = True) -> None:
        super().__init__(Student(), Critic() if critic else None, objective, options)
        self.asked: list[tuple[bool, int]] = []
        self.data: Tensor | None = None
        self.contexts: list[MatchingContext] = []
        self.spoilt_at = -1

    def make(self, generator: torch.Generator, trained: bool) -> Made:
        self.asked.append((trained, generator.initial_seed()))
        z = torch.randn(self.loop.batch, 1, 1, 1, generator=generator)  # type: ignore[attr-defined]
        x = self.trained(z)
        assert x.requires_grad == trained
        critic = self.critic
        context = MatchingContext(
            teacher=Exact(spoilt=self.step == self.spoilt_at),
            schedule=SCHEDULE,
            generator=generator,
            critic=critic if isinstance(critic, Critic) else None,
            discriminator=critic.discriminate if isinstance(critic, Critic) else None,
            data=None
            if self.data is None
            else self.data[torch.randint(len(self.data), (len(x),), generator=generator)],
        )
        self.contexts.append(context)
        return Made(x, context)

    def export(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def draw_samples(self, folder: Path, picture: Path) -> None:
        raise AssertionError("not asked for")


def objective(name: str = "dmd", *options: str) -> Matching:
    return matching_objective(name, ["guidance=1", *options])


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def changed(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, value in module.named_parameters() if not torch.equal(value, before[name])}


class TestConvergence:
    @pytest.mark.parametrize("name", ["dmd", "swiftbrush", "sid", "sim"])
    def test_a_student_becomes_its_teacher(self, name: str) -> None:
        """The critic is a Gaussian's exact one, so student, critic and teacher end as the same Gaussian."""
        run = Trainer(objective(name))
        rows = [run.train_step() for _ in range(300)]
        student = run.trained
        assert isinstance(student, Student)
        assert float(student.mean.detach()) == pytest.approx(MU, abs=0.06)
        assert abs(float(student.blocks[0].detach())) == pytest.approx(math.sqrt(V), abs=0.08)
        assert float(run.average["mean"]) == pytest.approx(MU, abs=0.06)
        assert all(math.isfinite(value) for row in rows for value in row.values())

    def test_a_critic_knows_what_the_student_makes(self) -> None:
        """With a student that stands still: its mean and its spread."""
        run = Trainer(objective(), Options(lr=0.0, lr_rest=0.0))
        for _ in range(150):
            run.train_step()
        critic = run.critic
        assert isinstance(critic, Critic)
        assert float(critic.gaussian.mean.detach()) == pytest.approx(-0.5, abs=0.1)
        assert abs(float(critic.gaussian.blocks[0].detach())) == pytest.approx(0.9, abs=0.1)

    def test_a_discriminator_tells_data_from_samples(self) -> None:
        """Data around 2, samples around -0.5: its slope is positive, and so is its answer on data alone."""
        run = Trainer(objective("dmd", "gan_weight=1e-3", "t_max=0.5"), Options(lr=0.0, lr_rest=0.0))
        run.data = 2 + 0.3 * torch.randn(200, 1, 1, 1, generator=torch.Generator().manual_seed(5))
        first = run.train_step()
        assert first["discriminator"] == pytest.approx(2 * math.log(2), abs=0.1)
        for _ in range(60):
            last = run.train_step()
        assert last["discriminator"] < 0.5 * first["discriminator"]
        critic, zero = run.critic, torch.full((200,), 0.02).double()
        assert isinstance(critic, Critic)
        with torch.no_grad():
            assert float((critic.discriminate(run.data, zero) > 0).float().mean()) > 0.95
            assert bool((critic.discriminate(-0.5 * torch.ones(9, 1, 1, 1), zero[:9]) < 0).all())


class TestAlternation:
    def test_the_critic_first_then_the_student_once(self) -> None:
        run = Trainer(objective(), Options(critic_steps=3))
        run.train_step()
        run.train_step()
        assert [trained for trained, _ in run.asked] == 2 * [False, False, False, True]
        seeds = [seed for _, seed in run.asked]
        assert len(set(seeds)) == 8  # no two draws see the same

    def test_each_moves_its_own_weights_alone(self) -> None:
        run = Trainer(objective())
        assert run.critic is not None
        for index in range(2):
            before = snapshot(run.trained)
            critic = snapshot(run.critic)
            run._critic_step(index)
            assert changed(run.trained, before) == set()
            assert changed(run.critic, critic) == {"gaussian.mean", "gaussian.blocks.0"}
        critic = snapshot(run.critic)
        MatchingTrainer.__mro__[1].train_step(run)  # the student's half
        assert changed(run.critic, critic) == set()
        assert changed(run.trained, before) == {"mean", "blocks.0"}
        assert all(p.grad is None for p in run.critic.parameters())
        assert all(p.requires_grad for p in run.critic.parameters())

    @pytest.mark.parametrize("name", ["sid", "uni-instruct"])
    def test_scores_that_are_differentiated_leave_the_critic_alone(self, name: str) -> None:
        run = Trainer(objective(name))
        run.data = torch.ones(5, 1, 1, 1)
        assert run.critic is not None
        total, _ = run.losses()
        total.backward()
        assert all(p.grad is None for p in run.critic.parameters())
        assert all(p.grad is not None for p in run.trained.parameters())

    def test_passes_of_a_step_are_averaged(self) -> None:
        """The gradients of the student and of the critic are the means of those of three passes, each by itself."""
        run = Trainer(objective("f-distill"), Options(accumulate=3))
        run.data = torch.linspace(-1, 1, 9).view(9, 1, 1, 1)
        total, metrics = run.losses()
        total.backward()
        got = {name: p.grad.clone() for name, p in run.trained.named_parameters() if p.grad is not None}
        run.trained.zero_grad()
        losses = []
        for index in range(3):
            made = run.make(run._generator(run.critic_steps, index), trained=True)
            with run._frozen_critic():
                loss = run.objective(made.x, run._at_step(made.context)).loss
            (loss / 3).backward()
            losses.append(float(loss.detach()))
        assert len(set(losses)) == 3
        assert metrics["loss"] == pytest.approx(sum(losses) / 3)
        assert set(got) == {"mean", "blocks.0"}
        for name, p in run.trained.named_parameters():
            torch.testing.assert_close(got[name], p.grad, msg=name)
        run.trained.zero_grad()
        seen: list[dict[str, Tensor]] = []
        run.update = lambda module, *rest: seen.append(  # type: ignore[method-assign]
            {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
        )
        run._critic_step(0)
        assert run.critic is not None
        run.critic.zero_grad()
        for index in range(3):
            with torch.no_grad():
                made = run.make(run._generator(0, index), trained=False)
            (run._critic_loss(made)[0] / 3).backward()
        assert set(seen[0]) == {"gaussian.mean", "gaussian.blocks.0", "logit"}
        for name, p in run.critic.named_parameters():
            torch.testing.assert_close(seen[0][name], p.grad, msg=name)

    def test_no_two_passes_see_the_same(self) -> None:
        run = Trainer(objective(), Options(accumulate=2))
        for _ in range(2):
            run.train_step()
        seeds = [seed for _, seed in run.asked]
        assert len(seeds) == len(set(seeds)) == 2 * 2 * (1 + run.critic_steps)

    def test_without_a_critic(self) -> None:
        class Plain(Matching):
            name = "plain"

            def __call__(self, x: Tensor, context: MatchingContext) -> Any:
                from dreamkit.objectives import StudentLoss

                assert context.critic is None
                return StudentLoss(x.square().mean(), x.detach(), x.detach())

        run = Trainer(Plain(), critic=False)
        run.train_step()
        assert [trained for trained, _ in run.asked] == [True]
        assert not [name for name in run.state() if name.startswith("critic.")]
        with pytest.raises(CheckpointError, match="another network"):
            Trainer(objective()).load_state(run.state(), 1)

    def test_a_discriminator_without_data(self) -> None:
        with pytest.raises(DreamkitError, match="no data"):
            Trainer(objective("f-distill")).train_step()

    def test_an_objective_knows_where_the_run_is(self) -> None:
        seen: list[tuple[int, int]] = []

        class Watched(type(objective())):  # type: ignore[misc]
            def gradient(self, x: Tensor, context: MatchingContext) -> Any:
                seen.append((context.step, context.total))
                return super().gradient(x, context)

        run = Trainer(Watched(guidance=Schedule.constant(1.0)), Options(steps=7))
        for _ in range(3):
            run.train_step()
        assert seen == [(0, 7), (1, 7), (2, 7)]


class TestRuns:
    def options(self, out: Path, **changes: Any) -> Options:
        return replace(Options(out=out, steps=4, cooldown=2, warmup=1, checkpoint_every=2, batch=8), **changes)

    @pytest.mark.parametrize("options", [(), ("gan_weight=1e-3",)], ids=["plain", "gan"])
    def test_stopped_and_continued_equals_never_stopped(self, tmp_path: Path, options: tuple[str, ...]) -> None:
        class Stopped(Exception):
            pass

        def run(name: str, stop: int = 0) -> dict[str, Tensor]:
            def report(step: int, metrics: dict[str, float]) -> None:
                if step == stop:
                    raise Stopped

            trainer = Trainer(objective("dmd", *options), self.options(tmp_path / name))
            trainer.data = torch.linspace(-1, 1, 20)[:, None, None, None]
            run_training(trainer, "student", report, lambda text: None)
            return load_latest(tmp_path / name / "checkpoints")[0].tensors

        straight = run("straight")
        with pytest.raises(Stopped):
            run("stopped", 3)
        resumed = run("stopped")
        assert straight.keys() == resumed.keys()
        assert any(name.startswith("critic.optimizer.") for name in straight)
        assert all(torch.equal(straight[name], resumed[name]) for name in straight)

    def test_what_is_not_finite_stops_the_run_and_keeps_the_checkpoint(self, tmp_path: Path) -> None:
        trainer = Trainer(objective(), self.options(tmp_path, steps=9))
        trainer.spoilt_at = 4
        with pytest.raises(DreamkitError, match=r"teacher's prediction of dmd is not finite at step 4"):
            run_training(trainer, "student", lambda step, metrics: None, lambda text: None)
        assert [path.name for path in list_checkpoints(tmp_path / "checkpoints")] == ["step-00000004", "step-00000002"]
        again = Trainer(objective(), self.options(tmp_path, steps=6))
        run_training(again, "student", lambda step, metrics: None, lambda text: None)
        assert again.step == 6


class TestObjectivesByName:
    def test_options_are_read_as_generate_reads_them(self) -> None:
        given = matching_objective(
            "f-distill", ["guidance=[0, 4, 2, 1]", "gan_weight=1e-2", "divergence=kl", "shared_level=true"]
        )
        assert given.guidance == Schedule(0.0, 4.0, 2.0, 1.0)
        assert (given.gan_weight, given.divergence, given.shared_level) == (0.01, "kl", True)  # type: ignore[attr-defined]
        ranged = matching_objective("swiftbrush", ["guidance_range=[1, 4]"])
        assert ranged.guidance_range == (1, 4)  # type: ignore[attr-defined]
        assert matching_objective("dmd", ["guidance=3", "guidance=5"]).guidance == Schedule.constant(5.0)
        assert matching_objective("dmd", ["guidance.end_value=2"]).guidance == Schedule(0.0, 4.0, 2.0, 1.0)

    @pytest.mark.parametrize("name", student_objective_names())
    def test_every_one_has_its_defaults(self, name: str) -> None:
        made = matching_objective(name)
        assert made == type(made)()
        assert isinstance(made, Adversarial) or not made.learns_from_data

    @pytest.mark.parametrize(
        ("name", "option", "message"),
        [
            ("dmd", "guidance", "NAME=VALUE"),
            ("dmd", "=3", "NAME=VALUE"),
            ("dmd", "gan_wait=3", "gan_weight"),
            ("dmd", "guidance=-1", "guidance scale is -1"),
            ("dmd", "critic_guided=7", "critic_guided"),
            ("dmd", "guidance={", "can't be read"),
            ("sds", "guidance=3", "'sds' is not known"),
        ],
    )
    def test_mistakes(self, name: str, option: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            matching_objective(name, [option])
