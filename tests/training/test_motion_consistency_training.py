"""Training by motion-consistency, with tiny networks on random clips."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_video import write_causal, write_pipeline, write_pool
from torch import Tensor

from dreamkit.errors import ConfigError
from dreamkit.files import read_jsonl
from dreamkit.training.checkpoints import list_checkpoints, load_latest
from dreamkit.training.student import StudentOptions, StudentTrainer, open_pool, train_student
from dreamkit.training.student_losses import Models

pytestmark = pytest.mark.usefixtures("one_thread", "float32")


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_causal(tmp_path_factory.mktemp("causal") / "teacher")


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pool(tmp_path_factory.mktemp("pool") / "pool-abc")


@pytest.fixture
def options(causal: Path, pool: Path, tmp_path: Path) -> Any:
    def make(**changes: Any) -> StudentOptions:
        base = StudentOptions(
            teacher=causal, pool=pool, out=tmp_path / "run", objective="motion-consistency", steps=4, cooldown=1,
            warmup=1, batch=2, frames=6, chunk=2, sink=1, window=2, solver_steps=8, checkpoint_every=2, sample_every=0,
            device="cpu",
        )  # fmt: skip
        return replace(base, **changes)

    return make


def trainer(options: StudentOptions) -> StudentTrainer:
    return StudentTrainer(options, open_pool(options.pool))


class Stopped(Exception):
    """What stands in for a power cut."""


class TestLosses:
    def test_the_gradient_is_where_it_should_be(self, options: Any) -> None:
        run = trainer(options(camera_dropout=0.0, track_dropout=0.0))
        total, metrics = run.losses()
        total.backward()
        assert [name for name, parameter in run.networks.named_parameters() if parameter.grad is None] == []
        assert metrics.keys() == {"loss", "motion", "appearance"}
        assert metrics["loss"] == pytest.approx(metrics["motion"] + metrics["appearance"])
        assert all(not tensor.requires_grad for tensor in run.average.values())
        assert run.models.teacher is not None
        assert all(parameter.grad is None for parameter in run.models.teacher.parameters())

    def test_the_loss_falls(self, options: Any) -> None:
        """On one step's clips and noise, again and again."""
        run = trainer(options(warmup=1, cooldown=0, steps=50, lr=0.005, lr_rest=0.005, ema=0.0))
        losses = []
        for _ in range(8):
            losses.append(run.train_step()["loss"])
            run.step = 0
        assert losses[-1] < losses[0] - 0.05 * abs(losses[0]), losses

    def test_appearance_has_its_weight(self, options: Any) -> None:
        one, three, none = (trainer(options(appearance_weight=weight)).losses()[1] for weight in (1.0, 3.0, 0.0))
        assert three["appearance"] == pytest.approx(3 * one["appearance"])
        assert none == {"loss": pytest.approx(one["motion"]), "motion": pytest.approx(one["motion"])}

    @pytest.mark.parametrize(("share", "calls"), [(0.0, 1), (1.0, 2)])
    def test_its_share_of_clips_is_the_students_own(self, options: Any, share: float, calls: int) -> None:
        """Made by the averaged weights of pure noise, behind the past of the data; then noised like any other."""
        run = trainer(options(own_share=share))
        lesson = run.draw(torch.Generator().manual_seed(5))
        asked: list[tuple[Tensor, Tensor]] = []

        def average(x: Tensor, t: Tensor, text: Any, controls: Any, stream: Any, past: Tensor) -> Tensor:
            assert torch.equal(past, lesson.x0)
            asked.append((x, t))
            return torch.zeros_like(x)

        models = Models(run.models.student, average, run.models.teacher)
        run.objective.losses(lesson, models, torch.Generator().manual_seed(0))
        assert len(asked) == calls
        assert bool((asked[0][1] == 1).all()) == (share == 1)


class TestTraining:
    def run(self, options: StudentOptions, stop: int | None = None) -> dict[str, Tensor]:
        def report(step: int, metrics: dict[str, float]) -> None:
            if step == stop:
                raise Stopped

        train_student(options, report)
        return load_latest(options.out / "checkpoints")[0].tensors

    def test_stopped_and_continued_equals_never_stopped(self, options: Any, tmp_path: Path) -> None:
        straight = self.run(options(out=tmp_path / "straight"))
        stopped = options(out=tmp_path / "stopped")
        with pytest.raises(Stopped):
            self.run(stopped, 3)
        assert list_checkpoints(stopped.out / "checkpoints")[0].name == "step-00000002"
        resumed = self.run(stopped)
        assert straight.keys() == resumed.keys()
        assert all(torch.equal(straight[name], resumed[name]) for name in straight)
        assert [row["step"] for row in read_jsonl(stopped.out / "metrics.jsonl")] == [1, 2, 3, 4]
        assert (stopped.out / "student" / "model_index.json").exists()

    def test_it_is_streamed_in_few_steps_without_guidance(self, options: Any) -> None:
        config = trainer(options(steps_per_chunk=2)).stream_config()
        assert (config.times, config.guidance, config.chunk) == ((1.0, 0.5), 1.0, 2)


class TestMistakes:
    @pytest.mark.parametrize(
        ("change", "name"),
        [
            ({"frames": 1}, "--frames is 1"),
            ({"batch": 1}, "--batch is 1"),
            ({"appearance_weight": -1.0}, "--appearance-weight"),
            ({"own_share": 1.5}, "--own-share"),
        ],
        ids=str,
    )
    def test_numbers(self, options: Any, change: dict[str, Any], name: str) -> None:
        with pytest.raises(ConfigError, match=name):
            options(**change)

    def test_one_clip_is_enough_for_motion(self, options: Any) -> None:
        assert trainer(options(batch=1, appearance_weight=0.0)).train_step()["motion"] > 0

    def test_a_teacher_that_is_not_causal(self, options: Any, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="teacher-forcing"):
            trainer(options(teacher=write_pipeline(tmp_path / "teacher")))
