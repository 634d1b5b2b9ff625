"""Selective Adam: what the mask spares is spared to the bit."""

from __future__ import annotations

import torch

from trust_engine.diff import SparseOffset
from trust_engine.unlearn.optimiser import BETA1, BETA2, EPSILON, SelectiveAdam
from trust_engine.unlearn.theta_layout import Layout

LAYOUT = Layout((torch.Size((3, 4)), torch.Size((5,))), (1, 1))
EVERYTHING = torch.ones(17, dtype=torch.bool)


def adam(rate: float) -> SelectiveAdam:
    """Set two weights up whose root mean square is 1: a step is of the rate's size."""
    return SelectiveAdam(base(), LAYOUT, rate)


def random_mask(seed: int) -> torch.Tensor:
    """Mark about half of the entries."""
    return torch.rand(17, generator=torch.Generator().manual_seed(seed)) > 0.5


def base() -> torch.Tensor:
    """Make two weights of the same root mean square, 1."""
    parts = LAYOUT.split(torch.randn(17, generator=torch.Generator().manual_seed(0)))
    return LAYOUT.join(w / w.square().mean().sqrt() for w in parts)


def gradient(seed: int) -> torch.Tensor:
    """Make a gradient for them."""
    return torch.randn(17, generator=torch.Generator().manual_seed(100 + seed))


def test_unmasked_entries_keep_their_bits_and_masked_ones_move() -> None:
    optimiser, m = adam(0.1), random_mask(1)
    for step in range(5):
        optimiser.step(gradient(step), m)
    before, after = base(), optimiser.theta()
    assert torch.equal(after[~m], before[~m])
    assert bool((after[m] != before[m]).all())


def test_entries_that_leave_are_taken_back() -> None:
    optimiser, first, second = adam(0.1), random_mask(1), random_mask(2)
    optimiser.step(gradient(0), first)
    optimiser.step(gradient(1), second)
    assert bool((optimiser.offset[~second] == 0).all())
    assert torch.equal(optimiser.theta()[~second], base()[~second])
    assert len(SparseOffset.of(optimiser.offset).indices) == int(second.sum())
    assert bool((first & ~second).any())


def test_an_empty_mask_takes_everything_back() -> None:
    optimiser = adam(0.1)
    optimiser.step(gradient(0), random_mask(1))
    optimiser.step(gradient(1), ~EVERYTHING)
    assert not bool(optimiser.offset.any())


def test_equals_torch_adam_under_a_full_mask() -> None:
    ours, theirs = adam(0.05), base().requires_grad_(True)
    torchs = torch.optim.Adam([theirs], lr=0.05, betas=(BETA1, BETA2), eps=EPSILON)
    for step in range(7):
        ours.step(gradient(step), EVERYTHING)
        theirs.grad = gradient(step)
        torchs.step()
        torch.testing.assert_close(ours.theta(), theirs, rtol=1e-5, atol=1e-6)


def test_an_entry_that_enters_late_starts_as_adam_does() -> None:
    """Its first step is `rate` against the gradient's sign, whatever the gradient was before."""
    optimiser, m = adam(0.1), random_mask(1)
    for step in range(4):
        optimiser.step(gradient(step), m)
    optimiser.step(gradient(9), EVERYTHING)
    torch.testing.assert_close(optimiser.offset[~m], -0.1 * gradient(9)[~m].sign())


def test_a_gradient_that_is_not_finite_spares_the_unmasked() -> None:
    optimiser, m = adam(0.1), random_mask(1)
    optimiser.step(gradient(0).masked_fill(~m, float("nan")), m)
    assert bool((optimiser.offset[~m] == 0).all())
    assert bool(optimiser.offset.isfinite().all())


def test_scale_shortens_the_step() -> None:
    whole, half = adam(0.1), adam(0.1)
    whole.step(gradient(0), random_mask(1))
    half.step(gradient(0), random_mask(1), 0.5)
    torch.testing.assert_close(whole.offset / 2, half.offset)


def test_the_base_is_never_written() -> None:
    weights = base()
    optimiser = SelectiveAdam(weights, LAYOUT, 0.1)
    optimiser.step(gradient(0), random_mask(1))
    optimiser.theta().detach().zero_()
    assert torch.equal(weights, base())


def test_a_step_is_a_share_of_each_parts_size() -> None:
    layout = Layout((torch.Size((50,)),) * 2, (1, 1))
    small, large = torch.randn(50), torch.randn(50) * 100
    optimiser = SelectiveAdam(torch.cat([small, large]), layout, 0.1)
    optimiser.step(torch.randn(100).sign(), torch.ones(100, dtype=torch.bool))
    for offset, weight in zip(layout.split(optimiser.offset), (small, large), strict=True):
        size = weight.square().mean().sqrt()
        torch.testing.assert_close(offset.abs(), (0.1 * size).expand(50))


def test_a_state_goes_on_where_it_was() -> None:
    one, two = adam(0.1), adam(0.1)
    one.step(gradient(0), random_mask(1))
    two.load({k: v.clone() for k, v in one.state().items()})
    for optimiser in (one, two):
        optimiser.step(gradient(1), random_mask(2))
    assert torch.equal(one.offset, two.offset)


def test_influence_is_what_taking_a_change_back_would_cost() -> None:
    """|offset| sqrt(mean of g^2), the mean as Adam keeps it: 0 outside the mask."""
    optimiser, m = adam(0.1), random_mask(1)
    square = torch.zeros(17)
    for step in range(3):
        optimiser.step(gradient(step), m)
        square.mul_(BETA2).add_((1 - BETA2) * gradient(step).square())
    cost = optimiser.influence()
    torch.testing.assert_close(cost[m], (optimiser.offset.abs() * square.sqrt())[m])
    assert bool((cost[~m] == 0).all()) and bool((cost[m] > 0).all())


def test_the_weights_to_differentiate_are_base_plus_offset() -> None:
    optimiser = adam(0.1)
    optimiser.step(gradient(0), random_mask(1))
    theta = optimiser.theta()
    assert theta.requires_grad and theta.is_leaf
    assert torch.equal(theta.detach(), base() + optimiser.offset)


def test_revert_takes_back_what_lies_outside_a_mask_and_nothing_else() -> None:
    optimiser, m = adam(0.1), random_mask(2)
    optimiser.step(gradient(0), EVERYTHING)
    before = optimiser.offset.clone()
    optimiser.revert(m)
    assert torch.equal(optimiser.offset[m], before[m]) and bool((optimiser.offset[~m] == 0).all())


def test_a_step_against_nothing_moves_nothing() -> None:
    """A gradient of 0 is no direction: what divides it must not be 0 either."""
    optimiser = adam(0.1)
    optimiser.step(torch.zeros(17), EVERYTHING)
    assert bool((optimiser.offset == 0).all())


def test_a_tiny_gradient_makes_a_small_step_of_its_own_sign() -> None:
    """EPSILON, 1e-8, damps what is ten times smaller to an eleventh of a step."""
    optimiser = adam(0.1)
    optimiser.step(torch.full((17,), 1e-9), EVERYTHING)
    torch.testing.assert_close(optimiser.offset, torch.full((17,), -0.1 / 11), rtol=1e-3, atol=0)


def test_a_state_is_named_by_what_it_is_and_where() -> None:
    optimiser = adam(0.1)
    state = optimiser.state()
    assert list(state) == [f"{n}.{i}" for n in ("offset", "m", "v", "age") for i in (0, 1)]
    assert state["v.0"].shape == (3, 4) and state["v.1"].shape == (5,)
    optimiser.step(gradient(0), random_mask(1))
    assert all(set(optimiser.state()[f"age.{i}"].flatten().tolist()) == {0.0, 1.0} for i in (0, 1))
