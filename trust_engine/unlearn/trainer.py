"""The step that both engines share: effect -> saliency -> mask -> objective -> masked Adam."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..errors import DivergenceError, SpecError
from ..models.precision import quick_products
from ..spec import UnlearnSpec
from .mask import SETTLE, DynamicMask, Tensors, overlap, share
from .objective import InfluenceScale, cip, csr, exact_product, finite_product, slope
from .optimiser import SelectiveAdam
from .saliency import Source

SMOOTH = 0.9  # of the effect and harm that early stopping looks at


class Problem(Protocol):
    """What the weights do: differentiable in theta, the same sample for the same step."""

    @property
    def base(self) -> Tensors:
        """Return theta_0, float32."""
        ...

    @property
    def heads(self) -> Sequence[int]:
        """Tell how many heads share the rows of each tensor."""
        ...

    def effect(self, theta: Tensors, step: int) -> Tensor:
        """Measure the concept effect E, about 1 at theta_0."""
        ...

    def harm(self, theta: Tensors, step: int) -> Tensor:
        """Measure what happens to what must stay, in the same units; 0 at theta_0."""
        ...


@dataclass(frozen=True)
class Standing:
    """Where a run stands: effect E (1 at the start), harm to others, masked share, overlap."""

    effect: float
    harm: float
    share: float
    overlap: float


class Forgetting:
    """Selective fine-tuning of one problem: iterate over its steps, then read `offset`."""

    def __init__(
        self,
        problem: Problem,
        spec: UnlearnSpec,
        source: Source | None = None,
        fixed: Tensors | None = None,
    ) -> None:
        """Take saliency from a source or a fixed one; by default from the effect's gradient."""
        self.problem, self.spec, self.source = problem, spec, source
        self.optimiser = SelectiveAdam(problem.base, spec.rate)
        self.mask = DynamicMask([b.shape for b in problem.base], spec, problem.heads, fixed)
        self.done = 0
        self.steady = True  # False while a step is half taken: then there is nothing to save
        self.standing: Standing | None = None
        self._influence: InfluenceScale | None = None
        self._smooth: tuple[float, float] | None = None

    @property
    def offset(self) -> Tensors:
        """Return theta - theta_0."""
        return self.optimiser.offset

    @property
    def finished(self) -> bool:
        """Tell whether no step is left, or the early stop's bounds are met."""
        spec = self.spec
        if self.done >= spec.steps or (spec.objective == "zero" and self.done > 0):
            return True
        if self._smooth is None or self.done < spec.steps // 10 or not self.mask.settled:
            return False  # what is dropped later may bring the effect back
        return self._smooth[0] < spec.stop_effect and self._smooth[1] < spec.stop_harm

    def __iter__(self) -> Iterator[Standing]:
        while not self.finished:
            yield self.step()

    def step(self) -> Standing:
        """Take one step; raises DivergenceError, and keeps the last good state, when it fails.

        Whatever ends it early, an interrupt or no memory: as long as the weights have not begun to
        move it is as if the step had not been begun, and `state` is that of the step before.
        """
        influence, mask = self._influence, self.mask.mark()
        try:
            with quick_products(self.offset[0].device):
                return self._step()
        except BaseException:
            if self.steady:
                self._influence = influence
                self.mask.back_to(mask)
            raise

    def _step(self) -> Standing:
        spec, problem, step = self.spec, self.problem, self.done
        theta = self.optimiser.theta()
        effect = problem.effect(theta, step)
        gradient = torch.autograd.grad(effect, theta, create_graph=self.spec.exact_hessian)
        mask = self._update_mask(theta, tuple(g.detach() for g in gradient), step)
        if spec.objective == "zero":
            return self._zero(mask, step)
        harm, joint = self._joint(theta, gradient, mask, step)
        effect = effect.detach()
        if not all(bool(t.isfinite().all()) for t in (effect, harm, *joint)):
            raise DivergenceError(
                f"the loss is not finite at step {step + 1} of {spec.steps}; "
                f"lower the rate (now {spec.rate:g}) or lambda"
            )
        self.steady = False
        self.optimiser.step(joint, mask, decay(step / spec.steps))
        if step + 1 == spec.steps:
            mask = self.keep_to_budget(mask)
        return self._stand(float(effect), float(harm), mask)

    def keep_to_budget(self, mask: Tensors) -> Tensors:
        """Take back what a run that ends before its mask has settled moved beyond the budget."""
        if not self.mask.settled:
            mask = self.mask.shrink(self.optimiser.influence(), 1.0)
            self.optimiser.revert(mask)
        return mask

    def _update_mask(self, theta: Tensors, gradient: Tensors, step: int) -> Tensors:
        if self._influence is None:
            self._influence = InfluenceScale.of(gradient)
        current, progress = self.mask.current, step / self.spec.steps
        if self.spec.shrinks:
            if current is None:
                self.mask.begin(gradient)
            refresh = self.spec.refresh
            if current is None or progress >= SETTLE or (refresh and step % refresh == 0):
                return self.mask.shrink(self.optimiser.influence(), progress)
            return current
        if current is not None and step >= SETTLE * self.spec.steps:
            return current
        if self.source is None:
            return self.mask.update(gradient, step)
        if current is None or self.mask.due(step):
            return self.mask.update(self.source(theta, step), step)
        return current

    def _joint(
        self, theta: Tensors, gradient: Sequence[Tensor], mask: Tensors, step: int
    ) -> tuple[Tensor, Tensors]:
        """Return harm, and the gradient of effect + beta harm + lambda penalty."""
        spec, problem = self.spec, self.problem
        parts: list[tuple[float, Tensors]] = [(1.0, tuple(g.detach() for g in gradient))]
        if spec.objective in ("csr", "cip") and spec.lam > 0:
            parts.append((spec.lam, self._penalty_gradient(theta, gradient, mask, step)))
        with torch.set_grad_enabled(spec.beta > 0):
            harm = problem.harm(theta, step)
        if spec.beta > 0:
            parts.append((spec.beta, torch.autograd.grad(harm, theta)))
        joint = tuple(
            sum((weight * part[i] for weight, part in parts[1:]), parts[0][1][i])
            for i in range(len(theta))
        )
        return harm.detach(), joint

    def _penalty_gradient(
        self, theta: Tensors, gradient: Sequence[Tensor], mask: Tensors, step: int
    ) -> Tensors:
        spec, influence = self.spec, self._influence
        assert influence is not None

        def penalty(g: Tensors) -> Tensor:
            return (
                csr(g, mask) if spec.objective == "csr" else cip(g, influence, spec.gamma, spec.tau)
            )

        w = slope(penalty, gradient)
        if self.spec.exact_hessian:
            return exact_product(gradient, theta, w)
        return finite_product(
            lambda here: torch.autograd.grad(self.problem.effect(here, step), here), theta, w
        )

    @torch.no_grad()
    def _zero(self, mask: Tensors, step: int) -> Standing:
        """Set the neurons to zero, the ablation that needs no training; then see what is left."""
        self.steady = False
        for offset, base, m in zip(self.offset, self.problem.base, mask, strict=True):
            offset.copy_(-base * m)
        theta = self.optimiser.theta()
        effect, harm = self.problem.effect(theta, step), self.problem.harm(theta, step)
        return self._stand(float(effect), float(harm), mask)

    def _stand(self, effect: float, harm: float, mask: Tensors) -> Standing:
        old = self._smooth or (effect, harm)
        self._smooth = (
            SMOOTH * old[0] + (1 - SMOOTH) * effect,
            SMOOTH * old[1] + (1 - SMOOTH) * harm,
        )
        moved = overlap(self.mask.first or mask, mask)
        self.standing = Standing(effect, harm, share(mask), moved)
        self.done += 1
        self.steady = True
        return self.standing

    def state(self) -> dict[str, Tensor]:
        """Return what resuming needs; the sample of a step depends on its number alone."""
        kept = {f"optimiser.{k}": v for k, v in self.optimiser.state().items()}
        kept |= {f"mask.{k}": v for k, v in self.mask.state().items()}
        kept["done"] = torch.tensor(self.done)
        if self._smooth and self._influence and self.standing:
            here = self.standing
            kept["smooth"] = torch.tensor(self._smooth, dtype=torch.float64)
            kept["standing"] = torch.tensor(
                (here.effect, here.harm, here.share, here.overlap), dtype=torch.float64
            )
            scale = zip(self._influence.mean, self._influence.deviation, strict=True)
            kept["influence"] = torch.tensor([[float(m), float(d)] for m, d in scale])
        return kept

    def load(self, kept: dict[str, Tensor]) -> None:
        """Go on from a state; raises SpecError for one of something else."""
        self._check(kept)
        self.done = int(kept["done"])
        if not self.done:
            return
        device = self.offset[0].device
        self.optimiser.load(_below(kept, "optimiser."))
        self.mask.load(_below(kept, "mask."), device)
        self._smooth = tuple(kept["smooth"].tolist())
        self.standing = Standing(*kept["standing"].tolist())
        mean, deviation = kept["influence"].to(device).unbind(1)
        self._influence = InfluenceScale(tuple(mean), tuple(deviation))

    def _check(self, kept: dict[str, Tensor]) -> None:
        """Compare names, types and shapes with what this problem's own state would hold."""
        own = {f"optimiser.{k}": v for k, v in self.optimiser.state().items()}
        masks = (f"mask.current.{i}" for i in range(len(self.problem.base)))
        own |= dict(zip(masks, (b.bool() for b in self.problem.base), strict=True))
        if "done" not in kept or not 0 <= int(kept["done"]) <= self.spec.steps:
            raise SpecError("the saved state does not say how far it is; start without it")
        needed = own if int(kept["done"]) else {}
        for name, tensor in needed.items():
            there = kept.get(name)
            if there is None or there.shape != tensor.shape or there.dtype != tensor.dtype:
                raise SpecError(f"the saved state lacks a sound {name}; start without it")


def _below(kept: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in kept.items() if k.startswith(prefix)}


def decay(progress: float) -> float:
    """Fall from 1 to 0.02, late: most of it after the mask has settled; progress is 0..1."""
    return 0.02 + 0.98 * math.cos(math.pi / 2 * progress)
