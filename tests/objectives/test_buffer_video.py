"""How buffers are cut, and the losses of a student that streams from one, in float64 on Gaussian clips."""

import itertools
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dreamkit.errors import ConfigError
from dreamkit.objectives.buffer_video import (
    Partition,
    draw_places,
    draw_segments,
    every_partition,
    mean_where,
    segment_error,
)
from dreamkit.objectives.causal_video import euler_step, flow_matching_error, noisy_clip, per_frame

MEAN, SPREAD = 0.7, 0.4
"""Every number of a clip is drawn from N(MEAN, SPREAD^2)."""


def clips(frames: int, batch: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, batch, 2, frames, 3, 2, generator=generator, dtype=torch.float64)
    return MEAN + SPREAD * x0, eps


def exact_flow(x_t: Tensor, levels: Tensor) -> Tensor:
    """E[eps - x0 | x_t] for Gaussian data."""
    t = per_frame(levels)
    return -MEAN + (t - (1 - t) * SPREAD**2) / ((1 - t) ** 2 * SPREAD**2 + t**2) * (x_t - (1 - t) * MEAN)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class TestPartitions:
    @given(
        chunk=st.integers(1, 5), chunks=st.integers(1, 6), micro_steps=st.integers(1, 4), reference=st.integers(0, 4)
    )
    def test_a_round_leads_every_chunk_to_the_next_ones_place(
        self, chunk: int, chunks: int, micro_steps: int, reference: int
    ) -> None:
        """s steps of 1 / T, each; the front ends clean, the back begins as noise, the reference stays clean."""
        partition = Partition(chunk, chunks, micro_steps, reference)
        assert partition.frames == reference + chunk * chunks
        assert partition.steps == micro_steps * chunks
        within = [torch.full((chunks,), 1 - step / micro_steps, dtype=torch.float64) for step in range(micro_steps + 1)]
        path = torch.stack([partition.places(item) for item in within])
        assert path.shape == (micro_steps + 1, partition.frames)
        assert bool((path[:, :reference] == 0).all())
        moving = path[:, reference:]
        torch.testing.assert_close(moving.diff(dim=0), torch.full_like(moving[1:], -1 / partition.steps))
        assert float(moving[0, -1]) == 1
        assert float(moving[-1, :chunk].abs().max()) == 0
        torch.testing.assert_close(moving[-1, chunk:], moving[0, :-chunk])

    def test_the_published_cuts(self) -> None:
        """16 frames: chunks of 1, 2, 4, 8, and 16 the ordinary clip; c = 2, s = 16 takes 128 steps, distilled 8."""
        assert [cut.chunk for cut in every_partition(16)] == [1, 2, 4, 8]
        assert all(cut.frames == 16 and cut.reference == 0 for cut in every_partition(16))
        assert Partition.cut(16, 2, 16).steps == 128
        assert Partition.cut(16, 2, 1).steps == 8

    def test_a_reference_leaves_a_cut_of_one_chunk(self) -> None:
        assert [(cut.chunk, cut.chunks) for cut in every_partition(7, 3)] == [(1, 4), (2, 2), (4, 1)]
        assert every_partition(1) == (Partition(1, 1),)

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: Partition.cut(10, 3), "whole chunks of 3 frames"),
            (lambda: Partition.cut(10, 3, 1, 2), "after a reference of 2"),
            (lambda: Partition.cut(3, 3, 1, 3), "whole chunks"),
            (lambda: Partition.cut(4, 2, 0), "micro_steps is 0"),
            (lambda: Partition(0, 2), "chunk is 0"),
            (lambda: Partition(1, 1, 1, -1), "reference is -1"),
            (lambda: every_partition(2, 2), "more than the reference of 2"),
            (lambda: draw_places(1, (Partition(1, 2), Partition(1, 3)), 0, generator()), "one for all of them"),
        ],
    )  # fmt: skip
    def test_what_can_not_be_cut(self, make: object, message: str) -> None:
        assert callable(make)
        with pytest.raises(ConfigError, match=message):
            make()


class TestPlaces:
    def test_every_chunk_is_anywhere_in_its_segment(self) -> None:
        partition = Partition(2, 4, 3, reference=1)
        places = draw_places(2000, (partition,), 0.0, generator())
        assert places.shape == (2000, 9)
        assert places.dtype == torch.float64
        assert bool((places[:, 0] == 0).all())
        chunks = places[:, 1:].unflatten(1, (4, 2))
        assert torch.equal(chunks[..., 0], chunks[..., 1])
        within = 4 * chunks[..., 0] - torch.arange(4)
        assert float(within.min()) >= 0
        assert float(within.max()) < 1
        torch.testing.assert_close(within.mean(dim=0), torch.full((4,), 0.5).double(), atol=0.03, rtol=0)
        correlation = torch.corrcoef(within.T) - torch.eye(4)
        assert float(correlation.abs().max()) < 0.1  # drawn for each chunk by itself

    def test_cuts_are_mixed_and_some_rows_are_clips(self) -> None:
        cuts = every_partition(6, 0)
        places = draw_places(4000, cuts, 0.25, generator(1))
        kinds = [len(row.unique()) for row in places]
        shares = [kinds.count(levels) / len(kinds) for levels in (1, 2, 3, 6)]
        assert shares == pytest.approx([0.25, 0.25, 0.25, 0.25], abs=0.03)
        clips = places[[kind == 1 for kind in kinds], 0]
        assert float(clips.min()) < 0.02
        assert float(clips.max()) > 0.98

    def test_a_clip_has_no_finished_frames(self) -> None:
        places = draw_places(50, every_partition(5, 2), 1.0, generator())
        assert float(places.min()) > 0
        assert bool((places == places[:, :1]).all())

    def test_rows_do_not_depend_on_the_cuts_of_others(self) -> None:
        """So a run that is given another mix still sees the same clips and noise."""
        after = []
        for cuts in (every_partition(6), (Partition(3, 2),)):
            source = generator(4)
            draw_places(5, cuts, 0.3, source)
            after.append(torch.rand(3, generator=source))
        assert torch.equal(*after)

    def test_segments_are_a_round_of_the_stream_or_one_of_a_clip(self) -> None:
        partition = Partition(2, 3, 5, reference=1)
        begin, end = draw_segments(3000, partition, 0.4, generator())
        assert begin.shape == end.shape == (3000, 7)
        is_clip = begin[:, 0] > 0
        assert float(is_clip.double().mean()) == pytest.approx(0.4, abs=0.03)
        third = torch.tensor([0, 1, 1, 2, 2, 3, 3]).double() / 3
        torch.testing.assert_close(begin[~is_clip], third.expand(int((~is_clip).sum()), -1))
        torch.testing.assert_close(end[~is_clip][:, 1:], begin[~is_clip][:, 1:] - 1 / 3)
        assert float(end[~is_clip][:, 0].abs().max()) == 0
        torch.testing.assert_close((begin - end)[is_clip], torch.full((int(is_clip.sum()), 7), 1 / 3).double())
        thirds = (3 * begin[is_clip][:, 0]).round().long().tolist()
        assert [thirds.count(index) / len(thirds) for index in (1, 2, 3)] == pytest.approx([1 / 3] * 3, abs=0.04)


class TestFlows:
    def test_the_exact_flow_is_the_minimum_over_a_buffer(self) -> None:
        """Its gradient vanishes on average: what is left is the spread of eps - x0 given x_t."""
        x0, eps = clips(6, batch=4000)
        levels = draw_places(4000, every_partition(6), 0.25, generator())
        factor = torch.ones((), dtype=torch.float64, requires_grad=True)
        error = flow_matching_error(lambda x, t: factor * exact_flow(x, t), x0, eps, levels)
        (gradient,) = torch.autograd.grad(mean_where(error, levels > 0), factor)
        assert abs(float(gradient)) < 0.02

    def test_finished_frames_do_not_count(self) -> None:
        error = torch.tensor([[5.0, 1.0, 3.0], [float("nan"), 2.0, 2.0]])
        counts = torch.tensor([[False, True, True], [False, True, True]])
        assert float(mean_where(error, counts)) == 2
        assert float(mean_where(error, torch.zeros_like(counts))) == 0


def segment_levels(partition: Partition) -> list[Tensor]:
    begin, end = draw_segments(3, partition, 0.5, generator(2))
    steps = partition.micro_steps
    return [(begin + (end - begin) * step / steps).clamp(0, 1) for step in range(steps + 1)]


def walked(x: Tensor, levels: Sequence[Tensor]) -> Tensor:
    for upper, lower in itertools.pairwise(levels):
        x = euler_step(x, exact_flow(x, upper), upper, lower)
    return x


class TestSegments:
    @pytest.mark.parametrize("partition", [Partition(2, 3, 4), Partition(1, 5, 3, reference=1), Partition(6, 1, 8)])
    def test_the_teachers_walk_is_the_fixed_point(self, partition: Partition) -> None:
        x0, eps = clips(partition.frames)
        levels = segment_levels(partition)
        assert bool((levels[0] > 0).any())

        def mean_flow(x: Tensor, t: Tensor) -> Tensor:
            way = per_frame(levels[-1] - levels[0])
            return torch.where(way != 0, (walked(x, levels) - x) / torch.where(way != 0, way, 1.0), 0.0)

        factor = torch.ones((), dtype=torch.float64, requires_grad=True)
        error = segment_error(lambda x, t: factor * mean_flow(x, t), exact_flow, x0, eps, levels)
        assert error.shape == (3, partition.frames)
        assert float(error.detach().max()) < 1e-20
        (gradient,) = torch.autograd.grad(error.sum(), factor)
        assert abs(float(gradient)) < 1e-10
        # One step with it is the teacher's walk.
        first = noisy_clip(x0, eps, levels[0])
        made = euler_step(first, mean_flow(first, levels[0]), levels[0], levels[-1])
        torch.testing.assert_close(made, walked(first, levels))

    def test_the_teachers_own_flow_is_not(self) -> None:
        partition = Partition(2, 3, 4)
        x0, eps = clips(6)
        error = segment_error(exact_flow, exact_flow, x0, eps, segment_levels(partition))
        assert float(error.min()) > 1e-5

    def test_one_micro_step_is_the_teachers_flow(self) -> None:
        partition = Partition(2, 3, 1)
        x0, eps = clips(6)
        error = segment_error(exact_flow, exact_flow, x0, eps, segment_levels(partition))
        assert float(error.max()) < 1e-20

    def test_only_the_student_has_gradients_and_is_asked_once(self) -> None:
        x0, eps = clips(6)
        weight = torch.ones((), dtype=torch.float64, requires_grad=True)
        asked = []

        def student(x: Tensor, t: Tensor) -> Tensor:
            asked.append("student")
            return weight * x

        def teacher(x: Tensor, t: Tensor) -> Tensor:
            asked.append("teacher")
            assert not torch.is_grad_enabled()
            return weight * exact_flow(x, t)

        error = segment_error(student, teacher, x0, eps, segment_levels(Partition(3, 2, 5)))
        assert asked == ["teacher"] * 5 + ["student"]
        assert error.requires_grad

    def test_a_segment_has_two_ends(self) -> None:
        x0, eps = clips(6)
        with pytest.raises(ConfigError, match="at least 2"):
            segment_error(exact_flow, exact_flow, x0, eps, [torch.ones(3, 6)])
