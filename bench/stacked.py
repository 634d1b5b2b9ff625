"""Ten concepts: unlearned one by one, their diffs added up or merged, or all in one run.

    python -m bench.stacked --seeds 3

Every diff that is stacked is made on the untouched model, as a shared one is. Resumable: runs/diffs
holds the diffs and bench/figures/stacked.json the figures. A cell of another model, engine or
number of pictures is made again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from bench.engine import mean
from bench.trained_diffs import engine_mark, trained
from trust_engine.audit import Probe, Rate, look
from trust_engine.demo.judge import Judge, load_judge
from trust_engine.demo.vocabulary import BACKGROUNDS, OBJECTS, STYLES, Scene, caption
from trust_engine.diff import fingerprint, fitted
from trust_engine.diff.apply import patched
from trust_engine.io.files import write_atomically
from trust_engine.models.load import LoadedModel, load_model
from trust_engine.models.sampler import SamplerSettings

TEN = ("gun", "cat", "pizza", "baby", "car", "bomb", "guitar", "clown", "beer", "umbrella")
HEIGHTS = (1, 2, 5, 10)
FIRST_SEED = 6_000_000
WAYS = {"stacked": "", "fitted": "fitted ", "together": "together "}  # before a cell's height
TITLES = {"": "{} diffs", "fitted ": "{} diffs, merged by fit", "together ": "{} in one run"}
STORE = Path("bench/figures/stacked.json")


def shots(name: str, images: int, seed: int) -> list[Probe]:
    """Write pictures of one object on varied backgrounds in varied styles."""
    first = FIRST_SEED + 10_000 * seed + 100 * list(OBJECTS).index(name)
    found = []
    for i in range(images):
        ground, style = BACKGROUNDS[(i + i // 5) % len(BACKGROUNDS)], STYLES[i % len(STYLES)]
        scene = Scene((name,), ground, style)
        found.append(Probe(name, scene, first + i, caption([name], ground, style)))
    return found


def rates(model: LoadedModel, judge: Judge, images: int, seed: int) -> dict[str, Any]:
    """Rate every object, and style and background of those that must stay."""
    asked = [shot for name in OBJECTS for shot in shots(name, images, seed)]
    hits, styles, grounds = look(model, judge, asked, SamplerSettings())
    stays = [i for i, shot in enumerate(asked) if shot.words not in TEN]
    found: dict[str, Any] = {}
    for name in OBJECTS:
        own = [hit for hit, shot in zip(hits, asked, strict=True) if shot.words == name]
        found[name] = Rate.of(own).to_dict()
    found["style"] = Rate.of([styles[i] for i in stays]).to_dict()
    found["background"] = Rate.of([grounds[i] for i in stays]).to_dict()
    return found


def summary(cells: dict[str, Any], seeds: int) -> str:
    """Write a row for each height of the stack: means over seeds, retention relative."""
    lines = ["| | UA | IRA rel. | style rel. | background rel. |", "|---|---|---|---|---|"]
    for way, count in [(way, height) for way in WAYS.values() for height in HEIGHTS]:
        rows = []
        for seed in range(seeds):
            now, before = cells.get(f"{way}{count}/{seed}"), cells.get(f"0/{seed}")
            if now is None or before is None:
                continue
            gone = mean([1 - now[name]["value"] for name in TEN[:count]])
            kept = mean([now[name]["value"] for name in OBJECTS if name not in TEN])
            was = mean([before[name]["value"] for name in OBJECTS if name not in TEN])
            looks = [now[k]["value"] / before[k]["value"] for k in ("style", "background")]
            rows.append([gone, kept / was, *looks])
        if rows:
            shown = [f"{mean(list(column)):.3f}" for column in zip(*rows, strict=True)]
            lines.append(f"| {TITLES[way].format(count)} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run the cells that are missing, save each, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=10, help="an object")
    parser.add_argument("--heights", type=int, nargs="+", default=HEIGHTS, choices=HEIGHTS)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    args = parser.parse_args()
    STORE.parent.mkdir(parents=True, exist_ok=True)
    model, judge = load_model("demo"), load_judge()
    mark = f"{fingerprint(model.denoiser)} {engine_mark('diff/least_squares')} {args.images}"
    found = json.loads(STORE.read_text()) if STORE.exists() else {}
    cells = found["cells"] if found.get("mark") == mark else {}
    asked = [(WAYS[way], h) for way in args.ways for h in args.heights if h > 1 or not WAYS[way]]
    for seed in range(args.seeds):
        for way, height in [("", 0), *asked]:
            key = f"{way}{height}/{seed}"
            if key in cells:
                continue
            names = TEN[:height]
            made = [", ".join(names)] if way == WAYS["together"] else names
            diffs = [(trained(model, name, seed)[0], 1.0) for name in made]
            if way == WAYS["fitted"]:
                diffs = [(fitted(diffs, model.encoder, model.vocabulary, model.styles), 1.0)]
            here = patched(model, diffs) if diffs else model
            cells[key] = rates(here, judge, args.images, seed)
            kept = json.dumps({"mark": mark, "cells": cells}, indent=0) + "\n"
            write_atomically(STORE, kept.encode())
            print(f"{key}: measured", flush=True)
    print(summary(cells, args.seeds))


if __name__ == "__main__":
    main()
