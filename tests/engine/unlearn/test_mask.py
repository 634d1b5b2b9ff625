"""The mask: only what stands out, and never more than the budget."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from toys.tiny import tiny_spec
from trust_engine.unlearn.mask import (
    MOMENTS,
    BoundedMask,
    Groups,
    Mask,
    ShrinkingMask,
    mask_for,
    overlap,
    share,
    thinned,
    top_groups,
    z_scores,
)
from trust_engine.unlearn.theta_layout import Layout

# Few distinct values, so that ties are common.
values = st.lists(st.sampled_from([-2.0, 0.0, 0.5, 1.0, 1.5, 3.0]), min_size=1, max_size=30)
scores = values.map(torch.tensor)


def lies(*shapes: tuple[int, ...], heads: int = 1) -> Layout:
    """Lay parts of these shapes out."""
    return Layout(tuple(map(torch.Size, shapes)), (heads,) * len(shapes))


def top_entries(z: Tensor, xi: float, count: int) -> Tensor:
    """Choose single entries."""
    return top_groups(z, torch.ones(len(z), dtype=torch.long), xi, count)


@settings(max_examples=150, deadline=None)
@given(scores, st.floats(-3, 3), st.integers(0, 15))
def test_top_entries_are_few_and_the_highest(z: Tensor, xi: float, count: int) -> None:
    chosen = top_entries(z, xi, count)
    assert chosen.shape == z.shape
    assert int(chosen.sum()) == min(count, int((z > xi).sum()))
    assert bool((z[chosen] > xi).all())
    left_out = z[~chosen & (z > xi)]
    if len(left_out) and chosen.any():
        assert z[chosen].min() >= left_out.max()


def test_ties_do_not_break_the_budget() -> None:
    assert share(top_entries(torch.ones(105), 0.5, 7)) == 7 / 105


def test_entries_that_are_not_numbers_are_not_neurons() -> None:
    mask = top_entries(torch.tensor([float("nan"), 3.0, 2.0, 0.0]), 1.0, 2)
    assert mask.tolist() == [False, True, True, False]


def test_z_scores_have_mean_zero_and_deviation_one() -> None:
    for z in map(z_scores, (torch.rand(63) * 1e-6, torch.rand(50) + 3)):
        torch.testing.assert_close(z.mean(), torch.tensor(0.0), atol=1e-4, rtol=0)
        torch.testing.assert_close(z.std(correction=0), torch.tensor(1.0), atol=1e-4, rtol=0)


def test_a_flat_saliency_has_no_neurons() -> None:
    assert share(top_entries(z_scores(torch.zeros(16)), 1.0, 9)) == 0


def marks(*where: int) -> Tensor:
    """Mark some of six entries."""
    mask = torch.zeros(6, dtype=torch.bool)
    mask[list(where)] = True
    return mask


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [((), (), 1.0), ((0, 4), (0, 4), 1.0), ((0, 1), (4, 5), 0.0), ((0, 1, 4), (1, 4, 5), 0.5)],
)
def test_overlap_is_jaccards(a: tuple[int, ...], b: tuple[int, ...], expected: float) -> None:
    assert overlap(marks(*a), marks(*b)) == expected


def test_share_counts_over_all_entries() -> None:
    assert share(marks(0, 4, 5)) == 0.5


@pytest.mark.parametrize(("pool", "of_the_small"), [("layer", 0), ("projection", 10)])
def test_entries_are_compared_within_a_layer_or_a_projection(pool: str, of_the_small: int) -> None:
    small, large = torch.arange(50.0), 100 * torch.arange(50.0)
    dynamic = mask_of((50,), (50,), pool=pool, budget=0.2, xi=-9.0)
    chosen = turn(dynamic, 0, small, large)
    assert int(chosen.sum()) == 20
    assert int(chosen[:50].sum()) == of_the_small


def mask_of(*shapes: tuple[int, ...], heads: int = 1, **changes: Any) -> Any:
    """Make a mask over tensors of these shapes, by default a bounded one of a long run."""
    spec = tiny_spec(**{"schedule": "bounded", "steps": 100, **changes})
    return mask_for(spec, lies(*shapes, heads=heads))


def turn(mask: Mask, step: int, *saliency: Tensor, influence: Tensor | None = None) -> Any:
    """Take a mask's step; what it does not ask for is not there."""
    found = mask.layout.join(saliency).abs()
    return mask.update(step, lambda: found, lambda: influence)  # type: ignore[arg-type, return-value]


def test_the_mask_follows_the_saliency() -> None:
    """A neuron that stops mattering leaves, one that starts to matter enters, `first` stays."""
    dynamic, old, new = mask_of((9,), budget=0.12), torch.zeros(9), torch.zeros(9)
    old[2], new[6] = -5.0, 5.0
    assert turn(dynamic, 0, old).nonzero().tolist() == [[2]]
    # Smoothed: one step is not enough.
    assert turn(dynamic, 1, new).nonzero().tolist() == [[2]]
    for step in range(2, 22):
        turn(dynamic, step, new)
    assert dynamic.current is not None and dynamic.first is not None
    assert dynamic.current.nonzero().tolist() == [[6]]
    assert dynamic.first.nonzero().tolist() == [[2]]
    assert min(dynamic.reports[0].drift) == 0
    assert set(dynamic.reports[0].counts) == {1}


@pytest.mark.parametrize(("refresh", "renewals"), [(1, 12), (5, 3), (0, 1)])
def test_the_mask_is_taken_anew_every_so_often(refresh: int, renewals: int) -> None:
    dynamic = mask_of((40,), refresh=refresh)
    for step in range(12):
        turn(dynamic, step, torch.rand(40))
    assert len(dynamic.reports[0].counts) == renewals


@pytest.mark.parametrize("granularity", ["row", "head"])
def test_rows_and_heads_are_chosen_whole(granularity: str) -> None:
    dynamic = mask_of((8, 5), (8, 3), heads=2, granularity=granularity, budget=0.4, xi=-10.0)
    saliency = torch.rand(8, 5), torch.rand(8, 3)
    saliency[0][4:] += 1
    mask = turn(dynamic, 0, *saliency)
    assert 0 < share(mask) <= 0.4
    first, second = dynamic.layout.parts(mask)
    rows = 4 if granularity == "head" else 1
    for part in (first, second):
        groups = part.view(len(part) // rows, -1)
        assert bool((groups.all(1) | ~groups.any(1)).all())
    assert bool(first[4:].any()) and not bool(first[:4].any())


def test_groups_are_judged_by_their_mean() -> None:
    rows = Groups(lies((3, 2), (1, 4)), "row")
    assert rows.means(torch.arange(10.0)).tolist() == [0.5, 2.5, 4.5, 7.5]
    assert rows.sizes(torch.device("cpu")).tolist() == [2, 2, 2, 4]
    marked = rows.spread(torch.tensor([False, True, False, True]))
    assert marked.tolist() == [False] * 2 + [True] * 2 + [False] * 2 + [True] * 4


def test_a_random_mask_has_the_budgets_size_and_a_whole_one_everything() -> None:
    one, two, other = (
        mask_of((100,), selection="random", budget=0.2, seed=seed) for seed in (0, 0, 1)
    )
    masks = [turn(m, 0, torch.zeros(100)) for m in (one, two, other)]
    assert {int(m.sum()) for m in masks} == {20}
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])
    assert share(turn(mask_of((30,), selection="all"), 0, torch.zeros(30))) == 1


def test_a_fixed_saliency_decides_alone() -> None:
    fixed = torch.zeros(20)
    fixed[3] = 1.0
    dynamic = BoundedMask(lies((20,)), tiny_spec(), fixed)
    for step in range(3):
        assert turn(dynamic, step, torch.rand(20)).nonzero().tolist() == [[3]]


def test_a_state_goes_on_where_it_was() -> None:
    one, two = mask_of((30,)), mask_of((30,))
    torch.manual_seed(0)
    samples = [torch.rand(30) for _ in range(6)]
    for step in range(3):
        turn(one, step, samples[step])
    two.load(one.state(), torch.device("cpu"))
    for step in range(3, 6):
        assert torch.equal(turn(one, step, samples[step]), turn(two, step, samples[step]))
    assert one.reports == two.reports


@pytest.mark.parametrize("granularity", ["entry", "row"])
def test_a_shrinking_mask_comes_down_to_the_most_influential(granularity: str) -> None:
    dynamic = mask_of((20, 4), budget=0.1, schedule="shrinking", granularity=granularity)
    shares = [share(dynamic.shrink(torch.arange(80.0), step / 20)) for step in range(20)]
    assert shares[0] == 1 and shares == sorted(shares, reverse=True)
    assert 0 < shares[-1] <= 0.1 and shares[14] == shares[-1]
    assert dynamic.current is not None
    assert dynamic.current.nonzero().flatten().tolist() == list(range(72, 80))


@pytest.mark.parametrize(("progress", "left"), [(0.2, 80), (0.35, 8 + 72 // 8), (0.5, 8), (0.6, 8)])
def test_a_shrinking_mask_follows_a_cubic(progress: float, left: int) -> None:
    dynamic = mask_of((80,), budget=0.1, schedule="shrinking")
    dynamic.shrink(torch.zeros(80), 0.0)
    assert int(dynamic.shrink(torch.zeros(80), progress).sum()) == left


def test_what_a_shrinking_mask_has_dropped_stays_out() -> None:
    dynamic = mask_of((10,), budget=0.2, schedule="shrinking")
    dynamic.shrink(torch.zeros(10), 0.0)
    rising = torch.arange(10.0)
    half = dynamic.shrink(rising, 0.5)
    end = dynamic.shrink(-rising + 20, 0.7)
    assert bool((half | ~end).all())
    assert int(end.sum()) == 2


def test_the_schedule_decides_which_mask_it_is() -> None:
    assert isinstance(mask_of((9,)), BoundedMask)
    assert isinstance(mask_of((9,), schedule="shrinking"), ShrinkingMask)
    assert isinstance(mask_of((9,), schedule="shrinking", selection="random"), BoundedMask)


def test_a_shrinking_mask_notes_what_stood_out_at_first() -> None:
    mask, standing_out = mask_of((20,), schedule="shrinking", budget=0.1), torch.zeros(20)
    standing_out[4] = 9.0
    assert bool(turn(mask, 0, standing_out, influence=torch.zeros(20)).all())
    assert mask.first.nonzero().tolist() == [[4]]


@pytest.mark.parametrize(("schedule", "renewals"), [("bounded", 50), ("shrinking", 1 + 31)])
def test_a_mask_rests_from_half_of_the_run_on(schedule: str, renewals: int) -> None:
    """A bounded one has moved at each step before; a shrinking one at step 0 and from 20 to 50."""
    mask = mask_of((40_000,), schedule=schedule, budget=0.2, xi=-9.0)
    for step in range(100):
        turn(mask, step, torch.rand(40_000), influence=torch.rand(40_000))
    assert len(mask.reports[0].counts) == renewals
    assert int(mask.current.sum()) == 8000


@pytest.mark.parametrize(("refresh", "due"), [(10, [30, 40, 50]), (0, [50])])
def test_a_shrinking_mask_drops_entries_only_when_it_is_due(refresh: int, due: list[int]) -> None:
    mask = mask_of((40,), schedule="shrinking", refresh=refresh, budget=0.2)
    counts = [
        int(turn(mask, step, torch.rand(40), influence=torch.rand(40)).sum()) for step in range(60)
    ]
    assert [step for step in range(1, 60) if counts[step] < counts[step - 1]] == due


def test_a_costly_saliency_is_asked_for_only_when_the_mask_is_taken_anew() -> None:
    asked: list[int] = []
    wanted = tiny_spec(schedule="bounded", refresh=5, steps=100)
    mask = BoundedMask(lies((9,)), wanted, costly=True)
    for step in range(12):

        def saliency(step: int = step) -> Tensor:
            asked.append(step)
            return torch.rand(9)

        mask.update(step, saliency, lambda: torch.empty(0))
    assert asked == [0, 5, 10]


def test_a_run_that_is_too_short_ends_within_the_budget() -> None:
    mask = mask_of((20,), schedule="shrinking", budget=0.1)
    turn(mask, 0, torch.rand(20), influence=torch.zeros(20))
    ended = mask.finish(lambda: torch.arange(20.0))
    assert ended.nonzero().flatten().tolist() == [18, 19]
    assert mask.finish(lambda: pytest.fail("it has settled")) is None


def test_a_curve_is_thinned_to_its_first_last_and_some_between() -> None:
    assert thinned([0.123456, 1.0]) == [0.1235, 1.0]
    many = [i + 0.123456 for i in range(10 * MOMENTS)]
    kept = thinned(many)
    assert len(kept) == MOMENTS and kept == sorted(set(kept))
    assert (kept[0], kept[-1]) == (0.1235, round(many[-1], 4))
    assert set(kept) <= {round(v, 4) for v in many}
