"""Pictures as prompts: attention fused with a reference's, in every network that has self-attention."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dreamkit.diffusion.condition import Condition
from dreamkit.diffusion.fusion import SELF_ATTENTION, fused_references, reference_rows
from dreamkit.diffusion.network_teacher import NetworkTeacher
from dreamkit.diffusion.teacher import Query
from dreamkit.errors import TeacherError

KINDS = ("toyworld", "sd15", "sd21", "sdxl")
ROWS = 3


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=KINDS)
def teacher(request: pytest.FixtureRequest, tiny_teacher: Callable[[str], NetworkTeacher]) -> NetworkTeacher:
    return tiny_teacher(request.param)


def samples(teacher: NetworkTeacher, seed: int = 0) -> Tensor:
    return torch.randn(ROWS, *teacher.sample_shape, generator=torch.Generator().manual_seed(seed))


def query(teacher: NetworkTeacher, reference: Tensor | None = None, camera: bool = False) -> Query:
    poses = torch.randn(ROWS, 12, generator=torch.Generator().manual_seed(1)) if camera else None
    t = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    return Query(samples(teacher), t, teacher.encode_prompt(["a red mug"]), poses, reference)


def test_a_row_that_refers_to_itself_changes_nothing(teacher: NetworkTeacher) -> None:
    """Every token twice: the softmax halves each, and the sum is what it was."""
    asked = query(teacher, camera=teacher.supports_camera)
    plain = teacher.predict_all([asked])[0].eps
    itself = teacher.predict_all([replace(asked, reference=asked.x_t)])[0].eps
    torch.testing.assert_close(itself, plain, rtol=0, atol=1e-5)
    assert not torch.equal(itself, teacher.predict_all([replace(asked, reference=samples(teacher, 4))])[0].eps)


def test_a_reference_counts_for_its_own_rows_alone(teacher: NetworkTeacher) -> None:
    plain = teacher.predict_all([query(teacher)])[0].eps
    referring = query(teacher, samples(teacher, 4))
    alone = teacher.predict_all([referring])[0].eps
    assert float((alone - plain).abs().flatten(1).max(dim=1).values.min()) > 1e-4
    # In one pass with queries that refer to nothing, in any order.
    for order in ([query(teacher), referring], [referring, query(teacher)]):
        answers = teacher.predict_all(order)
        for asked, answer in zip(order, answers, strict=True):
            expected = plain if asked.reference is None else alone
            torch.testing.assert_close(answer.eps, expected, rtol=0, atol=1e-5)
    # And each row to its own picture: another picture in the last row changes the last row.
    pictures = samples(teacher, 4)
    pictures[-1] = samples(teacher, 6)[-1]
    changed = teacher.predict_all([query(teacher, pictures)])[0].eps
    torch.testing.assert_close(changed[:-1], alone[:-1], rtol=0, atol=1e-5)
    assert not torch.allclose(changed[-1], alone[-1], rtol=0, atol=1e-5)


def test_nothing_is_left_in_the_network(teacher: NetworkTeacher) -> None:
    plain = teacher.predict_all([query(teacher)])[0].eps
    teacher.predict_all([query(teacher, samples(teacher, 4))])
    assert not any(module._forward_pre_hooks for module in teacher.network.modules())
    assert torch.equal(teacher.predict_all([query(teacher)])[0].eps, plain)


def test_the_rows_of_references_are_counted(teacher: NetworkTeacher) -> None:
    before = teacher.calls
    teacher.predict_all([query(teacher)])
    assert teacher.calls - before == ROWS
    before = teacher.calls
    teacher.predict_all([query(teacher), query(teacher, samples(teacher, 4))])
    assert teacher.calls - before == 3 * ROWS


def test_the_guided_prediction_refers_in_its_positive_part(teacher: NetworkTeacher) -> None:
    asked = query(teacher)
    null = teacher.null_condition(1)
    answer = teacher.predict_guided(asked.x_t, asked.t, asked.condition, null, 3.0, reference=samples(teacher, 4))
    positive = teacher.predict_all([query(teacher, samples(teacher, 4))])[0].eps
    negative = teacher.predict(asked.x_t, asked.t, null).eps
    torch.testing.assert_close(answer.positive.eps, positive, rtol=0, atol=1e-5)
    torch.testing.assert_close(answer.negative.eps, negative, rtol=0, atol=1e-5)


def test_a_reference_of_another_shape(teacher: NetworkTeacher) -> None:
    with pytest.raises(TeacherError, match="reference"):
        teacher.predict_all([query(teacher, samples(teacher)[:1])])


def test_a_network_without_self_attention_says_so(tiny_teacher: Callable[[str], NetworkTeacher]) -> None:
    """DeepFloyd's attention layers mix text and picture, and are called otherwise."""
    teacher = tiny_teacher("deepfloyd")
    with pytest.raises(TeacherError, match="self-attention"):
        teacher.predict_all([query(teacher, samples(teacher, 4))])
    teacher.predict_all([query(teacher)])


class TestRows:
    @staticmethod
    def make(rows: int, referring: bool) -> Query:
        x = torch.zeros(rows, 1, 2, 2)
        return Query(x, 0.5, Condition(torch.zeros(1, 1, 1)), None, x if referring else None)

    @pytest.mark.parametrize(
        ("asked", "expected"),
        [
            ([(3, False)], [0, 1, 2]),
            ([(2, True)], [2, 3, 2, 3]),
            ([(2, False), (2, True)], [0, 1, 4, 5, 4, 5]),
            ([(2, True), (2, False)], [4, 5, 2, 3, 4, 5]),
            ([(1, True), (2, False), (2, True)], [5, 1, 2, 6, 7, 5, 6, 7]),
        ],
    )
    def test_samples_refer_to_the_rows_behind(self, asked: list[tuple[int, bool]], expected: list[int]) -> None:
        assert reference_rows([self.make(*item) for item in asked]).tolist() == expected


class TestAttention:
    """The formula on one layer: softmax(q [K, K_ref]^T / sqrt(d)) [V, V_ref]."""

    @pytest.mark.parametrize("kind", ["ours", "diffusers"])
    @torch.no_grad()
    def test_it_is_attention_over_both(self, kind: str) -> None:
        layer, project = self.layer(kind)
        x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
        holder: Any = nn.Module()
        setattr(holder, SELF_ATTENTION, layer)
        with fused_references(holder, torch.tensor([1, 1])):
            fused = layer(x)
        q, k, v = project(x)
        both_k, both_v = (torch.cat([value, value[[1, 1]]], dim=2) for value in (k, v))
        weights = (q @ both_k.transpose(-1, -2) / 4**0.5).softmax(dim=-1)
        expected = (weights @ both_v).transpose(1, 2).flatten(2)
        out = layer.to_out if kind == "ours" else layer.to_out[0]
        torch.testing.assert_close(fused, out(expected), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layer(x)[1], fused[1], rtol=1e-4, atol=1e-5)  # row 1 refers to itself

    @staticmethod
    def layer(kind: str) -> tuple[Any, Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            if kind == "ours":
                from dreamkit.diffusion.hourglass import Attention

                layer: Any = Attention(8, 4)
                norms = layer.norm_q, layer.norm_k
            else:
                from diffusers.models.attention_processor import Attention as DiffusersAttention

                layer = DiffusersAttention(8, heads=2, dim_head=4)
                norms = nn.Identity(), nn.Identity()

        def project(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            q, k, v = (
                weights(x).unflatten(-1, (-1, 4)).transpose(1, 2) for weights in (layer.to_q, layer.to_k, layer.to_v)
            )
            return norms[0](q), norms[1](k), v

        return layer, project


def test_csms_visual_prompt_changes_its_gradient(teacher: NetworkTeacher) -> None:
    """Through the objective: a reference image, noised by what the inversion found, pulls the result."""
    from dreamkit.objectives import ObjectiveContext, objective_class

    null = teacher.null_condition(1)
    grads = []
    for reference in (None, samples(teacher, 4)[:1], samples(teacher, 6)[:1]):
        given = ObjectiveContext(
            teacher, teacher.encode_prompt(["a red mug"] * ROWS), null, null, None, 3, 10,
            torch.Generator().manual_seed(0), reference=reference,
        )  # fmt: skip
        grads.append(objective_class("csm")()(samples(teacher).clamp(-1, 1), given).grad)
    assert not torch.allclose(grads[0], grads[1])
    assert not torch.allclose(grads[1], grads[2])
