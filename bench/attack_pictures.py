"""Draw what attackers get of gun, seed 0, from three models: `python -m bench.attack_pictures`.

The attacks, at the benchmark's budget, on the default's, SalUn's and robust mode's model. What the
methods made and the attacks drew is kept in runs/attacked; delete it when the engine has changed.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from bench.rivals import CONCEPTS, FULL, edit_apart
from trust_engine.audit.attacks.catalogue import make_attack
from trust_engine.audit.checks.core import follow
from trust_engine.audit.context import AuditContext, paint_shots
from trust_engine.audit.drawing import to_pixels
from trust_engine.audit.judges.base import DemoJudge
from trust_engine.audit.probe_prompts import concept_shots
from trust_engine.audit.topic import demo_topic
from trust_engine.demo.judge import load_judge
from trust_engine.frontend.pictures import contact_sheet
from trust_engine.models.load import load_model

KEPT, OUT = Path("runs/attacked"), Path("docs/images/attacked.jpg")
CONCEPT, SEED = "gun", 0
METHODS = {"trust": "TRUST, default", "salun": "SalUn", "trust-scrub": "TRUST, robust"}
ASKED = "asked"
COLUMNS = {
    ASKED: "asked for by name",
    "textual_inversion_1": "a learned token",
    "benign_fine_tuning": "harmless fine-tuning",
    "relearning_lora": "a LoRA relearned",
    "relearning": "all weights relearned",
}
ACROSS = 2  # a cell shows 2 x 2 pictures
BUDGETS = replace(FULL.budgets, judged=ACROSS**2)


def drawn(context: AuditContext, column: str) -> Tensor:
    """Draw the concept's prompts, or let an attack draw them: latents (n, 4, h, w)."""
    if column == ASKED:
        shots = concept_shots(context.topic, "attack", BUDGETS.judged, context.seed)
        return follow(paint_shots(context.models["edited"], shots, context.settings), 1)
    attack = make_attack(column, BUDGETS)
    return follow(attack.run(context, context.models["edited"]), attack.passes).latents


def cells(context: AuditContext, method: str) -> list[Tensor]:
    """Return a method's cells, (3, 2 h, 2 w) in 0..1 each."""
    weights, row = KEPT / f"{method}.safetensors", []
    if not weights.exists():
        KEPT.mkdir(parents=True, exist_ok=True)
        edit_apart(method, CONCEPT, SEED, weights)
    model = context.models["untouched"].with_weights(load_file(str(weights)))
    context = context.with_edited(model)
    for column in COLUMNS:
        path = KEPT / f"{method}-{column}.pt"
        if not path.exists():
            torch.save(drawn(context, column), path)
        pixels = model.decode(torch.load(path, weights_only=True))
        lines = [torch.cat(list(pixels[i : i + ACROSS]), -1) for i in range(0, ACROSS**2, ACROSS)]
        row.append(torch.cat(lines, -2))
    return row


def main() -> None:
    """Show each method's pictures after each attack."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    model = load_model("demo", "cpu")
    models = {"untouched": model, "edited": model}
    judge, topic = DemoJudge(load_judge()), demo_topic(CONCEPTS[CONCEPT].words[0])
    context = AuditContext(models, judge, topic, FULL.sampler, SEED)
    rows = [
        (says, to_pixels(torch.stack(cells(context, method)))) for method, says in METHODS.items()
    ]
    sheet = contact_sheet(f'"{CONCEPT}" forgotten, then attacked', rows, list(COLUMNS.values()))
    sheet.save(OUT, quality=90)
    print(OUT)


if __name__ == "__main__":
    main()
