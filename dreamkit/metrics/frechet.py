"""The Frechet distance between two sets of features, as in FID and FVD, on the embedded judge's features.

    d^2 = |m_1 - m_2|^2 + tr(S_1 + S_2 - 2 (S_1^1/2 S_2 S_1^1/2)^1/2)

is the squared 2-Wasserstein distance of Gaussians with the sets' means and covariances (Dowson & Landau, 1982; Heusel
et al., arXiv 1706.08500; on features of clips: Unterthiner et al., arXiv 1812.01717). From finite sets it is biased
upwards, by about a constant over the number of features (Chong & Forsyth, arXiv 1911.07023): compare distances of
equally many only, and give the distance between two halves of the reference beside them.
"""

import torch
from torch import Tensor

from dreamkit.checks import require


class FeatureStatistics:
    """Mean and covariance of features that come in lots, in float64 and constant memory.

    Lots are merged by the update of Chan et al. ("Algorithms for computing the sample variance", 1983), so that nothing
    is lost to cancellation however many there are.

    Args:
        size: D of the features.
    """

    def __init__(self, size: int) -> None:
        self.count = 0
        self.mean = torch.zeros(size, dtype=torch.float64)
        self._scatter = torch.zeros(size, size, dtype=torch.float64)

    @classmethod
    def of(
        cls,
        features: Tensor,  # [N, D]
    ) -> "FeatureStatistics":
        """The statistics of one set."""
        statistics = cls(features.shape[-1])
        statistics.add(features)
        return statistics

    def add(
        self,
        features: Tensor,  # [N, D]
    ) -> None:
        """Count features in.

        Raises:
            ConfigError: another shape, or numbers that are not finite.
        """
        size = len(self.mean)
        fine = features.ndim == 2 and features.shape[1] == size
        require("The shape of the features", fine, tuple(features.shape), f"[N, {size}]")
        require("A feature", bool(torch.isfinite(features).all()), "not finite", "numbers")
        if not len(features):
            return
        values = features.detach().cpu().double()
        mean = values.mean(dim=0)
        centred = values - mean
        count = self.count + len(values)
        shift = mean - self.mean
        between = torch.outer(shift, shift) * (self.count * len(values) / count)
        self._scatter = self._scatter + centred.T @ centred + between
        self.mean = self.mean + shift * (len(values) / count)
        self.count = count

    @property
    def covariance(self) -> Tensor:
        """[D, D] sum (f - m)(f - m)^T / (n - 1).

        Raises:
            ConfigError: fewer than two features.
        """
        require("The number of features", self.count > 1, self.count, "2 or more")
        return self._scatter / (self.count - 1)


def frechet_distance(one: FeatureStatistics, other: FeatureStatistics) -> float:
    """The squared distance d^2 of the module's docstring, as FID gives it.

    Returns:
        A number >= 0 in squared units of the features; 0 for equal statistics, to about 1e-8 of their traces.

    Raises:
        ConfigError: features of different sizes, or fewer than two.
    """
    require("The size of the features", len(one.mean) == len(other.mean), len(other.mean), str(len(one.mean)))
    first, second = one.covariance, other.covariance
    root = _root(first)
    # The eigenvalues of a symmetric product; S_1 S_2 itself is not symmetric, and its root is no number at times.
    cross = torch.linalg.eigvalsh(root @ second @ root).clamp_min(0).sqrt().sum()
    means = (one.mean - other.mean).square().sum()
    return max(0.0, float(means + first.trace() + second.trace() - 2 * cross))


def _root(matrix: Tensor) -> Tensor:
    """The symmetric square root of a positive semi-definite matrix; what rounding made negative is 0."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T
