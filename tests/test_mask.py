"""The mask: only what stands out, and never more than the budget."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trust_engine.mask import DynamicMask, overlap, share, top_entries, z_scores

# Few distinct values, so that ties are common.
values = st.lists(st.sampled_from([-2.0, 0.0, 0.5, 1.0, 1.5, 3.0]), min_size=1, max_size=12)
scores = st.lists(values, min_size=1, max_size=3).map(lambda rows: tuple(map(torch.tensor, rows)))


def flat(tensors: tuple[Tensor, ...]) -> Tensor:
    """Join tensors to one row."""
    return torch.cat([tensor.flatten() for tensor in tensors])


@settings(max_examples=150, deadline=None)
@given(scores, st.floats(-3, 3), st.integers(0, 15))
def test_top_entries_are_few_and_the_highest(z: tuple[Tensor, ...], xi: float, count: int) -> None:
    mask = top_entries(z, xi, count)
    assert [m.shape for m in mask] == [s.shape for s in z]
    all_z, chosen = flat(z), flat(mask)
    assert int(chosen.sum()) == min(count, int((all_z > xi).sum()))
    assert bool((all_z[chosen] > xi).all())
    left_out = all_z[~chosen & (all_z > xi)]
    if len(left_out) and chosen.any():
        assert all_z[chosen].min() >= left_out.max()


def test_ties_do_not_break_the_budget() -> None:
    assert share(top_entries((torch.ones(10, 10), torch.ones(5)), 0.5, 7)) == 7 / 105


def test_entries_that_are_not_numbers_are_not_neurons() -> None:
    mask = top_entries((torch.tensor([float("nan"), 3.0, 2.0, 0.0]),), 1.0, 2)
    assert mask[0].tolist() == [False, True, True, False]


def test_z_scores_have_mean_zero_and_deviation_one() -> None:
    z = z_scores((torch.rand(7, 9) * 1e-6, torch.rand(50) + 3))
    for tensor in z:
        torch.testing.assert_close(tensor.mean(), torch.tensor(0.0), atol=1e-4, rtol=0)
        torch.testing.assert_close(tensor.std(), torch.tensor(1.0), atol=1e-4, rtol=0)


def test_a_flat_saliency_has_no_neurons() -> None:
    assert share(top_entries(z_scores((torch.zeros(4, 4),)), 1.0, 9)) == 0


def marks(*where: int) -> tuple[Tensor, ...]:
    """Mark some of six entries of two tensors."""
    mask = torch.zeros(6, dtype=torch.bool)
    mask[list(where)] = True
    return mask[:4], mask[4:]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [((), (), 1.0), ((0, 4), (0, 4), 1.0), ((0, 1), (4, 5), 0.0), ((0, 1, 4), (1, 4, 5), 0.5)],
)
def test_overlap_is_jaccards(a: tuple[int, ...], b: tuple[int, ...], expected: float) -> None:
    assert overlap(marks(*a), marks(*b)) == expected


def test_share_counts_over_all_projections() -> None:
    assert share(marks(0, 4, 5)) == 0.5


def test_the_mask_follows_the_saliency() -> None:
    """A neuron that stops mattering leaves, one that starts to matter enters, `first` stays."""
    dynamic, old, new = DynamicMask(1.0, 1), torch.zeros(9), torch.zeros(9)
    old[2], new[6] = -5.0, 5.0
    assert dynamic.update((old,))[0].nonzero().tolist() == [[2]]
    assert dynamic.update((new,))[0].nonzero().tolist() == [[2]]  # smoothed: one step is not enough
    for _ in range(20):
        dynamic.update((new,))
    assert dynamic.current is not None and dynamic.first is not None
    assert dynamic.current[0].nonzero().tolist() == [[6]]
    assert dynamic.first[0].nonzero().tolist() == [[2]]
