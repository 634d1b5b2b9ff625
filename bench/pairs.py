"""Combinations: one run's diff, and the mean of three seeds' diffs, on the same pictures.

    python -m bench.pairs --seeds 1         # of the pictures; the diffs' seeds are always 0, 1, 2

A mean is what chaining the three at a third of the strength each gives. Resumable: runs/diffs holds
the diffs and bench/figures/pairs.json the figures. Cells of another model or engine are made again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.measure import Known, measure, relative
from bench.trained_diffs import PAIRS, by_chance, concept_of, engine_mark, trained
from trust_engine.demo.judge import load_judge
from trust_engine.diff import fingerprint
from trust_engine.io.files import write_atomically
from trust_engine.models.load import load_model

DRAWN = tuple(name for name, concept in by_chance().items() if concept.companion)
NAMES = (*PAIRS, *DRAWN)
WAYS = {"untouched": 0, "one run": 1, "mean of three": 3}
"""What is measured -> how many diffs are in it."""
STORE = Path("bench/figures/pairs.json")


def shown(cells: Mapping[str, Any]) -> list[str]:
    """Write a line for each way and cell that is measured, relative to the untouched model."""
    lines = []
    for key, figures in cells.items():
        way, name, seed = key.split("/")
        if way != "untouched":
            kept = relative(figures, cells[f"untouched/{name}/{seed}"])
            told = ", ".join(f"{group} {value:.3f}" for group, value in kept.items())
            lines.append(f"{key}: {told}")
    return lines


def main() -> None:
    """Run the cells that are missing, save each, and print what there is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="of the pictures")
    parser.add_argument("--images", type=int, default=24, help="a group")
    parser.add_argument("--only", nargs="+", default=NAMES, choices=NAMES)
    args = parser.parse_args()
    model, judge = load_model("demo"), load_judge()
    mark = f"{fingerprint(model.denoiser)} {engine_mark()} {args.images}"
    found = json.loads(STORE.read_text("utf-8")) if STORE.exists() else {}
    cells = found["cells"] if found.get("mark") == mark else {}
    known: Known = {}
    for seed in range(args.seeds):
        for name in args.only:
            for way, count in WAYS.items():
                key = f"{way}/{name}/{seed}"
                if key in cells:
                    continue
                seeds = [seed] if count == 1 else range(count)
                diffs = [(trained(model, name, s)[0], 1 / count) for s in seeds]
                seen = known if way == "untouched" else None
                cells[key] = measure(model, judge, diffs, concept_of(name), args.images, seed, seen)
                kept = json.dumps({"mark": mark, "cells": cells}, indent=0) + "\n"
                write_atomically(STORE, kept.encode())
                print(f"{key}: measured", flush=True)
    print("\n".join(shown(cells)))


if __name__ == "__main__":
    main()
