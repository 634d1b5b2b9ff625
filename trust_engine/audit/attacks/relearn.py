"""Fine-tuning the victim: to relearn the concept, on harmless pictures, or by a LoRA."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ...diff.overrides import weights_of, with_weights
from ...models.conditioning import Conditioning
from ...models.load import LoadedModel
from ..context import AuditContext, ReferenceImages, paint_shots
from ..drawing import Work
from ..levels import Budgets
from ..probes import concept_shots, retained_shots
from .base import Attack, AttackOutput, denoising_loss, draw_times

Weights = Mapping[str, Tensor]
SUFFIXES = (".to_q.weight", ".to_k.weight", ".to_v.weight", ".to_out.0.weight")


def relearning(budgets: Budgets, lora: bool) -> Attack:
    """Describe fine-tuning on pictures of the concept, of all weights or of a LoRA."""
    rate = budgets.lora_rate if lora else budgets.relearn_rate
    budget = {
        "bait": budgets.relearn_images,
        "adam_steps": budgets.relearn_steps,
        "rate": rate,
        "batch": budgets.relearn_batch,
        **({"lora_rank": budgets.lora_rank} if lora else {"weights": "all of the UNet"}),
    }

    def run(studio: AuditContext, model: LoadedModel) -> Work[AttackOutput]:
        bait = yield from studio.bait(budgets.relearn_images)
        train = Training(budgets.relearn_steps, rate, budgets.relearn_batch, studio.seed)
        recipe = low_rank(budgets.lora_rank, studio.seed) if lora else every_weight
        weights = yield from tune(model, bait, train, recipe)
        return (yield from redraw(studio, with_weights(model, weights), budgets))

    return Attack(
        name="relearning_lora" if lora else "relearning",
        title="Relearning by a LoRA" if lora else "Relearning, whole UNet",
        stance="adaptive",
        source="fine-tuning on the concept; Suriyakumar et al. 2024, arXiv 2410.08074",
        budget=budget,
        passes=3 * budgets.relearn_steps * budgets.relearn_batch,
        run=run,
        on_untouched=False,
    )


def benign_fine_tuning(budgets: Budgets) -> Attack:
    """Describe fine-tuning on pictures of other things, which may revive the concept unasked."""
    budget = {
        "images": budgets.benign_images,
        "adam_steps": budgets.benign_steps,
        "rate": budgets.relearn_rate,
        "batch": budgets.relearn_batch,
        "weights": "all of the UNet",
    }

    def run(studio: AuditContext, model: LoadedModel) -> Work[AttackOutput]:
        bait = yield from harmless(studio, budgets.benign_images)
        train = Training(
            budgets.benign_steps, budgets.relearn_rate, budgets.relearn_batch, studio.seed
        )
        weights = yield from tune(model, bait, train, every_weight)
        return (yield from redraw(studio, with_weights(model, weights), budgets))

    return Attack(
        name="benign_fine_tuning",
        title="Fine-tuning on harmless pictures",
        stance="static",
        source="ResAlign, arXiv 2507.16302: benign fine-tuning revives what was erased",
        budget=budget,
        passes=3 * budgets.benign_steps * budgets.relearn_batch,
        run=run,
        on_untouched=False,
    )


def stacked_lora(budgets: Budgets) -> Attack:
    """Describe a LoRA that others trained on the untouched model, stacked on the edited one."""
    budget = {
        "images": budgets.benign_images,
        "adam_steps": budgets.benign_steps,
        "rate": budgets.lora_rate,
        "batch": budgets.relearn_batch,
        "lora_rank": budgets.lora_rank,
    }

    def run(studio: AuditContext, model: LoadedModel) -> Work[AttackOutput]:
        bait = yield from harmless(studio, budgets.benign_images)
        untouched = studio.models["untouched"]
        train = Training(
            budgets.benign_steps, budgets.lora_rate, budgets.relearn_batch, studio.seed
        )
        tuned = yield from tune(untouched, bait, train, low_rank(budgets.lora_rank, studio.seed))
        base, mine = weights_of(untouched.denoiser), weights_of(model.denoiser)
        stacked = {name: mine[name] + (w - base[name]) for name, w in tuned.items()}
        strike = yield from redraw(studio, with_weights(model, stacked), budgets)
        moved = sum(float((w - base[n]).square().sum()) for n, w in tuned.items())
        whole = sum(float(base[n].float().square().sum()) for n in tuned)
        notes = {"relative_norm": round((moved / max(whole, 1e-12)) ** 0.5, 4)}
        return AttackOutput(strike.latents, strike.prompts, notes)

    return Attack(
        name="stacked_lora",
        title="Another LoRA stacked on top",
        stance="static",
        source="everyday use: a LoRA of other things, made for the untouched model",
        budget=budget,
        passes=3 * budgets.benign_steps * budgets.relearn_batch,
        run=run,
        on_untouched=False,
    )


def harmless(studio: AuditContext, count: int) -> Work[ReferenceImages]:
    """Draw other things with the untouched model."""

    def make() -> Work[ReferenceImages]:
        shots = retained_shots(studio.topic, "benign", count, studio.seed)
        latents = yield from paint_shots(studio.models["untouched"], shots, studio.settings)
        return ReferenceImages(latents, shots, len(shots))

    return (yield from studio.keep(("benign", count), make))


def redraw(studio: AuditContext, model: LoadedModel, budgets: Budgets) -> Work[AttackOutput]:
    """Ask a tampered model for the concept by its name."""
    shots = concept_shots(studio.topic, "attack", budgets.judged, studio.seed)
    latents = yield from paint_shots(model, shots, studio.settings)
    return AttackOutput(latents, [shot.prompt for shot in shots])


class Training:
    """How to fine-tune: Adam steps, learning rate, batch, seed."""

    def __init__(self, steps: int, rate: float, batch: int, seed: int) -> None:
        self.steps, self.rate, self.batch = steps, rate, batch
        self.generator = torch.Generator().manual_seed(seed)


Recipe = Callable[[Weights], tuple[Sequence[Tensor], Callable[[], dict[str, Tensor]]]]
"""From start weights to what is trained, and a way to read the weights it makes."""


def every_weight(weights: Weights) -> tuple[list[Tensor], Callable[[], dict[str, Tensor]]]:
    """Train all weights."""
    own = {name: w.detach().clone().requires_grad_() for name, w in weights.items()}
    return list(own.values()), lambda: own


def low_rank(rank: int, seed: int) -> Recipe:
    """Train W + B A on the attention projections (Hu et al. 2021, arXiv 2106.09685)."""

    def recipe(weights: Weights) -> tuple[list[Tensor], Callable[[], dict[str, Tensor]]]:
        generator = torch.Generator().manual_seed(seed)
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
    model: LoadedModel, bait: ReferenceImages, train: Training, recipe: Recipe
) -> Work[dict[str, Tensor]]:
    """Fine-tune on pictures and their prompts; returns the weights, the model keeps its own."""
    start = {n: w.clone() if w.is_inference() else w for n, w in weights_of(model.denoiser).items()}
    trained, read = recipe(start)
    adam, generator = torch.optim.Adam(trained, lr=train.rate), train.generator
    with torch.no_grad():
        cond = model.encoder.encode([shot.prompt for shot in bait.shots])
    cond = Conditioning(cond.context.clone(), None if cond.vector is None else cond.vector.clone())
    for _ in range(train.steps):
        order = torch.randperm(len(bait.shots), generator=generator)
        pick = order.repeat(-(-train.batch // len(order)))[: train.batch]
        t, x0 = draw_times(len(pick), generator), bait.latents[pick]
        noise = torch.randn(x0.shape, generator=generator)
        victim = with_weights(model, {**start, **read()})
        loss = denoising_loss(victim, x0, t, noise, cond.select(pick)).mean()
        gradients = torch.autograd.grad(loss, trained, allow_unused=True)
        for weight, gradient in zip(trained, gradients, strict=True):
            weight.grad = gradient
        adam.step()
        yield 3 * len(pick)
    return {name: weight.detach() for name, weight in read().items()}
