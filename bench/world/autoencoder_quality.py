"""How well the autoencoder keeps what the judge looks for, unseen objects included.

python -m bench.world.autoencoder_quality
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bench.world.scenes import draw
from bench.world.train_judge import labels
from bench.world.train_unet import LATTICE, load_codec
from bench.world.training import to_tensor
from trust_engine.audit import Rate
from trust_engine.demo.judge import Judge, load_judge
from trust_engine.demo.vocabulary import BACKGROUNDS, JUDGED, STYLES, UNSEEN, Scene


def every_single(names: tuple[str, ...]) -> list[Scene]:
    """List one scene for each object x style."""
    return [
        Scene((name,), BACKGROUNDS[(i + j) % len(BACKGROUNDS)], style)
        for i, name in enumerate(names)
        for j, style in enumerate(STYLES)
    ]


def score(judge: Judge, pixels: Tensor, scenes: list[Scene]) -> str:
    """Tell how often the judge sees the objects and the style."""
    objects, style, _ = labels(scenes)
    verdict = judge.look(pixels)
    seen = ((verdict.objects > 0.5) & objects.bool()).sum(1) == objects.sum(1)
    styled = verdict.style.argmax(1) == style
    rates = [Rate(int(hits.sum()), len(scenes)).to_dict() for hits in (seen, styled)]
    return f"object {rates[0]['value']:.3f}  style {rates[1]['value']:.3f}  n {len(scenes)}"


def main() -> None:
    """Print recognition of renders and of their reconstructions."""
    judge, codec, rng = load_judge(), load_codec(), np.random.default_rng(21)
    known = tuple(name for name in JUDGED if name not in UNSEEN)
    for label, names in (("known objects", known), ("cactus, violin", tuple(UNSEEN))):
        scenes = every_single(names)
        pixels = to_tensor(np.stack([draw(scene, rng, LATTICE) for scene in scenes]))
        with torch.no_grad():
            parts = [codec.decoder(codec.encoder(x)) for x in pixels.split(20)]
        print(f"{label:16s} renders          {score(judge, pixels, scenes)}")
        print(f"{label:16s} reconstructions  {score(judge, torch.cat(parts).clamp(-1, 1), scenes)}")


if __name__ == "__main__":
    main()
