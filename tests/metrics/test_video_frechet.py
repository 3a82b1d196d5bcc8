"""The Frechet distance against closed forms."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dreamkit.errors import ConfigError
from dreamkit.metrics.frechet import FeatureStatistics, frechet_distance


def exact(mean: Tensor, root: Tensor) -> FeatureStatistics:
    """Statistics that are exactly those of N(mean, root root^T): points +-sqrt(n - 1) / sqrt(2) along each column."""
    size = len(mean)
    points = torch.cat([root.T, -root.T]) * ((2 * size - 1) / 2) ** 0.5
    return FeatureStatistics.of(mean + points)


def random(size: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(size, generator=generator, dtype=torch.float64),
        torch.randn(size, size, generator=generator, dtype=torch.float64),
    )


class TestDistance:
    def test_of_one_dimension(self) -> None:
        """(m - n)^2 + (s - t)^2."""
        one = exact(torch.tensor([1.0], dtype=torch.float64), torch.tensor([[2.0]], dtype=torch.float64))
        other = exact(torch.tensor([-2.0], dtype=torch.float64), torch.tensor([[0.5]], dtype=torch.float64))
        assert frechet_distance(one, other) == pytest.approx(9 + 2.25, rel=1e-12)

    def test_of_covariances_that_commute(self) -> None:
        """|m - n|^2 + sum (sqrt a - sqrt b)^2 over the shared axes."""
        mean, square = random(5, 0)
        axes = torch.linalg.qr(square).Q
        a, b = torch.rand(2, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        one, other = exact(mean, axes * a.sqrt()), exact(2 * mean, axes * b.sqrt())
        wanted = mean.square().sum() + (a.sqrt() - b.sqrt()).square().sum()
        assert frechet_distance(one, other) == pytest.approx(float(wanted), rel=1e-10)

    def test_of_a_map_that_is_optimal(self) -> None:
        """A positive definite T maps N(m, S) onto N(Tm, TST) at the least cost, E|x - Tx|^2."""
        mean, root = random(6, 2)
        square = random(6, 3)[1]
        transport = square @ square.T / 6 + 0.1 * torch.eye(6, dtype=torch.float64)
        moved = torch.eye(6, dtype=torch.float64) - transport
        wanted = (moved @ (root @ root.T + torch.outer(mean, mean)) @ moved).trace()
        got = frechet_distance(exact(mean, root), exact(transport @ mean, transport @ root))
        assert got == pytest.approx(float(wanted), rel=1e-9)

    def test_against_scipy(self) -> None:
        from scipy.linalg import sqrtm

        (mean, root), (other_mean, other_root) = random(4, 4), random(4, 5)
        first, second = root @ root.T, other_root @ other_root.T
        cross = torch.from_numpy(sqrtm((first @ second).numpy()).real)
        wanted = (mean - other_mean).square().sum() + (first + second - 2 * cross).trace()
        got = frechet_distance(exact(mean, root), exact(other_mean, other_root))
        assert got == pytest.approx(float(wanted), rel=1e-9)

    def test_of_equal_sets_of_few_features(self) -> None:
        """A singular covariance: fewer features than dimensions."""
        features = torch.randn(5, 40, generator=torch.Generator().manual_seed(6))
        statistics = FeatureStatistics.of(features)
        assert frechet_distance(statistics, statistics) == pytest.approx(0, abs=1e-6)

    def test_it_is_symmetric_and_biased_upwards(self) -> None:
        """Two halves of one set are apart, and the more so the fewer they are."""
        features = torch.randn(4000, 8, generator=torch.Generator().manual_seed(7))
        many = [FeatureStatistics.of(half) for half in features.split(2000)]
        few = [FeatureStatistics.of(half) for half in features[:100].split(50)]
        assert frechet_distance(*few) > 10 * frechet_distance(*many) > 0
        assert frechet_distance(*few) == pytest.approx(frechet_distance(*few[::-1]), rel=1e-9)


class TestStatistics:
    @settings(max_examples=30, deadline=None)
    @given(cuts=st.lists(st.integers(0, 60), max_size=6), offset=st.sampled_from([0.0, 1e6]))
    def test_lots_make_no_difference(self, cuts: list[int], offset: float) -> None:
        features = offset + torch.randn(60, 3, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
        statistics = FeatureStatistics(3)
        for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), 60], strict=True):
            statistics.add(features[start:end])
        torch.testing.assert_close(statistics.mean, features.mean(dim=0))
        torch.testing.assert_close(statistics.covariance, features.T.cov(), rtol=1e-6, atol=1e-9)
        assert statistics.count == 60

    def test_what_it_refuses(self) -> None:
        statistics = FeatureStatistics(3)
        with pytest.raises(ConfigError, match=r"\(2, 4\)"):
            statistics.add(torch.zeros(2, 4))
        with pytest.raises(ConfigError, match="not finite"):
            statistics.add(torch.full((2, 3), torch.nan))
        statistics.add(torch.zeros(1, 3))
        with pytest.raises(ConfigError, match="number of features"):
            _ = statistics.covariance
        with pytest.raises(ConfigError, match="size of the features"):
            frechet_distance(FeatureStatistics.of(torch.zeros(2, 3)), FeatureStatistics.of(torch.zeros(2, 4)))
