"""Does a model know English: held-out words, and each dialect, the held-out one included.

python -m bench.zoo.language --model out/zoo/english.safetensors --name english
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from bench.world.quality import SETTINGS, rate
from bench.zoo import captions
from bench.zoo.words import HELD_OUT
from trust_engine.audit import Probe, look
from trust_engine.demo.judge import Judge, load_judge
from trust_engine.demo.vocabulary import BACKGROUNDS, OBJECTS, STYLES, Scene
from trust_engine.io.files import write_atomically
from trust_engine.models.load import LoadedModel, load_model

FIGURES = Path("bench/figures/language.json")


def words_shots(images: int) -> list[Probe]:
    """List `images` shots for each held-out word, styles and backgrounds in turn."""
    words = [(name, word) for name in OBJECTS for word in HELD_OUT[name]]
    return [
        Probe(word, _scene(name, index * images + i), 9_000_000 + index * images + i)
        for index, (name, word) in enumerate(words)
        for i in range(images)
    ]


def every_dialect() -> dict[str, captions.Dialect]:
    """Return the dialects of training, then those apart from it."""
    return {**captions.DIALECTS, **captions.VALIDATION, **captions.HELD_OUT}


def dialect_shots(dialect: str, images: int) -> list[Probe]:
    """List `images` shots of each object by its own word, in one dialect."""
    write = every_dialect()[dialect]
    rng, shots = np.random.default_rng(61), []
    for index, name in enumerate(name for name in OBJECTS for _ in range(images)):
        scene = _scene(name, index)
        text = write(rng, [name], scene)
        shots.append(Probe(name, scene, 9_500_000 + index, text))
    return shots


def _scene(name: str, index: int) -> Scene:
    background = BACKGROUNDS[index % len(BACKGROUNDS)]
    return Scene((name,), background, STYLES[index % len(STYLES)])


def measure(model: LoadedModel, judge: Judge, images: int) -> dict:
    """Measure how often words, and every dialect, draw what they ask for."""
    shots = words_shots(images)
    drawn = look(model, judge, shots, SETTINGS)[0]
    by_word: dict[str, list[bool]] = {}
    for shot, hit in zip(shots, drawn, strict=True):
        by_word.setdefault(shot.words, []).append(hit)
    known = [word for word, hits in by_word.items() if 2 * sum(hits) >= len(hits)]
    result: dict = {
        "held_out_words": rate(drawn),
        "words_drawn_at_least_half_the_time": rate([word in known for word in by_word]),
        "by_word": {word: f"{sum(hits)}/{len(hits)}" for word, hits in by_word.items()},
        "dialects": {},
    }
    for dialect in every_dialect():
        found = look(model, judge, dialect_shots(dialect, images), SETTINGS)
        kinds = ("object", "style", "background")
        result["dialects"][dialect] = {
            kind: rate(hits) for kind, hits in zip(kinds, found, strict=True)
        }
    return result


def main() -> None:
    """Measure a model and keep its figures under a name."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--name", help="the key in the JSON file (default: the model)")
    parser.add_argument("--images", type=int, default=2, help="a word, and an object x dialect")
    parser.add_argument("--json", type=Path, default=FIGURES)
    args = parser.parse_args()
    result = measure(load_model(args.model), load_judge(), args.images)
    print(json.dumps({k: v for k, v in result.items() if k != "by_word"}, indent=1))
    kept = json.loads(args.json.read_text("utf-8")) if args.json.exists() else {}
    kept[args.name or args.model] = result
    write_atomically(args.json, (json.dumps(kept, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
