"""Selective Adam: what the mask spares is spared to the bit."""

from __future__ import annotations

import torch

from trust_engine.diff import SparseOffset
from trust_engine.unlearn.optimiser import BETA1, BETA2, EPSILON, SelectiveAdam


def relative(rate: float) -> float:
    """Turn a step's size into a share of the weights' root mean square, which is the same."""
    return rate / float(base()[0].square().mean().sqrt())


def random_masks(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mark about half of the entries."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(3, 4, generator=generator) > 0.5, torch.rand(5, generator=generator) > 0.5


def base() -> tuple[torch.Tensor, torch.Tensor]:
    """Make two weights of the same root mean square."""
    generator = torch.Generator().manual_seed(0)
    pair = torch.randn(3, 4, generator=generator), torch.randn(5, generator=generator)
    return tuple(w / w.square().mean().sqrt() for w in pair)  # type: ignore[return-value]


def gradient(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Make a gradient for them."""
    generator = torch.Generator().manual_seed(100 + seed)
    return torch.randn(3, 4, generator=generator), torch.randn(5, generator=generator)


def test_unmasked_entries_keep_their_bits_and_masked_ones_move() -> None:
    optimiser, mask = SelectiveAdam(base(), relative(0.1)), random_masks(1)
    for step in range(5):
        optimiser.step(gradient(step), mask)
    for before, after, m in zip(base(), optimiser.theta(), mask, strict=True):
        assert torch.equal(after[~m], before[~m])
        assert bool((after[m] != before[m]).all())


def test_entries_that_leave_are_taken_back() -> None:
    optimiser, first, second = (
        SelectiveAdam(base(), relative(0.1)),
        random_masks(1),
        random_masks(2),
    )
    optimiser.step(gradient(0), first)
    optimiser.step(gradient(1), second)
    for offset, theta, b, m in zip(
        optimiser.offset, optimiser.theta(), base(), second, strict=True
    ):
        assert bool((offset[~m] == 0).all())
        assert torch.equal(theta[~m], b[~m])
        assert len(SparseOffset.of(offset).indices) == int(m.sum())
    assert any(bool((a & ~b).any()) for a, b in zip(first, second, strict=True))


def test_an_empty_mask_takes_everything_back() -> None:
    optimiser = SelectiveAdam(base(), relative(0.1))
    optimiser.step(gradient(0), random_masks(1))
    optimiser.step(gradient(1), tuple(torch.zeros_like(m) for m in random_masks(1)))
    assert not any(bool(offset.any()) for offset in optimiser.offset)


def test_equals_torch_adam_under_a_full_mask() -> None:
    ours = SelectiveAdam(base(), relative(0.05))
    theirs = [weight.clone().requires_grad_(True) for weight in base()]
    adam = torch.optim.Adam(theirs, lr=0.05, betas=(BETA1, BETA2), eps=EPSILON)
    everything = tuple(torch.ones_like(m) for m in random_masks(0))
    for step in range(7):
        ours.step(gradient(step), everything)
        for weight, g in zip(theirs, gradient(step), strict=True):
            weight.grad = g
        adam.step()
        for mine, yours in zip(ours.theta(), theirs, strict=True):
            torch.testing.assert_close(mine, yours, rtol=1e-5, atol=1e-6)


def test_an_entry_that_enters_late_starts_as_adam_does() -> None:
    """Its first step is `rate` against the gradient's sign, whatever the gradient was before."""
    optimiser, mask = SelectiveAdam(base(), relative(0.1)), random_masks(1)
    for step in range(4):
        optimiser.step(gradient(step), mask)
    everything = tuple(torch.ones_like(m) for m in mask)
    optimiser.step(gradient(9), everything)
    for offset, g, m in zip(optimiser.offset, gradient(9), mask, strict=True):
        torch.testing.assert_close(offset[~m], -0.1 * g[~m].sign())


def test_a_gradient_that_is_not_finite_spares_the_unmasked() -> None:
    optimiser, mask = SelectiveAdam(base(), relative(0.1)), random_masks(1)
    bad = tuple(g.masked_fill(~m, float("nan")) for g, m in zip(gradient(0), mask, strict=True))
    optimiser.step(bad, mask)
    for offset, m in zip(optimiser.offset, mask, strict=True):
        assert bool((offset[~m] == 0).all())
        assert bool(offset.isfinite().all())


def test_scale_shortens_the_step() -> None:
    whole, half = SelectiveAdam(base(), relative(0.1)), SelectiveAdam(base(), relative(0.1))
    whole.step(gradient(0), random_masks(1))
    half.step(gradient(0), random_masks(1), 0.5)
    for a, b in zip(whole.offset, half.offset, strict=True):
        torch.testing.assert_close(a / 2, b)


def test_the_base_is_never_written() -> None:
    weights = base()
    optimiser = SelectiveAdam(weights, relative(0.1))
    optimiser.step(gradient(0), random_masks(1))
    optimiser.theta()[0].detach().zero_()
    assert all(torch.equal(a, b) for a, b in zip(weights, base(), strict=True))


def test_a_step_is_a_share_of_each_tensors_size() -> None:
    small, large = torch.randn(50), torch.randn(50) * 100
    optimiser, everything = SelectiveAdam((small, large), 0.1), torch.ones(50, dtype=torch.bool)
    optimiser.step((torch.randn(50), torch.randn(50)), (everything, everything))
    for offset, weight in zip(optimiser.offset, (small, large), strict=True):
        size = weight.square().mean().sqrt()
        torch.testing.assert_close(offset.abs(), (0.1 * size).expand(50))


def test_a_state_goes_on_where_it_was() -> None:
    one, two = SelectiveAdam(base(), 0.1), SelectiveAdam(base(), 0.1)
    one.step(gradient(0), random_masks(1))
    two.load({k: v.clone() for k, v in one.state().items()})
    for optimiser in (one, two):
        optimiser.step(gradient(1), random_masks(2))
    assert all(torch.equal(a, b) for a, b in zip(one.offset, two.offset, strict=True))


def test_influence_is_what_taking_a_change_back_would_cost() -> None:
    """|offset| sqrt(mean of g^2), the mean as Adam keeps it: 0 outside the mask."""
    optimiser, mask = SelectiveAdam(base(), relative(0.1)), random_masks(1)
    squares = [torch.zeros_like(g) for g in gradient(0)]
    for step in range(3):
        optimiser.step(gradient(step), mask)
        for square, g in zip(squares, gradient(step), strict=True):
            square.mul_(BETA2).add_((1 - BETA2) * g.square())
    for told, offset, square, m in zip(
        optimiser.influence(), optimiser.offset, squares, mask, strict=True
    ):
        torch.testing.assert_close(told[m], (offset.abs() * square.sqrt())[m])
        assert bool((told[~m] == 0).all()) and bool((told[m] > 0).all())


def test_the_weights_to_differentiate_are_base_plus_offset() -> None:
    optimiser = SelectiveAdam(base(), relative(0.1))
    optimiser.step(gradient(0), random_masks(1))
    for theta, weight, offset in zip(optimiser.theta(), base(), optimiser.offset, strict=True):
        assert theta.requires_grad and theta.is_leaf
        assert torch.equal(theta.detach(), weight + offset)


def test_revert_takes_back_what_lies_outside_a_mask_and_nothing_else() -> None:
    optimiser, mask = SelectiveAdam(base(), relative(0.1)), random_masks(2)
    optimiser.step(gradient(0), tuple(torch.ones_like(m) for m in mask))
    before = [offset.clone() for offset in optimiser.offset]
    optimiser.revert(mask)
    for offset, was, m in zip(optimiser.offset, before, mask, strict=True):
        assert torch.equal(offset[m], was[m]) and bool((offset[~m] == 0).all())


def test_a_step_against_nothing_moves_nothing() -> None:
    """A gradient of 0 is no direction: what divides it must not be 0 either."""
    optimiser, everything = (
        SelectiveAdam(base(), 0.1),
        tuple(torch.ones_like(m) for m in random_masks(1)),
    )
    optimiser.step(tuple(torch.zeros_like(w) for w in base()), everything)
    assert all(bool((offset == 0).all()) for offset in optimiser.offset)


def test_a_state_is_named_by_what_it_is_and_where() -> None:
    optimiser = SelectiveAdam(base(), 0.1)
    assert list(optimiser.state()) == [
        f"{n}.{i}" for n in ("offset", "m", "v", "age") for i in (0, 1)
    ]
    optimiser.step(gradient(0), random_masks(1))
    assert all(set(optimiser.state()[f"age.{i}"].flatten().tolist()) == {0.0, 1.0} for i in (0, 1))
