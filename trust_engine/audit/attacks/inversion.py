"""Textual inversion: learn token embeddings that make the victim draw the concept again."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import seeds
from ...models.contract import Conditioning
from ...models.load import LoadedModel
from ..context import AuditContext
from ..drawing import Work, paint
from ..levels import Budgets
from ..probe_prompts import Probe, around, concept_shots
from ..token_space import TokenSpace, embed, fill, token_space
from .base import Attack, AttackOutput, denoising_loss, draw_times

SOURCE = "Gal et al. 2022, arXiv 2208.01618; as an attack: Pham et al. 2023, arXiv 2308.01508"
SEEDWORD = "thing"


def textual_inversion(tokens: int, budgets: Budgets) -> Attack:
    """Describe the attack with so many learned tokens."""
    steps, batch = budgets.inversion_steps, budgets.inversion_batch
    budget = {
        "tokens": tokens,
        "adam_steps": steps,
        "rate": budgets.inversion_rate,
        "batch": batch,
        "bait": budgets.bait,
    }

    def run(context: AuditContext, model: LoadedModel) -> Work[AttackOutput]:
        space = token_space(model.encoder)
        assert space is not None  # attacks that need text are not planned without it
        learned = yield from invert(context, model, space, tokens, budgets)
        shots = concept_shots(context.topic, "attack", budgets.judged, context.seed)
        with torch.no_grad():
            cond = woven(context, space, shots, learned)
        latents = yield from paint(model, cond, [s.seed for s in shots], context.settings)
        names = " ".join(f"<v{i + 1}>" for i in range(tokens))
        shown = [f" {names} ".join(around(context.topic, shot)).strip() for shot in shots]
        return AttackOutput(latents, shown, {"norm": round(float(learned.norm(dim=1).mean()), 4)})

    return Attack(
        name=f"textual_inversion_{tokens}",
        title=f"Textual inversion, {tokens} learned token{'s' * (tokens > 1)}",
        stance="adaptive",
        source=SOURCE,
        budget=budget,
        passes=3 * steps * batch,
        run=run,
        needs_text=True,
    )


def invert(
    context: AuditContext, model: LoadedModel, space: TokenSpace, tokens: int, budgets: Budgets
) -> Work[Tensor]:
    """Learn embeddings (tokens, d) that minimise the victim's denoising loss on the bait."""
    bait = yield from context.bait(budgets.bait)
    model, steps = model.differentiable(), budgets.inversion_steps
    generator = seeds.generator(context.seed)
    start = space.table[space.tokens(SEEDWORD)[0]].float()
    spread = float(space.table.float().std())
    jitter = torch.randn(tokens, len(start), generator=generator) * spread * (tokens > 1)
    learned = (start + jitter.to(start.device)).clone().requires_grad_()
    adam = torch.optim.Adam([learned], lr=budgets.inversion_rate)
    for _ in range(steps):
        pick = torch.randint(len(bait.shots), (budgets.inversion_batch,), generator=generator)
        t, x0 = draw_times(len(pick), generator), bait.latents[pick]
        noise = torch.randn(x0.shape, generator=generator)
        cond = woven(context, space, [bait.shots[int(i)] for i in pick], learned)
        loss = denoising_loss(model, x0, t, noise, cond).mean()
        (learned.grad,) = torch.autograd.grad(loss, [learned])
        adam.step()
        yield 3 * len(pick)  # a backward pass costs about two forward ones
    return learned.detach()


def woven(
    context: AuditContext, space: TokenSpace, shots: list[Probe], learned: Tensor
) -> Conditioning:
    """Encode concept shots with learned rows (k, d) where the concept's words were."""
    rows = []
    for shot in shots:
        before, after = around(context.topic, shot)
        ids, slots = fill(space, before, len(learned), after)
        row = embed(space, ids)
        rows.append(torch.cat([row[: slots.start], learned, row[slots.stop :]]))
    return space.encode(torch.stack(rows))
