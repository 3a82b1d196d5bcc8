"""What the papers claim of their methods, on data whose distribution is known.

Each test says the claim, the set-up that the paper has in mind, and where it stops holding. Every generator is a
handful of numbers that descend the gradients of the registered objective, with fixed seeds.
"""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from closed_form import COSINE, ExactCritic, FixedLevels, context, gaussian, gaussians, make, normal, pose
from torch import Tensor

from dreamkit.config import Schedule
from dreamkit.diffusion.exact import ExactTeacher, Mixture, ParticleCritic
from dreamkit.diffusion.inversion import implied_noise, invert
from dreamkit.diffusion.teacher import Query
from dreamkit.objectives import TimestepSchedule, objective_class, surrogate_loss
from dreamkit.objectives.balanced import least_norm_share

pytestmark = pytest.mark.usefixtures("one_thread")

ONE = (1, 1, 1)  # samples of one number


def modes(means: Sequence[float], shares: Sequence[float], variance: float) -> Mixture:
    """A mixture over samples of one number."""
    count = len(means)
    return Mixture(
        torch.tensor(means, dtype=torch.float64)[:, None, None, None],
        torch.full((count,), variance, dtype=torch.float64),
        torch.tensor(shares, dtype=torch.float64),
    )


def descend(
    name: str, teacher: ExactTeacher, x: Tensor, azimuths: Sequence[float], steps: int, rate: float,
    seed: int = 0, sees_views: bool = False, **options: Any,
) -> Tensor:  # fmt: skip
    """Particles under one objective, from noise down to detail: x [V * N, 1, 1, 1], seen from V views in turn."""
    poses = pose(list(azimuths) * (len(x) // len(azimuths)))
    critic = ParticleCritic(teacher.schedule, len(azimuths))
    levels = TimestepSchedule(Schedule(0.0, 0.9, 0.05, 1.0), Schedule.constant(0.05))
    objective = objective_class(name)(
        guidance=Schedule.constant(1.0), timesteps=levels, weighting="sigma_ratio", **options
    )
    for step in range(steps):
        critic.update(x, teacher.null_condition(1), poses, torch.Generator())
        given = context(
            teacher, len(x), 1000 * seed + step, negative=None, camera=poses if sees_views else None, pose=poses,
            critic=critic, step=step, total=steps,
        )  # fmt: skip
        x = x - rate * objective(x, given).grad
    return x


def test_sds_ends_at_the_guided_mean() -> None:
    """A single mode: descent on the surrogate loss goes to mu_n + s (mu_y - mu_n), whatever the start."""
    teacher = gaussians(0.4, 0.1, variance=0.05)
    x = torch.zeros(16, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    objective = make("sds", 0.6, 2.0, weighting="sigma_ratio")
    for step in range(60):
        loss = surrogate_loss(x, objective(x, context(teacher, 16, seed=step)).grad)
        (gradient,) = torch.autograd.grad(loss, x)
        x = (x - 0.2 * 16 * gradient).detach().requires_grad_()
    assert float(x.detach().mean()) == pytest.approx(0.1 + 2 * 0.3, abs=0.02)


# VSD ------------------------------------------------------------------------------------------------------------------

SPREAD = 0.1  # of a mode
VIEWS = {0.0: ((-0.8, 0.6), (0.3, 0.7)), 180.0: ((-0.5, 0.9), (0.6, 0.4))}  # azimuth: modes and their shares


@pytest.mark.parametrize("name", ["sds", "vsd"])
def test_vsd_keeps_the_distribution_that_sds_collapses(name: str) -> None:
    """ProlificDreamer: SDS seeks modes, VSD samples. 64 particles of two views; two modes in each view."""
    views = [modes(means, shares, SPREAD**2) for means, shares in VIEWS.values()]
    teacher = ExactTeacher({"y": views, "": views})
    x = descend(name, teacher, normal(128, ONE, 0), list(VIEWS), 200, 0.3, sees_views=True).reshape(64, 2)
    for view, ((left, right), (share, _)) in enumerate(VIEWS.values()):
        seen = x[:, view]
        is_left = seen < (left + right) / 2
        found = float(is_left.double().mean())
        parts = [(seen[mask] - mean) for mask, mean in ((is_left, left), (~is_left, right)) if int(mask.sum()) > 4]
        if name == "vsd":
            assert found == pytest.approx(share, abs=0.05)
            assert len(parts) == 2
            for part in parts:
                assert float(part.mean()) == pytest.approx(0.0, abs=0.04)
                assert float(part.std()) == pytest.approx(SPREAD, rel=0.3)
        else:
            # Nearly all in the likelier mode, and the modes are points (what is left of them is the noise's doing).
            assert abs(found - share) > 0.15
            assert max(found, 1 - found) > 0.8
            assert all(float(part.std()) < 0.4 * SPREAD for part in parts)


def test_a_single_particles_exact_critic_predicts_the_noise_itself() -> None:
    """With one particle VSD is SDS, whatever the teacher and its guidance: the critic's delta knows the noise."""
    teacher, x, eps = gaussians(), normal(1), normal(1, seed=3)
    critic = ParticleCritic(teacher.schedule)
    critic.update(x, teacher.null_condition(1), None, torch.Generator())
    given = context(teacher, 1, eps=eps, critic=critic)
    sds, vsd, esd = (make(name, 0.6, 7.5)(x, given).grad for name in ("sds", "vsd", "esd"))
    torch.testing.assert_close(vsd, sds, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(esd, sds, rtol=1e-10, atol=1e-12)


# ESD ------------------------------------------------------------------------------------------------------------------

FACES = (-0.9, -0.3, 0.3, 0.9)  # what each of four views looks like
TURNS = (0.0, 90.0, 180.0, 270.0)


def four_views(lambda_: float, scenes: int = 4, sees_views: bool = False) -> tuple[float, float]:
    """Entropy (nats) of which face the views of a scene show, and the spread of the views, averaged over scenes."""
    faces = [modes([face], [1.0], SPREAD**2) for face in FACES]
    teacher = ExactTeacher({"y": faces, "": faces})
    entropies, spreads = [], []
    for scene in range(scenes):
        start = 0.3 * normal(len(TURNS), ONE, scene)
        options: dict[str, Any] = {"lambda_": lambda_, "sees_views": sees_views}
        x = descend("esd", teacher, start, TURNS, 80, 0.3, seed=scene, **options).flatten()
        shown = (x[:, None] - torch.tensor(FACES)).abs().argmin(dim=1)
        shares = torch.bincount(shown, minlength=len(FACES)).double() / len(TURNS)
        entropies.append(float(torch.special.entr(shares).sum()))
        spreads.append(float(x.std()))
    return sum(entropies) / scenes, sum(spreads) / scenes


def test_esd_keeps_the_views_different() -> None:
    """Taming Mode Collapse: a text-only teacher knows four faces and no view, so that with SDS or VSD (lambda = 0; a
    scene is one particle) several views show the same face: Janus. The entropy over views, and their spread, grow with
    lambda, to those of four different faces at 1."""
    one_face, between, all_faces = (four_views(lambda_) for lambda_ in (0.0, 0.5, 1.0))
    assert one_face[0] + 0.1 < between[0] < all_faces[0] - 0.1
    assert one_face[1] + 0.1 < between[1] < all_faces[1] - 0.1
    assert one_face[0] < 0.6 * math.log(4)
    assert all_faces[0] > 0.9 * math.log(4)


def test_a_teacher_that_sees_the_views_needs_no_entropy() -> None:
    assert four_views(0.0, scenes=2, sees_views=True)[0] == pytest.approx(math.log(4))


# Consistent3D ---------------------------------------------------------------------------------------------------------


def test_consistent3ds_gradients_scatter_less_than_sdss_along_a_run() -> None:
    """Consistent3D: the ODE's gradient is predictable where SDS draws a new noise at every step. At 20 points of a run,
    over 200 draws each, without guidance: the whole variance of CDS (of the gap that it draws) is a fifth of SDS's at
    every point, and given the gap there is none. (High guidance multiplies what the gap changes: at s = 50 an exact
    teacher's CDS scatters more than its SDS.)"""
    shape, steps, draws = (1, 4, 4), 20, 200
    means = 0.7 * normal(2, shape, 31)
    shares, spread = torch.tensor([0.4, 0.6]).double(), torch.full((2,), 0.05).double()
    data = Mixture(means, spread, shares)
    teacher = ExactTeacher({"y": data, "": data})
    cds = objective_class("cds")(guidance=Schedule.constant(1.0))
    sds = objective_class("sds")(guidance=Schedule.constant(1.0), timesteps=cds.timesteps, weighting="uniform")  # type: ignore[attr-defined]
    fixed = objective_class("cds")(
        guidance=Schedule.constant(1.0), timesteps=cds.timesteps, smallest_gap=0.2, largest_gap=0.2  # type: ignore[attr-defined]
    )  # fmt: skip
    x = 0.3 * normal(1, shape, 40)
    for step in range(steps):
        grads = [
            method(x.expand(draws, *shape), context(teacher, draws, step, negative=None, step=step, total=steps)).grad
            for method in (sds, cds, fixed)
        ]
        variances = [float(grad.var(dim=0).sum()) for grad in grads]
        assert variances[1] < 0.5 * variances[0], step
        assert variances[2] < 1e-20
        x = x - 0.3 * grads[1].mean(dim=0)


# TSM ------------------------------------------------------------------------------------------------------------------


class Recording(ExactTeacher):
    """Remembers what it was asked."""

    def _forward(self, queries: Sequence[Query]) -> list[Tensor]:
        self.seen: list[list[Query]] = [*getattr(self, "seen", []), list(queries)]
        return super()._forward(queries)


@pytest.mark.parametrize("t", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("gamma", [0.3, 0.7, 1.0])
def test_tsms_two_points_share_the_error_that_isms_second_point_adds(t: float, gamma: float) -> None:
    """Dreamer XL: two paths from one start gather less error than one path.

    The measure: where the exact ODE would take each of the two points back to, at level 0, which is
    mu + (x_t - alpha mu) sqrt(v / (alpha^2 v + sigma^2)). Points of one exact path come from one clean sample; the
    distance of the two clean samples is what the gradient takes for a difference of the images, and is none. One Euler
    step of length h errs by C h^2, so that ISM is off by C (t - s)^2 and TSM by C ((t - s)^2 - (mu - s)^2), which is
    gamma^2 of that. (It is not that either point comes closer to x: that error is the inversion's, and the same.)
    """
    mean, variance, x = 0.1, 0.25, 0.8 * normal(50)

    def start_of(query: Query) -> Tensor:
        alpha, sigma = COSINE.coefficients(query.t, query.x_t)
        return mean + (query.x_t - alpha * mean) * (variance / (alpha**2 * variance + sigma**2)).sqrt()

    def inconsistency(name: str, **options: Any) -> float:
        data = {"y": gaussian(0.4, variance), "n": gaussian(-0.1, variance), "": gaussian(mean, variance)}
        teacher = Recording(data)
        make(name, t, 7.5, gap=Schedule.constant(0.05), **options)(x, context(teacher, len(x)))
        target = teacher.seen[-1][0]
        # TSM asks about its second point in the pass of the first; ISM met it on the way.
        reference = teacher.seen[-1][-1] if name == "tsm" else teacher.seen[-2][0]
        return float((start_of(target) - start_of(reference)).abs().mean())

    ism, tsm = inconsistency("ism"), inconsistency("tsm", gamma=gamma)
    assert ism > 1e-5
    assert tsm / ism == pytest.approx(gamma**2, rel=0.12)


def test_tsm_with_gamma_one_is_ism() -> None:
    x, given = normal(3), context(gaussians(), 3)
    levels = (0.1, 0.5, 0.9)
    torch.testing.assert_close(
        make("tsm", levels, 7.5, gamma=1.0)(x, given).grad, make("ism", levels, 7.5)(x, given).grad,
        rtol=1e-12, atol=1e-14,
    )  # fmt: skip


def test_csm_is_csd_without_the_chance() -> None:
    """CSM's gradient is CSD's for one noise: the one that the inversion implies."""
    teacher, x = gaussians(), normal(3)
    given = context(teacher, 3)
    t = torch.full((3,), 0.6, dtype=torch.float64)
    noise = implied_noise(teacher, x, invert(teacher, x, t, given.null).x_t, t)
    csd = make("csd", 0.6, 1.0)(x, context(teacher, 3, eps=noise)).grad
    torch.testing.assert_close(make("csm", 0.6, 1.0)(x, given).grad, csd, rtol=1e-10, atol=1e-12)


# BSD ------------------------------------------------------------------------------------------------------------------


def test_bsd_goes_against_neither_force() -> None:
    """PlacidDreamer (and Sener and Koltun): <g, c> >= 0 and <g, d> >= 0 for any two forces, the opposed included."""
    c, d = normal(500, (3, 4, 4), 1), normal(500, (3, 4, 4), 2)
    c = c * torch.logspace(-3, 3, 500, dtype=torch.float64)[:, None, None, None]
    opposed = torch.cat([d, -0.5 * c[:250] + d[:250], -2 * c[250:]])
    c, d = torch.cat([c, c]), opposed
    share = least_norm_share(c, d)
    g = share * c + (1 - share) * d
    rounding = 1e-12 * torch.maximum(c.flatten(1).square().sum(dim=1), d.flatten(1).square().sum(dim=1))
    for force in (c, d):
        assert bool(((g * force).flatten(1).sum(dim=1) >= -rounding).all())
    assert bool(((c * d).flatten(1).sum(dim=1) < 0).any())  # opposed ones were among them


def test_least_norm_share_is_the_best_of_all() -> None:
    c, d = normal(40, (1, 3, 3), 1), normal(40, (1, 3, 3), 2)
    c[:10] *= 0.05  # where the end of the segment is the shortest
    d[10:20] *= 0.05
    d[20:30] = c[20:30] * 0.4  # parallel
    share = least_norm_share(c, d)
    assert share.shape == (40, 1, 1, 1)
    grid = torch.linspace(0, 1, 2001, dtype=torch.float64)[:, None, None, None, None]
    lengths = (grid * c + (1 - grid) * d).flatten(2).norm(dim=2)
    own = (share * c + (1 - share) * d).flatten(1).norm(dim=1)
    assert bool((own <= lengths.min(dim=0).values + 1e-12).all())
    best = grid.flatten()[lengths.argmin(dim=0)]
    torch.testing.assert_close(share.flatten(), best, rtol=0, atol=6e-4)
    assert {0.0, 1.0} <= set(share.flatten().tolist())
    assert float(least_norm_share(c, c).sum()) == 0.0  # equal forces: any share will do, and none is NaN


# ASD ------------------------------------------------------------------------------------------------------------------


def likeness(name: str, made: tuple[Tensor, float], variance: float, t: float, scale: float) -> float:
    """Cosine between a method's gradients and VSD's with the exact critic, over samples of a known generator."""
    shape = (1, 4, 4)
    centres = 0.6 * normal(6, shape, 31)
    even, spread = torch.full((6,), 1 / 6).double(), torch.full((6,), variance).double()
    teacher = ExactTeacher({"y": gaussian(centres[0], variance), "": Mixture(centres, spread, even)})
    mean, width = centres[0] + made[0], made[1]
    critic = ExactCritic(gaussian(mean, width), teacher.schedule)
    x = mean + width**0.5 * normal(1000, shape, 5)
    given = context(teacher, 1000, negative=None, critic=critic, eps=normal(1000, shape, 6))
    one, vsd = (make(method, t, scale)(x, given).grad for method in (name, "vsd"))
    return float((one * vsd).sum() / (one.norm() * vsd.norm()))


@pytest.mark.parametrize("t", [0.3, 0.6, 0.8])
@pytest.mark.parametrize("variance", [0.05, 0.25])
def test_asd_is_like_vsd_without_a_critic(t: float, variance: float) -> None:
    """ScaleDreamer: on pictures with less detail than the data (here a fifth of its variance) a fine-tuned critic errs
    less than the teacher, and so does the teacher at a noisier level. Without guidance, where the reference is all
    there is, ASD is the nearest to VSD; at 7.5, where the classifier dominates, none is nearer."""
    blurry = torch.zeros(1, 4, 4, dtype=torch.float64), variance / 5
    asd, sds, csd = (likeness(name, blurry, variance, t, 1.0) for name in ("asd", "sds", "csd"))
    assert asd > sds + 0.05
    assert sds > csd
    asd, sds, csd = (likeness(name, blurry, variance, t, 7.5) for name in ("asd", "sds", "csd"))
    assert asd > max(sds, csd) - 2e-3


def test_but_not_where_the_pictures_are_elsewhere() -> None:
    """The reference is the teacher's own: of a generator whose mean is off it knows less than the noise does."""
    off = torch.full((1, 4, 4), 0.3, dtype=torch.float64), 0.05
    assert likeness("asd", off, 0.05, 0.6, 1.0) < likeness("sds", off, 0.05, 0.6, 1.0)


def test_a_teacher_errs_less_with_more_noise() -> None:
    """The observation that ASD rests on: ||E(x_t, t) - e||^2 falls with t."""
    teacher, x, eps = gaussians(), 0.4 + 0.5 * normal(2000), normal(2000, seed=8)
    errors = []
    for t in (0.1, 0.3, 0.5, 0.7, 0.9):
        predicted = teacher.predict(teacher.schedule.add_noise(x, eps, t), t, teacher.encode_prompt(["y"])).eps
        errors.append(float((predicted - eps).square().mean()))
    assert errors == sorted(errors, reverse=True)


def test_asds_tau_lies_above_t_by_at_most_a_share() -> None:
    data = {name: gaussian(0.2, 0.1) for name in ("y", "n", "")}
    teacher = Recording(data)
    objective = objective_class("asd")(timesteps=FixedLevels(values=(0.2, 0.5, 0.98)), shift=0.5)
    objective(normal(3), context(teacher, 3))
    first, *_, later = teacher.seen[0]
    t, tau = torch.as_tensor(first.t), torch.as_tensor(later.t)
    assert bool((tau >= t).all())
    assert bool((tau <= t + 0.5 * (t - 0.02)).all())
    assert bool((tau <= 1).all())
    assert bool((tau > t).any())
