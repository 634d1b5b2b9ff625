"""The local engine: every cross-attention layer forgets by itself, on recorded states.

No gradient passes through the UNet. A layer's effect on an image position depends on that
position, K and V alone, so a random subset of positions per prompt and step is enough.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .. import seeds
from ..models.attention import CrossAttention
from .objective import distance, pushed
from .prompt_pairs import Pairs
from .theta_layout import Layout

PROMPTS_A_STEP = 12  # drawn anew for each step when there are more
POSITIONS_A_STEP = 24  # likewise, for each prompt
ANSWERS_KEPT = 1 << 23  # numbers: goals that take more room are worked out at each step
MEMORY_KEPT = 1 << 26  # likewise of theta_0's keys and values, which are most of that work


@dataclass(frozen=True)
class LayerPairs(Pairs[Tensor]):
    """Pairs of one layer: states x (r, n, d) under contexts (p, 77, c).

    Once worked out: answers (p, n, d), or theta_0's keys and values (p, heads, 77, h / heads) under
    `now` and `goal`.
    """

    answers: Tensor | None = None
    memory: tuple[Tensor, ...] = ()

    def to(self, device: torch.device) -> LayerPairs:
        """Move to a device."""
        parts = (self.x, self.rows, self.now, self.goal, self.push, self.answers)
        return LayerPairs(*(None if t is None else t.to(device) for t in parts))  # type: ignore[arg-type]

    def draw(self, generator: torch.Generator) -> LayerPairs:
        """Take a random subset of prompts, and of positions, the same for all of them."""
        device, count = self.x.device, len(self.rows)
        some = torch.randperm(count, generator=generator)[:PROMPTS_A_STEP].sort().values.to(device)
        where = torch.randperm(self.x.shape[1], generator=generator)[:POSITIONS_A_STEP].to(device)
        x = self.x[self.rows[some]][:, where]
        rows = torch.arange(len(some), device=device)
        push = None if self.push is None else self.push[some]
        answers = None if self.answers is None else self.answers[some][:, where]
        goal = None if self.goal is None else self.goal[some]
        memory = tuple(part[some] for part in self.memory)
        return LayerPairs(x, rows, self.now[some], goal, push, answers, memory)

    @property
    def states(self) -> Tensor:
        """Return the states that the prompts meet, (p, n, d)."""
        return self.x[self.rows]


class LayerProblem:
    """What one layer does to a concept's prompts and to those that must stay."""

    def __init__(
        self, layer: CrossAttention, erase: LayerPairs, keep: LayerPairs, eta: float, seed: int
    ) -> None:
        weights = (layer.q, layer.k, layer.v)
        self.layout = Layout.of(weights, (layer.heads,) * 3)
        self.base = self.layout.join(weights)  # theta_0
        self.layer, self.eta, self.seed = self._under(layer, self.base), eta, seed
        with torch.no_grad():
            self.erase, self.keep = self._answered(erase), self._answered(keep)
            before = layer(erase.states, erase.now)
            self.scale = distance(before, self._goal(self.erase), 1.0).clamp(min=1e-12)

    def _under(self, layer: CrossAttention, theta: Tensor) -> CrossAttention:
        """Exchange a layer's q, k and v for theta."""
        return layer.with_weights(*self.layout.parts(theta))

    def effect(self, theta: Tensor, step: int) -> Tensor:
        """E_l: the distance from the layer's answer to the anchor's, 1 on average at theta_0."""
        return self._measure(self.erase, theta, seeds.sample(self.seed, step, seeds.EFFECT))

    def harm(self, theta: Tensor, step: int) -> Tensor:
        """Measure the distance to theta_0's own answers, in the same units."""
        return self._measure(self.keep, theta, seeds.sample(self.seed, step, seeds.HARM))

    def _measure(self, pairs: LayerPairs, theta: Tensor, sample: int) -> Tensor:
        seen = pairs.draw(seeds.generator(sample))
        with torch.no_grad():
            goal = self._goal(seen)
        layer = self._under(self.layer, theta)
        return distance(layer(seen.states, seen.now), goal, self.scale)

    def _answered(self, pairs: LayerPairs) -> LayerPairs:
        """Work the goals out once for all steps, or at least K and V, unless that takes much room.

        At full size all answers together would take as long as those that are ever drawn.
        """
        if len(pairs.rows) * pairs.x[0].numel() <= ANSWERS_KEPT:
            return replace(pairs, answers=self._goal(pairs))
        contexts = [c for c in (pairs.now, pairs.goal) if c is not None]
        if 2 * sum(c.shape[0] * c.shape[1] for c in contexts) * len(self.layer.k) > MEMORY_KEPT:
            return pairs
        memory = tuple(part for c in contexts for part in self.layer.keys_values(c))
        return replace(pairs, memory=memory)

    def _goal(self, seen: LayerPairs) -> Tensor:
        if seen.answers is not None:
            return seen.answers
        if seen.goal is None:
            return self._frozen(seen, seen.now, seen.memory[:2])
        goal = self._frozen(seen, seen.goal, seen.memory[2:])
        if self.eta == 0:
            return goal
        push = self.eta if seen.push is None else self.eta * seen.push.view(-1, 1, 1)
        return pushed(goal, self._frozen(seen, seen.now, seen.memory[:2]), push)

    def _frozen(self, seen: LayerPairs, context: Tensor, memory: tuple[Tensor, ...]) -> Tensor:
        """Answer as theta_0 does."""
        return self.layer.attend(seen.states, *(memory or self.layer.keys_values(context)))
