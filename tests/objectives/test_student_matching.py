"""What students' objectives share: groups, levels, the critic's loss, the adversarial part, options, names."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from closed_form import COSINE, FLOW, coefficients, gaussian, normal
from student_closed_form import PIXEL, ExactDenoiser, ExactRatio, FixedContext, Linear, at_level, context, made, numbers
from torch import Tensor

from dreamkit.cli.main import main
from dreamkit.diffusion.schedule import NoiseSchedule
from dreamkit.errors import ConfigError, TeacherError, TrainingError
from dreamkit.objectives import (
    GradientMatching,
    Matching,
    MatchingContext,
    objective_names,
    register,
    register_student,
    registry,
    student_objective_class,
    student_objective_names,
)
from dreamkit.objectives.matching import (
    as_groups,
    draw_levels,
    group_mean,
    group_sum,
    normaliser,
    require_finite,
    shifted,
    spread,
)
from dreamkit.training.settings import from_plain

pytestmark = pytest.mark.usefixtures("one_thread")

TEACHER = ExactDenoiser(gaussian(0.4, 0.3, PIXEL), COSINE, gaussian(-0.2, 0.3, PIXEL))
CRITIC = ExactDenoiser(made(0.0, 0.7))


def plain(chunk: int = 0, seed: int = 0, **more: Any) -> FixedContext:
    return context(TEACHER, CRITIC, seed, chunk=chunk, **more)


class TestGroups:
    def test_spread(self) -> None:
        levels = torch.tensor([0.1, 0.9]).double()
        assert spread(levels, torch.zeros(2, 3, 4, 4)).shape == (2, 1, 1, 1)
        assert spread(levels, torch.zeros(2, 3, 5, 4, 4)).shape == (2, 1, 1, 1, 1)
        assert spread(levels[:, None].expand(2, 5), torch.zeros(2, 3, 5, 4, 4)).shape == (2, 1, 5, 1, 1)
        assert spread(levels, torch.zeros(2, 3, 4, 4)).dtype == torch.float32

    def test_sums_and_means(self) -> None:
        """Of a sample; or of a chunk, the same for each of its frames, also of a last one that is shorter."""
        clip = normal(2, (3, 5, 2, 2), 1)
        torch.testing.assert_close(group_sum(clip), clip.flatten(1).sum(dim=1))
        torch.testing.assert_close(group_mean(clip), clip.flatten(1).mean(dim=1))
        means = group_mean(clip, 2)
        assert means.shape == (2, 5)
        for start, stop in ((0, 2), (2, 4), (4, 5)):
            part = clip[:, :, start:stop].flatten(1)
            torch.testing.assert_close(means[:, start:stop], part.mean(dim=1, keepdim=True).expand(2, stop - start))
            torch.testing.assert_close(group_sum(clip, 2)[:, start], part.sum(dim=1))

    def test_numbers_a_sample_are_numbers_a_frame(self) -> None:
        clip, image = torch.zeros(2, 1, 3, 1, 1), torch.zeros(2, 1, 1, 1)
        one, many = torch.tensor([1.0, 2.0]), torch.arange(6.0).reshape(2, 3)
        assert as_groups(one, clip, 1, "reward").tolist() == [[1, 1, 1], [2, 2, 2]]
        assert torch.equal(as_groups(many, clip, 1, "reward"), many)
        assert torch.equal(as_groups(one, image, 0, "reward"), one)
        for value, x, chunk in ((many, image, 0), (torch.ones(3), clip, 1), (torch.ones(2, 2), clip, 1)):
            with pytest.raises(TeacherError, match="reward has shape"):
                as_groups(value, x, chunk, "reward")

    @pytest.mark.parametrize("chunk", [0, 2])
    def test_the_normaliser(self, chunk: int) -> None:
        x, guided = normal(2, (1, 4, 2, 2), 1).requires_grad_(), normal(2, (1, 4, 2, 2), 2)
        n = normaliser(x, guided, chunk)
        assert not n.requires_grad
        expected = (x - guided).abs().detach()
        first = expected[0, :, : chunk or 4].mean() + 1e-6
        assert float(n.expand_as(x)[0, 0, 0, 0, 0]) == pytest.approx(float(first))
        assert float(normaliser(guided, guided).max()) == pytest.approx(1e-6)

    @pytest.mark.parametrize("name", ["dmd", "sid", "sim", "tdm"])
    def test_a_chunk_does_not_scale_another(self, name: str) -> None:
        """Another scale in one leaves the other's gradient alone; but for a clip that is one sample, it doesn't."""
        clip = normal(2, (1, 4, 2, 2), 1)
        wild = clip.clone()
        wild[:, :, 2:] *= 30
        alone: dict[int, bool] = {}
        for chunk in (0, 2):
            groups = (2, 4) if chunk else (2,)
            teacher = ExactDenoiser(gaussian(0.4, 0.3, (1, 2, 2)), COSINE, gaussian(-0.2, 0.3, (1, 2, 2)))
            critic = ExactDenoiser(gaussian(0.0, 0.5, (1, 2, 2)))
            given = [context(teacher, critic, chunk=chunk, student_level=torch.full(groups, 0.5)) for _ in range(2)]
            one, two = (student_objective_class(name)()(x, at).grad for x, at in zip((clip, wild), given, strict=True))
            alone[chunk] = torch.allclose(one[:, :, :2], two[:, :, :2], rtol=1e-12, atol=0)
            assert not torch.allclose(one[:, :, 2:], two[:, :, 2:])
        assert alone == {0: False, 2: True}


class TestLevels:
    def test_shift(self) -> None:
        t = torch.linspace(0, 1, 11, dtype=torch.float64)
        torch.testing.assert_close(shifted(t, 5.0), 5 * t / (1 + 4 * t))
        torch.testing.assert_close(shifted(shifted(t, 5.0), 1 / 5.0), t)

    @pytest.mark.parametrize("shift", [1.0, 3.0])
    def test_uniform_before_the_shift_and_inside_the_range(self, shift: float) -> None:
        levels = draw_levels(torch.zeros(4000, 1, 1, 1), plain(), 0.1, 0.9, shift, False)
        assert levels.dtype == torch.float64
        assert float(levels.min()) >= 0.1
        assert float(levels.max()) <= 0.9
        ends = shifted(torch.tensor([0.1, 0.9]).double(), 1 / shift)
        place = (shifted(levels, 1 / shift) - ends[0]) / (ends[1] - ends[0])
        counts = torch.histc(place, 10, 0, 1)
        assert float((counts - 400).abs().max()) < 90  # 4.7 standard deviations

    def test_a_level_for_each_chunk_or_one_for_all(self) -> None:
        clip = torch.zeros(3, 1, 5, 1, 1)
        levels = draw_levels(clip, plain(2), 0.0, 1.0, 1.0, False)
        assert levels.shape == (3, 5)
        assert torch.equal(levels[:, 0], levels[:, 1])
        assert torch.equal(levels[:, 2], levels[:, 3])
        assert len(set(levels.flatten().tolist())) == 9
        shared = draw_levels(clip, plain(2), 0.0, 1.0, 1.0, True)
        assert shared.shape == (3, 5)
        assert len(set(shared.flatten().tolist())) == 3
        assert draw_levels(clip, plain(0), 0.0, 1.0, 1.0, False).shape == (3,)

    def test_noise_is_the_same_in_every_dtype(self) -> None:
        one, two = plain().noise_like(torch.zeros(4, 2)), plain().noise_like(torch.zeros(4, 2).double())
        assert torch.equal(one.double(), two)


class TestTheCriticsLoss:
    @pytest.mark.parametrize("schedule", [COSINE, FLOW], ids=["ddpm", "flow"])
    @pytest.mark.parametrize("weighting", ["eps", "flow", "v", "x0"])
    def test_it_is_the_error_of_what_it_is_named_after(self, weighting: Any, schedule: NoiseSchedule) -> None:
        """The mean square of the network's own kind of output, as `NoiseSchedule.convert` has it."""
        x, e = numbers(normal(6, (), 1).flatten()), numbers(normal(6, (), 2).flatten())
        critic = Linear(0.1, 0.7)
        given = context(TEACHER, critic, schedule=schedule, eps=e)
        loss = at_level("dmd", 0.4, critic_weighting=weighting).critic_loss(x, given)
        levels = torch.full((6,), 0.4, dtype=torch.float64)
        x_t = schedule.add_noise(x, e, levels)
        guess, truth = (schedule.convert(clean, x_t, levels, "x0") for clean in (critic.predict(x_t, levels), x))
        expected = (getattr(guess, weighting) - getattr(truth, weighting)).square().mean()
        torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize(("t", "limited"), [(0.1, True), (0.8, False)])
    def test_min_snr(self, t: float, limited: bool) -> None:
        x = numbers(normal(6, (), 1).flatten())
        losses = [
            at_level("dmd", t, critic_weighting=kind).critic_loss(x, context(TEACHER, Linear())).item()
            for kind in ("min_snr", "x0", "eps")
        ]
        alpha, sigma = coefficients(COSINE, t)
        snr = alpha**2 / sigma**2
        assert (snr > 5) == limited
        assert losses[0] == pytest.approx(min(snr, 5.0) * losses[1])
        assert (losses[0] == pytest.approx(losses[2])) == (not limited)

    def test_weights_leave_samples_out(self) -> None:
        x = numbers(normal(4, (), 1).flatten())
        weights = torch.tensor([1.0, 0.0, 1.0, 0.0])
        changed = x.clone()
        changed[1::2] = 100.0
        losses = [at_level("dmd", 0.4).critic_loss(at, plain(), weights).item() for at in (x, changed)]
        assert losses[0] == losses[1]
        assert losses[0] < at_level("dmd", 0.4).critic_loss(changed, plain()).item()
        with pytest.raises(TeacherError, match="weights has shape"):
            at_level("dmd", 0.4).critic_loss(x, plain(), torch.ones(3))

    def test_of_every_frame(self) -> None:
        clip = normal(2, (1, 4, 1, 1), 1)
        weights = torch.tensor([[1.0, 1.0, 0.0, 0.0]] * 2)
        changed = clip.clone()
        changed[:, :, 2:] += 5
        losses = [at_level("dmd", 0.4).critic_loss(at, plain(2), weights).item() for at in (clip, changed)]
        assert losses[0] == losses[1]

    def test_the_right_critic_has_the_least(self) -> None:
        """E[x | x_t] of what the student makes, over its own range of levels."""
        x = numbers(0.7 * normal(4000, (), 1).flatten())
        losses = {
            spread: student_objective_class("dmd")()
            .critic_loss(x, context(TEACHER, ExactDenoiser(made(0.0, spread))))
            .item()
            for spread in (0.4, 0.7, 1.1)
        }
        assert min(losses, key=losses.__getitem__) == 0.7

    def test_without_a_critic(self) -> None:
        for name, words in (("dmd", "dmd needs a critic"), ("scm", "scm has no critic to train")):
            given = dataclasses.replace(plain(), critic=None, student=CRITIC)
            with pytest.raises(TeacherError, match=words):
                student_objective_class(name)().critic_loss(numbers(torch.zeros(2)), given)

    def test_one_that_has_come_apart(self) -> None:
        with pytest.raises(TrainingError, match="critic's loss of dmd is not finite at step 7"):
            at_level("dmd", 0.4).critic_loss(numbers(torch.zeros(2)), context(TEACHER, Linear(float("nan")), step=7))


class TestTheAdversarialPart:
    DATA, MADE = gaussian(0.4, 0.3, PIXEL), made(-0.1, 0.5)
    RATIO = ExactRatio(DATA, MADE)

    def test_the_students_gradient(self) -> None:
        """That of gan_weight softplus(-D(x_t)) a sample, times its numbers, by differences; on top of DMD's."""
        shape = (2, 2, 2)
        ratio = ExactRatio(gaussian(0.4, 0.3, shape), gaussian(-0.1, 0.5, shape))
        teacher = ExactDenoiser(gaussian(0.4, 0.3, shape))
        x, eps = normal(3, shape, 1), normal(3, shape, 2)
        given = context(teacher, ExactDenoiser(gaussian(0.0, 0.5, shape)), eps=eps, discriminator=ratio)
        with_gan, without = (at_level("dmd", 0.5, gan_weight=w)(x, given) for w in (0.05, 0.0))
        levels = torch.full((3,), 0.5, dtype=torch.float64)

        def term(at: Tensor) -> Tensor:
            return torch.nn.functional.softplus(-ratio(COSINE.add_noise(at, eps, levels), levels)).sum()

        expected = torch.func.grad(term)(x)
        torch.testing.assert_close(with_gan.grad - without.grad, 0.05 * 8 * expected, rtol=1e-8, atol=1e-10)
        assert with_gan.diagnostics["gan"] == pytest.approx(float(term(x)) / 3)

    def test_the_best_discriminator_is_the_ratio_of_densities(self) -> None:
        """It has the least loss; the bound of Goodfellow et al. is 2 log 2 where there is nothing to tell."""
        data = numbers(0.4 + 0.3**0.5 * normal(4000, (), 1).flatten())
        fake = numbers(-0.1 + 0.5 * normal(4000, (), 2).flatten())
        method = at_level("dmd", 0.3, gan_weight=1.0)

        def loss(discriminator: Any) -> float:
            return method.discriminator_loss(data, fake, plain(discriminator=discriminator)).item()  # type: ignore[attr-defined]

        best = loss(self.RATIO)
        for other in (
            lambda x, t: self.RATIO(x, t) + 0.5,
            lambda x, t: 0.5 * self.RATIO(x, t),
            lambda x, t: -self.RATIO(x, t),
        ):
            assert loss(other) > best + 0.005
        assert loss(lambda x, t: 0 * self.RATIO(x, t)) == pytest.approx(2 * 0.6931471805599453)

    def test_only_the_discriminator_learns(self) -> None:
        weight = torch.ones((), dtype=torch.float64, requires_grad=True)
        real, fake = (numbers(normal(4, (), seed).flatten()).requires_grad_() for seed in (1, 2))
        given = plain(discriminator=lambda x_t, t: weight * x_t.flatten(1).sum(dim=1))
        at_level("dmd", 0.3, gan_weight=1.0).discriminator_loss(real, fake, given).backward()  # type: ignore[attr-defined]
        assert weight.grad is not None
        assert real.grad is fake.grad is None

    def test_the_penalty_is_near_the_squared_slope(self) -> None:
        """Of a discriminator 3 x_t: 9 on data and 9 on samples, in the mean over the noise."""
        zeros = numbers(torch.zeros(4000))
        losses = []
        for penalty in (0.0, 1.0):
            method = student_objective_class("dmd")(gan_weight=1.0, gan_penalty=penalty)
            given = plain(discriminator=lambda x_t, t: 3 * x_t.flatten(1).sum(dim=1))
            losses.append(method.discriminator_loss(zeros, zeros, given).item())  # type: ignore[attr-defined]
        assert losses[1] - losses[0] == pytest.approx(18, rel=0.06)

    def test_logits_of_frames(self) -> None:
        clip = normal(2, (1, 4, 1, 1), 1)
        given = plain(2, discriminator=self.RATIO)
        assert bool(torch.isfinite(at_level("dmd", 0.5, gan_weight=1.0)(clip, given).grad).all())
        loss = at_level("dmd", 0.5, gan_weight=1.0).discriminator_loss(clip + 1, clip, given)  # type: ignore[attr-defined]
        assert loss.shape == ()

    def test_who_has_a_discriminator_to_train(self) -> None:
        """Every one that asks a discriminator can train it."""
        always = {name for name in student_objective_names() if student_objective_class(name)().learns_from_data}
        assert always == {"f-distill", "uni-instruct"}
        assert student_objective_class("dmd")(gan_weight=0.1).learns_from_data
        real, fake = numbers(normal(4, (), 1).flatten()), numbers(normal(4, (), 2).flatten())
        for name in always:
            loss = student_objective_class(name)().discriminator_loss(real, fake, plain(discriminator=self.RATIO))  # type: ignore[attr-defined]
            assert bool(torch.isfinite(loss))

    @pytest.mark.parametrize("name", ["dmd", "swiftbrush", "tdm", "re-dmd", "disback", "decoupled-dmd"])
    def test_a_gan_without_a_head(self, name: str) -> None:
        method = student_objective_class(name)(gan_weight=0.1)
        level = torch.ones(2)
        given = plain(reward=torch.ones(2), student_level=level, path=(TEACHER,))
        attempts: list[Callable[[], Any]] = [
            lambda: method.check(given),
            lambda: method.discriminator_loss(numbers(torch.zeros(2)), numbers(torch.zeros(2)), given),  # type: ignore[attr-defined]
        ]
        for attempt in attempts:
            with pytest.raises(TeacherError, match=f"{name} is to be adversarial") as caught:
                attempt()
            assert "GAN head" in str(caught.value)


class TestNotFinite:
    def test_terms_are_named(self) -> None:
        require_finite("dmd", 3, {"grad": torch.zeros(2), "nothing": None})
        with pytest.raises(TrainingError, match="The second of dmd is not finite at step 3") as caught:
            require_finite("dmd", 3, {"first": torch.zeros(2), "second": torch.tensor([0.0, float("inf")])})
        assert caught.value.hint


class TestOptions:
    @pytest.mark.parametrize(
        "options",
        [
            {"guidance": -1.0}, {"t_min": 0.0}, {"t_min": 0.9, "t_max": 0.5}, {"t_max": 1.1}, {"shift": 0.0},
            {"shift": float("inf")}, {"critic_t_min": 0.0}, {"critic_t_max": 2.0}, {"critic_weighting": "snr"},
            {"t_min": float("nan")}, {"guidance": "much"}, {"shared_level": "yes"},
        ],
        ids=str,
    )  # fmt: skip
    @pytest.mark.parametrize("name", student_objective_names())
    def test_bad_options_of_all(self, name: str, options: dict[str, Any]) -> None:
        with pytest.raises(ConfigError) as caught:
            from_plain(student_objective_class(name), options)
        assert caught.value.hint

    @pytest.mark.parametrize(
        ("name", "options"),
        [
            ("dmd", {"weighting": "sigma"}),
            ("dmd", {"gan_weight": -1.0}),
            ("dmd", {"gan_penalty": float("nan")}),
            ("dmd", {"gan_jitter": 0.0}),
            ("swiftbrush", {"guidance_range": [1.0]}),
            ("swiftbrush", {"guidance_range": [4.0, 2.0]}),
            ("swiftbrush", {"guidance_range": [-1.0, 2.0]}),
            ("decoupled-dmd", {"critic_guided": True}),
            ("re-dmd", {"beta": float("inf")}),
            ("f-distill", {"divergence": "chi"}),
            ("f-distill", {"ratio_limit": 1.0}),
            ("uni-instruct", {"ratio_limit": 0.5}),
            ("sid", {"alpha": float("nan")}),
            ("sim", {"softness": 0.0}),
            ("disback", {"way_back": 1.5}),
        ],
        ids=str,
    )
    def test_bad_options_of_one(self, name: str, options: dict[str, Any]) -> None:
        with pytest.raises(ConfigError) as caught:
            from_plain(student_objective_class(name), options)
        assert caught.value.hint

    def test_defaults(self) -> None:
        """shared/methods.md, part B; where it says nothing, see the docstrings."""

        def default(name: str, option: str) -> Any:
            return getattr(student_objective_class(name)(), option)

        for name in ("dmd", "tdm", "sid", "sim", "f-distill", "re-dmd", "disback", "decoupled-dmd"):
            assert (default(name, "t_min"), default(name, "t_max")) == (0.02, 0.98)
        assert default("swiftbrush", "critic_guided")
        assert default("swiftbrush", "weighting") == "sigma_squared"
        assert default("tdm", "critic_weighting") == "min_snr"
        assert default("sid", "alpha") == 1.0
        assert default("phased-dmd", "critic_target") == "corrected"
        assert (default("rcm", "dmd_weight"), default("rcm", "critic_weighting")) == (0.01, "v")
        assert default("f-distill", "gan_weight") > 0
        through = {name for name in student_objective_names() if student_objective_class(name).differentiates_scores}
        assert through == {"sid", "sim", "uni-instruct"}

    def test_files_and_command_lines_can_write_them(self) -> None:
        made = from_plain(
            student_objective_class("swiftbrush"), {"guidance_range": [2.0, 5.0], "guidance": [0, 4, 2, 1]}
        )
        assert made.guidance_range == (2.0, 5.0)
        assert made.guidance.at(0.5) == 3.0


class TestRegistry:
    def test_an_unknown_name_lists_the_known_ones_and_the_nearest(self) -> None:
        with pytest.raises(ConfigError) as caught:
            student_objective_class("dmdd")
        message = str(caught.value)
        assert "student objective 'dmdd'" in message
        assert all(name in message for name in student_objective_names())
        assert "Did you mean dmd?" in message
        with pytest.raises(ConfigError):
            student_objective_class("sds")  # a scene's

    def test_no_name_is_in_both(self) -> None:
        assert not set(objective_names()) & set(student_objective_names())
        assert student_objective_names() == sorted(student_objective_names())

    def test_register_and_refuse_a_second_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(registry, "_STUDENTS", dict(registry._STUDENTS))

        @register_student("another")
        @dataclasses.dataclass(frozen=True)
        class Another(GradientMatching):
            """Another (arXiv 0)."""

        assert student_objective_class("another") is Another
        assert "another" in student_objective_names()
        for again in (register_student("another"), register_student("sds")):
            with pytest.raises(ConfigError, match="Two objectives"):
                again(Another)
        with pytest.raises(ConfigError, match="'dmd'"):
            register("dmd")(object)  # type: ignore[type-var]

    def test_twenty_lines_are_an_objective(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from dreamkit.objectives import Direction

        monkeypatch.setattr(registry, "_STUDENTS", dict(registry._STUDENTS))

        @register_student("teacher-only")
        @dataclasses.dataclass(frozen=True)
        class TeacherOnly(GradientMatching):
            """What SDS would do to a student (arXiv 0)."""

            needs_critic = False

            def gradient(self, x: Tensor, context: MatchingContext) -> Direction:
                levels = self.draw(x, context, *self.level_range(x, context))
                x_t, _ = self.diffuse(x, levels, context)
                real = context.teacher.predict(x_t, levels)
                return Direction(x - real, real)

        x = numbers(normal(3, (), 1).flatten())
        result = student_objective_class("teacher-only")()(x, context(TEACHER))
        assert result.grad.shape == x.shape
        assert issubclass(TeacherOnly, Matching)


class TestTheCommandLine:
    def test_students_have_a_heading_of_their_own(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["objectives"]) == 0
        scenes, students = capsys.readouterr().out.split("Objectives of a student")
        for name in objective_names():
            assert f"\n{name} " in f"\n{scenes}"
        for name in student_objective_names():
            assert f"\n  {name} " in students
            assert f"\n{name} " not in f"\n{scenes}"

    def test_as_json(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["objectives", "--json"]) == 0
        told = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert sorted(told["objectives"]) == objective_names()
        assert sorted(told["student_objectives"]) == student_objective_names()
        assert told["student_objectives"]["tdm"]["options"]["segments"][0] == 4
        assert told["student_objectives"]["tdm"]["needs"] == ["critic", "student_level"]

    @pytest.mark.parametrize("name", student_objective_names())
    def test_one_is_explained(self, name: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["objectives", name]) == 0
        out = capsys.readouterr().out
        assert "arXiv" in out
        assert "guidance " in out
        assert "it needs" in out
        assert main(["objectives", name, "--json"]) == 0
        told = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert list(told["student_objectives"]) == [name]
        assert told["objectives"] == {}

    def test_a_scenes_is_explained_as_before(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["objectives", "vsd"]) == 0
        out = capsys.readouterr().out
        assert "--objective vsd" in out
        assert "With the embedded teacher the presets set:" in out

    def test_an_unknown_one(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["objectives", "swiftbrsh"]) == 2
        assert "swiftbrush" in capsys.readouterr().err
