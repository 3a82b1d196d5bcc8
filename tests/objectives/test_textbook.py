"""Every objective against its paper's formula in plain Python floats (`textbook.py`), sample by sample."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import textbook
import torch
from closed_form import COSINE, FLOW, coefficients, context, make, normal, pose
from torch import Tensor

from dreamkit.diffusion.exact import ExactTeacher, Mixture, ParticleCritic
from dreamkit.diffusion.guidance import from_delta_convention
from dreamkit.diffusion.schedule import NoiseSchedule
from dreamkit.objectives import Source, objective_names

pytestmark = pytest.mark.usefixtures("one_thread")

LEVELS = (0.12, 0.35, 0.6, 0.85)  # one is below NFSD's boundary of 0.2
AZIMUTHS = (0.0, 180.0, 170.0, -20.0)  # two views
ROWS, SHAPE = len(LEVELS), (1, 2, 2)
GAP = 0.1


def mixture(kind: str, seed: int) -> Mixture:
    count = 1 if kind == "gaussian" else 3
    generator = torch.Generator().manual_seed(seed)
    means = 0.7 * torch.randn(count, *SHAPE, generator=generator, dtype=torch.float64)
    shares = torch.rand(count, generator=generator, dtype=torch.float64) + 0.2
    return Mixture(
        means, 0.05 + 0.3 * torch.rand(count, generator=generator, dtype=torch.float64), shares / shares.sum()
    )


def plain(data: Mixture) -> textbook.Data:
    return textbook.Data(
        [mean.flatten().tolist() for mean in data.means], data.variances.tolist(), data.weights.tolist()
    )


@dataclass
class Scene:
    """Everything a method may look at, as tensors and as floats."""

    schedule: NoiseSchedule
    kind: str
    levels: tuple[float, ...] = LEVELS

    def __post_init__(self) -> None:
        data = {name: mixture(self.kind, seed) for seed, name in enumerate(("y", "n", "", "source"))}
        self.teacher = ExactTeacher(data, self.schedule)
        self.described = plain(data["source"])
        self.world = textbook.World(
            lambda t: coefficients(self.schedule, t), plain(data["y"]), plain(data["n"]), plain(data[""])
        )
        self.x, self.eps, self.kept, self.source = (normal(ROWS, SHAPE, seed) for seed in (10, 11, 12, 13))
        self.kept = self.kept[:1]
        particles, poses = 0.5 * normal(6, SHAPE, 14), pose([0, 0, 0, 180, 180, 180])
        self.critic = ParticleCritic(self.schedule, views=2)
        self.critic.update(particles, self.teacher.null_condition(1), poses, torch.Generator())
        even = [1 / 3] * 3
        views = [textbook.Data(part.flatten(1).tolist(), [0.0] * 3, even) for part in particles.split(3)]
        self.views = [views[view] for view in (0, 1, 1, 0)]  # of the rows
        self.everyone = textbook.Data(particles.flatten(1).tolist(), [0.0] * 6, [1 / 6] * 6)
        # What CDS and ASD draw besides noise and levels.
        self.draws = torch.rand(ROWS, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tolist()

    def context(self, negative: str | None = "n", step: int = 0, rows: int = ROWS) -> Any:
        return context(
            self.teacher, rows, negative=negative, step=step, eps=self.eps, kept=self.kept, pose=pose(AZIMUTHS),
            critic=self.critic, source=Source(self.source, self.teacher.encode_prompt(["source"])),
        )  # fmt: skip

    def row(self, tensor: Tensor, index: int) -> list[float]:
        return tensor[index].flatten().tolist()

    def steps(self, gap: float = 0.0) -> int:
        """Steps of an inversion to `gap` below the levels, none longer than 0.2."""
        return math.ceil(max(max(t - gap, t / 2) for t in self.levels) / 0.2 - 1e-9)


Formula = Callable[[Scene, list[float], list[float], float, int, float], list[float]]

# name -> (objective, options, step of 100, negative prompt, formula of one row)
CASES: dict[str, tuple[str, dict[str, Any], int, str | None, Formula]] = {
    "sds": ("sds", {}, 0, "n", lambda w, x, e, t, i, s: textbook.sds(w.world, x, e, t, s)),
    "sjc": ("sjc", {}, 0, "n", lambda w, x, e, t, i, s: textbook.sjc(w.world, x, e, t, s)),
    "sjc plain": ("sjc", {"variance_reduced": False}, 0, "n",
                  lambda w, x, e, t, i, s: textbook.sjc(w.world, x, e, t, s, False)),
    "nfsd": ("nfsd", {}, 0, "n", lambda w, x, e, t, i, s: textbook.nfsd(w.world, x, e, t, s, True)),
    "nfsd alone": ("nfsd", {}, 0, None, lambda w, x, e, t, i, s: textbook.nfsd(w.world, x, e, t, s, False)),
    "csd": ("csd", {}, 0, "n", lambda w, x, e, t, i, s: textbook.csd(w.world, w.world.noisy(x, e, t), t, s, 0.0)),
    "csd late": ("csd", {}, 30, "n", lambda w, x, e, t, i, s: textbook.csd(w.world, w.world.noisy(x, e, t), t, s, 0.3)),
    "csm": ("csm", {}, 0, "n", lambda w, x, e, t, i, s: textbook.csm(w.world, x, t, s, w.steps())),
    "vsd": ("vsd", {}, 0, "n", lambda w, x, e, t, i, s: textbook.vsd(w.world, x, e, t, s, w.views[i])),
    "esd": ("esd", {"lambda_": 0.3}, 0, "n",
            lambda w, x, e, t, i, s: textbook.esd(w.world, x, e, t, s, w.everyone, w.views[i], 0.3)),
    "cds": ("cds", {}, 0, "n", lambda w, x, e, t, i, s: textbook.cds(
        w.world, x, w.row(w.kept, 0), t, min(t + 0.1 + 0.2 * w.draws[i], 0.98), s)),
    "ism": ("ism", {}, 0, "n", lambda w, x, e, t, i, s: textbook.ism(w.world, x, t, s, GAP, w.steps(GAP))),
    "tsm": ("tsm", {}, 0, "n", lambda w, x, e, t, i, s: textbook.tsm(w.world, x, t, s, GAP, w.steps(GAP), 0.3)),
    "asd": ("asd", {}, 0, "n", lambda w, x, e, t, i, s: textbook.asd(
        w.world, x, e, t, t + 0.1 * w.draws[i] * (t - 0.02), s)),
    "bsd": ("bsd", {}, 0, "n", lambda w, x, e, t, i, s: textbook.bsd(w.world, x, e, t, s)),
    "dds": ("dds", {}, 0, "n", lambda w, x, e, t, i, s: textbook.dds(
        w.world, x, w.row(w.source, i), w.described, e, t, s)),
    "sdi": ("sdi", {}, 0, "n", lambda w, x, e, t, i, s: textbook.sdi(w.world, x, t, s, -7.5, 10)),
}  # fmt: skip


def gradients(case: str, scene: Scene, scale: float, theirs: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What dreamkit says at our scale, and what the textbook says at theirs, [B, C, h, w] float64."""
    name, options, step, negative, formula = CASES[case]
    given = scene.context(negative, step)
    got = make(name, scene.levels, scale, **options)(scene.x.to(dtype), given).grad
    assert got.dtype == dtype
    rows = [
        formula(scene, scene.row(scene.x, i), scene.row(scene.eps, i), t, i, theirs) for i, t in enumerate(scene.levels)
    ]
    return got.double(), torch.tensor(rows, dtype=torch.float64).reshape(scene.x.shape)


def relative(got: Tensor, expected: Tensor) -> float:
    """The largest error of a row over the row's largest number."""
    size = expected.abs().flatten(1).max(dim=1).values
    return float(((got - expected).abs().flatten(1).max(dim=1).values / size).max())


def test_there_is_a_case_for_every_objective_of_this_package() -> None:
    from dreamkit.objectives import objective_class

    own = {name for name in objective_names() if objective_class(name).__module__.startswith("dreamkit.")}
    assert {case[0] for case in CASES.values()} == own


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["gaussian", "mixture"])
@pytest.mark.parametrize("schedule", [COSINE, FLOW], ids=["ddpm", "flow"])
def test_float64_is_the_textbook(case: str, kind: str, schedule: NoiseSchedule) -> None:
    got, expected = gradients(case, Scene(schedule, kind), 7.5, 7.5, torch.float64)
    assert relative(got, expected) <= 1e-10


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["gaussian", "mixture"])
def test_float32_is_near_the_textbook(case: str, kind: str) -> None:
    # CDS takes a step from up to 0.3 above the level: not from where alpha is so small that rounding is all there is.
    got, expected = gradients(case, Scene(COSINE, kind, (0.12, 0.3, 0.45, 0.6)), 7.5, 7.5, torch.float32)
    assert relative(got, expected) <= 1e-5


# CSD and CSM have a factor in the place of guidance: E(y) - E(n) times s, in either convention.
GUIDED = [case for case in CASES if not case.startswith(("csd", "csm"))]


@pytest.mark.parametrize("case", GUIDED)
def test_their_scale_of_three_is_our_four_in_every_objective(case: str) -> None:
    """The textbook's guidance is E(y) + (s - 1)(E(y) - E(n)), so that its s - 1 = 3 is Self-Forcing's "3.0"."""
    ours = from_delta_convention(3.0)
    assert ours == 4.0
    got, expected = gradients(case, Scene(COSINE, "mixture"), ours, 3.0 + 1, torch.float64)
    assert relative(got, expected) <= 1e-10
    off, _ = gradients(case, Scene(COSINE, "mixture"), 3.0, 4.0, torch.float64)
    assert relative(off, expected) > 1e-3


# These use the negative (or empty) prompt for more than guidance.
MORE = ("bsd", "sdi", "nfsd")


@pytest.mark.parametrize("case", [case for case in GUIDED if not case.startswith(MORE)])
def test_scale_one_asks_nothing_of_the_negative_prompt_and_scale_zero_nothing_of_the_prompt(case: str) -> None:
    name, options, step, _, _ = CASES[case]
    scene = Scene(COSINE, "mixture")

    def grad(scale: float, prompt: str, against: str) -> Tensor:
        given = context(
            scene.teacher, ROWS, prompt=prompt, negative=against, step=step, eps=scene.eps, kept=scene.kept,
            pose=pose(AZIMUTHS), critic=scene.critic, source=Source(scene.source, scene.teacher.encode_prompt(["y"])),
        )  # fmt: skip
        return make(name, LEVELS, scale, **options)(scene.x, given).grad

    torch.testing.assert_close(grad(1.0, "y", "n"), grad(1.0, "y", "source"), rtol=1e-10, atol=1e-12)
    assert not torch.allclose(grad(2.0, "y", "n"), grad(2.0, "y", "source"))
    if name != "asd":  # its reference is the prompt's
        torch.testing.assert_close(grad(0.0, "y", "n"), grad(0.0, "n", "n"), rtol=1e-10, atol=1e-12)
