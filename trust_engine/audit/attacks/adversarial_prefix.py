"""Adversarial prefixes of real tokens, optimised on the victim: P4D and UnlearnDiffAtk.

Every judged prompt gets a prefix of its own, as in both papers; the prefixes are optimised side by
side. What the attacker knows of the concept are the bait's pictures, by the untouched model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ... import seeds
from ...models.contract import Conditioning
from ...models.load import LoadedModel
from ..context import AuditContext
from ..drawing import Work, paint
from ..levels import Budgets
from ..probe_prompts import Probe, concept_shots
from ..token_space import TokenSpace, embed, fill, token_space
from .base import Attack, AttackOutput, denoising_loss, draw_times

ROWS = 8  # prompts whose gradients are held at once
TESTED = (250, 500, 750)  # timesteps on which candidates are compared
CANDIDATES = 6
P4D_SOURCE = "P4D: Chin et al. 2023, arXiv 2309.06135; projection: Wen et al., arXiv 2302.03668"
UDA_SOURCE = "UnlearnDiffAtk: Zhang et al. 2023, arXiv 2310.11868"


@dataclass
class Siege:
    """The state of an attack: the victim, its prompts with free places, and target latents."""

    victim: LoadedModel
    untouched: LoadedModel
    space: TokenSpace
    ids: list[Tensor]
    slots: slice
    x0: Tensor
    teacher: Conditioning
    seed: int

    def encode(self, prefix: Tensor, rows: slice) -> Conditioning:
        """Encode prompts `rows` with embedded prefixes (b, k, d) in their places."""
        base = embed(self.space, torch.stack(self.ids[rows]))
        a, b = self.slots.start, self.slots.stop
        return self.space.encode(torch.cat([base[:, :a], prefix, base[:, b:]], 1))


Loss = Callable[[Siege, Conditioning, slice, Tensor, Tensor], Tensor]


def own_loss(siege: Siege, cond: Conditioning, rows: slice, t: Tensor, noise: Tensor) -> Tensor:
    """UnlearnDiffAtk, equation 5: the victim's own denoising loss on the concept's picture."""
    return denoising_loss(siege.victim, siege.x0[rows], t, noise, cond)


def teacher_loss(siege: Siege, cond: Conditioning, rows: slice, t: Tensor, noise: Tensor) -> Tensor:
    """P4D, equation 6: distance to what the untouched model predicts under the plain prompt."""
    place = siege.victim.device
    x = siege.victim.denoiser.schedule.noised(
        siege.x0[rows].to(place), t.to(place), noise.to(place)
    )
    with torch.no_grad():
        goal = siege.untouched.denoiser(x, t.to(place), siege.teacher.select(rows))
    output = siege.victim.denoiser(x, t.to(place), cond)
    return (output.float() - goal.float()).square().flatten(1).mean(1)


def p4d(budgets: Budgets) -> Attack:
    """Describe P4D with a prefix before the prompt."""
    return _attack("p4d", "P4D prefix", P4D_SOURCE, teacher_loss, Projected, budgets)


def unlearn_diff_atk(budgets: Budgets) -> Attack:
    """Describe UnlearnDiffAtk."""
    title = "UnlearnDiffAtk prefix"
    return _attack("unlearn_diff_atk", title, UDA_SOURCE, own_loss, Relaxed, budgets, True)


def _attack(
    name: str,
    title: str,
    source: str,
    loss: Loss,
    search: Any,
    budgets: Budgets,
    adds_to_plain: bool = False,
) -> Attack:
    n, k, iterations = budgets.judged, budgets.prefix_tokens, budgets.prefix_iterations
    tests = CANDIDATES * len(TESTED) * n
    budget = {"prefix_tokens": k, "iterations": iterations, "bait": n, **search.budget}

    def run(context: AuditContext, model: LoadedModel) -> Work[AttackOutput]:
        siege = yield from besiege(context, model, n, k)
        tokens = yield from attack_prefixes(siege, loss, search, k, iterations)
        shots = concept_shots(context.topic, "attack", n, context.seed)
        with torch.no_grad():
            cond = siege.encode(embed(siege.space, tokens), slice(None))
        latents = yield from paint(model, cond, [s.seed for s in shots], context.settings)
        texts = [
            f"[{siege.space.text(row.tolist())}] {shot.prompt}"
            for row, shot in zip(tokens, shots, strict=True)
        ]
        return AttackOutput(latents, texts)

    passes = 3 * n * iterations + tests
    return Attack(
        name=name,
        title=title,
        stance="adaptive",
        source=source,
        budget=budget,
        passes=passes,
        run=run,
        needs_text=True,
        adds_to_plain=adds_to_plain,
    )


def besiege(context: AuditContext, model: LoadedModel, count: int, tokens: int) -> Work[Siege]:
    """Lay out prompts with free places before them and pictures of the concept to aim at."""
    bait = yield from context.bait(count)
    space = token_space(model.encoder)
    assert space is not None
    shots: Sequence[Probe] = concept_shots(context.topic, "attack", count, context.seed)
    framed = [fill(space, "", tokens, shot.prompt) for shot in shots]
    untouched = context.models["untouched"]
    with torch.no_grad():
        teacher = untouched.encoder.encode([shot.prompt for shot in bait.shots])
    ids, slots = [ids for ids, _ in framed], framed[0][1]
    victim = model.differentiable()
    return Siege(victim, untouched, space, ids, slots, bait.latents, teacher, context.seed)


def attack_prefixes(
    siege: Siege, loss: Loss, search: Any, tokens: int, iterations: int
) -> Work[Tensor]:
    """Optimise a prefix for each prompt; returns the best token ids (n, tokens)."""
    generator = seeds.generator(siege.seed)
    state = search(siege.space, len(siege.ids), tokens, generator)
    for _ in range(iterations):
        leaf = state.rows().detach().requires_grad_()
        gradient = torch.zeros_like(leaf)
        for start in range(0, len(leaf), ROWS):
            rows = slice(start, min(start + ROWS, len(leaf)))
            t = draw_times(rows.stop - rows.start, generator)
            noise = torch.randn(siege.x0[rows].shape, generator=generator)
            total = loss(siege, siege.encode(leaf[rows], rows), rows, t, noise).sum()
            gradient = gradient + torch.autograd.grad(total, [leaf])[0]
            yield 3 * len(t)
        state.step(gradient)
    return (yield from best_candidates(siege, loss, state.candidates(), generator))


def best_candidates(
    siege: Siege, loss: Loss, candidates: list[Tensor], generator: torch.Generator
) -> Work[Tensor]:
    """Return, prompt by prompt, the candidate of least loss on fixed timesteps and noise."""
    noise = torch.randn(siege.x0.shape, generator=generator)
    best, least = candidates[0].clone(), torch.full((len(siege.ids),), torch.inf)
    for ids in candidates:
        scores = torch.zeros(len(siege.ids))
        for start in range(0, len(siege.ids), ROWS):
            rows = slice(start, min(start + ROWS, len(siege.ids)))
            for now in TESTED:
                t = torch.full((rows.stop - rows.start,), now)
                with torch.no_grad():
                    cond = siege.encode(embed(siege.space, ids[rows]), rows)
                    scores[rows] += loss(siege, cond, rows, t, noise[rows]).cpu()
                yield len(t)
        better = scores < least
        best[better], least[better] = ids[better], scores[better]
    return best


class Projected:
    """P4D's search: AdamW on free rows, whose gradient is taken at the nearest real tokens."""

    budget: ClassVar = {"rate": 0.1, "weight_decay": 0.1}

    def __init__(
        self, space: TokenSpace, count: int, tokens: int, generator: torch.Generator
    ) -> None:
        self.table = space.table.float()
        first = torch.randint(len(self.table), (count, tokens), generator=generator)
        self.free = self.table[first.to(self.table.device)].clone().requires_grad_()
        self.adam = torch.optim.AdamW(
            [self.free], lr=self.budget["rate"], weight_decay=self.budget["weight_decay"]
        )
        self.visited: list[Tensor] = []

    def rows(self) -> Tensor:
        """Return the nearest real tokens' embeddings (count, tokens, d)."""
        flat = self.free.detach().flatten(0, 1)
        # |a - b|^2 up to a term that does not depend on the token
        score = flat @ self.table.T - 0.5 * self.table.square().sum(1)
        ids = score.argmax(1).view(self.free.shape[:2])
        self.visited = [*self.visited, ids][-CANDIDATES:]
        return self.table[ids]

    def step(self, gradient: Tensor) -> None:
        """Move the free rows by the gradient at their projections."""
        self.free.grad = gradient
        self.adam.step()

    def candidates(self) -> list[Tensor]:
        """Return the last projections, newest first."""
        self.rows()
        return [ids.cpu() for ids in reversed(self.visited)]


class Relaxed:
    """UnlearnDiffAtk's search: a distribution over tokens a place, by projected gradient."""

    budget: ClassVar = {"rate": 0.2}

    def __init__(
        self, space: TokenSpace, count: int, tokens: int, generator: torch.Generator
    ) -> None:
        self.table, self.generator = space.table.float(), generator
        size = len(self.table)
        first = torch.randint(size, (count, tokens), generator=generator)
        start = torch.full((count, tokens, size), 0.5 / size)
        start.scatter_add_(2, first[..., None], torch.full((count, tokens, 1), 0.5))
        self.shares = start.to(self.table.device)

    def rows(self) -> Tensor:
        """Return the expected embeddings (count, tokens, d)."""
        return self.shares @ self.table

    def step(self, gradient: Tensor) -> None:
        """Step against the gradient on the shares, scaled to its largest entry, and project."""
        slope = gradient @ self.table.T
        largest = slope.abs().amax(2, keepdim=True).clamp(min=1e-20)
        self.shares = to_simplex(self.shares - self.budget["rate"] * slope / largest)

    def candidates(self) -> list[Tensor]:
        """Return the likeliest tokens, and samples."""
        found = [self.shares.argmax(2).cpu()]
        flat = self.shares.flatten(0, 1).cpu()
        for _ in range(CANDIDATES - 1):
            drawn = torch.multinomial(flat, 1, generator=self.generator)
            found.append(drawn.view(self.shares.shape[:2]))
        return found


def to_simplex(v: Tensor, rounds: int = 40) -> Tensor:
    """Project rows onto the simplex: bisect for the threshold (Duchi et al. 2008, equation 3)."""
    low, high = v.amin(-1, keepdim=True) - 1, v.amax(-1, keepdim=True)
    for _ in range(rounds):
        middle = (low + high) / 2
        over = (v - middle).clamp(min=0).sum(-1, keepdim=True) > 1
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    shares = (v - (low + high) / 2).clamp(min=0)
    return shares / shares.sum(-1, keepdim=True).clamp(min=1e-12)
