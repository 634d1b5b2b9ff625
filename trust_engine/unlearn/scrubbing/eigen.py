"""The generalised eigenproblem C u = lambda R u, of which few of the largest lambda are wanted.

R = L L^T makes it an ordinary one, of L^-1 C L^-T. All its eigenvectors take some 12 d^3
operations, and many of these are slow ones; a scrubbing wants those with lambda above a bound, a
hundredth of them. How many there are is told exactly by Sylvester's law of inertia: C - bound R is
congruent to L^-1 C L^-T - bound I, and C - bound R = P M D M^T P^T has as many positive eigenvalues
as D. They are then found by block Lanczos with full reorthogonalisation (Golub and Van Loan, Matrix
Computations, 10.3.6), which is over when as many as there are have been found, each to a residual.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ... import seeds

SMALL = 2048  # widths up to which all eigenvectors are the quickest way
BLOCK = 32  # vectors that are multiplied together
SHARE = 4  # subspaces wider than a fourth of the whole do not pay
FEW = 3.0  # times d^3: what those above a bound take, in the time that all take 12
PRECISE = 1e-7  # residual, times the largest eigenvalue


def above(c: Tensor, r: Tensor, bound: float, small: int = SMALL) -> tuple[Tensor, Tensor, Tensor]:
    """Solve C u = lambda R u for lambda above a bound, largest first.

    C, R: symmetric (d, d), R = L L^T positive; small: width up to which all eigenvectors are
    computed, and those wanted taken. Returns lambda (k,), L V (d, k) and V^T L^-1 (k, d), with V
    the eigenvectors of L^-1 C L^-T.
    """
    found, widest = None, len(c) // SHARE
    count = inertia(c - bound * r) if len(c) > small else widest
    whitening = torch.linalg.cholesky(r)
    # Lanczos wants room: about three times as many dimensions as eigenvectors.
    if 2 * count < widest:
        found = _lanczos(lambda x: _whitened(c, whitening, x), c, bound, count, widest)
    lambdas, vectors = found or _all(c, whitening, bound)
    right = torch.linalg.solve_triangular(whitening.T, vectors, upper=True).T
    return lambdas, whitening @ vectors, right


def operations(d: int) -> float:
    """Estimate the float64 operations of one of width d, counted as those of all eigenvectors."""
    return (12.0 if d <= SMALL else FEW) * d**3


def inertia(matrix: Tensor) -> int:
    """Count the positive eigenvalues of a symmetric (d, d), by Sylvester's law."""
    factors, pivots, *_ = torch.linalg.ldl_factor_ex(matrix)
    # D has blocks of 1 and of 2, the latter told by two negative pivots, with one eigenvalue of
    # either sign: the factorisation takes such a block only where it is indefinite.
    single = pivots > 0
    return int((factors.diagonal()[single] > 0).sum()) + int((~single).sum()) // 2


def _all(c: Tensor, whitening: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    half = torch.linalg.solve_triangular(whitening, c, upper=False)
    seen = torch.linalg.solve_triangular(whitening, half.T, upper=False)
    energies, vectors = torch.linalg.eigh((seen + seen.T) / 2)
    some = energies > bound
    return energies[some].flip(0), vectors[:, some].flip(1)


def _whitened(c: Tensor, whitening: Tensor, x: Tensor) -> Tensor:
    """Return L^-1 C L^-T x."""
    back = torch.linalg.solve_triangular(whitening.T, x, upper=True)
    return torch.linalg.solve_triangular(whitening, c @ back, upper=False)


def _lanczos(
    multiply: Callable[[Tensor], Tensor], like: Tensor, bound: float, count: int, widest: int
) -> tuple[Tensor, Tensor] | None:
    """Find the `count` eigenvalues above a bound in a subspace no wider than `widest`, or none."""
    d = len(like)
    if not count:
        return like.new_zeros(0), like.new_zeros(d, 0)
    start = torch.randn(d, BLOCK, generator=seeds.generator(seeds.PROBE), dtype=like.dtype)
    basis, block = like.new_zeros(d, 0), torch.linalg.qr(start).Q
    small = like.new_zeros(0, 0)
    while basis.shape[1] + BLOCK <= widest:
        basis = torch.cat([basis, block], 1)
        image = multiply(block)
        column = basis.T @ image
        small = _bordered(small, column)
        image = image - basis @ column
        image -= basis @ (basis.T @ image)  # once more: what rounding left
        block, left = torch.linalg.qr(image)
        if basis.shape[1] < count:
            continue
        energies, inner = torch.linalg.eigh(small)
        wanted = energies > bound
        residuals = (left @ inner[-BLOCK:, wanted]).norm(dim=0)
        if int(wanted.sum()) == count and bool((residuals <= PRECISE * energies[-1]).all()):
            return energies[wanted].flip(0), (basis @ inner[:, wanted]).flip(1)
    return None


def _bordered(small: Tensor, column: Tensor) -> Tensor:
    """Append a block's column (m, b) to a symmetric matrix (m - b, m - b), and its row."""
    rows, old = column.shape[0], len(small)
    wider = column.new_zeros(rows, rows)
    wider[:old, :old] = small
    wider[:, old:], wider[old:, :] = column, column.T
    return wider
