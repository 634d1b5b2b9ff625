"""How fast and how long a network is trained."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Pace:
    """How a network is trained: steps, rate, decay of its average, and Muon for its matrices."""

    steps: int
    rate: float
    decay: float = 0.999
    muon: bool = False
