"""What both engines train on: prompts that meet recorded states, and how to answer there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

from ..models.contract import Conditioning

Context = TypeVar("Context", Tensor, Conditioning)  # p prompts, for a layer or for the UNet


@dataclass(frozen=True)
class Pairs(Generic[Context]):
    """Prompts `now`, to be answered as theta_0 answers those of `goal`, on states x.

    x: (r, n, d) of a layer, or latents (r, steps, 4, h, w); rows: (p,), the row of x that each
    prompt meets; goal: None: `now` itself; push (p,): times eta, how far beyond the goal.
    """

    x: Tensor
    rows: Tensor
    now: Context
    goal: Context | None = None
    push: Tensor | None = None
