"""Write the tables of the docs: results from bench/figures, settings from the engine.

    python -m bench.results             # fill every table in
    python -m bench.results --check     # say which is not what the figures say; exit status 1

A table stands between `<!-- table NAME -->` and `<!-- /table -->`; what stands there is replaced.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.baselines.catalogue import METHODS
from bench.baselines.table import UNTOUCHED, Cells, kept_shares, read_cells, title_of
from bench.engine import ABLATED, STORE, VARIANTS
from bench.measure import GONE, relative
from bench.pairs import DRAWN, WAYS
from bench.pairs import STORE as PAIRED
from bench.rivals import CHANCE, CURVES
from bench.rivals import CONCEPTS as RIVALLED
from bench.stacked import summary as several
from bench.trained_diffs import CONCEPTS, HELD_OUT, PAIRS
from bench.world.crisp import RUNGS
from trust_engine.audit.metrics.intervals import Rate
from trust_engine.settings import Setting
from trust_engine.spec import ABLATIONS, SETTINGS

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "docs/results", "docs/reference")
TABLE = re.compile(r"(<!-- table (?P<name>[^>]+?) -->\n).*?(<!-- /table -->)", re.DOTALL)
FIGURES = ROOT / "bench" / "figures"
WORDS = {
    "target": "gone", "both": "gone together", "under": "gone", "style": "gone",
    "synonyms": "gone by its synonyms", "others": "other things kept",
    "others_style": "styles kept", "others_background": "backgrounds kept",
    "first": "first kept alone", "second": "second kept alone",
    "sharing": "pairs that share one kept", "elsewhere": "kept elsewhere",
    "others_under": "others kept under it", "objects": "things kept in its place",
    "objects_elsewhere": "things kept in other styles", "other_styles": "other styles kept",
    "pairs": "things kept beside it",
}  # fmt: skip
"""What `bench.measure` calls a figure, in words."""
ATTACKS = {
    "textual_inversion_1": "one learned token", "textual_inversion_3": "three learned tokens",
    "relearning": "relearning", "relearning_lora": "relearning a LoRA",
    "benign_fine_tuning": "harmless fine-tuning", "unlearn_diff_atk": "UnlearnDiffAtk",
    "p4d": "P4D", "ring_a_bell": "Ring-A-Bell",
}  # fmt: skip
RELEARNED = {"relearning": "all weights", "relearning_lora": "a LoRA"}
SUMMARY = ("gun", "bomb")
"""The things of the table that sums up; styles and pairs have tables of their own."""
SCRUBBED = ("target", "synonyms", "others", "others_style", "others_background", "pairs")
"""The figures of scrubbing's trials on a thing."""
SHORT = ("trust", "trust-scrub", "uce", "esd-x", "salun")
"""The methods of the README's table."""


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a Markdown table."""
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def share(rate: Rate) -> str:
    """Write a share with its 95 % Wilson interval."""
    found = rate.to_dict()
    return f"{rate.value:.3f} ({found['low']:.2f}-{found['high']:.2f})" if rate.n else ""


def pooled(figures: Sequence[Mapping[str, Any] | None], absent: bool = False) -> Rate:
    """Add the pictures of several seeds up; absent: count those without it."""
    found = [f for f in figures if f and f["n"]]
    n = sum(f["n"] for f in found)
    hits = round(sum(f["value"] * f["n"] for f in found))
    return Rate(n - hits if absent else hits, n)


def mean(values: Sequence[float]) -> str:
    """Write the mean, and the lowest and highest of several."""
    if not values:
        return ""
    ends = f" ({min(values):.2f}-{max(values):.2f})" if len(values) > 1 else ""
    return f"{fmean(values):.3f}{ends}"


def engine(names: Sequence[str], variants: Sequence[str] = ("default",)) -> str:
    """Write cells of bench.engine: a row for each concept, or for each variant."""
    cells = json.loads((ROOT / STORE).read_text("utf-8"))
    several = len(variants) > 1
    rows: list[list[str]] = []
    heads: list[str] = []
    for name in names:
        for variant in variants:
            keys = [key for key in cells if key.startswith(f"{variant}/{name}/")]
            bases = [f"untouched/{name}/{key.rsplit('/', 1)[1]}" for key in keys]
            if not keys:
                continue
            measured = [cells[key]["figures"] for key in keys]
            kept = [relative(m, cells[b]["figures"]) for m, b in zip(measured, bases, strict=True)]
            columns = sorted(measured[0], key=list(WORDS).index)
            figures = [
                share(pooled([m[c] for m in measured], absent=True)) if c in GONE
                else mean([k[c] for k in kept])
                for c in columns
            ]  # fmt: skip
            left = [mean([cells[key][k] for key in keys]) for k in ("effect", "harm")]
            rows.append([variant if several else name, str(len(keys)), *figures, *left])
            heads = [*(WORDS[c] for c in columns), "effect left", "change of the rest"]
    return markdown(["setting" if several else "", "seeds", *heads], rows)


Pair = tuple[dict[str, Any], dict[str, Any] | None]
"""A cell, and the untouched model's of its concept and seed, if there is one."""


def rivals(name: str, store: Path = FIGURES / "rivals") -> str:
    """Write the cells of one concept: a row for each method."""
    cells = read_cells(store, name)
    return _rows("method", [(title_of(m), m, _based(cells, m)) for m in cells])


def by_chance(kind: str) -> str:
    """Write our cells of the concepts drawn by chance, a row each and all; "" without any."""
    rows: list[tuple[str, str, list[Pair]]] = []
    for method in ("trust", "trust-scrub"):
        found = {
            n: _based(read_cells(FIGURES / "rivals", n), method) for n in of_kind(CHANCE, kind)
        }
        own = [(f"{n}: {title_of(method)}", method, row) for n, row in found.items() if row]
        if len(own) > 1:
            own.append(("all of them", method, [pair for _, _, row in own for pair in row]))
        rows += own
    return _rows("concept and method", rows) if rows else ""


def _based(cells: Cells, method: str) -> list[Pair]:
    bases = {cell["seed"]: cell for cell in cells.get(UNTOUCHED, ())}
    return [(cell, bases.get(cell["seed"])) for cell in cells.get(method, ())]


def _rows(head: str, rows: Sequence[tuple[str, str, Sequence[Pair]]]) -> str:
    """Write rows of (title, method, its cells)."""
    every = [cell for _, _, row in rows for cell, _ in row]
    figures = [f for f in WORDS if any(f in cell["figures"] for cell in every)]
    attacks = [a for a in ATTACKS if any(a in cell["attacks"] for cell in every)]
    lines = []
    for title, method, row in rows:
        cells = [cell for cell, _ in row]
        kept = [kept_shares(cell, base) for cell, base in row if base]
        shown = [
            share(pooled([c["figures"].get(f) for c in cells], absent=True)) if f in GONE
            else "" if method == UNTOUCHED
            else mean([k[f] for k in kept if f in k])
            for f in figures
        ]  # fmt: skip
        stood = [
            share(pooled([c["attacks"].get(a, {}).get("asr") for c in cells])) for a in attacks
        ]
        lines.append([title, str(len(row)), *shown, *stood])
    heads = [*(WORDS[f] for f in figures), *(f"after {ATTACKS[a]}" for a in attacks)]
    return markdown([head, "seeds", *heads], lines)


def pairs() -> str:
    """Write bench.pairs: each combination by one run and by the mean of three, then all of them."""
    cells = json.loads((ROOT / PAIRED).read_text("utf-8"))["cells"]
    columns = ("both", "first", "second", "sharing", "others")
    rows = []
    for title, names in (*((n, (n,)) for n in (*PAIRS, *DRAWN)), ("all of them", (*PAIRS, *DRAWN))):
        for way in list(WAYS)[1:]:
            keys = [key for key in cells if any(key.startswith(f"{way}/{n}/") for n in names)]
            bases = [key.replace(way, UNTOUCHED, 1) for key in keys]
            kept = [relative(cells[k], cells[b]) for k, b in zip(keys, bases, strict=True)]
            gone = share(pooled([cells[key]["both"] for key in keys], absent=True))
            figures = [gone, *(mean([k[c] for k in kept]) for c in columns[1:])]
            if keys:
                rows.append(
                    [f"{title}: {way}", str(cells[keys[0]]["both"]["n"] * len(keys)), *figures]
                )
    return markdown(["combination", "pictures of it", *(WORDS[c] for c in columns)], rows)


def curves(concept: str) -> str:
    """Write what relearning brings back after more and more steps; "" where none is whole."""
    rows = []
    for method, row in read_cells(FIGURES / "rivals", concept).items():
        for name, steps in CURVES.items():
            whole = [cell for cell in row if set(steps.values()) <= set(cell["attacks"])]
            if whole:
                found = [[c["attacks"][a]["asr"] for c in whole] for a in steps.values()]
                shares = [share(pooled(one)) for one in found]
                rows.append([title_of(method), RELEARNED[name], str(len(whole)), *shares])
    heads = [f"{n} steps" for n in CURVES["relearning"]]
    return markdown(["method", "of", "seeds", *heads], rows) if rows else ""


def cost(name: str, store: Path) -> str:
    """Write what each method's run cost."""
    rows = []
    for method, row in read_cells(store, name).items():
        costs = [cell["cost"] for cell in row if "cost" in cell]
        if costs:
            size = fmean(c["bytes"] for c in costs)
            peaks = [c["peak_mb"] for c in costs if c["peak_mb"]]
            rows.append(
                [
                    METHODS[method].title,
                    f"{fmean(c['passes'] for c in costs):.0f}",
                    f"{fmean(c['seconds'] for c in costs):.0f}",
                    f"{fmean(peaks):.0f} MB" if peaks else "",
                    f"{fmean(c['changed'] for c in costs):.1%}",
                    f"{size / 1e6:.2f} MB",
                ]
            )
    heads = ("method", "UNet passes", "seconds", "peak memory", "weights changed", "diff")
    return markdown(heads, rows)


def summary() -> str:
    """Write one row a method over the things of SUMMARY: gone, kept, what attacks bring back."""
    found: dict[str, Cells] = {name: read_cells(FIGURES / "rivals", name) for name in SUMMARY}
    rows = []
    for method in METHODS:
        cells = [cell for name in SUMMARY for cell in found[name].get(method, ())]
        bases = {
            (name, base["seed"]): base
            for name in SUMMARY
            for base in found[name].get(UNTOUCHED, ())
        }
        pairs = [
            kept_shares(cell, bases[name, cell["seed"]])
            for name in SUMMARY
            for cell in found[name].get(method, ())
            if (name, cell["seed"]) in bases
        ]
        if not cells:
            continue
        attacked = [
            share(pooled([c["attacks"].get(a, {}).get("asr") for c in cells]))
            for a in ("textual_inversion_3", "relearning")
        ]
        rows.append(
            [
                METHODS[method].title,
                str(len(cells)),
                share(pooled([c["figures"].get("target") for c in cells], absent=True)),
                *(f"{fmean(k[f] for k in pairs if f in k):.3f}" for f in ("others", "pairs")),
                *attacked,
                f"{fmean(c['cost']['passes'] for c in cells):.0f}",
                f"{fmean(c['cost']['bytes'] for c in cells) / 1e6:.2f} MB",
            ]
        )
    heads = ("method", "runs", "gone", WORDS["others"], WORDS["pairs"],
             "after three learned tokens", "after relearning", "UNet passes", "diff")  # fmt: skip
    return markdown(heads, rows)


def short() -> str:
    """Write the summary's first rows and columns, for the README."""
    heads, ruler, *rows = [line.strip("| ").split(" | ") for line in summary().splitlines()]
    del ruler
    columns = [0, 2, 3, 4, 5, 7, 8]
    wanted = [METHODS[name].title for name in SHORT]
    shown = [[row[i] for i in columns] for row in rows if row[0] in wanted]
    return markdown([heads[i] for i in columns], shown)


def stacked() -> str:
    """Write the cells of bench.stacked."""
    cells = json.loads((FIGURES / "stacked.json").read_text("utf-8"))["cells"]
    return several(cells, 1 + max(int(key.rsplit("/", 1)[1]) for key in cells))


def scrubbing(name: str) -> str:
    """Write the trials of bench.scrub on one concept: a row for each setting."""
    folder = FIGURES / "scrub" / name / "0"
    cells = {p.stem: json.loads(p.read_text("utf-8")) for p in sorted(folder.glob("*.json"))}
    base = cells["untouched"]["figures"]
    rows = []
    for cell in sorted(cells.values(), key=lambda c: (c["title"] != "untouched", c["title"])):
        kept, cost = relative(cell["figures"], base), cell.get("cost", {})
        stood = {key: f"{rate['value']:.2f}" for key, rate in cell["attacks"].items()}
        tokens = [stood.get(f"textual_inversion_{n}", "") for n in (1, 3)]
        again = [stood.get(f"relearning {n}", "") for n in (5, 10, 20, 50)]
        rows.append(
            [
                cell["title"],
                *(f"{kept[column]:.3f}" if column in kept else "" for column in SCRUBBED),
                *(", ".join(one for one in found if one) for found in (tokens, again)),
                *(str(cost.get(key, "")) for key in ("passes", "directions")),
                f"{cost['harm']:.2f}" if cost else "",
            ]
        )
    heads = ["setting", *(WORDS[column] for column in SCRUBBED),
             "after one, three learned tokens", "after relearning", "UNet passes", "directions",
             "harm"]  # fmt: skip
    return markdown(heads, rows)


def scrubbed_predictions(name: str) -> str:
    """Write what settings of scrubbing do to predictions: a row for each setting."""
    kept = json.loads((FIGURES / "scrub" / name / "predictions-0.json").read_text("utf-8"))
    columns = ("concept's loss", "blank's loss", "concept", "rest", "beside", "harm")
    rows = [
        [title, *(f"{cell[c]:.4f}" if c in columns[2:5] else f"{cell[c]:.2f}" for c in columns),
         str(cell["directions"]), str(cell["passes"])]
        for title, cell in sorted(kept.items())
    ]  # fmt: skip
    heads = ("setting", "loss on the concept", "without its prompt", "moved: the concept",
             "other things", "those, the concept asked for, too", "harm", "directions",
             "UNet passes")  # fmt: skip
    return markdown(heads, rows)


def zoo() -> str:
    """Write what `bench.world.quality` finds of the zoo's models: a row for each."""
    kinds = ("object", "style", "background", "synonyms", "pairs")
    rows = []
    for path in sorted((FIGURES / "zoo").glob("*.json")):
        found = json.loads(path.read_text("utf-8"))["figures"]
        worst = found["worst_object"]
        shares = [share(pooled([found[kind]])) for kind in kinds]
        rows.append([f"`{path.stem}`", *shares, f"{worst['value']:.2f} ({worst['name']})"])
    return markdown(("model", *kinds, "worst object"), rows)


def language() -> str:
    """Write what `bench.zoo.language` finds: held-out words, and the object by dialect."""
    models = json.loads((FIGURES / "language.json").read_text("utf-8"))
    (heads,) = {tuple(found["dialects"]) for found in models.values()}
    rows = []
    for name, found in models.items():
        kinds = [found["held_out_words"], found["words_drawn_at_least_half_the_time"]]
        kinds += [found["dialects"][dialect]["object"] for dialect in heads]
        rows.append([f"`{name}`", *(share(pooled([kind])) for kind in kinds)])
    words = ("held-out words", "of them drawn at least every other time")
    return markdown(["model", *words, *(f"dialect: {name}" for name in heads)], rows)


def crisp() -> str:
    """Write bench.world.crisp's means: a row for each model."""
    rows = []
    for name, figures in json.loads((FIGURES / "crisp.json").read_text("utf-8")).items():
        found, floor = (figures["free"][kind]["mean"] for kind in ("distance", "floor"))
        rungs = [figures["ladder"][rung] for rung in figures["ladder"]]
        steps = [f"{r['pixels']['mean']:.3f}, {r['features']['mean']:.2f}" for r in rungs]
        rows.append([name, f"{found:.3f}", f"{floor:.3f}", f"{found - floor:.3f}", *steps])
    heads = ["model", "distance", "floor", "excess", "autoencoder alone"]
    return markdown([*heads, *(f"from step {t}" for t in RUNGS)], rows)


def crisp_objects() -> str:
    """Write the demo's excess over the floor and its ladder for each object, the worst first."""
    figures = json.loads((FIGURES / "crisp.json").read_text("utf-8"))["demo"]
    found, floor = (figures["free"][kind]["per_object"] for kind in ("distance", "floor"))
    far = [figures["ladder"][str(rung)]["features"]["per_object"] for rung in RUNGS]
    rows = [
        [name, f"{found[name] - floor[name]:.3f}", *(f"{rung[name]:.2f}" for rung in far)]
        for name in sorted(found, key=lambda name: floor[name] - found[name])
    ]
    return markdown(["object", "excess", *(f"from step {t}" for t in RUNGS)], rows)


def settings(known: Mapping[str, Setting] = SETTINGS) -> str:
    """Write the table of settings."""
    rows = []
    for name, about in known.items():
        accepted = ", ".join(about.options) or "yes or no"
        if "number" in about.kind:
            accepted = f"{about.low:g} to {about.high:g}" + ", whole" * ("whole" in about.kind)
        default = str(about.default)
        if about.kind == "switch":
            default = "yes" if about.default else "no"
        rows.append([f"`{name}`" + " †" * about.flag, default, accepted, about.help])
    return markdown(("setting", "default", "accepted", "meaning"), rows)


def of_kind(concepts: Mapping[str, Any], kind: str) -> list[str]:
    """List the names of the concepts of one kind."""
    return [name for name, concept in concepts.items() if concept.kind == kind]


def makers() -> dict[str, Callable[[], str]]:
    """Return what writes each table, by its name."""
    kinds = ("single", "combination", "conditional", "style")
    made: dict[str, Callable[[], str]] = {"summary": summary, "short": short, "several": stacked}
    for title, concepts in (("kinds", CONCEPTS), ("held out", HELD_OUT)):
        for kind in kinds:
            made[f"{title}: {kind}"] = lambda c=concepts, k=kind: engine(of_kind(c, k))  # type: ignore[misc]
    for name in ABLATED:
        made[f"ablations: {name}"] = lambda n=name: engine([n], list(VARIANTS))  # type: ignore[misc]
    for name in RIVALLED:
        made[f"methods: {name}"] = lambda n=name: rivals(n)  # type: ignore[misc]
        if curves(name):
            made[f"relearning: {name}"] = lambda n=name: curves(n)  # type: ignore[misc]
    for kind in kinds:
        if by_chance(kind):
            made[f"by chance: {kind}"] = lambda k=kind: by_chance(k)  # type: ignore[misc]
    for name in ("gun", "bomb"):
        if not (FIGURES / "scrub" / name / "0" / "untouched.json").exists():
            continue
        made[f"scrubbing: {name}"] = lambda n=name: scrubbing(n)  # type: ignore[misc]
    made["scrubbing: predictions"] = lambda: scrubbed_predictions("gun")
    quick = FIGURES / "rivals-quick"
    return made | {
        "quick": lambda: rivals("gun", quick),
        "quick: cost": lambda: cost("gun", quick),
        "pairs": pairs,
        "zoo": zoo,
        "language": language,
        "crisp": crisp,
        "crisp: objects": crisp_objects,
        "settings": settings,
        "settings: ablation": lambda: settings(ABLATIONS),
    }


def filled(text: str) -> str:
    """Fill the tables of a page in; raises SystemExit for one that nothing makes."""
    known = makers()

    def fill(found: re.Match[str]) -> str:
        name = found["name"]
        if name not in known:
            raise SystemExit(f"no table is called {name!r}; there are {', '.join(known)}")
        return f"{found[1]}\n{known[name]()}\n\n{found[3]}"

    return TABLE.sub(fill, text)


def pages() -> list[Path]:
    """List the pages that may hold tables."""
    found = [ROOT / page for page in PAGES]
    return [page for one in found for page in (sorted(one.glob("*.md")) if one.is_dir() else [one])]


def main() -> int:
    """Fill the tables in, or check them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    stale = []
    for page in pages():
        text = page.read_text("utf-8")
        new = filled(text)
        if new != text:
            stale.append(str(page.relative_to(ROOT)))
            if not check:
                page.write_text(new, "utf-8")
    if check and stale:
        print(f"not what the figures say: {', '.join(stale)}; run python -m bench.results")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
