"""Every objective as its paper writes it: one sample, a list of Python floats, no tensor and nothing shared.

Written from the papers' formulas (shared/methods.md, part A), independently of dreamkit: the exact noise prediction of
Gaussian mixtures, guidance in the OTHER convention, E(y) + (s - 1)(E(y) - E(n)), DDIM inversion as a loop over the
variance-exploding ODE, and each method's two sides.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Pixels = list[float]
Levels = Callable[[float], tuple[float, float]]  # t -> alpha, sigma


@dataclass(frozen=True)
class Data:
    """A mixture of Gaussians over samples: sum_k p_k N(mu_k, v_k)."""

    means: Sequence[Pixels]
    variances: Sequence[float]
    weights: Sequence[float]


@dataclass(frozen=True)
class World:
    """What a method may ask: the exact teacher of three prompts on a noise schedule."""

    levels: Levels
    prompt: Data
    negative: Data
    null: Data

    def noise(self, data: Data, x_t: Pixels, t: float) -> Pixels:
        """E(x_t, t) = -sigma grad log p_t(x_t), with the posterior of the modes by Bayes' rule."""
        alpha, sigma = self.levels(t)
        spreads = [alpha * alpha * v + sigma * sigma for v in data.variances]
        logs = []
        for weight, mean, spread in zip(data.weights, data.means, spreads, strict=True):
            distance = sum((p - alpha * m) ** 2 for p, m in zip(x_t, mean, strict=True))
            logs.append(math.log(weight) - distance / (2 * spread) - len(x_t) / 2 * math.log(2 * math.pi * spread))
        top = max(logs)
        shares = [math.exp(value - top) for value in logs]
        total = sum(shares)
        score = [0.0] * len(x_t)
        for share, mean, spread in zip(shares, data.means, spreads, strict=True):
            for i, (p, m) in enumerate(zip(x_t, mean, strict=True)):
                score[i] -= share / total * (p - alpha * m) / spread
        return [-sigma * value for value in score]

    def guided(self, x_t: Pixels, t: float, scale: float) -> Pixels:
        """E(y) + (s - 1)(E(y) - E(n)), which is how others write our D(s)."""
        return self.between(self.prompt, self.negative, x_t, t, scale)

    def between(self, positive: Data, negative: Data, x_t: Pixels, t: float, scale: float) -> Pixels:
        """Guidance between any two of them."""
        y, n = self.noise(positive, x_t, t), self.noise(negative, x_t, t)
        return [a + (scale - 1) * (a - b) for a, b in zip(y, n, strict=True)]

    def noisy(self, x: Pixels, e: Pixels, t: float) -> Pixels:
        """Alpha x + sigma e."""
        alpha, sigma = self.levels(t)
        return [alpha * a + sigma * b for a, b in zip(x, e, strict=True)]

    def ratio(self, t: float) -> float:
        """Sigma / alpha."""
        alpha, sigma = self.levels(t)
        return sigma / alpha

    def move(self, x_t: Pixels, e: Pixels, t: float, to: float) -> Pixels:
        """One Euler step of dz / d(sigma / alpha) = E, where z = x_t / alpha."""
        alpha, target = self.levels(t)[0], self.levels(to)[0]
        step = self.ratio(to) - self.ratio(t)
        return [target * (value / alpha + step * slope) for value, slope in zip(x_t, e, strict=True)]

    def inverted(self, x: Pixels, t: float, steps: int, ask: Callable[[Pixels, float], Pixels]) -> Pixels:
        """From a clean sample up to t in equal steps."""
        for index in range(steps):
            here, there = t * index / steps, t * (index + 1) / steps
            x = self.move(x, ask(x, here), here, there)
        return x


def difference(target: Pixels, reference: Pixels, weight: float = 1.0) -> Pixels:
    """Weight times (target - reference)."""
    return [weight * (a - b) for a, b in zip(target, reference, strict=True)]


def sds(world: World, x: Pixels, e: Pixels, t: float, scale: float) -> Pixels:
    """Poole et al.: w (D - e), w = sigma^2."""
    return difference(world.guided(world.noisy(x, e, t), t, scale), e, world.levels(t)[1] ** 2)


def sjc(world: World, x: Pixels, e: Pixels, t: float, scale: float, variance_reduced: bool = True) -> Pixels:
    """Wang et al.: D - e, or D alone."""
    reference = e if variance_reduced else [0.0] * len(e)
    return difference(world.guided(world.noisy(x, e, t), t, scale), reference)


def nfsd(world: World, x: Pixels, e: Pixels, t: float, scale: float, has_negative: bool) -> Pixels:
    """Katzir et al.: w (d_D + s (E(y) - E(0)))."""
    x_t = world.noisy(x, e, t)
    y, null = world.noise(world.prompt, x_t, t), world.noise(world.null, x_t, t)
    negative = world.noise(world.negative, x_t, t) if has_negative else null
    domain = null if t < 0.2 else difference(null, negative)
    w = world.levels(t)[1] ** 2
    return [w * (d + scale * (a - b)) for d, a, b in zip(domain, y, null, strict=True)]


def csd(world: World, x_t: Pixels, t: float, scale: float, share: float) -> Pixels:
    """Yu et al.: w s (E(y) - [(1 - r) E(0) + r E(n)]); CSM is the same at another x_t."""
    y, null, negative = (world.noise(data, x_t, t) for data in (world.prompt, world.null, world.negative))
    against = [(1 - share) * a + share * b for a, b in zip(null, negative, strict=True)]
    return difference(y, against, scale * world.levels(t)[1] ** 2)


def csm(world: World, x: Pixels, t: float, scale: float, steps: int) -> Pixels:
    """Yang et al.: CSD at the x_t of an inversion with the empty prompt."""
    x_t = world.inverted(x, t, steps, lambda value, level: world.noise(world.null, value, level))
    return csd(world, x_t, t, scale, 0.0)


def vsd(world: World, x: Pixels, e: Pixels, t: float, scale: float, critic: Data) -> Pixels:
    """Wang et al.: w (D - E_phi)."""
    x_t = world.noisy(x, e, t)
    return difference(world.guided(x_t, t, scale), world.noise(critic, x_t, t), world.levels(t)[1] ** 2)


def esd(
    world: World, x: Pixels, e: Pixels, t: float, scale: float, everyone: Data, here: Data, lambda_: float
) -> Pixels:
    """Wang et al.: w (D - [lambda E_phi + (1 - lambda) E_phi(camera)])."""
    x_t = world.noisy(x, e, t)
    without, knowing = world.noise(everyone, x_t, t), world.noise(here, x_t, t)
    reference = [lambda_ * a + (1 - lambda_) * b for a, b in zip(without, knowing, strict=True)]
    return difference(world.guided(x_t, t, scale), reference, world.levels(t)[1] ** 2)


def cds(world: World, x: Pixels, e: Pixels, t: float, later: float, scale: float) -> Pixels:
    """Wu et al.: E_1 - E_2, z_2 = z_1 + (lam_2 - lam_1) E_1, z_1 = x + lam_1 e*."""
    x_1 = world.noisy(x, e, later)
    first = world.guided(x_1, later, scale)
    return difference(first, world.guided(world.move(x_1, first, later, t), t, scale))


def ism(world: World, x: Pixels, t: float, scale: float, gap: float, steps: int) -> Pixels:
    """Liang et al.: lam_t (D(x_t) - E(x_s, 0)); x_t one step from x_s."""
    return tsm(world, x, t, scale, gap, steps, 1.0)


def tsm(world: World, x: Pixels, t: float, scale: float, gap: float, steps: int, gamma: float) -> Pixels:
    """Miao et al.: lam_t (D(x_t) - E(x_mu, 0)); x_t and x_mu one step from x_s."""
    s = max(t - gap, t / 2)
    mu = s + (t - s) * math.sqrt(1 - gamma * gamma)
    x_s = world.inverted(x, s, steps, lambda value, level: world.noise(world.null, value, level))
    slope = world.noise(world.null, x_s, s)
    x_mu, x_t = world.move(x_s, slope, s, mu), world.move(x_s, slope, s, t)
    return difference(world.guided(x_t, t, scale), world.noise(world.null, x_mu, mu), world.ratio(t))


def asd(world: World, x: Pixels, e: Pixels, t: float, tau: float, scale: float) -> Pixels:
    """Ma et al.: w (D(x_t, t) - E(x_tau, tau, y)), the same e."""
    reference = world.noise(world.prompt, world.noisy(x, e, tau), tau)
    return difference(world.guided(world.noisy(x, e, t), t, scale), reference, world.levels(t)[1] ** 2)


def bsd(world: World, x: Pixels, e: Pixels, t: float, scale: float) -> Pixels:
    """Huang et al.: alpha (a c + (1 - a) d), the shortest vector between c and d."""
    x_t = world.noisy(x, e, t)
    y, n = world.noise(world.prompt, x_t, t), world.noise(world.negative, x_t, t)
    c, d = difference(y, n, scale), difference(n, e)
    across = difference(d, c)
    length = sum(value * value for value in across)
    share = sum(a * b for a, b in zip(across, d, strict=True)) / length
    share = min(max(share, 0.0), 1.0)
    return [world.levels(t)[0] * (share * a + (1 - share) * b) for a, b in zip(c, d, strict=True)]


def dds(world: World, x: Pixels, source: Pixels, described: Data, e: Pixels, t: float, scale: float) -> Pixels:
    """Hertz et al.: D(x_t, y) - D(x'_t, y')."""
    target = world.guided(world.noisy(x, e, t), t, scale)
    return difference(target, world.between(described, world.negative, world.noisy(source, e, t), t, scale))


def sdi(world: World, x: Pixels, t: float, scale: float, inversion_scale: float, steps: int) -> Pixels:
    """Lukoianov et al.: x - x0(x_t), x_t by inversion with negative guidance."""
    x_t = world.inverted(x, t, steps, lambda value, level: world.guided(value, level, inversion_scale))
    alpha, sigma = world.levels(t)
    guided = world.guided(x_t, t, scale)
    return [clean - (noisy - sigma * e) / alpha for clean, noisy, e in zip(x, x_t, guided, strict=True)]
