"""Beta tables of discrete diffusion models: how much noise each of T training steps adds.

A step k in 0..T-1 multiplies the signal's variance by 1 - beta_k, so that after it the signal's share is
abar_k = prod_{i<=k} (1 - beta_i) and x_k = sqrt(abar_k) x0 + sqrt(1 - abar_k) eps (Ho et al., "Denoising Diffusion
Probabilistic Models", arXiv 2006.11239). Everything here is float64; the tables of diffusers are the same in float32.
"""

import math

import torch
from torch import Tensor

from dreamkit.errors import TeacherError

BETA_TABLES = ("linear", "scaled_linear", "cosine", "squaredcos_cap_v2", "sigmoid")


def beta_table(
    name: str,
    steps: int,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
) -> Tensor:
    """Compute a named table of betas.

    - linear: evenly spaced between `beta_start` and `beta_end` (arXiv 2006.11239).
    - scaled_linear: the square of evenly spaced square roots (latent diffusion, arXiv 2112.10752).
    - cosine, alias squaredcos_cap_v2: abar(u) = cos^2(pi/2 (u + 0.008) / 1.008), betas capped at 0.999 (Nichol and
      Dhariwal, arXiv 2102.09672); ignores `beta_start` and `beta_end`.
    - sigmoid: a logistic curve over [-6, 6] between `beta_start` and `beta_end`.

    Args:
        name: one of `BETA_TABLES`.
        steps: number of training steps T, at least 1.
        beta_start: first beta, in (0, 1).
        beta_end: last beta, in (0, 1).

    Returns:
        [T] float64.

    Raises:
        TeacherError: unknown name, or fewer than one step.
    """
    if steps < 1:
        raise TeacherError(f"A noise schedule needs at least 1 training step, not {steps}.")
    if name == "linear":
        return torch.linspace(beta_start, beta_end, steps, dtype=torch.float64)
    if name == "scaled_linear":
        return torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=torch.float64) ** 2
    if name in ("cosine", "squaredcos_cap_v2"):
        signal = [math.cos((k / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for k in range(steps + 1)]
        capped = [min(1 - signal[k + 1] / signal[k], 0.999) for k in range(steps)]
        return torch.tensor(capped, dtype=torch.float64)
    if name == "sigmoid":
        ramp = torch.linspace(-6, 6, steps, dtype=torch.float64).sigmoid()
        return ramp * (beta_end - beta_start) + beta_start
    raise TeacherError(f"The beta schedule {name!r} is unknown.", f"Known: {', '.join(BETA_TABLES)}.")


def signal_shares(
    betas: Tensor,  # [T]
    zero_terminal_snr: bool = False,
) -> Tensor:
    """Turn betas into abar, the signal's share of the variance, with the clean sample in front.

    With `zero_terminal_snr`, sqrt(abar) is shifted and scaled so that its first value stays and its last is exactly 0
    (Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", arXiv 2305.08891, algorithm 1).

    Args:
        betas: [T], finite, each in [0, 1].
        zero_terminal_snr: whether the last step is pure noise.

    Returns:
        [T + 1] float64: 1, abar_0, ..., abar_{T-1}.

    Raises:
        TeacherError: a beta that is not finite or not in [0, 1], or an empty table.
    """
    betas = betas.to(torch.float64)
    bad = ~((betas >= 0) & (betas <= 1))
    if betas.ndim != 1 or betas.numel() == 0 or bool(bad.any()):
        shown = float(betas.flatten()[bad.flatten()][0]) if bool(bad.any()) else tuple(betas.shape)
        raise TeacherError(f"A noise schedule's betas are a list of numbers in [0, 1]; found {shown}.")
    shares = torch.cumprod(1 - betas, dim=0)
    if zero_terminal_snr:
        root = shares.sqrt()
        first, last = root[0], root[-1]
        if first == last:
            raise TeacherError("Zero terminal SNR needs at least two different noise levels.")
        shares = ((root - last) * (first / (first - last))) ** 2
    return torch.cat([torch.ones(1, dtype=torch.float64), shares])
