"""Draw what robust mode puts in place of gun, seed 0: `python -m bench.robust_pictures`.

What the runs made is kept in runs/shown; delete it when the engine has changed.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from bench.rivals import CONCEPTS
from trust_engine.audit.drawing import to_pixels
from trust_engine.diff import load_diff, save_diff
from trust_engine.diff.apply import patched
from trust_engine.frontend.pictures import contact_sheet
from trust_engine.models.load import LoadedModel, load_model
from trust_engine.spec import UnlearnSpec
from trust_engine.unlearn.run import Unlearning

KEPT, OUT = Path("runs/shown"), Path("docs/images/robust-instead.jpg")
CONCEPT, SEED = "gun", 0
ASKED, ANCHOR, NAMED = "a picture of a gun", "a picture", "a banana"
SEEDS = range(100, 108)


def drawn(model: LoadedModel, prompt: str) -> list[Tensor]:
    """Draw a prompt from every seed, (3, h, w) each."""
    return [x for part in model.generate([prompt] * len(SEEDS), list(SEEDS)) for x in part]


def made(model: LoadedModel, name: str, anchor: str | None = None) -> LoadedModel:
    """Run robust mode, or read back what it made; "scrubbed" stops before the last stage."""
    path = KEPT / f"{name}.safetensors"
    if not path.exists():
        KEPT.mkdir(parents=True, exist_ok=True)
        concept = replace(CONCEPTS[CONCEPT], anchor=anchor)
        run = Unlearning(model.lend(), UnlearnSpec((concept,), robust=True, seed=SEED))
        for _ in run:
            if name == "scrubbed" and run.results.scrubbed is not None:
                break
        diff = run.last_good if name == "scrubbed" else run.diff
        save_diff(diff, path)
    return patched(model, [(load_diff(path), 1.0)])


def main() -> None:
    """Show what is drawn in place of the concept: after either stage, and for anchors."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    model = load_model("demo", "cpu")
    both = made(model, "both")
    rows = [
        ("untouched", drawn(model, ASKED)),
        ("scrubbed and relabelled", drawn(made(model, "scrubbed"), ASKED)),
        ("and then trained", drawn(both, ASKED)),
        (f'the same for "{ANCHOR}"', drawn(both, ANCHOR)),
        (f'with the anchor "{NAMED}"', drawn(made(model, "anchored", NAMED), ASKED)),
    ]
    shown = [(name, to_pixels(torch.stack(row))) for name, row in rows]
    columns = [f"seed {seed}" for seed in SEEDS]
    contact_sheet(f'"{ASKED}"', shown, columns).save(OUT, quality=85)
    print(OUT)


if __name__ == "__main__":
    main()
