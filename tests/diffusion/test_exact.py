"""Closed-form teachers and critics: against autograd of the log density, and against their own data's moments."""

import math

import pytest
import torch
from torch import Tensor

from dreamkit.diffusion.exact import ExactTeacher, Mixture, ParticleCritic, view_indices
from dreamkit.diffusion.schedule import NoiseSchedule
from dreamkit.diffusion.teacher import Query
from dreamkit.errors import TeacherError
from dreamkit.scenes.cameras import Camera

SCHEDULES = {"ddpm": NoiseSchedule.ddpm("cosine"), "linear": NoiseSchedule.ddpm(), "flow": NoiseSchedule.flow(3.0)}
SHAPE = (2, 2, 3)


@pytest.fixture(params=SCHEDULES)
def schedule(request: pytest.FixtureRequest) -> NoiseSchedule:
    return SCHEDULES[request.param]


def random_mixture(count: int, seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> Mixture:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(count, generator=generator, dtype=torch.float64) + 0.1
    return Mixture(
        torch.randn(count, *shape, generator=generator, dtype=torch.float64),
        0.05 + torch.rand(count, generator=generator, dtype=torch.float64),
        weights / weights.sum(),
    )


def noise(rows: int, seed: int = 1, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(rows, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def log_density(mixture: Mixture, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """log p_t(x_t) by torch's own normal distribution."""
    parts = []
    for mean, variance, weight in zip(mixture.means, mixture.variances, mixture.weights, strict=True):
        spread = (alpha**2 * variance + sigma**2).sqrt()
        density = torch.distributions.Normal(alpha * mean, spread.expand_as(x_t))
        parts.append(weight.log() + density.log_prob(x_t).flatten(1).sum(dim=1))
    return torch.stack(parts).logsumexp(dim=0)


class TestMixture:
    @pytest.mark.parametrize("count", [1, 2, 5])
    @pytest.mark.parametrize("level", [0.05, 0.5, 0.98])
    def test_the_noise_is_the_score(self, schedule: NoiseSchedule, count: int, level: float) -> None:
        """E = -sigma grad log p_t, where the gradient is autograd's."""
        mixture = random_mixture(count)
        x_t = noise(6).requires_grad_()
        t = torch.full((6,), level, dtype=torch.float64)
        alpha, sigma = schedule.coefficients(t, x_t)
        (score,) = torch.autograd.grad(log_density(mixture, x_t, alpha, sigma).sum(), x_t)
        torch.testing.assert_close(mixture.eps(x_t.detach(), alpha, sigma), -sigma * score, rtol=1e-10, atol=1e-12)

    def test_responsibilities_are_the_posterior(self, schedule: NoiseSchedule) -> None:
        mixture, x_t = random_mixture(4), noise(50)
        alpha, sigma = schedule.coefficients(torch.full((50,), 0.7, dtype=torch.float64), x_t)
        shares = mixture.responsibilities(x_t, alpha, sigma)
        torch.testing.assert_close(shares.sum(dim=1), torch.ones(50, dtype=torch.float64))
        whole = log_density(mixture, x_t, alpha, sigma)
        for k in range(4):
            one = Mixture(mixture.means[k : k + 1], mixture.variances[k : k + 1], torch.ones(1, dtype=torch.float64))
            joint = mixture.weights[k].log() + log_density(one, x_t, alpha, sigma)
            torch.testing.assert_close(shares[:, k], (joint - whole).exp(), rtol=1e-9, atol=1e-14)

    def test_without_variance_and_noise_nothing_is_nan(self) -> None:
        point = Mixture.gaussian(torch.zeros(SHAPE, dtype=torch.float64), 0.0)
        alpha, sigma = (torch.full((3, 1, 1, 1), value, dtype=torch.float64) for value in (1.0, 0.0))
        assert torch.equal(point.eps(noise(3), alpha, sigma), torch.zeros(3, *SHAPE, dtype=torch.float64))

    def test_far_away_the_nearest_mode_counts(self) -> None:
        """Densities underflow there; their logarithms don't."""
        mixture = random_mixture(3)
        x_t = mixture.means[1:2] + 1e4
        alpha, sigma = SCHEDULES["ddpm"].coefficients(torch.tensor([0.5], dtype=torch.float64), x_t)
        assert bool(torch.isfinite(mixture.eps(x_t, alpha, sigma)).all())
        assert float(mixture.responsibilities(x_t, alpha, sigma).sum()) == pytest.approx(1.0)

    def test_joined_is_their_average(self) -> None:
        one, two = random_mixture(2, 0), random_mixture(3, 5)
        joined = Mixture.joined([one, two])
        x_t = noise(8)
        alpha, sigma = SCHEDULES["ddpm"].coefficients(torch.full((8,), 0.4, dtype=torch.float64), x_t)
        densities = [log_density(mixture, x_t, alpha, sigma) for mixture in (one, two)]
        expected = torch.stack(densities).logsumexp(dim=0) - math.log(2)
        torch.testing.assert_close(log_density(joined, x_t, alpha, sigma), expected)

    @pytest.mark.parametrize(
        ("means", "variances", "weights"),
        [
            (torch.zeros(2, 3), torch.ones(2), torch.full((2,), 0.5)),
            (torch.zeros(2, 1, 1, 1), torch.ones(3), torch.full((2,), 0.5)),
            (torch.zeros(2, 1, 1, 1), torch.ones(2), torch.full((3,), 1 / 3)),
            (torch.zeros(2, 1, 1, 1), torch.tensor([1.0, -0.1]), torch.full((2,), 0.5)),
            (torch.zeros(2, 1, 1, 1), torch.ones(2), torch.tensor([1.0, 0.0])),
            (torch.zeros(2, 1, 1, 1), torch.ones(2), torch.tensor([0.5, 0.6])),
        ],
    )
    def test_what_is_none(self, means: Tensor, variances: Tensor, weights: Tensor) -> None:
        with pytest.raises(TeacherError):
            Mixture(means, variances, weights)


class TestExactTeacher:
    def test_every_row_has_its_level_and_prompt(self, schedule: NoiseSchedule) -> None:
        data = {"a": random_mixture(2, 0), "b": random_mixture(3, 1)}
        teacher, x_t = ExactTeacher(data, schedule), noise(4)
        t = torch.tensor([0.1, 0.4, 0.7, 0.95], dtype=torch.float64)
        together = teacher.predict(x_t, t, teacher.encode_prompt(["a", "b", "b", "a"]))
        for row, name in enumerate("abba"):
            alpha, sigma = schedule.coefficients(t[row : row + 1], x_t[row : row + 1])
            alone = data[name].eps(x_t[row : row + 1], alpha, sigma)
            torch.testing.assert_close(together.eps[row : row + 1], alone, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(together.alpha * together.x0 + together.sigma * together.eps, x_t)

    def test_a_camera_selects_the_view_and_none_mixes_them(self) -> None:
        views = [random_mixture(2, seed) for seed in range(4)]
        teacher, x_t, t = ExactTeacher({"a": views}), noise(4), torch.full((4,), 0.6, dtype=torch.float64)
        assert teacher.supports_camera
        assert teacher.views == 4
        row = teacher.encode_prompt(["a"])
        camera = Camera.orbit([0.0, 90.0, 180.0, 270.0], 10.0, 3.0).pose.double()
        alpha, sigma = teacher.schedule.coefficients(t, x_t)
        seen = teacher.predict(x_t, t, row, camera).eps
        for view in range(4):
            own = views[view].eps(x_t[view : view + 1], alpha[:1], sigma[:1])
            torch.testing.assert_close(seen[view : view + 1], own)
        mixed = Mixture.joined(views).eps(x_t, alpha, sigma)
        torch.testing.assert_close(teacher.predict(x_t, t, row).eps, mixed)
        # A row of zeros is no camera, row by row.
        partly = torch.cat([camera[:2], torch.zeros(2, 12, dtype=torch.float64)])
        answer = teacher.predict(x_t, t, row, partly).eps
        torch.testing.assert_close(answer, torch.cat([seen[:2], mixed[2:]]))

    def test_views_are_the_nearest_azimuths(self) -> None:
        azimuths = [0.0, 44.0, 46.0, 91.0, 180.0, -89.0, 314.0, 316.0, 720.0]
        camera = Camera.orbit(azimuths, 20.0, 2.5).pose
        assert view_indices(camera, 4) == [0, 0, 1, 1, 2, 3, 3, 0, 0]
        assert view_indices(camera, 1) == [0] * len(azimuths)
        assert view_indices(torch.zeros(2, 12), 4) == [None, None]

    def test_prompts_it_does_not_know(self) -> None:
        teacher = ExactTeacher({"a": random_mixture(1)})
        for prompts in (["b"], ["a", "b"], [], "a"):
            with pytest.raises(TeacherError, match="distribution"):
                teacher.encode_prompt(prompts)
        with pytest.raises(TeacherError, match="empty prompt"):
            teacher.null_condition(1)
        assert len(ExactTeacher({"": random_mixture(1)}).null_condition(3)) == 3

    def test_distributions_that_differ(self) -> None:
        with pytest.raises(TeacherError):
            ExactTeacher({})
        with pytest.raises(TeacherError):
            ExactTeacher({"a": random_mixture(1), "b": random_mixture(1, shape=(1, 2, 2))})
        with pytest.raises(TeacherError):
            ExactTeacher({"a": [random_mixture(1)] * 2, "b": random_mixture(1)})

    def test_it_is_a_teacher_like_any_other(self) -> None:
        teacher = ExactTeacher({"a": random_mixture(2)})
        row = teacher.encode_prompt(["a"])
        teacher.predict_all([Query(noise(3), 0.5, row), Query(noise(2), 0.2, row)])
        assert teacher.calls == 5
        with pytest.raises(TeacherError, match="camera"):
            teacher.predict(noise(1), 0.5, row, torch.zeros(1, 12))
        with pytest.raises(TeacherError, match="samples"):
            teacher.predict(noise(1, shape=(1, 2, 2)), 0.5, row)
        image = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(teacher.decode(teacher.encode_image(image)), image)

    def test_gradients_flow_where_they_are_asked_for(self) -> None:
        teacher = ExactTeacher({"a": random_mixture(2)})
        x_t = noise(2).requires_grad_()
        row = teacher.encode_prompt(["a"])
        assert not teacher.predict(x_t, 0.5, row).eps.requires_grad
        teacher.predict(x_t, 0.5, row, differentiable=True).eps.sum().backward()
        assert x_t.grad is not None

    def test_sampling_lands_on_the_datas_moments(self, schedule: NoiseSchedule) -> None:
        """DDIM from noise, 200 steps: the share, mean and spread of each of two modes."""
        shape = (3, 1, 1)
        means = torch.tensor([-0.5, 0.45], dtype=torch.float64)[:, None, None, None].expand(2, *shape).contiguous()
        weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
        data = Mixture(means, torch.tensor([0.02, 0.02], dtype=torch.float64), weights)
        teacher = ExactTeacher({"a": data, "": data}, schedule)
        count = 2000
        images = teacher.sample(["a"] * count, 200, 1.0, torch.Generator().manual_seed(0))
        x = 2 * images.flatten(1).double() - 1
        left = x.mean(dim=1) < 0
        assert float(left.double().mean()) == pytest.approx(0.3, abs=5 * math.sqrt(0.3 * 0.7 / count))
        for mask, mean in ((left, -0.5), (~left, 0.45)):
            assert float(x[mask].mean()) == pytest.approx(mean, abs=0.02)
            assert float(x[mask].std()) == pytest.approx(math.sqrt(0.02), rel=0.05)


class TestParticleCritic:
    schedule = SCHEDULES["ddpm"]

    def ask(self, critic: ParticleCritic, x_t: Tensor, camera: Tensor | None = None) -> Tensor:
        row = ExactTeacher({"": random_mixture(1)}).null_condition(1)
        return critic.predict_all([Query(x_t, 0.5, row, camera)])[0].eps

    def update(self, critic: ParticleCritic, x: Tensor, pose: Tensor | None) -> None:
        row = ExactTeacher({"": random_mixture(1)}).null_condition(1)
        critic.update(x, row, pose, torch.Generator())

    def test_one_particle_is_the_noise_itself(self) -> None:
        critic, x, e = ParticleCritic(self.schedule), noise(1), noise(1, seed=2)
        self.update(critic, x, None)
        torch.testing.assert_close(self.ask(critic, self.schedule.add_noise(x, e, 0.5)), e, rtol=1e-10, atol=1e-12)

    def test_many_are_a_mixture_of_points(self) -> None:
        critic, x, x_t = ParticleCritic(self.schedule), noise(7), noise(4, seed=2)
        self.update(critic, x, None)
        points = Mixture(x, torch.zeros(7, dtype=torch.float64), torch.full((7,), 1 / 7, dtype=torch.float64))
        alpha, sigma = self.schedule.coefficients(torch.full((4,), 0.5, dtype=torch.float64), x_t)
        torch.testing.assert_close(self.ask(critic, x_t), points.eps(x_t, alpha, sigma))
        assert critic.calls == 4

    def test_views_are_told_apart_by_their_pose(self) -> None:
        critic, x = ParticleCritic(self.schedule, views=2), noise(4)
        pose = Camera.orbit([0.0, 180.0, 10.0, 190.0], 5.0, 3.0).pose
        self.update(critic, x, pose)
        front, back = ParticleCritic(self.schedule), ParticleCritic(self.schedule)
        self.update(front, x[[0, 2]], None)
        self.update(back, x[[1, 3]], None)
        x_t = noise(2, seed=2)
        seen = self.ask(critic, x_t, pose[:2])
        torch.testing.assert_close(seen[:1], self.ask(front, x_t[:1]))
        torch.testing.assert_close(seen[1:], self.ask(back, x_t[1:]))
        every = ParticleCritic(self.schedule)
        self.update(every, x, None)
        torch.testing.assert_close(self.ask(critic, x_t), self.ask(every, x_t))

    def test_before_the_first_update(self) -> None:
        critic = ParticleCritic(self.schedule)
        with pytest.raises(TeacherError, match="update"):
            self.ask(critic, noise(1))
        assert critic.calls == 0

    def test_a_view_without_samples(self) -> None:
        with pytest.raises(TeacherError, match=r"views \[1\] of 2"):
            self.update(ParticleCritic(self.schedule, views=2), noise(2), Camera.orbit([0.0, 5.0], 0.0, 3.0).pose)
