"""What every objective does on average, where it stands still, and how much it scatters: closed forms and quadrature.

Notation as in `closed_form.py`; m = mu_n + s (mu_y - mu_n) is the mean that guidance points to.
"""

import math
from typing import Any

import pytest
import textbook
import torch
from closed_form import COSINE, ExactCritic, coefficients, context, gaussian, gaussians, make, mean_error, normal
from torch import Tensor

from dreamkit.diffusion.exact import ExactTeacher, Mixture
from dreamkit.diffusion.guidance import Repulsion
from dreamkit.objectives import Source

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = 6000
MU_Y, MU_N, MU_0, V = 0.4, -0.1, 0.1, 0.25  # the defaults of `gaussians`
X, SOURCE, SCALE = 0.8, 0.3, 2.0
MADE, SPREAD = 0.6, 0.1  # what a known generator makes: N(MADE, SPREAD)


def many(value: float, rows: int = ROWS, shape: tuple[int, ...] = (1, 2, 2)) -> Tensor:
    return torch.full((rows, *shape), value, dtype=torch.float64)


def run(name: str, x: Tensor, teacher: ExactTeacher, t: float, scale: float, **options: Any) -> Tensor:
    """The gradient with the negative prompt "n", a known generator as the critic, and a source that the prompt "n"
    describes."""
    given = options.pop("given", {})
    described = teacher.null_condition(1) if given.get("negative", "n") is None else teacher.encode_prompt(["n"])
    source = Source(torch.full_like(x, SOURCE), described)
    critic = ExactCritic(gaussian(MADE, SPREAD), teacher.schedule)
    scene = context(teacher, len(x), **{"source": source, "critic": critic, **given})
    return make(name, t, scale, **options)(x, scene).grad


# Gaussians: the mean and the spread over the noise, in closed form ----------------------------------------------------


def closed_form(case: str, t: float) -> tuple[float, float]:
    """Mean and standard deviation of a pixel's gradient at x = X."""
    a, s = coefficients(COSINE, t)
    k, w = s / (a * a * V + s * s), s * s
    m = MU_N + SCALE * (MU_Y - MU_N)
    made = s / (a * a * SPREAD + s * s)  # the critic's k
    if case in ("sds", "sjc"):
        weight = w if case == "sds" else 1.0
        return weight * k * a * (X - m), weight * a * a * V / (a * a * V + s * s)
    if case == "sjc plain":
        return k * a * (X - m), k * s
    if case == "nfsd":
        pull = w * SCALE * k * a * (MU_0 - MU_Y)
        low = w * k * a * (X - MU_0), w * k * s  # E(0) alone
        return (pull + low[0], low[1]) if t < 0.2 else (pull + w * k * a * (MU_N - MU_0), 0.0)
    if case == "csd":
        return w * SCALE * k * a * (MU_0 - MU_Y), 0.0
    if case in ("vsd", "esd"):
        return w * a * (k * (X - m) - made * (X - MADE)), w * s * abs(k - made)
    if case == "dds":
        return k * a * ((X - m) - (SOURCE - MU_N)), 0.0
    raise KeyError(case)


@pytest.mark.parametrize("t", [0.15, 0.5, 0.85])
@pytest.mark.parametrize("case", ["sds", "sjc", "sjc plain", "nfsd", "csd", "vsd", "esd", "dds"])
def test_mean_and_spread_on_one_gaussian(case: str, t: float) -> None:
    name, _, plain = case.partition(" ")
    options = {"variance_reduced": False} if plain else {}
    grad = run(name, many(X), gaussians(), t, SCALE, **options)
    mean, spread = closed_form(case, t)
    assert abs(float(grad.mean()) - mean) <= 5 * spread / grad.numel() ** 0.5 + 1e-12
    assert float(grad.std()) == pytest.approx(spread, rel=0.03, abs=1e-12)


def test_asd_on_one_gaussian() -> None:
    """Mean over u of w (k_t a_t - k_tau a_tau)(x - mu), which vanishes as tau goes to t."""
    t, (a, s) = 0.6, coefficients(COSINE, 0.6)
    grad = run("asd", many(X), gaussians(), t, 1.0)
    means = []
    for u in torch.linspace(0, 1, 401, dtype=torch.float64).tolist():
        b, r = coefficients(COSINE, t + 0.1 * u * (t - 0.02))
        means.append(s * s * (s * a / (a * a * V + s * s) - r * b / (b * b * V + r * r)) * (X - MU_Y))
    assert mean_error(grad, sum(means) / len(means)) < 5
    assert float(run("asd", many(X, 4), gaussians(), t, 1.0, shift=0.0).abs().max()) < 1e-14


@pytest.mark.parametrize("v", [0.0, 0.05, 0.5])
def test_cds_on_one_gaussian(v: float) -> None:
    """G = v alpha_2 (sigma_1 alpha_2 - sigma_2 alpha_1) (x_1 - alpha_1 m) / (S_1 S_2): exactly 0 without variance, and
    with it descent to x = m - lam_1 e*."""
    t2, t1, teacher = 0.4, 0.6, gaussians(variance=v)
    x, kept = normal(5), normal(1, seed=3)
    given: dict[str, Any] = {"kept": kept}
    grad = run("cds", x, teacher, t2, SCALE, smallest_gap=0.2, largest_gap=0.2, given=given)
    (a1, s1), (a2, s2) = coefficients(COSINE, t1), coefficients(COSINE, t2)
    offset = a1 * (x - (MU_N + SCALE * (MU_Y - MU_N))) + s1 * kept
    both = (a1 * a1 * v + s1 * s1) * (a2 * a2 * v + s2 * s2)
    torch.testing.assert_close(
        grad, v * a2 * (s1 * a2 - s2 * a1) / both * offset, rtol=1e-9, atol=1e-12 if v else 3e-14
    )
    fixed = MU_N + SCALE * (MU_Y - MU_N) - s1 / a1 * kept
    still = run("cds", fixed, teacher, t2, SCALE, smallest_gap=0.2, largest_gap=0.2, given=given)
    assert float(still.abs().max()) < 1e-13
    if v:
        assert bool(((grad * (x - fixed)).flatten(1).sum(dim=1) > 0).all())


# Mixtures: the mean and the spread by quadrature over the noise of one pixel ------------------------------------------


def two_modes(left: float, right: float, share: float, variance: float = 0.02) -> Mixture:
    means = torch.tensor([left, right], dtype=torch.float64)[:, None, None, None]
    shares = torch.tensor([share, 1 - share], dtype=torch.float64)
    return Mixture(means, torch.full((2,), variance, dtype=torch.float64), shares)


def flat(data: Mixture) -> textbook.Data:
    return textbook.Data(data.means.flatten(1).tolist(), data.variances.tolist(), data.weights.tolist())


MODES = {
    "y": two_modes(-0.6, 0.7, 0.3),
    "n": two_modes(-0.8, 0.2, 0.6, 0.1),
    "": two_modes(-1.0, 0.9, 0.5, 0.2),
    "made": two_modes(-0.3, 0.5, 0.5, 0.05),
}


def by_quadrature(case: str, x: float, t: float, scale: float = SCALE) -> tuple[float, float]:
    """Mean and spread over e (a trapezoid rule to 8 standard deviations) of the textbook's gradient."""
    world = textbook.World(lambda level: coefficients(COSINE, level), *(flat(MODES[p]) for p in ("y", "n", "")))
    made = flat(MODES["made"])
    values = {
        "sds": lambda e: textbook.sds(world, [x], [e], t, scale),
        "sjc": lambda e: textbook.sjc(world, [x], [e], t, scale),
        "nfsd": lambda e: textbook.nfsd(world, [x], [e], t, scale, True),
        "csd": lambda e: textbook.csd(world, world.noisy([x], [e], t), t, scale, 0.0),
        "vsd": lambda e: textbook.vsd(world, [x], [e], t, scale, made),
        "esd": lambda e: textbook.esd(world, [x], [e], t, scale, made, made, 0.5),
        "bsd": lambda e: textbook.bsd(world, [x], [e], t, scale),
        "dds": lambda e: textbook.dds(world, [x], [SOURCE], world.negative, [e], t, scale),
        "asd": lambda e: textbook.asd(world, [x], [e], t, t + 0.1 * 0.5 * (t - 0.02), scale),
    }[case]
    nodes = torch.linspace(-8, 8, 801, dtype=torch.float64)
    masses = torch.exp(-nodes.square() / 2) / math.sqrt(2 * math.pi) * 0.02
    grads = torch.tensor([values(e)[0] for e in nodes.tolist()], dtype=torch.float64)
    mean = float((masses * grads).sum())
    return mean, float((masses * (grads - mean).square()).sum().sqrt())


@pytest.mark.parametrize("t", [0.15, 0.6])
@pytest.mark.parametrize("case", ["sds", "sjc", "nfsd", "csd", "vsd", "esd", "bsd", "dds", "asd"])
def test_mean_and_spread_on_mixtures(case: str, t: float, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = ExactTeacher({name: MODES[name] for name in ("y", "n", "")})
    if case == "asd":  # its draw of tau, which the quadrature leaves out
        monkeypatch.setattr(torch, "rand", lambda count, **kwargs: torch.full((count,), 0.5, dtype=torch.float64))
    critic = ExactCritic(MODES["made"], teacher.schedule)
    grad = run(case, many(0.1, 20000, (1, 1, 1)), teacher, t, SCALE, given={"critic": critic})
    mean, spread = by_quadrature(case, 0.1, t)
    assert mean_error(grad, mean) < 5
    # BSD is zero for most noises in one pixel (its two forces are opposed), and far from it for few.
    assert float(grad.std()) == pytest.approx(spread, rel=0.12 if case == "bsd" else 0.04)


# Where they stand still -----------------------------------------------------------------------------------------------


def is_zero(grad: Tensor, tolerance: float = 1e-12) -> bool:
    return float(grad.abs().max()) <= tolerance


@pytest.mark.parametrize("name", ["sds", "sjc"])
def test_sds_stands_still_at_the_guided_mean_on_average_and_always_without_variance(name: str) -> None:
    m = MU_N + SCALE * (MU_Y - MU_N)
    assert mean_error(run(name, many(m), gaussians(), 0.5, SCALE), 0.0) < 5
    assert is_zero(run(name, many(m, 4), gaussians(variance=0.0), 0.5, SCALE))


def test_nfsd_stands_still_where_the_prompt_is_no_news_and_bad_pictures_are_as_the_data() -> None:
    """All three prompts mean the same data: nothing at t >= 0.2, on average nothing at the mean below."""
    teacher = gaussians(0.4, 0.4, 0.4)
    assert is_zero(run("nfsd", normal(4), teacher, 0.5, SCALE))
    assert mean_error(run("nfsd", many(0.4), teacher, 0.15, SCALE), 0.0) < 5


@pytest.mark.parametrize("name", ["csd", "csm"])
def test_csd_stands_still_where_prompt_and_empty_prompt_agree(name: str) -> None:
    """With v_y < v_0, that is at x* = (k_y mu_y - k_0 mu_0) / (k_y - k_0) on average; for CSM x* is the x_t / alpha of
    its inversion, which has no chance in it. And everywhere, where the two mean the same data."""
    assert is_zero(run(name, normal(4), gaussians(0.1, 0.3, 0.1), 0.5, SCALE))
    t, (a, s) = 0.5, coefficients(COSINE, 0.5)
    teacher = ExactTeacher({"y": gaussian(MU_Y, 0.05), "n": gaussian(MU_N, V), "": gaussian(MU_0, 0.5)})
    k_y, k_0 = s / (a * a * 0.05 + s * s), s / (a * a * 0.5 + s * s)
    wanted = (k_y * MU_Y - k_0 * MU_0) / (k_y - k_0)
    if name == "csd":
        assert mean_error(run(name, many(wanted), teacher, t, SCALE), 0.0) < 5
        return
    factor = 1.0  # x_t - alpha mu_0 = factor (x - mu_0), step by step of 0.5 / 3
    for index in range(3):
        (b, r), (b_next, r_next) = (coefficients(COSINE, t * i / 3) for i in (index, index + 1))
        slope = r / (b * b * 0.5 + r * r)
        factor *= b_next * (1 - r * slope) / b + r_next * slope
    x = MU_0 + a * (wanted - MU_0) / factor
    assert is_zero(run(name, many(x, 4), teacher, t, SCALE))


@pytest.mark.parametrize("name", ["vsd", "esd"])
def test_vsd_stands_still_where_the_generator_makes_the_data(name: str) -> None:
    """Everywhere and for every noise, not on average: the generator's distribution is the data's."""
    teacher = ExactTeacher({name: MODES[name] for name in ("y", "n", "")})
    critic = ExactCritic(MODES["y"], teacher.schedule)
    assert is_zero(run(name, normal(50, (1, 1, 1)), teacher, 0.5, 1.0, given={"critic": critic}))
    assert not is_zero(run(name, normal(50, (1, 1, 1)), teacher, 0.5, 2.0, given={"critic": critic}))


@pytest.mark.parametrize("name", ["ism", "tsm", "sdi"])
def test_the_deterministic_ones_stand_still_at_the_mean_of_data_that_all_prompts_share(name: str) -> None:
    teacher = gaussians(0.4, 0.4, 0.4)
    assert is_zero(run(name, many(0.4, 4), teacher, 0.6, 1.0))
    assert is_zero(run(name, many(0.4, 4), teacher, 0.6, 7.5))  # guidance between equals is none
    assert not is_zero(run(name, many(0.5, 4), teacher, 0.6, 1.0), 1e-4)


def test_sdi_inverts_exactly_without_variance() -> None:
    """Of data without variance x_t holds no x at all: x0 is the mean, and g = x - mu."""
    x = normal(4)
    grad = run("sdi", x, gaussians(0.4, 0.4, 0.4, variance=0.0), 0.6, 1.0)
    torch.testing.assert_close(grad, x - 0.4, rtol=1e-10, atol=1e-12)


def test_asd_stands_still_at_the_mean_on_average() -> None:
    assert mean_error(run("asd", many(MU_Y), gaussians(), 0.6, 1.0), 0.0) < 5


def test_bsd_stands_still_where_either_force_is_nothing() -> None:
    assert is_zero(run("bsd", normal(4), gaussians(), 0.5, 0.0))  # c = 0: no guidance
    assert is_zero(run("bsd", normal(4), gaussians(0.4, 0.4), 0.5, SCALE))  # c = 0: the prompts are one
    assert is_zero(run("bsd", many(MU_N, 4), gaussians(variance=0.0), 0.5, SCALE))  # d = 0: x is all there is
    assert not is_zero(run("bsd", normal(4), gaussians(), 0.5, SCALE), 1e-3)


def test_dds_stands_still_at_its_source() -> None:
    teacher = ExactTeacher({name: MODES[name] for name in ("y", "n", "")})
    x = normal(50, (1, 1, 1))
    given = {"source": Source(x, teacher.encode_prompt(["y"]))}
    assert is_zero(run("dds", x, teacher, 0.5, 7.5, given=given))
    # With other views that push (Perp-Neg) too: they push both.
    repulsion = Repulsion([teacher.null_condition(50)], torch.full((1, 50), 2.0))
    assert is_zero(run("dds", x, teacher, 0.5, 7.5, given=given | {"repulsion": repulsion}))
    other = {"source": Source(x, teacher.encode_prompt(["n"]))}
    assert not is_zero(run("dds", x, teacher, 0.5, 7.5, given=other))


# How much they scatter ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [0.5, 0.8])
def test_sjcs_noise_changes_the_variance_and_not_the_mean(t: float) -> None:
    teacher = ExactTeacher({name: MODES[name] for name in ("y", "n", "")})
    x = many(0.1, 20000, (1, 1, 1))
    reduced, plain = (run("sjc", x, teacher, t, 1.0, variance_reduced=which) for which in (True, False))
    assert float(reduced.var()) < 0.5 * float(plain.var())
    mean, _ = by_quadrature("sjc", 0.1, t, 1.0)
    assert mean_error(reduced, mean) < 5
    assert mean_error(plain, mean) < 5


@pytest.mark.parametrize("name", ["nfsd", "csd"])
def test_without_the_noise_the_gradient_scatters_less(name: str) -> None:
    """Where the teacher can tell the data apart. The prompt picks one of four modes, x is a sample of it, and what CSD
    and NFSD drop of SDS (same weight, same scale) is nearly all that scatters.

    It is no law: at high noise an exact teacher's E(0) - e makes up for what E(y) - E(0) scatters (a mode more likely
    under this e is one that e points to), and SDS scatters less at the same scale. That is asserted too.
    """
    means, variance = 0.5 * normal(4, (1, 4, 4), seed=5), 0.25
    even, spread = torch.full((4,), 0.25, dtype=torch.float64), torch.full((4,), variance, dtype=torch.float64)
    teacher = ExactTeacher({"y": gaussian(means[0], variance), "": Mixture(means, spread, even)})
    x = (means[0] + variance**0.5 * normal(1, (1, 4, 4))).expand(3000, -1, -1, -1)

    def scatter(method: str, t: float) -> float:
        grad = run(method, x, teacher, t, 7.5, given={"negative": None})
        return float(grad.var(dim=0).sum())

    assert scatter(name, 0.1) < 0.1 * scatter("sds", 0.1)
    assert scatter(name, 0.8) > scatter("sds", 0.8)


@pytest.mark.parametrize("name", ["csm", "ism", "tsm", "sdi"])
def test_there_is_no_chance_in_the_deterministic_ones(name: str) -> None:
    teacher, x = gaussians(), normal(3)
    one, two = (run(name, x, teacher, 0.6, 7.5, given={"generator": torch.Generator().manual_seed(s)}) for s in (0, 1))
    assert torch.equal(one, two)
    one, two = (run("sds", x, teacher, 0.6, 7.5, given={"generator": torch.Generator().manual_seed(s)}) for s in (0, 1))
    assert not torch.equal(one, two)
