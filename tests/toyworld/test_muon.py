"""Muon: the iteration orthogonalises, the update has AdamW's size, the state survives."""

import copy

import pytest
import torch
from torch import nn

from dreamkit.toyworld.muon import Muon, orthogonalise

SHAPES = [(16, 16), (8, 32), (48, 12), (1, 9), (64, 64)]


def matrices(shape: tuple[int, int], count: int = 3, seed: int = 0) -> torch.Tensor:
    """Random matrices with singular values from 1 to 20."""
    generator = torch.Generator().manual_seed(seed)
    u, _, v = torch.linalg.svd(torch.randn(count, *shape, generator=generator), full_matrices=False)
    rank = min(shape)
    values = 1 + 19 * torch.rand(count, rank, generator=generator)
    return u * values[:, None] @ v


class TestOrthogonalise:
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_singular_values_come_near_one(self, shape: tuple[int, int]) -> None:
        values = torch.linalg.svdvals(orthogonalise(matrices(shape)))
        assert float(values.min()) > 0.6
        assert float(values.max()) < 1.3

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_directions_stay(self, shape: tuple[int, int]) -> None:
        """U S V^T becomes U S' V^T: only the singular values change, so U^T X V is diagonal still."""
        given = matrices(shape).double()
        u, _, v = torch.linalg.svd(given, full_matrices=False)
        core = u.mT @ orthogonalise(given) @ v.mT
        off_diagonal = core - torch.diag_embed(core.diagonal(dim1=1, dim2=2))
        assert float(off_diagonal.abs().max()) < 1e-6
        assert float(core.diagonal(dim1=1, dim2=2).min()) > 0

    def test_size_of_the_gradient_does_not_matter(self) -> None:
        given = matrices((8, 8))
        torch.testing.assert_close(orthogonalise(given), orthogonalise(1e4 * given), rtol=1e-4, atol=1e-5)

    def test_batched_equals_one_by_one(self) -> None:
        given = matrices((6, 10))
        each = torch.cat([orthogonalise(one[None]) for one in given])
        torch.testing.assert_close(orthogonalise(given), each, rtol=1e-5, atol=1e-6)

    def test_zero_stays_zero(self) -> None:
        assert torch.equal(orthogonalise(torch.zeros(1, 4, 4)), torch.zeros(1, 4, 4))


class TestStep:
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_the_update_has_a_fifth_of_the_rate_as_rms(self, shape: tuple[int, int]) -> None:
        weight = nn.Parameter(torch.zeros(shape))
        optimizer = Muon([weight], lr=0.01)
        weight.grad = matrices(shape, 1)[0]
        optimizer.step()
        # Exactly that where all singular values become 1; they come near it.
        assert 0.6 < float(weight.detach().square().mean().sqrt()) / (0.2 * 0.01) < 1.3

    def test_against_the_formula(self) -> None:
        """Two steps by hand: momentum, Nesterov's look ahead, decoupled decay."""
        start, grads = matrices((4, 6), 1, seed=1)[0].double(), matrices((4, 6), 2, seed=2).double()
        weight = nn.Parameter(start.clone())
        optimizer = Muon([weight], lr=0.1, momentum=0.9, weight_decay=0.5)
        expected, momentum = start.clone(), torch.zeros_like(start)
        for grad in grads:
            weight.grad = grad.clone()
            optimizer.step()
            momentum = 0.9 * momentum + grad
            update = orthogonalise((grad + 0.9 * momentum)[None])[0]
            expected = expected * (1 - 0.1 * 0.5) - 0.1 * 0.2 * 6**0.5 * update
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-10, atol=1e-12)

    def test_shapes_are_mixed_in_one_group(self) -> None:
        weights = [nn.Parameter(torch.zeros(shape)) for shape in ((4, 6), (6, 4), (4, 6))]
        for seed, weight in enumerate(weights):
            weight.grad = matrices((weight.shape[0], weight.shape[1]), 1, seed)[0]
        Muon(weights, lr=0.01).step()
        alone = nn.Parameter(torch.zeros(4, 6))
        alone.grad = matrices((4, 6), 1, 2)[0]
        Muon([alone], lr=0.01).step()
        torch.testing.assert_close(weights[2], alone)

    def test_no_gradient_no_step(self) -> None:
        weight = nn.Parameter(torch.ones(2, 2))
        Muon([weight], lr=0.1).step()
        assert torch.equal(weight, torch.ones(2, 2))

    def test_a_closure_is_evaluated_with_gradients(self) -> None:
        weight = nn.Parameter(torch.eye(3))
        optimizer = Muon([weight], lr=0.1)

        def closure() -> float:
            optimizer.zero_grad()
            loss = weight.square().sum()
            loss.backward()
            return float(loss.detach())

        assert optimizer.step(closure) == 3.0
        assert float(weight.detach().square().sum()) < 3.0

    def test_it_solves_a_regression(self) -> None:
        generator = torch.Generator().manual_seed(0)
        truth = torch.randn(5, 8, generator=generator) * 0.3
        x = torch.randn(64, 8, generator=generator)
        layer = nn.Linear(8, 5, bias=False)
        optimizer = Muon(layer.parameters(), lr=0.05, weight_decay=0.0)
        losses = []
        for step in range(200):
            optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 200)
            loss = (layer(x) - x @ truth.T).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < 1e-2 * losses[0]

    def test_state_round_trip(self) -> None:
        one, two = (nn.Parameter(torch.zeros(3, 5)) for _ in range(2))
        first, second = Muon([one], lr=0.01), Muon([two], lr=0.01)
        one.grad = matrices((3, 5), 1, 0)[0]
        first.step()
        with torch.no_grad():
            two.copy_(one)
        second.load_state_dict(copy.deepcopy(first.state_dict()))
        for weight, optimizer in ((one, first), (two, second)):
            weight.grad = matrices((3, 5), 1, 1)[0]
            optimizer.step()
        assert torch.equal(one, two)

    def test_a_convolution_is_the_matrix_of_its_flattened_filters(self) -> None:
        kernel, matrix = nn.Parameter(torch.zeros(6, 2, 3, 3)), nn.Parameter(torch.zeros(6, 18))
        gradient = matrices((6, 18), 1)[0]
        kernel.grad, matrix.grad = gradient.reshape(6, 2, 3, 3).clone(), gradient
        for parameter in (kernel, matrix):
            Muon([parameter], lr=0.01).step()
        torch.testing.assert_close(kernel.detach().flatten(1), matrix.detach())

    @pytest.mark.parametrize("shape", [(3,), ()], ids=str)
    def test_no_vectors(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match="matrices"):
            Muon([nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.zeros(shape))])
