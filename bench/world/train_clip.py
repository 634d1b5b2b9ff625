"""Stage 3: text and image towers together, with the sigmoid contrastive loss of SigLIP.

Every caption of a batch is scored against every picture of it, and the label is whether the
caption is *true* of the picture: with few objects, "wrong" pairs are often true by chance.
A linear probe that both towers share, dropped afterwards, must read objects, style and background
from the embeddings: it makes the first thousand steps several times faster.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.world.pace import Pace
from bench.world.scenes import describe, draw, random_scene
from bench.world.training import RUNS, Stage, autocast, pick_device, to_tensor
from trust_engine.demo.vocabulary import BACKGROUNDS, OBJECTS, STYLES, Scene
from trust_engine.models.demo_clip import TEXT_CONFIG, TinyClip, tokenize

STEPS, BATCH, RATE = 2400, 96, 1.5e-3
ATTRIBUTES = (*OBJECTS, *STYLES, *BACKGROUNDS)
SHARPNESS = 10.0  # unit vectors are too short for a linear probe to be sure of anything


def attributes(what: Scene) -> Tensor:
    """Encode what a scene shows or a caption claims as a multi-hot vector."""
    named = {*what.objects, what.style, what.background}
    return torch.tensor([float(name in named) for name in ATTRIBUTES])


def is_true(claim: Scene, scene: Scene) -> bool:
    """Tell whether a caption's claim holds for a scene."""
    return (
        set(claim.objects) == set(scene.objects)
        and claim.background in (None, scene.background)
        and claim.style in (None, scene.style)
    )


def trimmed(texts: list[str]) -> Tensor:
    """Tokenize without the padding all rows share: a causal tower's end token cannot see it."""
    ids = tokenize(texts)
    longest = int((ids != ids[0, -1]).sum(1).max()) + 1
    return ids[:, :longest]


def near_miss(scene: Scene, rng: np.random.Generator) -> Scene:
    """Change one thing of a scene, so that each batch holds hard negatives."""
    other = random_scene(rng)
    part = rng.integers(3)
    if part == 0:
        return replace(scene, style=other.style)
    if part == 1:
        return replace(scene, background=other.background)
    kept = scene.objects[: int(rng.integers(0, 2))]
    return replace(scene, objects=tuple(dict.fromkeys((*kept, *other.objects)))[:2])


def main() -> None:
    """Train, or resume, and keep the averaged weights."""
    torch.manual_seed(3)
    device = pick_device()
    clip = TinyClip().to(device)
    probe = nn.Linear(TEXT_CONFIG["projection_dim"], len(ATTRIBUTES)).to(device)
    stage = Stage("clip", {"clip": clip, "probe": probe}, Pace(STEPS, RATE, decay=0.998))
    rng = np.random.default_rng((3, stage.step))

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        scenes = [random_scene(rng) for _ in range(BATCH // 2)]
        scenes += [near_miss(scene, rng) for scene in scenes]
        pixels = to_tensor(np.stack([draw(scene, rng) for scene in scenes]))
        texts, claims = zip(*(describe(scene, rng) for scene in scenes), strict=True)
        true = torch.tensor([[is_true(c, s) for s in scenes] for c in claims]).float()
        with autocast(device):
            words = clip.embed_text(trimmed(list(texts)).to(device))
            views = clip.image(pixels.to(device))
            read = probe(torch.cat([words, views]) * SHARPNESS).float().cpu()
            logits = clip.compare(words, views)
        logits = logits.float().cpu()
        each = F.binary_cross_entropy_with_logits(logits, true, reduction="none")
        named = torch.stack([attributes(what) for what in (*claims, *scenes)])
        probed = F.binary_cross_entropy_with_logits(read, named)
        recall = float(((logits > 0) & (true > 0)).sum() / true.sum())
        precision = float(((logits > 0) & (true > 0)).sum() / (logits > 0).sum().clamp(min=1))
        figures = {"recall": recall, "precision": precision, "probed": float(probed.detach())}
        return each.sum() / BATCH + 10 * probed, {k: round(v, 3) for k, v in figures.items()}

    for _ in stage.run(loss_of):
        pass
    torch.save(stage.averaged("clip"), RUNS / "clip.pt")


if __name__ == "__main__":
    main()
