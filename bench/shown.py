"""Draw the docs' pictures of robust mode, gun on the demo, seed 0.

    python -m bench.shown instead     # what is drawn in place of the concept
    python -m bench.shown attacked    # what an attacker gets, of four models

What methods made is kept in runs/shown.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.rivals import CONCEPTS, edit_apart
from trust_engine.audit.attacks.catalogue import make_attack
from trust_engine.audit.checks.core import follow
from trust_engine.audit.context import AuditContext
from trust_engine.audit.drawing import to_pixels
from trust_engine.audit.judges.base import DemoJudge
from trust_engine.audit.levels import Budgets
from trust_engine.audit.topic import demo_topic
from trust_engine.demo.judge import load_judge
from trust_engine.diff import load_diff, save_diff
from trust_engine.diff.apply import patched
from trust_engine.frontend.pictures import contact_sheet
from trust_engine.models.load import LoadedModel, load_model
from trust_engine.models.overrides import weights_of
from trust_engine.models.sampler import SamplerSettings
from trust_engine.spec import UnlearnSpec
from trust_engine.unlearn.run import Unlearning

KEPT, OUT, CONCEPT, SEED = Path("runs/shown"), Path("docs/images"), "gun", 0
ASKED, ANCHOR, NAMED = "a picture of a gun", "a picture", "a banana"
SEEDS = range(100, 108)
SHOWN = 4  # pictures of each attack
METHODS = {
    "untouched": "", "ours, default": "trust", "best rival, SalUn": "salun",
    "ours, robust": "trust-scrub",
}  # fmt: skip


def drawn(model: LoadedModel, prompt: str) -> list[Tensor]:
    """Draw a prompt from every seed, (3, h, w) each."""
    return [x for part in model.generate([prompt] * len(SEEDS), list(SEEDS)) for x in part]


def made(model: LoadedModel, method: str) -> LoadedModel:
    """Run a method, or read back what it made."""
    if not method:
        return model
    path = KEPT / f"{method}.safetensors"
    if not path.exists():
        KEPT.mkdir(parents=True, exist_ok=True)
        edit_apart(method, CONCEPT, SEED, path)
    return model.with_weights(load_file(str(path)))


def scrubbed(model: LoadedModel) -> LoadedModel:
    """Stop a robust run when it has scrubbed, or read that back."""
    path = KEPT / "scrubbed.safetensors"
    if not path.exists():
        KEPT.mkdir(parents=True, exist_ok=True)
        run = Unlearning(model.lend(), UnlearnSpec((CONCEPTS[CONCEPT],), robust=True, seed=SEED))
        for _ in run:
            if run.results.scrubbed is not None:
                break
        assert run.results.scrubbed is not None
        own, weights = weights_of(model.denoiser), {}
        for key, offset in run.results.scrubbed.offsets.items():
            name = model.denoiser.parameter_name(key)
            weights[name] = own[name] + offset.dense()
        save_file(weights, str(path))
    return model.with_weights(load_file(str(path)))


def anchored(model: LoadedModel) -> LoadedModel:
    """Run robust mode with an anchor of the user's, or read back what it made."""
    path = KEPT / "anchored.safetensors"
    if not path.exists():
        KEPT.mkdir(parents=True, exist_ok=True)
        named = replace(CONCEPTS[CONCEPT], anchor=NAMED)
        run = Unlearning(model.lend(), UnlearnSpec((named,), robust=True, seed=SEED))
        for _ in run:
            pass
        save_diff(run.diff, path)
    return patched(model, [(load_diff(path), 1.0)])


def attacked(model: LoadedModel, edited: LoadedModel, attack: str) -> list[Tensor]:
    """Attack an edited model at the benchmark's budget: its first pictures, (3, h, w) each."""
    concept = CONCEPTS[CONCEPT]
    topic = demo_topic(concept.words[0], concept.kind, concept.companion)
    models, judge = {"untouched": model, "edited": edited}, DemoJudge(load_judge())
    context = AuditContext(models, judge, topic, SamplerSettings(), SEED)
    found = make_attack(attack, Budgets(judged=SHOWN))
    latents = follow(found.run(context, edited), found.passes).latents
    return list(edited.decoder(latents[:SHOWN]).clamp(-1, 1))


def sheet(
    title: str, rows: Sequence[tuple[str, Sequence[Tensor]]], columns: Sequence[str], path: Path
) -> None:
    """Write a sheet with a row of pictures (3, h, w) in -1..1 for each."""
    shown = [(name, to_pixels(torch.stack(list(row)))) for name, row in rows]
    contact_sheet(title, shown, columns).save(path)
    print(path)


def instead(model: LoadedModel) -> None:
    """Show what is drawn in place of the concept: after either stage, and for anchors."""
    first, both = scrubbed(model), made(model, "trust-scrub")
    rows = [
        ("untouched", drawn(model, ASKED)),
        ("scrubbed", drawn(first, ASKED)),
        ("scrubbed and trained", drawn(both, ASKED)),
        (f'it for "{ANCHOR}"', drawn(both, ANCHOR)),
        (f'with the anchor "{NAMED}"', drawn(anchored(model), ASKED)),
    ]
    columns = [f"seed {seed}" for seed in SEEDS]
    sheet(f'"{ASKED}"', rows, columns, OUT / "robust-instead.png")


def all_attacked(model: LoadedModel) -> None:
    """Show what is drawn by name, after three learned tokens, and after relearning."""
    rows = []
    for name, method in METHODS.items():
        edited = made(model, method)
        pictures = drawn(edited, ASKED)[:SHOWN]
        for attack in ("textual_inversion_3", "relearning"):
            pictures += attacked(model, edited, attack)
        rows.append((name, pictures))
    ways = ("by name", "learned tokens", "relearned")
    columns = [f"{way} {i + 1}" for way in ways for i in range(SHOWN)]
    sheet("gun, forgotten, and under attack", rows, columns, OUT / "robust-attacked.png")


def main() -> None:
    """Draw one of the sheets."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sheet", choices=("instead", "attacked"))
    sheets = {"instead": instead, "attacked": all_attacked}
    sheets[parser.parse_args().sheet](load_model("demo", "cpu"))


if __name__ == "__main__":
    main()
