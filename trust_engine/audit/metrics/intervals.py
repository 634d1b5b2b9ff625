"""Figures with their uncertainty: shares with Wilson intervals, means with normal ones."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Figure = dict[str, Any]
"""A figure as audit.json holds it: value (None when n is 0), n, low, high."""


@dataclass(frozen=True)
class Rate:
    """A share with its sample size and 95 % Wilson interval."""

    hits: int
    n: int

    @classmethod
    def of(cls, hits: Iterable[object]) -> Rate:
        """Count what is true."""
        listed = [bool(hit) for hit in hits]
        return cls(sum(listed), len(listed))

    @property
    def value(self) -> float:
        """Return the share, 0..1."""
        return self.hits / self.n if self.n else math.nan

    def to_dict(self) -> Figure:
        """Return value, n, low and high."""
        low, high = wilson(self.hits, self.n)
        return {
            "value": round(self.value, 4) if self.n else None,
            "n": self.n,
            "low": round(low, 4),
            "high": round(high, 4),
        }


def wilson(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Return the Wilson score interval of a share (Wilson 1927)."""
    if n == 0:
        return 0.0, 1.0
    p = hits / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def mean_rate(rates: Iterable[Rate]) -> Rate:
    """Pool several rates."""
    rates = list(rates)
    return Rate(sum(r.hits for r in rates), sum(r.n for r in rates))


def mean_figure(values: Sequence[float], z: float = 1.96) -> Figure:
    """Return the mean of measurements with its normal 95 % interval."""
    n = len(values)
    if n == 0:
        return {"value": None, "n": 0, "low": None, "high": None}
    mean = sum(values) / n
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / max(1, n - 1)) if n > 1 else 0.0
    half = z * spread / math.sqrt(n)
    return {
        "value": round(mean, 4),
        "n": n,
        "low": round(mean - half, 4),
        "high": round(mean + half, 4),
    }
