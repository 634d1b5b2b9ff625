"""Scrubbing: what the concept alone has is gone, and the rest is changed as the formula says."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trust_engine.unlearn.scrubbing.directions import (
    Edit,
    Removal,
    Spectrum,
    confirmed,
    edited,
    harms,
)
from trust_engine.unlearn.scrubbing.moments import Moments


def inputs(count: int, d: int, own: Tensor | None = None, size: float = 6.0) -> Tensor:
    """Draw inputs whose channels are mixed; with `own` they vary along it, too."""
    generator = torch.Generator().manual_seed(3)
    mixing = torch.randn(d, d, generator=generator, dtype=torch.float64)
    x = torch.randn(count, d, generator=generator, dtype=torch.float64) @ mixing
    if own is not None:
        x = x + size * torch.randn(count, 1, generator=generator, dtype=torch.float64) * own
    return x


def moments(x: Tensor) -> Tensor:
    """Return the mean of x x^T."""
    return x.T @ x / len(x)


def taken(spectrum: Spectrum, soft: bool) -> Tensor:
    """Return T, which takes the directions out."""
    d = len(spectrum.left)
    return torch.eye(d, dtype=torch.float64) - (
        spectrum.left * spectrum.strengths(soft) @ spectrum.right
    )


def edit_of(weight: Tensor, spectrum: Spectrum, soft: bool) -> Edit:
    """Scrub a weight."""
    return edited(weight, removed(spectrum, soft))


def removed(spectrum: Spectrum, soft: bool) -> Removal:
    """Take a spectrum's directions out, nothing having been taken out before."""
    return Removal.nothing(len(spectrum.left)).then(spectrum, soft)


@pytest.fixture
def own() -> Tensor:
    """Return the one direction that only the concept has."""
    direction = torch.randn(8, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return 5 * direction / direction.norm()


def test_the_concepts_own_direction_is_found_and_no_other(own: Tensor) -> None:
    found = Spectrum.of(moments(inputs(4000, 8, own)), moments(inputs(4000, 8)), 1e-6, 3.0)
    assert len(found.lambdas) == 1 and found.lambdas[0] > 3
    # T takes the direction to nothing, and twice is as good as once.
    t = taken(found, soft=False)
    assert float((t @ own).norm()) < 0.05 * float(own.norm())
    torch.testing.assert_close(t @ t, t)


def test_soft_shrinks_the_concept_to_the_rests_energy(own: Tensor) -> None:
    concept, rest = moments(inputs(4000, 8, own)), moments(inputs(4000, 8))
    t = taken(Spectrum.of(concept, rest, 1e-9, 3.0), soft=True)
    after = Spectrum.of(t @ concept @ t.T, rest, 1e-9, 0.0).lambdas
    second = float(Spectrum.of(concept, rest, 1e-9, 0.0).lambdas[1])
    assert float(after.max()) == pytest.approx(max(1.0, second), rel=1e-6)


@pytest.mark.parametrize("soft", [True, False])
def test_the_rests_error_is_the_closed_form(own: Tensor, soft: bool) -> None:
    """E || W (T - I) x ||^2 over the rest is || W left s ||^2: it is white there."""
    seen, weight = inputs(4000, 8), torch.randn(5, 8)
    found = Spectrum.of(moments(inputs(4000, 8, own)), moments(seen), 1e-9, 1.5)
    error = (seen @ edit_of(weight, found, soft).offset.double().T).square().sum(1).mean()
    whole = (seen @ weight.double().T).square().sum(1).mean()
    each = harms(weight, removed(found, soft), moments(seen))
    assert each.shape == found.lambdas.shape
    assert float(error / whole) == pytest.approx(float(each.sum()), rel=1e-4)


def test_gain_over_cost_is_lambda_whatever_the_weight(own: Tensor) -> None:
    """One threshold for all layers solves the problem of one budget over all of them."""
    concept, seen = inputs(4000, 8, own), inputs(4000, 8)
    found = Spectrum.of(moments(concept), moments(seen), 1e-9, 0.0)
    for seed in (0, 1):
        weight = torch.randn(5, 8, generator=torch.Generator().manual_seed(seed))
        for i in range(len(found.lambdas)):
            one = found.only(torch.arange(len(found.lambdas)) == i)
            offset = edit_of(weight, one, soft=False).offset.double()
            gain, cost = ((x @ offset.T).square().sum(1).mean() for x in (concept, seen))
            assert float(gain / cost) == pytest.approx(float(one.lambdas), rel=1e-3)


@pytest.mark.parametrize("soft", [True, False])
def test_two_removals_one_after_the_other_are_one(own: Tensor, soft: bool) -> None:
    """Of the second concept only what the first one's removal has left of it is taken."""
    other = own.roll(3) + 0.3 * own
    rest = moments(inputs(4000, 8))
    both, removal = torch.eye(8, dtype=torch.float64), Removal.nothing(8)
    for mine in (own, other):
        concept = moments(inputs(4000, 8, mine))
        torch.testing.assert_close(removal.of(concept), both @ concept @ both.T)
        found = Spectrum.of(removal.of(concept), removal.of(rest), 1e-6, 3.0)
        assert len(found.lambdas) == 1
        removal, both = removal.then(found, soft), taken(found, soft) @ both
    weight = torch.randn(5, 8)
    offset = edited(weight, removal).offset.double()
    torch.testing.assert_close(offset, weight.double() @ both - weight, rtol=1e-5, atol=1e-5)
    if not soft:
        assert all(float((both @ one).norm()) < 0.2 * float(one.norm()) for one in (own, other))


def test_directions_by_chance_are_not_confirmed_on_other_pictures(own: Tensor) -> None:
    few = [moments(inputs(4000, 8, own)[i : i + 12]) for i in (0, 12)]
    rest = [moments(inputs(4000, 8)[i : i + 12]) for i in (100, 200)]
    found = Spectrum.of(few[0], rest[0], 1e-6, 3.0)
    assert len(found.lambdas) > 1  # of twelve inputs in eight dimensions
    assert confirmed(found, few[1], rest[1], 1e-6, 3.0) < len(found.lambdas)
    many = Spectrum.of(moments(inputs(4000, 8, own)[:2000]), moments(inputs(4000, 8)), 1e-6, 3.0)
    assert (
        confirmed(many, moments(inputs(4000, 8, own)[2000:]), moments(inputs(4000, 8)), 1e-6, 3.0)
        == 1
    )
    assert many.first(0).left.shape == (8, 0)


def test_a_convolution_is_scrubbed_in_its_input_channels(own: Tensor) -> None:
    rest = moments(inputs(4000, 8))
    found = Spectrum.of(moments(inputs(4000, 8, own)), rest, 0.01, 2.0)
    weight = torch.randn(5, 8, 3, 3)
    edit = edit_of(weight, found, soft=False)
    assert edit.up.shape == (5, edit.rank, 3, 3) and edit.down.shape == (edit.rank, 8)
    for i, j in ((0, 0), (1, 2)):
        one = edit_of(weight[:, :, i, j], found, soft=False)
        torch.testing.assert_close(edit.offset[:, :, i, j], one.offset)
    removal = removed(found, soft=False)
    flat = weight.permute(0, 2, 3, 1).reshape(-1, 8)  # taps as rows: each sees the same moments
    torch.testing.assert_close(harms(weight, removal, rest), harms(flat, removal, rest))


def test_around_a_centre_the_rests_mean_stays_what_it_was(own: Tensor) -> None:
    """Taken out around the mean, a direction costs the rest its variance alone."""
    concept, rest, weight = inputs(4000, 8, own), 3 + inputs(4000, 8), torch.randn(5, 8)
    seen = [Moments(), Moments()]
    for one, x in zip(seen, (3 + concept, rest), strict=True):
        one.add(x[None])
    centre = seen[1].centre
    torch.testing.assert_close(centre, rest.mean(0), rtol=1e-4, atol=1e-4)
    around = [one.around(centre) for one in seen]
    torch.testing.assert_close(around[1], moments(rest - rest.mean(0)), rtol=1e-3, atol=1e-3)
    found = Spectrum.of(*around, 1e-6, 3.0)
    edit = edited(weight, removed(found, False), centre=centre)
    assert edit.bias is not None and edit.rank == 1
    change = rest @ edit.offset.double().T + edit.bias.double()
    assert float(change.mean(0).abs().max()) < 1e-3 * float((rest @ weight.double().T).abs().mean())
    whole = edited(weight[:, :, None, None], removed(found, False), centre=centre)
    torch.testing.assert_close(whole.bias, edit.bias)


def test_moments_are_taken_over_positions_of_either_shape() -> None:
    x = torch.randn(2, 6, 3, 4)
    picture, rows = Moments(), Moments()
    picture.add(x)
    rows.add(x.flatten(2).transpose(1, 2))
    torch.testing.assert_close(picture.mean, rows.mean)
    assert picture.mean.dtype == torch.float64 and picture.count == 24


def test_moments_stay_within_the_error_that_is_told() -> None:
    found, total, batches, size = Moments(), torch.zeros(16, 16, dtype=torch.float64), 40, 600
    for _ in range(batches):
        x = 5 + torch.randn(1, size, 16)
        found.add(x)
        total += x[0].double().T @ x[0].double() / (batches * size)
    error = (found.mean - total).abs().max() / total.diagonal().mean()
    assert float(error) < (batches + size**0.5) * 2**-24
