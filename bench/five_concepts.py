"""The foundation's table: five development concepts x three seeds, with the default spec.

    python -m bench.five_concepts --json runs/five.json

Resumable: finished cells are read back from the JSON file, and diffs from runs/diffs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.trained import SINGLES, trained
from trust_engine.audit import audit
from trust_engine.demo.judge import load_judge
from trust_engine.model import LoadedModel, load_model

KEYS = ("ua", "synonyms", "ira", "cra_style", "cra_background")


def cell(model: LoadedModel, concept: str, seed: int, images: int) -> dict[str, Any]:
    """Unlearn and audit one concept with one seed."""
    diff, figures = trained(model, concept, seed)
    report = audit(model, load_judge(), [(diff, 1.0)], concept, images, seed)
    return {**report, "share": figures["changed"], "passes": figures["passes"]}


def summary(cells: dict[str, Any]) -> str:
    """Write one Markdown row a concept (mean over seeds) and a row of means."""
    lines = [
        "| concept | UA | synonyms | IRA rel. | style rel. | background rel. | changed | passes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows = []
    for concept in SINGLES:
        mine = [c for name, c in cells.items() if name.startswith(f"{concept}/")]
        if mine:
            rows.append([mean(figure(c, key) for c in mine) for key in (*KEYS, "share", "passes")])
            lines.append(row(concept, rows[-1]))
    if rows:
        lines.append(row("mean", [mean(column) for column in zip(*rows, strict=True)]))
    return "\n".join(lines)


def figure(report: dict[str, Any], key: str) -> float:
    """Read a figure; retention is relative to the untouched model."""
    if key in ("share", "passes"):
        return report[key]
    value = report[key]["value"]
    return value if key in ("ua", "synonyms") else value / report["untouched"][key]["value"]


def mean(values: Iterable[float]) -> float:
    """Average."""
    values = list(values)
    return sum(values) / len(values)


def row(name: str, values: list[float]) -> str:
    """Format a Markdown row."""
    shown = [f"{v:.3f}" for v in values[:5]] + [f"{values[5]:.2%}", f"{values[6]:.0f}"]
    return f"| {name} | " + " | ".join(shown) + " |"


def main() -> None:
    """Run the cells that are missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("runs/five.json"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=4)
    args = parser.parse_args()
    args.json.parent.mkdir(parents=True, exist_ok=True)
    cells = json.loads(args.json.read_text()) if args.json.exists() else {}
    model = load_model("demo")
    for seed in range(args.seeds):
        for concept in SINGLES:
            name = f"{concept}/{seed}"
            if name not in cells:
                cells[name] = cell(model, concept, seed, args.images)
                args.json.write_text(json.dumps(cells))
            shown = {k: round(figure(cells[name], k), 3) for k in (*KEYS, "share")}
            print(name, shown, flush=True)
    print(summary(cells))


if __name__ == "__main__":
    main()
