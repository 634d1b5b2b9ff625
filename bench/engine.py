"""The engine's tables: every kind of concept, and ablations one factor at a time.

    python -m bench.engine kinds            # the table of what must be reached
    python -m bench.engine held-out         # the same on concepts that nothing was chosen by
    python -m bench.engine ablations        # on gun and baby+beer
    python -m bench.engine kinds --show     # print what there is

Resumable cell by cell: figures are kept in bench/figures/engine.json, diffs in runs/diffs. A cell
of another model, judge, engine, spec or number of pictures is made again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.measure import GONE, Known, measure, relative
from bench.trained_diffs import CONCEPTS, EVERY, HELD_OUT, engine_mark, trained
from trust_engine.audit.metrics.intervals import Rate
from trust_engine.demo.judge import ASSETS, load_judge
from trust_engine.diff import fingerprint
from trust_engine.io.files import write_atomically
from trust_engine.models.load import LoadedModel, load_model
from trust_engine.spec import Ablation, UnlearnSpec

ABLATED = ("gun", "baby+beer")
BOUNDED = {"schedule": "bounded"}  # the paper's: by z-scores, from the start
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "shrinking, taken once": {"refresh": 0},
    "bounded": BOUNDED,
    "bounded, every 5": {**BOUNDED, "refresh": 5},
    "bounded, static": {**BOUNDED, "refresh": 0},
    "CIP": {"objective": "cip"},
    "neither": {"objective": "none"},
    "global": {"engine": "global", "steps": 100},
    "saliency noise": {"saliency": "noise"},
    "saliency clip": {"saliency": "clip"},
    "bounded, z per projection": {**BOUNDED, "ablation": Ablation(pool="projection")},
    "rows": {"ablation": Ablation(granularity="row")},
    "heads": {"ablation": Ablation(granularity="head"), "budget": 0.1},
    "random mask": {"ablation": Ablation(selection="random")},
    "all entries": {"ablation": Ablation(selection="all")},
    "zeroing": {"objective": "zero"},
    **{f"bounded, xi {xi:g}": {**BOUNDED, "xi": xi} for xi in (0.0, 2.0, 3.0)},
    **{f"budget {share:g}": {"budget": share} for share in (0.003, 0.01, 0.1)},
    **{f"lambda {lam:g}": {"lam": lam} for lam in (0.01, 1.0)},
}
STORE = Path("bench/figures/engine.json")


def cell(model: LoadedModel, name: str, variant: str, seed: int, images: int) -> dict[str, Any]:
    """Unlearn one concept once and measure what became of it."""
    diff, figures = trained(model, name, seed, variant, VARIANTS[variant])
    measured = measure(model, load_judge(), [(diff, 1.0)], EVERY[name], images, seed)
    figures.pop("neurons")
    return {"figures": measured, **figures}


def stamp(model: LoadedModel, name: str, seed: int, images: int, variant: str | None) -> str:
    """Hash what a cell's figures hang on; variant None: the untouched model."""
    parts = [
        fingerprint(model.denoiser),
        str(images),
        hashlib.sha256((ASSETS / "judge.safetensors").read_bytes()).hexdigest(),
    ]
    if variant is not None:
        parts.append(engine_mark())
        parts.append(UnlearnSpec((EVERY[name],), seed=seed, **VARIANTS[variant]).to_json())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def valid(cells: Mapping[str, Any], model: LoadedModel, images: int) -> dict[str, Any]:
    """Leave out what was measured on something else than today's."""
    kept = {}
    for key, found in cells.items():
        variant, name, seed = key.rsplit("/", 2)
        which = None if variant == "untouched" else variant
        known = variant in ("untouched", *VARIANTS) and name in EVERY
        if known and found["stamp"] == stamp(model, name, int(seed), images, which):
            kept[key] = found
    return kept


def table(cells: Mapping[str, Any], names: list[str], variants: list[str]) -> str:
    """Write Markdown: a row for each concept and variant, over its seeds.

    What should be gone has 95 % Wilson intervals over all pictures; what stays is relative to the
    untouched model's, and with E the mean of the seeds and their lowest and highest.
    """
    by_kind: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name in names:
        for variant in variants:
            keys = [key for key in cells if key.startswith(f"{variant}/{name}/")]
            if not keys:
                continue
            rows = [cells[key] for key in keys]
            kept = [
                relative(cells[key]["figures"], cells[f"untouched/{name}/{key[-1]}"]["figures"])
                for key in keys
            ]
            columns = tuple(kept[0])
            shown = [
                _gone([row["figures"][c] for row in rows]) if c in GONE
                else _spread([k[c] for k in kept], 2)
                for c in columns
            ]  # fmt: skip
            shown += [_spread([row[k] for row in rows], 3) for k in ("effect", "harm")]
            shown.append(f"{mean([row['changed'] for row in rows]):.2%}")
            shown.append(f"{mean([row['passes'] for row in rows]):.0f}")
            label = [name, variant, str(len(rows))]
            by_kind[columns].append("| " + " | ".join([*label, *shown]) + " |")
    parts = []
    for columns, lines in by_kind.items():
        heads = ["concept", "variant", "seeds", *columns, "E left", "harm", "changed", "passes"]
        ruler = "|".join("---" for _ in heads)
        parts.append("\n".join([f"| {' | '.join(heads)} |", f"|{ruler}|", *lines]))
    return "\n\n".join(parts)


def _gone(figures: list[dict[str, Any]]) -> str:
    """Pool the seeds' pictures and write how many are without it."""
    n = sum(f["n"] for f in figures)
    rate = Rate(n - round(sum(f["value"] * f["n"] for f in figures)), n)
    found = rate.to_dict()
    return f"{rate.value:.3f} ({found['low']:.2f}-{found['high']:.2f})"


def _spread(values: list[float], digits: int) -> str:
    """Write the mean, and the lowest and highest where there are several."""
    ends = f" ({min(values):.{digits}f}-{max(values):.{digits}f})" if len(values) > 1 else ""
    return f"{mean(values):.3f}{ends}"


def mean(values: list[float]) -> float:
    """Average."""
    return sum(values) / len(values)


def main() -> None:
    """Run the cells that are missing, save each, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("kinds", "held-out", "ablations"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--only", nargs="+", help="some of the concepts or variants")
    parser.add_argument("--show", action="store_true")
    args = parser.parse_args()
    wholes = {"kinds": list(CONCEPTS), "held-out": list(HELD_OUT), "ablations": list(ABLATED)}
    names = wholes[args.what]
    variants = list(VARIANTS) if args.what == "ablations" else ["default"]
    if args.only:
        names = [n for n in names if n in args.only] or names
        variants = [v for v in variants if v in args.only] or variants
    STORE.parent.mkdir(parents=True, exist_ok=True)
    model, judge = load_model("demo"), load_judge()
    cells = json.loads(STORE.read_text()) if STORE.exists() else {}
    cells = valid(cells, model, args.images)
    wanted = [(s, n, v) for s in range(args.seeds) for n in names for v in variants]
    known: Known = {}
    for seed, name, variant in [] if args.show else wanted:
        base, key = f"untouched/{name}/{seed}", f"{variant}/{name}/{seed}"
        if base not in cells:
            rates = measure(model, judge, [], EVERY[name], args.images, seed, known)
            mark = stamp(model, name, seed, args.images, None)
            cells[base] = {"figures": rates, "stamp": mark}
        if key not in cells:
            mark = stamp(model, name, seed, args.images, variant)
            cells[key] = {**cell(model, name, variant, seed, args.images), "stamp": mark}
            write_atomically(STORE, (json.dumps(cells, indent=0) + "\n").encode())
        found = relative(cells[key]["figures"], cells[base]["figures"])
        shown = {k: round(v, 3) for k, v in found.items()}
        print(key, shown, cells[key]["seconds"], "s", flush=True)
    print(table(cells, names, variants))


if __name__ == "__main__":
    main()
