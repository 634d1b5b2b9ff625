"""Which directions of a layer's input are taken out, and what is left of its weight.

For a layer W that sees x, with second moments C_c on pictures of the concept and C_r on pictures of
everything else,

    C_r + eps tr(C_r) / d I = L L^T        L^-1 C_c L^-T = U diag(lambda) U^T
    T = I - L U_k diag(s) U_k^T L^-1       U_k: the directions that are chosen
    W' = W T                               (a convolution: T on its input channels)

In whitened coordinates the rest has unit variance in every direction. Direction i then costs the
rest |W L u_i s_i|^2 of its output's energy, and takes lambda_i times as much from the concept's:
gain over cost is lambda_i, whatever W is. To take most from the concept for one budget of harm to
the rest, over all layers, is therefore to take the directions with lambda above one threshold, the
same for all: tau is that problem's Lagrange multiplier. s = 1 removes a direction (hard);
s = 1 - lambda^-1/2 shrinks it to the rest's energy (soft).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .eigen import above

TINY = 1e-12


@dataclass(frozen=True)
class Edit:
    """W' - W = up down, of low rank: up (o, k) or (o, k, kh, kw), down (k, d); d input channels.

    lambdas (k,): how many times the rest's energy the concept had in each direction; harm: the
    share of the rest's output energy that the change makes; bias (o,): what is added to the
    layer's bias, if it has one.
    """

    up: Tensor
    down: Tensor
    lambdas: Tensor
    harm: float = 0.0
    bias: Tensor | None = None

    @property
    def rank(self) -> int:
        """Count the directions."""
        return len(self.lambdas)

    @property
    def offset(self) -> Tensor:
        """Return W' - W, in W's shape."""
        return torch.einsum("ok...,kd->od...", self.up, self.down)


@dataclass(frozen=True)
class Spectrum:
    """The generalised eigenproblem of a layer's moments, solved: largest lambda first.

    left (d, k) = L U and right (k, d) = U^T L^-1, so that left right = I for all d directions.
    """

    left: Tensor
    right: Tensor
    lambdas: Tensor

    @classmethod
    def of(cls, concept: Tensor, rest: Tensor, eps: float, least: float = 1.0) -> Spectrum:
        """Solve it for moments (d, d), float64, and keep the directions with lambda > least."""
        d = len(rest)
        ridge = eps * rest.diagonal().mean().clamp(min=TINY)
        lambdas, left, right = above(concept, rest + ridge * torch.eye(d, dtype=rest.dtype), least)
        return cls(left, right, lambdas)

    def strengths(self, soft: bool) -> Tensor:
        """Return by how much each direction is taken out, (k,)."""
        return 1 - self.lambdas.rsqrt() if soft else torch.ones_like(self.lambdas)

    def first(self, count: int) -> Spectrum:
        """Keep the directions with the largest lambda."""
        return Spectrum(self.left[:, :count], self.right[:count], self.lambdas[:count])

    def only(self, some: Tensor) -> Spectrum:
        """Keep the directions where a mask (k,) is true."""
        return Spectrum(self.left[:, some], self.right[some], self.lambdas[some])


@dataclass(frozen=True)
class Removal:
    """T = I - left diag(strengths) right: some directions taken out, or shrunk.

    left (d, k) and right (k, d), strengths and lambdas (k,), float64. One after another makes one:
    T_2 T_1 = I - left_1 s_1 right_1 - left_2 s_2 (right_2 T_1).
    """

    left: Tensor
    right: Tensor
    strengths: Tensor
    lambdas: Tensor

    @classmethod
    def nothing(cls, d: int) -> Removal:
        """Return T = I for inputs of d channels."""
        none = torch.zeros(0, dtype=torch.float64)
        return cls(none.new_zeros(d, 0), none.new_zeros(0, d), none, none)

    def then(self, spectrum: Spectrum, soft: bool) -> Removal:
        """Take a spectrum's directions out of what this leaves, on whose moments it was found."""
        strengths = spectrum.strengths(soft)
        return Removal(
            torch.cat([self.left, spectrum.left], 1),
            torch.cat([self.right, self._before(spectrum.right)]),
            torch.cat([self.strengths, strengths]),
            torch.cat([self.lambdas, spectrum.lambdas]),
        )

    def _before(self, rows: Tensor) -> Tensor:
        """Return rows T, for rows (n, d)."""
        return rows - (rows @ self.left * self.strengths) @ self.right

    def of(self, moments: Tensor) -> Tensor:
        """Return T C T^T, the moments (d, d) of T x where those of x are C."""
        if not len(self.strengths):
            return moments
        half = moments - self.left * self.strengths @ (self.right @ moments)
        return half - (half @ self.right.T) * self.strengths @ self.left.T


def confirmed(found: Spectrum, concept: Tensor, rest: Tensor, eps: float, tau: float) -> int:
    """Count the directions that have lambda > tau on other pictures than they were found on, too.

    concept, rest: moments (d, d) of those. Of few pictures, some directions by chance hold much of
    one kind and little of the other.
    """
    ridge = eps * rest.diagonal().mean().clamp(min=TINY)
    own = torch.einsum("kd,de,ke->k", found.right, concept, found.right)
    other = torch.einsum("kd,de,ke->k", found.right, rest, found.right)
    other = other + ridge * found.right.square().sum(1)
    return int((own > tau * other).sum())


def harms(weight: Tensor, removal: Removal, rest: Tensor) -> Tensor:
    """Return the share of the rest's output energy that each direction's removal changes, (k,).

    A convolution's taps are added up as if neighbouring positions had nothing in common.
    """
    taps = weight.double().flatten(2) if weight.ndim == 4 else weight.double().unsqueeze(-1)
    scaled = removal.left * removal.strengths
    changed = torch.einsum("odt,dk->otk", taps, scaled).square().sum((0, 1))
    whole = torch.einsum("odt,de,oet->", taps, rest, taps)
    return changed / whole.clamp(min=TINY)


def edited(
    weight: Tensor, removal: Removal, harm: float = 0.0, centre: Tensor | None = None
) -> Edit:
    """Write W T - W as a product of low rank; weight (o, d) or (o, d, kh, kw).

    centre (d,): what x becomes in the directions that are taken out, instead of zero: T x + (I - T)
    centre, of which the second part goes to the bias. A convolution's border, where zeros are
    padded, gets it, too.
    """
    scaled = removal.left * removal.strengths
    up = -torch.einsum("od...,dk->ok...", weight.double(), scaled)
    bias = None
    if centre is not None:
        bias = -(up.flatten(2).sum(2) if up.ndim == 4 else up) @ (removal.right @ centre)
    # Contiguous, as they come back from a file: products of others differ in last digits.
    return Edit(
        up.float().contiguous(), removal.right.float().contiguous(), removal.lambdas, harm,
        None if bias is None else bias.float(),
    )  # fmt: skip
