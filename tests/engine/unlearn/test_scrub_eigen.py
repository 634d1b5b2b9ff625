"""The largest eigenvalues alone: as many as there are, and as all of them would have them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trust_engine.unlearn.scrubbing import eigen

D = 700


def problem(lambdas: Tensor) -> tuple[Tensor, Tensor]:
    """Make C and R of given generalised eigenvalues (d,)."""
    generator, d = torch.Generator().manual_seed(5), len(lambdas)
    x, y = (torch.randn(d, d, generator=generator, dtype=torch.float64) for _ in range(2))
    r = x @ x.T / d + 0.02 * torch.eye(d, dtype=torch.float64)
    mixed = torch.linalg.cholesky(r) @ torch.linalg.qr(y).Q
    return mixed * lambdas @ mixed.T, r


def falling(d: int = D) -> Tensor:
    """Return eigenvalues as a layer's are: some large ones, and a long tail."""
    return 60 * torch.arange(1, d + 1, dtype=torch.float64) ** -0.8


def part(left: Tensor, right: Tensor) -> Tensor:
    """Return what the directions span, (d, d), whatever their signs and their mixtures."""
    return left @ right


@pytest.mark.parametrize("bound", [6.0, 15.0, 100.0])
def test_the_largest_are_those_of_all(bound: float, monkeypatch: pytest.MonkeyPatch) -> None:
    lambdas = falling()
    c, r = problem(lambdas)
    everything = eigen.above(c, r, bound)
    monkeypatch.setattr(eigen, "BLOCK", 8)
    monkeypatch.setattr(eigen, "_all", None)
    largest, left, right = eigen.above(c, r, bound, small=0)
    assert len(largest) == int((lambdas > bound).sum())
    torch.testing.assert_close(largest, lambdas[: len(largest)], rtol=1e-9, atol=0)
    torch.testing.assert_close(part(left, right), part(*everything[1:]), rtol=0, atol=1e-5)
    torch.testing.assert_close(
        right @ left, torch.eye(len(largest), dtype=torch.float64), rtol=0, atol=1e-9
    )


def test_equal_ones_are_all_found(monkeypatch: pytest.MonkeyPatch) -> None:
    # More of them than vectors in a block: as many blocks as that takes, and no fewer.
    monkeypatch.setattr(eigen, "BLOCK", 4)
    lambdas = torch.cat([torch.full((9,), 20.0), falling(D - 9) / 20]).double()
    c, r = problem(lambdas)
    found, left, right = eigen.above(c, r, 6.0, small=0)
    torch.testing.assert_close(found, lambdas[:9], rtol=1e-9, atol=0)
    everything = eigen.above(c, r, 6.0)
    torch.testing.assert_close(part(left, right), part(*everything[1:]), rtol=0, atol=1e-5)


def test_where_many_are_wanted_all_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    c, r = problem(falling())
    monkeypatch.setattr(eigen, "_lanczos", None)
    few, *_ = eigen.above(c, r, 0.6, small=0)
    torch.testing.assert_close(few, eigen.above(c, r, 0.6)[0])
    assert len(few) > D // 4 // 2


def test_what_the_subspace_is_too_small_for_is_computed_whole() -> None:
    # Forty equal ones take two blocks and a subspace to tell them from the rest: Lanczos gives up.
    c, r = problem(torch.cat([torch.full((40,), 20.0), torch.ones(D - 40)]).double())
    found, left, right = eigen.above(c, r, 6.0, small=0)
    torch.testing.assert_close(found, torch.full((40,), 20.0, dtype=torch.float64))
    torch.testing.assert_close(part(left, right), part(*eigen.above(c, r, 6.0)[1:]))


def test_inertia_counts_the_positive_ones_exactly() -> None:
    lambdas = falling()
    c, r = problem(lambdas)
    for bound in (0.7, 1.0, 6.0, 50.0, 61.0):
        assert eigen.inertia(c - bound * r) == int((lambdas > bound).sum())
    # Zeros on the diagonal make blocks of two.
    assert eigen.inertia(torch.tensor([[0.0, 2.0], [2.0, 0.0]], dtype=torch.float64)) == 1
