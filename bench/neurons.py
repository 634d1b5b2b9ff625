"""Where concept neurons sit and move: three saliencies, a condition and its parts, layer by layer.

    python -m bench.neurons

A Jaccard overlap of 1 means the same entries; chance is what two random masks of these sizes
would share. Masks are taken at theta_0, without training; the last table follows one through it.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import combinations
from typing import cast

import torch
from torch import Tensor

from bench.engine import BOUNDED
from bench.trained_diffs import trained
from trust_engine.models.load import LoadedModel, load_model
from trust_engine.spec import ConceptSpec, Saliency, UnlearnSpec
from trust_engine.unlearn.mask import BoundedMask, overlap, share
from trust_engine.unlearn.run import Unlearning
from trust_engine.unlearn.saliency import AttentionSaliency, NoiseSaliency, averaged
from trust_engine.unlearn.theta_layout import Layout
from trust_engine.unlearn.word_knowledge import Knowledge

SOURCES = ("attention", "noise", "clip")
BUDGET = 0.03


def concept_mask(model: LoadedModel, concept: ConceptSpec, source: str) -> tuple[Tensor, Layout]:
    """Take a concept's neurons over the whole UNet from a source, the BUDGET's worth of them.

    Returns the mask (n,) over all q, k and v, and how they lie in it.
    """
    spec = UnlearnSpec(
        (concept,),
        engine="global",
        saliency=cast(Saliency, source),
        schedule="bounded",
        steps=1,
        xi=0.0,
        budget=BUDGET,
        objective="none",
        beta=0.0,
    )
    run = Unlearning(model.lend(), spec, knowledge=Knowledge())
    for report in run:
        if report.stage != "recording":
            break
    ground = run.ground
    assert ground is not None
    theta = ground.whole.base.clone().requires_grad_(True)
    if source == "attention":
        names = [key.rsplit(".to_", 1)[0] for key in ground.whole.keys[::3]]
        layers = [ground.layer(name) for name in names]
        saliency = averaged(AttentionSaliency(layers), theta)
    else:
        chosen = ground.clip_saliency() if source == "clip" else None
        saliency = averaged(chosen or NoiseSaliency(ground.whole), theta)
    layout = ground.whole.layout
    mask = BoundedMask(layout, spec, fixed=saliency)
    return mask.update(0, lambda: saliency, lambda: saliency), layout


def chance(a: Tensor, b: Tensor) -> float:
    """Tell the overlap of two random masks of these shares."""
    p, q = share(a), share(b)
    return p * q / (p + q - p * q)


def moves(model: LoadedModel) -> str:
    """Follow the bounded mask of gun through training: entries a layer, and which stayed."""
    neurons = trained(model, "gun", 0, "bounded", BOUNDED)[0].provenance["neurons"]
    lines = [
        "| layer | q: at first | at last | of both | k: at first | at last | of both "
        "| v: at first | at last | of both |",
        "|---" * 10 + "|",
    ]
    for layer in dict.fromkeys(key.rsplit(".to_", 1)[0] for key in neurons):
        cells = []
        for letter in "qkv":
            told = neurons[f"{layer}.to_{letter}"]
            shares = (told[when] / told["entries"] for when in ("first", "last"))
            kept = f"{told['overlap']:.2f}" if told["first"] or told["last"] else ""
            cells += [*(f"{share:.1%}" for share in shares), kept]
        lines.append(
            f"| {layer.removesuffix('.transformer_blocks.0.attn2')} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Print the tables."""
    model = load_model("demo")
    by_source = {s: concept_mask(model, ConceptSpec(("gun",)), s) for s in SOURCES}
    print("gun: overlap of the masks that the sources give\n")
    print("| sources | Jaccard | chance |\n|---|---|---|")
    for one, two in combinations(SOURCES, 2):
        a, b = by_source[one][0], by_source[two][0]
        print(f"| {one}, {two} | {overlap(a, b):.3f} | {chance(a, b):.3f} |")
    print("\nshare of a mask by projection\n\n| source | q | k | v |\n|---|---|---|---|")
    for source, (mask, layout) in by_source.items():
        letters: dict[str, int] = defaultdict(int)
        for i, part in enumerate(layout.split(mask)):
            letters["qkv"[i % 3]] += int(part.sum())
        shown = " | ".join(f"{letters[x] / sum(letters.values()):.2f}" for x in "qkv")
        print(f"| {source} | {shown} |")
    print("\nis a condition the intersection of its parts? (attention)\n")
    print("| condition | thing | background | the intersection | chance | of it inside |")
    print("|---|---|---|---|---|---|")
    for thing, ground in (("cat", "red"), ("dog", "blue")):
        phrase = f"on a {ground} background"
        asked = (
            ConceptSpec((thing,), "conditional", condition=phrase),
            ConceptSpec((thing,)),
            ConceptSpec((f"{ground} background",)),
        )
        whole, a, b = (concept_mask(model, concept, "attention")[0] for concept in asked)
        cut = a & b
        inside = share(cut & whole) / max(share(cut), torch.finfo().tiny)
        cells = [overlap(whole, a), overlap(whole, b), overlap(whole, cut), chance(whole, cut)]
        shown = " | ".join(f"{value:.3f}" for value in cells)
        print(f"| {thing} {phrase} | {shown} | {inside:.2f} |")
    print("\nwhere neurons move (gun, bounded mask, taken anew at every step)\n")
    print(moves(model))


if __name__ == "__main__":
    main()
