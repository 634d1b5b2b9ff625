"""The step that both engines share: effect -> saliency -> mask -> objective -> masked Adam."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..errors import DivergenceError, SpecError
from ..models.precision import quick_products
from ..spec import UnlearnSpec
from .mask import mask_for, overlap, share
from .objective import InfluenceScale, cip, csr, exact_product, finite_product, slope
from .optimiser import SelectiveAdam
from .saliency import Source
from .theta_layout import Layout

SMOOTH = 0.9  # of the effect and harm that early stopping looks at


class Problem(Protocol):
    """What the weights do: differentiable in theta, the same sample for the same step."""

    @property
    def base(self) -> Tensor:
        """Return theta_0 (n,), float32."""
        ...

    @property
    def layout(self) -> Layout:
        """Tell how the weights lie in it."""
        ...

    def effect(self, theta: Tensor, step: int) -> Tensor:
        """Measure the concept effect E, about 1 at theta_0."""
        ...

    def harm(self, theta: Tensor, step: int) -> Tensor:
        """Measure what happens to what must stay, in the same units; 0 at theta_0."""
        ...


@dataclass(frozen=True)
class Metrics:
    """Where a run stands: effect E (1 at the start), harm to others, masked share, overlap."""

    effect: float
    harm: float
    share: float
    overlap: float


class SelectiveTrainer:
    """Selective fine-tuning of one problem: iterate over its steps, then read `offset`."""

    def __init__(
        self,
        problem: Problem,
        spec: UnlearnSpec,
        source: Source | None = None,
        fixed: Tensor | None = None,
    ) -> None:
        """Take saliency from a source or a fixed one; by default from the effect's gradient."""
        self.problem, self.spec, self.source = problem, spec, source
        self.optimiser = SelectiveAdam(problem.base, problem.layout, spec.rate)
        self.mask = mask_for(spec, problem.layout, fixed, costly=source is not None)
        self.done = 0
        self.steady = True  # False while a step is half taken: then there is nothing to save
        self.standing: Metrics | None = None
        self.scale: InfluenceScale | None = None  # of |g| at theta_0, for CIP
        self._smooth: tuple[float, float] | None = None

    @property
    def offset(self) -> Tensor:
        """Return theta - theta_0 (n,)."""
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

    def __iter__(self) -> Iterator[Metrics]:
        while not self.finished:
            yield self.step()

    def step(self) -> Metrics:
        """Take one step; raises DivergenceError, and keeps the last good state, when it fails.

        Whatever ends it early, an interrupt or no memory: as long as the weights have not begun to
        move it is as if the step had not been begun, and `state` is that of the step before.
        """
        scale, mask = self.scale, self.mask.mark()
        try:
            with quick_products(self.offset.device):
                return self._step()
        except BaseException:
            if self.steady:
                self.scale = scale
                self.mask.back_to(mask)
            raise

    def _step(self) -> Metrics:
        """Algorithm 1, one turn of its loop."""
        plan, problem, adam, step = self.spec, self.problem, self.optimiser, self.done
        theta = adam.theta()
        effect = problem.effect(theta, step)  # E
        gradient = grad(effect, theta, twice=plan.exact_hessian)  # g
        selected = self.select(theta, gradient, step)  # m
        if plan.objective == "zero":
            return self._zero(selected, step)
        total = gradient.detach()  # dL/dtheta, L = E + lambda R(g, m) + beta P
        if self.penalised:
            total = total + plan.lam * self.penalty_gradient(theta, gradient, selected, step)
        with torch.set_grad_enabled(plan.beta > 0):
            harm = problem.harm(theta, step)  # P
        if plan.beta > 0:
            total = total + plan.beta * grad(harm, theta)
        effect, harm = effect.detach(), harm.detach()  # lets their graphs go
        self.check_finite(effect, harm, total)
        self.steady = False
        adam.step(total, selected, decay(step / plan.steps))
        if step + 1 == plan.steps:
            selected = self.keep_to_budget(selected)
        return self._stand(float(effect), float(harm), selected)

    def select(self, theta: Tensor, gradient: Tensor, step: int) -> Tensor:
        """Return the mask m of this step."""
        if self.scale is None:
            self.scale = InfluenceScale.of(gradient, self.problem.layout)
        influence = self.optimiser.influence
        return self.mask.update(step, lambda: self.saliency(theta, gradient, step), influence)

    def check_finite(self, *values: Tensor) -> None:
        """Raise DivergenceError unless the loss and its gradient are finite."""
        if not all(bool(value.isfinite().all()) for value in values):
            raise DivergenceError(
                f"the loss is not finite at step {self.done + 1} of {self.spec.steps}",
                remedy=f"lower {{rate}} (now {self.spec.rate:g}) or {{lam}}",
            )

    def saliency(self, theta: Tensor, gradient: Tensor, step: int) -> Tensor:
        """Return s = |dS/dtheta|: of the effect itself, or of another source if there is one."""
        if self.source is not None:
            return self.source(theta, step)
        return gradient.detach().abs()

    @property
    def penalised(self) -> bool:
        """Tell whether the objective has a penalty, CSR or CIP."""
        return self.spec.objective in ("csr", "cip") and self.spec.lam > 0

    def penalty_gradient(self, theta: Tensor, gradient: Tensor, mask: Tensor, step: int) -> Tensor:
        """Return dR/dtheta = H w of the penalty R(g), with w = dR/dg and H the Hessian of E."""
        spec, scale, layout = self.spec, self.scale, self.problem.layout
        assert scale is not None

        def penalty(g: Tensor) -> Tensor:
            if spec.objective == "csr":
                return csr(g, mask, layout)
            return cip(g, scale, layout, spec.gamma, spec.tau)

        w = slope(penalty, gradient)
        if spec.exact_hessian:
            return exact_product(gradient, theta, w)

        def gradient_at(here: Tensor) -> Tensor:
            return grad(self.problem.effect(here, step), here)

        return finite_product(gradient_at, theta, w, layout)

    def keep_to_budget(self, mask: Tensor) -> Tensor:
        """Take back what a run that ends before its mask has settled moved beyond the budget."""
        smaller = self.mask.finish(self.optimiser.influence)
        if smaller is None:
            return mask
        self.optimiser.revert(smaller)
        return smaller

    @torch.no_grad()
    def _zero(self, mask: Tensor, step: int) -> Metrics:
        """Set the neurons to zero, the ablation that needs no training; then see what is left."""
        self.steady = False
        self.offset.copy_(-self.problem.base * mask)
        theta = self.optimiser.theta()
        effect, harm = self.problem.effect(theta, step), self.problem.harm(theta, step)
        return self._stand(float(effect), float(harm), mask)

    def _stand(self, effect: float, harm: float, mask: Tensor) -> Metrics:
        old = self._smooth or (effect, harm)
        self._smooth = (
            SMOOTH * old[0] + (1 - SMOOTH) * effect,
            SMOOTH * old[1] + (1 - SMOOTH) * harm,
        )
        moved = overlap(mask if self.mask.first is None else self.mask.first, mask)
        self.standing = Metrics(effect, harm, share(mask), moved)
        self.done += 1
        self.steady = True
        return self.standing

    def state(self) -> dict[str, Tensor]:
        """Return what resuming needs; the sample of a step depends on its number alone."""
        kept = {f"optimiser.{k}": v for k, v in self.optimiser.state().items()}
        kept |= {f"mask.{k}": v for k, v in self.mask.state().items()}
        kept["done"] = torch.tensor(self.done)
        if self._smooth and self.scale and self.standing:
            here = self.standing
            kept["smooth"] = torch.tensor(self._smooth, dtype=torch.float64)
            kept["standing"] = torch.tensor(
                (here.effect, here.harm, here.share, here.overlap), dtype=torch.float64
            )
            kept["influence"] = torch.stack([self.scale.mean, self.scale.deviation], 1).cpu()
        return kept

    def load(self, kept: dict[str, Tensor]) -> None:
        """Go on from a state; raises SpecError for one of something else."""
        self._check(kept)
        self.done = int(kept["done"])
        if not self.done:
            return
        device = self.offset.device
        self.optimiser.load(_below(kept, "optimiser."))
        self.mask.load(_below(kept, "mask."), device)
        self._smooth = tuple(kept["smooth"].tolist())
        self.standing = Metrics(*kept["standing"].tolist())
        mean, deviation = kept["influence"].to(device).unbind(1)
        self.scale = InfluenceScale(mean, deviation)

    def _check(self, kept: dict[str, Tensor]) -> None:
        """Compare names, types and shapes with what this problem's own state would hold."""
        own = {f"optimiser.{k}": v for k, v in self.optimiser.state().items()}
        parts = self.problem.layout.parts(self.problem.base.bool())
        own |= {f"mask.current.{i}": part for i, part in enumerate(parts)}
        if "done" not in kept or not 0 <= int(kept["done"]) <= self.spec.steps:
            raise SpecError("the saved state does not say how far it is; start without it")
        needed = own if int(kept["done"]) else {}
        for name, tensor in needed.items():
            there = kept.get(name)
            if there is None or there.shape != tensor.shape or there.dtype != tensor.dtype:
                raise SpecError(f"the saved state lacks a sound {name}; start without it")


def grad(value: Tensor, theta: Tensor, twice: bool = False) -> Tensor:
    """Return d value / d theta; twice: to be differentiated once more."""
    return torch.autograd.grad(value, theta, create_graph=twice)[0]


def _below(kept: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in kept.items() if k.startswith(prefix)}


def decay(progress: float) -> float:
    """Fall from 1 to 0.02, late: most of it after the mask has settled; progress is 0..1."""
    return 0.02 + 0.98 * math.cos(math.pi / 2 * progress)
