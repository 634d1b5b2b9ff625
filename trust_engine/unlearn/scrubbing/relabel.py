"""Relabelling: what still shows the concept is denoised to its anchor's picture.

Scrubbing weakens what only the concept's pictures have; what is left of it is a faint picture of
the concept, from which it is soon relearned. Here the factors `up` of the scrubbed layers, and
nothing else, are trained through the whole UNet. On noised pictures x_t of the concept it learns to
see y_0, which the same noise gives under the anchor, and on what stays to predict as theta_0 does:

    E = mean min(SNR_t, 5) || x0(x_t, t, c; up) - y_0 ||^2
    P = mean || e(x_t, t, c; up) - e(x_t, t, c; theta_0) ||^2           on what must stay
    L = E + beta P

Of the x_t half are of the concept's pictures and half of y_0: what was asked for as the concept and
has turned away must not turn back. Where the noise leaves something to recognise (t < 750), 15 %
meet the empty prompt and 15 % the anchor's, so that it does not hang on the prompt alone.
Relabelling is SalUn's (arXiv 2310.12508), min-SNR weighting Hang et al.'s (arXiv 2303.09556).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ... import seeds
from ...diff import LowRankOffset
from ...diff.overlaid import Overlaid
from ...errors import DivergenceError
from ...models.contract import Conditioning, Denoiser, compute_dtype, device_of, stack
from ...models.parameters import exchanged
from ...models.recompute import plain, recomputed
from .noised import EARLIEST, LATEST, Drawn, replaced

SNR_CAP = 5.0
BLANK, ANCHORED = 0.15, 0.15  # shares that meet the empty prompt, the anchor's
WARMUP = 5  # steps over which the rate rises
SCALE = 2.0**10  # of a float16 loss, whose gradients would vanish
BETAS = (0.9, 0.95)  # of Adam
BACK = 2  # passes forward that one back takes as long as


@dataclass(frozen=True)
class RelabelPlan:
    """How the factors are trained.

    steps: in all, the second half at a falling rate; rate: of Adam, in units of a layer's root mean
    square of `up`; beta: weight of what stays; batch: pictures of either kind a step.
    """

    steps: int = 70
    rate: float = 0.05
    beta: float = 8.0
    batch: int = 12

    @property
    def passes(self) -> int:
        """Count the UNet passes forward: of the concept, of what stays, and theta_0's of that."""
        return 3 * self.batch * self.steps

    @property
    def backward(self) -> int:
        """Count the UNet passes back."""
        return 2 * self.batch * self.steps


class Relabelling:
    """One training of the factors: iterate over it for progress, then read `offsets`.

    concept, anchors: pictures (n) of either, drawn from the same noises in the same order; rest:
    of what stays. blocks: paths of modules that recompute their inside in the way back, () for
    none; in_place: they may write to what they hold; rows: pictures that pass the UNet at once,
    which changes sums in their last digits alone. begun: `kept` of a run before, gone on with to
    the same bits. Raises DivergenceError.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        offsets: Mapping[str, LowRankOffset],
        concept: Drawn,
        anchors: Drawn,
        rest: Drawn,
        uncond: Conditioning,
        plan: RelabelPlan,
        seed: int,
        rows: int,
        blocks: Sequence[str] = (),
        in_place: bool = False,
        begun: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.denoiser, self.begun_with, self.plan = denoiser, dict(sorted(offsets.items())), plan
        self.seed, self.rows, self.blocks, self.in_place = seed, rows, blocks, in_place
        self.seen = torch.cat([concept.latents, anchors.latents]).float().cpu()
        self.goal = anchors.latents.float().cpu().repeat(2, 1, 1, 1)
        self.pictures = len(anchors.latents)
        self.asked = stack([concept.prompts, anchors.prompts, uncond])
        self.rest, self.uncond = rest, uncond
        # What is trained, and Adam's state of it, stay in main memory: a device that computes holds
        # the factors of a step and their gradients alone.
        ups = [offset.up.cpu() for offset in self.begun_with.values()]
        self.start = torch.cat([up.flatten() for up in ups])
        self.units = [up.square().mean().sqrt() for up in ups]
        kept = begun or {}
        self.moved = kept.get("moved", torch.zeros_like(self.start)).clone().requires_grad_()
        self.adam = torch.optim.Adam([self.moved], plan.rate, BETAS)
        self.done, self.scale = int(kept.get("done", 0)), float(kept.get("scale", 0.0))
        if "exp_avg" in kept:
            self.adam.load_state_dict(self._adam_state(kept))
        if not self.scale:
            self.scale = SCALE if compute_dtype(denoiser.module) == torch.float16 else 1.0

    def _adam_state(self, kept: Mapping[str, Tensor]) -> dict[str, Any]:
        state = {name: kept[name] for name in ("step", "exp_avg", "exp_avg_sq")}
        return {**self.adam.state_dict(), "state": {0: state}}

    @property
    def kept(self) -> dict[str, Tensor]:
        """Return what going on needs: copies, for training writes to its own."""
        scale = torch.tensor(self.scale, dtype=torch.float64)
        told = {"done": torch.tensor(self.done), "scale": scale}
        own = {"moved": self.moved.detach(), **self.adam.state[self.moved]}
        return {name: t.cpu().clone() for name, t in {**own, **told}.items()}

    @property
    def offsets(self) -> dict[str, LowRankOffset]:
        """Return the offsets as they are by now."""
        return {
            key: LowRankOffset(up, self.begun_with[key].down) for key, up in self._ups().items()
        }

    @torch.inference_mode(False)
    @torch.enable_grad()
    def __iter__(self) -> Iterator[int]:
        while self.done < self.plan.steps:
            self._step()
            self.done += 1
            yield self.done

    def _ups(self) -> dict[str, Tensor]:
        sizes = [offset.up.numel() for offset in self.begun_with.values()]
        parts = zip(
            self.begun_with.items(),
            self.start.split(sizes),
            self.units,
            self.moved.detach().split(sizes),
            strict=True,
        )
        return {
            key: (start + unit * moved).view_as(offset.up)
            for (key, offset), start, unit, moved in parts
        }

    def _factors(self) -> dict[str, LowRankOffset]:
        """Put the factors where the network is; the gradients that `up` gathers are of `moved`."""
        place, found = device_of(self.denoiser), {}
        for unit, (key, offset) in zip(self.units, self.offsets.items(), strict=True):
            up = offset.up.to(place).requires_grad_()
            up.register_hook(lambda gradient, unit=float(unit): gradient * unit)
            found[key] = LowRankOffset(up, offset.down.to(place))
        return found

    def _step(self) -> None:
        plan, generator = self.plan, seeds.generator(seeds.relabelled(self.seed, self.done))
        batches = self._of_concept(generator), self._of_rest(generator)
        factors = self._factors()
        for batch, weight in zip(batches, (1.0, plan.beta), strict=True):
            for i in range(0, plan.batch, self.rows):
                rows = batch.rows(slice(i, i + self.rows))
                self._add_gradient(rows, weight / plan.batch, factors)
        ups = [factor.up for factor in factors.values()]
        found = [torch.zeros_like(up) if up.grad is None else up.grad for up in ups]
        gradient = torch.cat([each.cpu().flatten() for each in found])
        if not bool(gradient.isfinite().all()):
            self.scale /= 2  # of 16-bit gradients some were too large: this step is left out
            if self.scale < 1:
                raise DivergenceError("relabelling the scrubbed layers gave numbers without bounds")
            return
        self.moved.grad = gradient / self.scale
        fall = 2 * (1 - self.done / plan.steps)
        for group in self.adam.param_groups:
            group["lr"] = plan.rate * min(1.0, fall, (self.done + 1) / WARMUP)
        self.adam.step()

    def _add_gradient(
        self, batch: _Batch, weight: float, factors: Mapping[str, LowRankOffset]
    ) -> None:
        """Add the gradient of a part of a step's loss to what the factors gather."""
        place, schedule = device_of(self.denoiser), self.denoiser.schedule
        x, t, cond = batch.x.to(place), batch.t.to(place), batch.cond.to(place)
        if batch.goal is None:
            with torch.no_grad():
                goal = self.denoiser(x, t, cond).float()
        with self._standing(factors) as lent:
            seen = lent(x, t, cond).float()
            if batch.goal is None:
                wrong = seen - goal
            else:
                alphas = schedule.alphas.to(place, torch.float32)[t]
                snr = (alphas / (1 - alphas)).clamp(max=SNR_CAP).view(-1, 1, 1, 1)
                wrong = snr.sqrt() * (schedule.split(x, t, seen)[0] - batch.goal.to(place))
            loss = wrong.square().flatten(1).mean(1).sum()
            (self.scale * weight * loss).backward()

    def _of_concept(self, generator: torch.Generator) -> _Batch:
        n, count = self.pictures, self.plan.batch
        some = torch.randint(2 * n, (count,), generator=generator)
        x, t = self._noised(self.seen[some], EARLIEST, generator)
        chance, own = torch.rand(count, generator=generator), some % n
        told = torch.where(chance < BLANK + ANCHORED, own + n, own)
        told = torch.where(chance < BLANK, 2 * n, told)
        rows = torch.where(t < LATEST, told, own).to(self.asked.context.device)
        return _Batch(x, t, self.asked.select(rows), self.goal[some])

    def _of_rest(self, generator: torch.Generator) -> _Batch:
        count, rest = self.plan.batch, self.rest
        some = torch.randint(len(rest.latents), (count,), generator=generator)
        x, t = self._noised(rest.latents[some].float().cpu(), 0, generator)
        blank = torch.rand(count, generator=generator) < BLANK
        own = rest.prompts.select(some.to(rest.prompts.context.device))
        return _Batch(x, t, replaced(own, self.uncond, blank))

    def _noised(
        self, x0: Tensor, earliest: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        t = torch.randint(earliest, 1000, (len(x0),), generator=generator)
        noise = torch.randn(x0.shape, generator=generator)
        return self.denoiser.schedule.noised(x0, t, noise), t

    @contextlib.contextmanager
    def _standing(self, factors: Mapping[str, LowRankOffset]) -> Iterator[Denoiser]:
        """Have the network compute under the factors, on the way back, too."""
        module, lent = self.denoiser.module, Overlaid(self.denoiser, factors)
        outside = dict(module.named_parameters())
        if self.in_place:  # a block copies its own when it is its turn
            within = tuple(f"{block}." for block in self.blocks)
            outside = {n: p for n, p in outside.items() if not n.startswith(within)}
        again = recomputed(map(module.get_submodule, self.blocks), self.in_place)
        with exchanged(module, plain(outside)), again, lent.overlaid():
            yield self.denoiser


@dataclass(frozen=True)
class _Batch:
    """Noised pictures x (b, 4, h, w) at t (b,) under prompts; goal: what to see, or as theta_0."""

    x: Tensor
    t: Tensor
    cond: Conditioning
    goal: Tensor | None = None

    def rows(self, some: slice) -> _Batch:
        """Take some of the pictures."""
        goal = None if self.goal is None else self.goal[some]
        return _Batch(self.x[some], self.t[some], self.cond.select(some), goal)
