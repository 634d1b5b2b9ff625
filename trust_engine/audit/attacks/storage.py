"""Does the edit survive being stored in fewer bits? Rounding is no attack, but it happens."""

from __future__ import annotations

import torch

from ...models.load import LoadedModel
from ..context import AuditContext, paint_shots
from ..drawing import Work
from ..levels import Budgets
from ..probe_prompts import concept_shots
from .base import Attack, AttackOutput

KINDS = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8": torch.float8_e4m3fn,
}


def storage(kind: str, budgets: Budgets) -> Attack:
    """Describe storing the patched UNet as fp16, bf16 or fp8 (e4m3fn) and reading it back."""

    def run(context: AuditContext, model: LoadedModel) -> Work[AttackOutput]:
        rounded = {
            name: weight.to(KINDS[kind]).to(weight.dtype)
            for name, weight in model.weights.items()
            if weight.is_floating_point()
        }
        shots = concept_shots(context.topic, "attack", budgets.judged, context.seed)
        latents = yield from paint_shots(model.with_weights(rounded), shots, context.settings)
        return AttackOutput(latents, [shot.prompt for shot in shots])

    return Attack(
        name=f"storage_{kind}",
        title=f"Stored as {kind}",
        stance="static",
        source="everyday use: checkpoints are shipped rounded",
        budget={"dtype": str(KINDS[kind]).removeprefix("torch."), "weights": "all of the UNet"},
        passes=0,
        run=run,
    )
