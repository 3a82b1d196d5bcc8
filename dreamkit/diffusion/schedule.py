"""Noise schedules, and the one place where predictions are converted into one another.

A diffusion model sees x_t = alpha(t) x0 + sigma(t) eps, with x0 a clean sample, eps standard normal noise and t in
[0, 1]: t = 0 is clean (alpha 1, sigma 0), t = 1 is the noisiest the model has seen. It predicts one of

    eps     the noise
    x0      the clean sample
    v       alpha eps - sigma x0         (Salimans and Ho, arXiv 2202.00512)
    flow    eps - x0                     (rectified flow, Liu et al., arXiv 2209.03003)

and, given x_t, each one determines the others:

    eps  -> x0 = (x_t - sigma eps) / alpha
    x0   -> eps = (x_t - alpha x0) / sigma
    v    -> x0 = (alpha x_t - sigma v) / (alpha^2 + sigma^2),   eps = (sigma x_t + alpha v) / (alpha^2 + sigma^2)
    flow -> x0 = (x_t - sigma flow) / (alpha + sigma),          eps = (x_t + alpha flow) / (alpha + sigma)

**Discrete models** (DDPM) were trained at indices k = 0..T-1 with abar_k; here index k sits at t = (k + 1) / T, and
t = 0 is the clean sample that has no index. Between nodes the angle phi = atan2(sigma, alpha), which runs from 0 to at
most pi/2, is linear in t, and alpha = cos phi, sigma = sin phi: continuous, monotone, alpha^2 + sigma^2 = 1, and finite
at both ends, which log-SNR is not.

**Flow matching**: sigma = shift t / (1 + (shift - 1) t), alpha = 1 - sigma (Esser et al., arXiv 2403.03206).

**Ends.** v and flow convert exactly everywhere. Where a division would blow up, the divisor is floored at
`FLOOR` = 2^-16: eps says nothing about x0 when alpha = 0 (zero terminal SNR), so there x0 = (x_t - eps) / FLOOR, finite
and 0 for a perfect eps; x0 says nothing about eps when sigma = 0. The same floor bounds `sigma_ratio` by 2^16 and `snr`
by 2^32. It lies under the smallest alpha of the usual tables (5e-5, the cosine one's), so at their nodes all is exact.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from dreamkit.diffusion.betas import beta_table, signal_shares
from dreamkit.errors import TeacherError

FLOOR = 2.0**-16

PredictionKind = Literal["eps", "x0", "v", "flow"]
PREDICTION_KINDS: tuple[PredictionKind, ...] = ("eps", "x0", "v", "flow")


@dataclass(frozen=True)
class Prediction:
    """What a model believes about a batch of noisy samples, in every parameterisation.

    Args:
        eps: predicted noise, [B, ...].
        x0: predicted clean sample, [B, ...].
        alpha: signal coefficient at the sample's t, broadcastable to `eps`.
        sigma: noise coefficient at the sample's t, broadcastable to `eps`.
    """

    eps: Tensor  # [B, ...]
    x0: Tensor  # [B, ...]
    alpha: Tensor  # [B, 1, ...] or []
    sigma: Tensor  # [B, 1, ...] or []

    @property
    def v(self) -> Tensor:
        """The angular velocity alpha eps - sigma x0, [B, ...]."""
        return self.alpha * self.eps - self.sigma * self.x0

    @property
    def flow(self) -> Tensor:
        """The velocity eps - x0 of a rectified flow from data to noise, [B, ...]."""
        return self.eps - self.x0


class NoiseSchedule(ABC):
    """The coefficients alpha(t) and sigma(t) for t in [0, 1], and the conversions between predictions.

    Built by `ddpm`, `flow` or `from_diffusers`. Values of t outside [0, 1] are clamped. Results are float32, or float64
    where the sample (for the coefficients: t) is float64.

    Args:
        steps: number of training steps T; `to_timestep` speaks in them.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps

    @abstractmethod
    def _coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Compute alpha and sigma in float64, shaped like `t`, for t in [0, 1] float64."""

    @abstractmethod
    def to_timestep(self, t: Tensor | float) -> Tensor:
        """What the network takes as its timestep, float32, shaped like `t`."""

    @abstractmethod
    def from_timestep(self, timestep: Tensor | float) -> Tensor:
        """The t in [0, 1] of a network timestep, float64, shaped like it."""

    @staticmethod
    def ddpm(
        betas: str | Tensor | Sequence[float] = "linear",
        steps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        zero_terminal_snr: bool = False,
    ) -> "NoiseSchedule":
        """Build a variance-preserving schedule from discrete betas.

        Args:
            betas: a name in `BETA_TABLES`, or the betas themselves, [T].
            steps: T, used with a name.
            beta_start: first beta of a named table.
            beta_end: last beta of a named table.
            zero_terminal_snr: make the last step pure noise (arXiv 2305.08891).

        Raises:
            TeacherError: unknown name, or betas outside [0, 1].
        """
        if isinstance(betas, str):
            table = beta_table(betas, steps, beta_start, beta_end)
        else:
            table = torch.as_tensor(betas, dtype=torch.float64)
        return _DiscreteSchedule(signal_shares(table, zero_terminal_snr))

    @staticmethod
    def flow(shift: float = 1.0, steps: int = 1000) -> "NoiseSchedule":
        """Build a rectified-flow schedule: sigma = shift t / (1 + (shift - 1) t), alpha = 1 - sigma.

        Args:
            shift: above 1 spends more of t at high noise; positive.
            steps: scale of the network's timestep, sigma * steps.

        Raises:
            TeacherError: shift not positive.
        """
        if not 0 < shift < float("inf"):
            raise TeacherError(f"A flow schedule's shift must be a positive number, not {shift}.")
        return _FlowSchedule(shift, steps)

    @staticmethod
    def from_diffusers(config: Mapping[str, Any], image_tokens: int | None = None) -> "NoiseSchedule":
        """Build the schedule a diffusers scheduler was trained with, from its configuration.

        Only what describes the noise is read (betas, zero terminal SNR, shift); how the scheduler spaces its sampling
        steps is not the model's noise and is ignored.

        Args:
            config: `scheduler.config` or the content of scheduler_config.json.
            image_tokens: tokens of one image, for flow schedules whose shift depends on resolution; their base length
                when left out.

        Raises:
            TeacherError: a scheduler that is not a DDPM or flow-matching one, or a field out of range.
        """
        from dreamkit.diffusion.scheduler_config import schedule_from_config

        return schedule_from_config(config, image_tokens)

    def alpha(self, t: Tensor | float) -> Tensor:
        """Signal coefficient, in [0, 1], shaped like `t`; 1 at t = 0."""
        return self._coefficients(_unit_interval(t))[0].to(_dtype_of(t))

    def sigma(self, t: Tensor | float) -> Tensor:
        """Noise coefficient, in [0, 1], shaped like `t`; 0 at t = 0."""
        return self._coefficients(_unit_interval(t))[1].to(_dtype_of(t))

    def sigma_ratio(self, t: Tensor | float) -> Tensor:
        """Noise level sigma / alpha of the variance-exploding view, in [0, 2^16], shaped like `t`."""
        alpha, sigma = self._coefficients(_unit_interval(t))
        return (sigma / alpha.clamp_min(FLOOR)).to(_dtype_of(t))

    def snr(self, t: Tensor | float) -> Tensor:
        """Signal-to-noise ratio alpha^2 / sigma^2, in [0, 2^32], shaped like `t`."""
        alpha, sigma = self._coefficients(_unit_interval(t))
        return ((alpha / sigma.clamp_min(FLOOR)) ** 2).to(_dtype_of(t))

    def coefficients(self, t: Tensor | float, like: Tensor) -> tuple[Tensor, Tensor]:
        """Compute alpha and sigma on the device of `like`, shaped to broadcast over it.

        Args:
            t: one number, or [B].
            like: [B, ...].

        Returns:
            Two tensors [B, 1, ...] (or [] for one t), float64 if `like` is, else float32.
        """
        on_device = _unit_interval(t).to(like.device)
        shape = on_device.shape + (1,) * (like.ndim - 1) if on_device.ndim else on_device.shape
        alpha, sigma = self._coefficients(on_device)
        dtype = _dtype_of(like)
        return alpha.to(dtype).reshape(shape), sigma.to(dtype).reshape(shape)

    def add_noise(
        self,
        x0: Tensor,  # [B, ...]
        eps: Tensor,  # [B, ...]
        t: Tensor | float,  # [B] or one number
    ) -> Tensor:
        """Mix x_t = alpha(t) x0 + sigma(t) eps, [B, ...]; with a predicted x0 and eps this is a DDIM step to t.

        Args:
            x0: clean samples, [B, ...].
            eps: standard normal noise, [B, ...].
            t: noise level in [0, 1], [B] or one number.
        """
        alpha, sigma = self.coefficients(t, x0)
        return alpha * x0.to(alpha.dtype) + sigma * eps.to(alpha.dtype)

    def velocity(
        self,
        x0: Tensor,  # [B, ...]
        eps: Tensor,  # [B, ...]
        t: Tensor | float,  # [B] or one number
    ) -> Tensor:
        """Mix v = alpha(t) eps - sigma(t) x0, [B, ...]: the target of a v-predicting network.

        Args:
            x0: clean samples, [B, ...].
            eps: standard normal noise, [B, ...].
            t: noise level in [0, 1], [B] or one number.
        """
        alpha, sigma = self.coefficients(t, x0)
        return alpha * eps.to(alpha.dtype) - sigma * x0.to(alpha.dtype)

    def convert(
        self,
        output: Tensor,  # [B, ...]
        x_t: Tensor,  # [B, ...]
        t: Tensor | float,  # [B] or one number
        kind: PredictionKind,
    ) -> Prediction:
        """Turn a network's output of one kind into a `Prediction` of all kinds (formulas at the top of this file).

        Differentiable in `output` and `x_t`. Computed in float32, or float64 if `x_t` is float64.

        Args:
            output: what the network said, [B, ...].
            x_t: the noisy samples it was given, [B, ...].
            t: their noise level in [0, 1], [B] or one number.
            kind: what the network predicts: "eps", "x0", "v" or "flow".

        Raises:
            TeacherError: unknown kind, or shapes that differ.
        """
        if output.shape != x_t.shape:
            raise TeacherError(
                f"The prediction has shape {tuple(output.shape)} for noisy samples of {tuple(x_t.shape)}."
            )
        alpha, sigma = self.coefficients(t, x_t)
        x_t, output = x_t.to(alpha.dtype), output.to(alpha.dtype)
        if kind == "eps":
            eps, x0 = output, (x_t - sigma * output) / alpha.clamp_min(FLOOR)
        elif kind == "x0":
            eps, x0 = (x_t - alpha * output) / sigma.clamp_min(FLOOR), output
        elif kind == "v":
            square = alpha**2 + sigma**2
            eps, x0 = (sigma * x_t + alpha * output) / square, (alpha * x_t - sigma * output) / square
        elif kind == "flow":
            total = alpha + sigma
            eps, x0 = (x_t + alpha * output) / total, (x_t - sigma * output) / total
        else:
            raise TeacherError(f"The prediction type {kind!r} is unknown.", f"Known: {', '.join(PREDICTION_KINDS)}.")
        return Prediction(eps, x0, alpha, sigma)


class _DiscreteSchedule(NoiseSchedule):
    """A DDPM's abar table, made continuous by interpolating the angle atan2(sigma, alpha)."""

    def __init__(self, shares: Tensor) -> None:
        super().__init__(steps=shares.numel() - 1)
        alpha, sigma = shares.sqrt(), (1 - shares).sqrt()
        # The angle and its complement are both kept: sin is exact near 0, so alpha = sin(complement) reaches exactly
        # 0 at zero terminal SNR, where cos(pi/2) would leave rounding, and sigma reaches exactly 0 at t = 0.
        angles = torch.stack([torch.atan2(alpha, sigma), torch.atan2(sigma, alpha)])
        self._angles = {torch.device("cpu"): angles}

    def _coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        if t.device not in self._angles:
            self._angles[t.device] = self._angles[torch.device("cpu")].to(t.device)
        angles = self._angles[t.device]
        position = t * self.steps
        node = position.floor().clamp(0, self.steps - 1).long()
        interpolated = torch.lerp(angles[:, node], angles[:, node + 1], position - node)
        alpha, sigma = interpolated.sin()
        return alpha, sigma

    def to_timestep(self, t: Tensor | float) -> Tensor:
        """Training index t T - 1 in [0, T - 1], fractional between nodes; t below 1/T reads index 0."""
        index = _unit_interval(t) * self.steps - 1
        # A float32 t = (k + 1) / T lands beside k by rounding; the network was trained on k itself.
        nearest = index.round()
        index = torch.where((index - nearest).abs() < 1e-3, nearest, index)
        return index.clamp(0, self.steps - 1).float()

    def from_timestep(self, timestep: Tensor | float) -> Tensor:
        """Place a training index k at t = (k + 1) / T."""
        return (torch.as_tensor(timestep, dtype=torch.float64) + 1) / self.steps

    def __repr__(self) -> str:
        return f"NoiseSchedule(DDPM, steps={self.steps}, final alpha={float(self.alpha(1.0)):.4g})"


class _FlowSchedule(NoiseSchedule):
    """Rectified flow: a straight line from data to noise, walked at a pace set by `shift`."""

    def __init__(self, shift: float, steps: int) -> None:
        super().__init__(steps)
        self.shift = shift

    def _coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        pace = 1 + (self.shift - 1) * t
        return (1 - t) / pace, self.shift * t / pace

    def to_timestep(self, t: Tensor | float) -> Tensor:
        """sigma(t) times the number of training steps, in [0, T]."""
        return (self._coefficients(_unit_interval(t))[1] * self.steps).float()

    def from_timestep(self, timestep: Tensor | float) -> Tensor:
        """Invert a timestep sigma T: t = sigma / (shift - (shift - 1) sigma)."""
        sigma = torch.as_tensor(timestep, dtype=torch.float64) / self.steps
        return sigma / (self.shift - (self.shift - 1) * sigma)

    def __repr__(self) -> str:
        return f"NoiseSchedule(flow, shift={self.shift:g}, steps={self.steps})"


def _unit_interval(t: Tensor | float) -> Tensor:
    """Clamp to [0, 1], as a float64 tensor so that index arithmetic is exact."""
    return torch.as_tensor(t, dtype=torch.float64).clamp(0, 1)


def _dtype_of(value: Tensor | float) -> torch.dtype:
    """float64 for a float64 tensor, float32 for anything else."""
    is_double = isinstance(value, Tensor) and value.dtype == torch.float64
    return torch.float64 if is_double else torch.float32
