"""The quality floor of the demo model, over all 28 objects x 5 styles (`make quality`)."""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from trust_engine.audit import Probe, Rate, look, to_pixels
from trust_engine.demo.judge import load_judge
from trust_engine.demo.vocabulary import BACKGROUNDS, OBJECTS, STYLES, Scene, caption
from trust_engine.models.load import LoadedModel, load_model
from trust_engine.models.sampler import SamplerSettings

SETTINGS = SamplerSettings(steps=20, cfg=4.0)
FLOOR = {
    "object": 0.95,
    "worst_object": 0.80,
    "style": 0.95,
    "background": 0.97,
    "synonyms": 0.90,
    "pairs": 0.80,
}


class Pair(Probe):
    """A shot of two objects."""

    @property
    def prompt(self) -> str:
        """Return the caption, naming both."""
        return caption(self.scene.objects, self.scene.background, self.scene.style)


def singles(images: int, synonyms: bool) -> list[Probe]:
    """List `images` shots for each object x style, fixed seeds."""
    shots = []
    for o, (name, others) in enumerate(OBJECTS.items()):
        for s, style in enumerate(STYLES):
            for i in range(images):
                index = (o * len(STYLES) + s) * images + i
                words = others[(i + s) % len(others)] if synonyms else name
                scene = Scene((name,), BACKGROUNDS[index % len(BACKGROUNDS)], style)
                shots.append(Probe(words, scene, 2_000_000 + 100_000 * synonyms + index))
    return shots


def pairs(count: int) -> list[Probe]:
    """List shots of random pairs, fixed seeds."""
    rng = np.random.default_rng(12)
    shots: list[Probe] = []
    for i in range(count):
        names = tuple(str(n) for n in rng.choice(list(OBJECTS), 2, replace=False))
        scene = Scene(names, BACKGROUNDS[i % len(BACKGROUNDS)], STYLES[i % len(STYLES)])
        shots.append(Pair("", scene, 3_000_000 + i))
    return shots


def measure(
    model: LoadedModel, images: int, pair_count: int, settings: SamplerSettings = SETTINGS
) -> dict:
    """Measure every bound of the floor."""
    judge = load_judge()
    plain, named = singles(images, False), singles(max(1, images // 2), True)
    objects, style, background = look(model, judge, plain, settings)
    worst = {
        name: share(hit for hit, shot in zip(objects, plain, strict=True) if shot.words == name)
        for name in OBJECTS
    }
    both = look(model, judge, pairs(pair_count), settings)[0]
    figures = {
        "object": rate(objects),
        "style": rate(style),
        "background": rate(background),
        "synonyms": rate(look(model, judge, named, settings)[0]),
        "pairs": rate(both),
    }
    least = min(worst, key=lambda name: worst[name])
    figures["worst_object"] = {"value": worst[least], "name": least}
    return {"figures": figures, "per_object": worst}


def rate(hits: Sequence[bool]) -> dict:
    """Summarise hits with n and interval."""
    return Rate(sum(hits), len(hits)).to_dict()


def share(hits: Iterable[bool]) -> float:
    """Return the share of hits."""
    hits = list(hits)
    return round(sum(hits) / len(hits), 4)


def grid(model: LoadedModel, settings: SamplerSettings = SETTINGS) -> Image.Image:
    """Draw every object in every style, and a row of pairs."""
    rows = [
        [
            caption([name], BACKGROUNDS[(o + s) % len(BACKGROUNDS)], style)
            for o, name in enumerate(OBJECTS)
        ]
        for s, style in enumerate(STYLES)
    ]
    rows.append([shot.prompt for shot in pairs(len(OBJECTS))])
    return tiled(model, rows, 9_000, settings)


def draw_shuffled(model: LoadedModel, path: Path, seed: int, columns: int = 7) -> list[str]:
    """Draw every object once in a random order, for eyes that are not told; returns the prompts.

    Styles take turns, so that each has five or six of the objects.
    """
    rng, names = random.Random(str(seed)), list(OBJECTS)
    rng.shuffle(names)
    prompts = [
        caption([name], rng.choice(BACKGROUNDS), STYLES[i % len(STYLES)])
        for i, name in enumerate(names)
    ]
    rows = [prompts[i : i + columns] for i in range(0, len(prompts), columns)]
    shown = tiled(model, rows, 7_000 + 100 * seed)
    shown.resize((shown.width * 3 // 2, shown.height * 3 // 2), Image.Resampling.LANCZOS).save(path)
    return prompts


def tiled(
    model: LoadedModel,
    rows: Sequence[Sequence[str]],
    seed: int,
    settings: SamplerSettings = SETTINGS,
) -> Image.Image:
    """Draw rows of prompts, each with the next seed, as one picture."""
    prompts = [prompt for row in rows for prompt in row]
    batches = model.generate(prompts, range(seed, seed + len(prompts)), settings)
    pixels = np.concatenate([to_pixels(batch) for batch in batches])
    pixels = pixels.reshape(len(rows), -1, 128, 128, 3).transpose(0, 2, 1, 3, 4)
    return Image.fromarray(pixels.reshape(len(rows) * 128, -1, 3))


def main() -> int:
    """Print the figures beside their floor; exit 1 when one is missed."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--images", type=int, default=8, help="a object x style")
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--grid", type=Path, help="write a picture of all objects x styles")
    parser.add_argument(
        "--shuffled", type=Path, help="write a picture of all objects in a random order, no more"
    )
    parser.add_argument("--seed", type=int, default=11, help="of that order")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    model = load_model(args.model)
    if args.shuffled:
        for i, prompt in enumerate(draw_shuffled(model, args.shuffled, args.seed), 1):
            print(f"{i:2d} {prompt}")
        return 0
    if args.grid:
        grid(model).save(args.grid)
    result = measure(model, args.images, args.pairs)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    missed = 0
    for name, bound in FLOOR.items():
        figure = result["figures"][name]
        missed += figure["value"] < bound
        print(f"{name:14s} {figure['value']:.4f}  floor {bound:.2f}  {figure}")
    return int(missed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
