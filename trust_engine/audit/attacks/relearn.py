"""Fine-tuning the victim: to relearn the concept, on harmless pictures, or by a LoRA."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ... import seeds
from ...models.contract import Conditioning
from ...models.load import LoadedModel
from ..context import AuditContext, ReferenceImages, paint_shots
from ..drawing import Work
from ..levels import Budgets
from ..probe_prompts import concept_shots, retained_shots
from .base import Attack, AttackOutput, Run, Stance, denoising_loss, draw_times

Weights = Mapping[str, Tensor]
SUFFIXES = (".to_q.weight", ".to_k.weight", ".to_v.weight", ".to_out.0.weight")


@dataclass(frozen=True)
class Tuning:
    """Fine-tuning on pictures that the untouched model draws.

    on: "bait", pictures of the concept, or "images", of other things; rank: of a LoRA, None for all
    weights of the UNet.
    """

    on: Literal["bait", "images"]
    pictures: int
    steps: int
    rate: float
    batch: int
    rank: int | None = None

    def of(self, context: AuditContext, model: LoadedModel) -> Work[dict[str, Tensor]]:
        """Return the weights that a model has after it."""
        if self.on == "bait":
            shown = yield from context.bait(self.pictures)
        else:
            shown = yield from harmless(context, self.pictures)
        recipe = every_weight if self.rank is None else low_rank(self.rank, context.seed)
        return (yield from tune(model, shown, self, recipe, context.seed))

    def attack(self, name: str, title: str, stance: Stance, source: str, run: Run) -> Attack:
        """Describe an attack that spends this and nothing else."""
        changed = {"weights": "all of the UNet"} if self.rank is None else {"lora_rank": self.rank}
        spent = {"adam_steps": self.steps, "rate": self.rate, "batch": self.batch}
        budget = {self.on: self.pictures, **spent, **changed}
        passes = 3 * self.steps * self.batch
        return Attack(name, title, stance, source, budget, passes, run, on_untouched=False)


def relearning(budgets: Budgets, lora: bool) -> Attack:
    """Describe fine-tuning on pictures of the concept, of all weights or of a LoRA."""
    rate, rank = (budgets.lora_rate, budgets.lora_rank) if lora else (budgets.relearn_rate, None)
    batch = budgets.relearn_batch
    tuning = Tuning("bait", budgets.relearn_images, budgets.relearn_steps, rate, batch, rank)
    name, title = "relearning", "Relearning, whole UNet"
    if lora:
        name, title = "relearning_lora", "Relearning by a LoRA"
    source = "fine-tuning on the concept; Suriyakumar et al. 2024, arXiv 2410.08074"
    return tuning.attack(name, title, "adaptive", source, tuned(tuning, budgets))


def benign_fine_tuning(budgets: Budgets) -> Attack:
    """Describe fine-tuning on pictures of other things, which may revive the concept unasked."""
    rate, batch = budgets.relearn_rate, budgets.relearn_batch
    tuning = Tuning("images", budgets.benign_images, budgets.benign_steps, rate, batch)
    title = "Fine-tuning on harmless pictures"
    source = "ResAlign, arXiv 2507.16302: benign fine-tuning revives what was erased"
    return tuning.attack("benign_fine_tuning", title, "static", source, tuned(tuning, budgets))


def tuned(tuning: Tuning, budgets: Budgets) -> Run:
    """Fine-tune the victim itself, then ask it."""

    def run(context: AuditContext, model: LoadedModel) -> Work[AttackOutput]:
        weights = yield from tuning.of(context, model)
        return (yield from redraw(context, model.with_weights(weights), budgets))

    return run


def stacked_lora(budgets: Budgets) -> Attack:
    """Describe a LoRA that others trained on the untouched model, stacked on the edited one."""
    rate, batch = budgets.lora_rate, budgets.relearn_batch
    pictures, steps = budgets.benign_images, budgets.benign_steps
    tuning = Tuning("images", pictures, steps, rate, batch, budgets.lora_rank)

    def run(context: AuditContext, model: LoadedModel) -> Work[AttackOutput]:
        untouched = context.models["untouched"]
        changed = yield from tuning.of(context, untouched)
        base, mine = untouched.weights, model.weights
        stacked = {name: mine[name] + (w - base[name]) for name, w in changed.items()}
        strike = yield from redraw(context, model.with_weights(stacked), budgets)
        moved = sum(float((w - base[n]).square().sum()) for n, w in changed.items())
        whole = sum(float(base[n].float().square().sum()) for n in changed)
        notes = {"relative_norm": round((moved / max(whole, 1e-12)) ** 0.5, 4)}
        return AttackOutput(strike.latents, strike.prompts, notes)

    source = "everyday use: a LoRA of other things, made for the untouched model"
    return tuning.attack("stacked_lora", "Another LoRA stacked on top", "static", source, run)


def harmless(context: AuditContext, count: int) -> Work[ReferenceImages]:
    """Draw other things with the untouched model."""

    def make() -> Work[ReferenceImages]:
        shots = retained_shots(context.topic, "benign", count, context.seed)
        latents = yield from paint_shots(context.models["untouched"], shots, context.settings)
        return ReferenceImages(latents, shots, len(shots))

    return (yield from context.keep(("benign", count), make))


def redraw(context: AuditContext, model: LoadedModel, budgets: Budgets) -> Work[AttackOutput]:
    """Ask a tampered model for the concept by its name."""
    shots = concept_shots(context.topic, "attack", budgets.judged, context.seed)
    latents = yield from paint_shots(model, shots, context.settings)
    return AttackOutput(latents, [shot.prompt for shot in shots])


Recipe = Callable[[Weights], tuple[Sequence[Tensor], Callable[[], dict[str, Tensor]]]]
"""From start weights to what is trained, and a way to read the weights it makes."""


def every_weight(weights: Weights) -> tuple[list[Tensor], Callable[[], dict[str, Tensor]]]:
    """Train all weights."""
    own = {name: w.detach().clone().requires_grad_() for name, w in weights.items()}
    return list(own.values()), lambda: own


def low_rank(rank: int, seed: int) -> Recipe:
    """Train W + B A on the attention projections (Hu et al. 2021, arXiv 2106.09685)."""

    def recipe(weights: Weights) -> tuple[list[Tensor], Callable[[], dict[str, Tensor]]]:
        generator = seeds.generator(seed)
        chosen = {n: w for n, w in weights.items() if n.endswith(SUFFIXES) and w.ndim == 2}
        chosen = chosen or {n: w for n, w in weights.items() if w.ndim == 2}
        downs, ups = {}, {}
        for name, w in chosen.items():
            a = torch.randn(rank, w.shape[1], generator=generator) / w.shape[1] ** 0.5
            downs[name] = a.to(w.device).requires_grad_()
            ups[name] = torch.zeros(w.shape[0], rank, device=w.device).requires_grad_()

        def read() -> dict[str, Tensor]:
            return {n: w + (ups[n] @ downs[n]).to(w.dtype) for n, w in chosen.items()}

        return [*downs.values(), *ups.values()], read

    return recipe


def tune(
    model: LoadedModel, shown: ReferenceImages, tuning: Tuning, recipe: Recipe, seed: int
) -> Work[dict[str, Tensor]]:
    """Fine-tune on pictures and their prompts; returns the weights, the model keeps its own."""
    start = {n: w.clone() if w.is_inference() else w for n, w in model.weights.items()}
    trained, read = recipe(start)
    adam = torch.optim.Adam(trained, lr=tuning.rate)
    generator = seeds.generator(seed)
    with torch.no_grad():
        cond = model.encoder.encode([shot.prompt for shot in shown.shots])
    cond = Conditioning(cond.context.clone(), None if cond.vector is None else cond.vector.clone())
    for _ in range(tuning.steps):
        order = torch.randperm(len(shown.shots), generator=generator)
        pick = order.repeat(-(-tuning.batch // len(order)))[: tuning.batch]
        t, x0 = draw_times(len(pick), generator), shown.latents[pick]
        noise = torch.randn(x0.shape, generator=generator)
        victim = model.with_weights({**start, **read()})
        loss = denoising_loss(victim, x0, t, noise, cond.select(pick)).mean()
        gradients = torch.autograd.grad(loss, trained, allow_unused=True)
        for weight, gradient in zip(trained, gradients, strict=True):
            weight.grad = gradient
        adam.step()
        yield 3 * len(pick)
    return {name: weight.detach() for name, weight in read().items()}
