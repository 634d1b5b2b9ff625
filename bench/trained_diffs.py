"""Make each benchmark's diffs once: (variant, concept, seed), kept in runs/diffs.

    python -m bench.trained_diffs                   # those of bench.engine kinds
    python -m bench.trained_diffs --share 0/2       # every second one: one process for each core

A diff of another base model (from before the demo model was trained on), of other settings or of
another engine is made again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import trust_engine
from trust_engine.demo.vocabulary import OBJECTS
from trust_engine.diff import WeightDiff, fingerprint, load_diff, save_diff
from trust_engine.io.files import write_atomically
from trust_engine.models.load import LoadedModel, load_model
from trust_engine.spec import ConceptSpec, UnlearnSpec
from trust_engine.unlearn.run import Unlearning

SINGLES = ("gun", "cat", "pizza", "baby", "car")


def _concepts(
    singles: Sequence[str], others: Sequence[str], style: str | None = None
) -> dict[str, ConceptSpec]:
    """Name concepts by what they are: "cat", "baby+beer", "cat on red" (background), a style."""
    found = {name: ConceptSpec((name,)) for name in singles}
    for name in others:
        if "+" in name:
            word, companion = name.split("+")
            found[name] = ConceptSpec((word,), "combination", companion=companion)
        else:
            word, colour = name.split(" on ")
            where = f"on a {colour} background"
            found[name] = ConceptSpec((word,), "conditional", condition=where)
    return found | ({style: ConceptSpec((style,), "style")} if style else {})


PAIRS = ("baby+beer", "girl+wine", "dog+cat")
CONCEPTS = _concepts(SINGLES, (*PAIRS, "cat on red", "dog on blue"), "openmoji")
HELD_OUT = _concepts(
    ("bird", "house", "snowman"),
    ("horse+apple", "sunflower+tree", "house on yellow", "tree on yellow"),
    "fluent",
)
"""Drawn by chance among what no trial was made on: to be measured, never to choose by."""
EVERY = {**CONCEPTS, **HELD_OUT}
TRIED = ("bomb", "banana", "dog", "cat", "pizza")  # in trials beside those
CHANCE = 20_261_129


def by_chance(seed: int = CHANCE) -> dict[str, ConceptSpec]:
    """Draw three things, and three pairs of others, of what nothing above is about.

    Robust mode is measured on them once its settings stand, and nothing is chosen by them.
    """
    pairs = [one for one in EVERY.values() if one.kind == "combination"]
    named = {word for one in EVERY.values() for word in one.words}
    paired = {word for one in pairs for word in (one.words[0], str(one.companion))}
    rng = random.Random(seed)
    singles = rng.sample(sorted(set(OBJECTS) - named - paired - set(TRIED)), 3)
    members = rng.sample(sorted(set(OBJECTS) - paired - set(TRIED)), 6)
    return _concepts(singles, [f"{members[i]}+{members[i + 1]}" for i in (0, 2, 4)])


def concept_of(name: str) -> ConceptSpec:
    """Return a concept by its name here; any other word is a thing."""
    return {**EVERY, **by_chance()}.get(name) or ConceptSpec((name,))


FOLDER = Path("runs/diffs")
MAKERS = (
    "phrases", "spec", "models/attention", "models/sampler", "prompts/concept",
    "prompts/kinds", "prompts/subset",
    "prompts/templates", "unlearn/end_to_end", "seeds", "unlearn/layerwise", "unlearn/theta_layout",
    "unlearn/mask", "unlearn/objective", "unlearn/optimiser", "unlearn/prompt_pairs",
    "unlearn/units", "unlearn/resolve_spec", "unlearn/results", "unlearn/run", "unlearn/saliency",
    "unlearn/trainer", "unlearn/trajectory",
)  # fmt: skip
"""Modules of the engine that decide what a diff is."""
SCRUBBING = (
    "diff/overlaid",
    *(
        f"unlearn/scrubbing/{name}"
        for name in (
            "blocks", "directions", "eigen", "moments", "noised", "picture_lists",
            "picture_stage", "pictures", "relabel", "replay", "run",
        )
    ),
)  # fmt: skip
"""Those that decide, besides, what a robust one is."""
Made = tuple[WeightDiff, dict[str, Any]]


def engine_mark(*more: str) -> str:
    """Hash the engine's code, as far as it decides what a diff is, and more modules of it."""
    folder = Path(trust_engine.__file__).parent
    code = b"".join((folder / f"{name}.py").read_bytes() for name in (*MAKERS, *more))
    return hashlib.sha256(code).hexdigest()[:16]


def trained(
    model: LoadedModel,
    name: str,
    seed: int,
    variant: str = "default",
    changes: Mapping[str, Any] | None = None,
) -> Made:
    """Read a diff and its run's figures back, or make them.

    name: a concept's, or several's, ", " between them; changes: of the default spec.
    """
    concepts = tuple(map(concept_of, name.split(", ")))
    path = FOLDER / variant.replace(" ", "-") / f"{name.replace(' ', '-')}-{seed}.safetensors"
    story = path.with_suffix(".json")
    spec = UnlearnSpec(concepts, seed=seed, **(changes or {}))
    wanted = {"base": fingerprint(model.denoiser), "spec": spec.to_json()}
    if path.exists() and story.exists():
        diff, figures = load_diff(path), json.loads(story.read_text())
        same = all(diff.provenance[name] == value for name, value in wanted.items())
        if same and figures.get("engine") == engine_mark():
            return diff, figures
    started = time.monotonic()
    run = Unlearning(model.lend(), spec)
    for _ in run:
        pass
    standings = run.final.values()
    figures = {
        "engine": engine_mark(),
        "changed": run.diff.share,
        "effect": sum(s.effect for s in standings) / len(standings),
        "harm": sum(s.harm for s in standings) / len(standings),
        "overlap": sum(s.overlap for s in standings) / len(standings),
        "passes": run.passes,
        "backward": run.backward,
        "seconds": round(time.monotonic() - started, 1),
        "neurons": {key: n["last"] / n["entries"] for key, n in run.neurons.items()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_diff(run.diff, path)
    write_atomically(story, json.dumps(figures).encode())
    return run.diff, figures


def main() -> None:
    """Make what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=list(CONCEPTS), help="some of the concepts")
    parser.add_argument("--share", default="0/1", help="which part of how many: 0/2, 1/2")
    args = parser.parse_args()
    part, parts = (int(text) for text in args.share.split("/"))
    model = load_model("demo")
    jobs = [(name, seed) for seed in range(args.seeds) for name in args.only]
    for name, seed in jobs[part::parts]:
        _, figures = trained(model, name, seed)
        shown = {k: round(figures[k], 4) for k in ("effect", "harm", "changed", "seconds")}
        print(name, seed, shown, flush=True)


if __name__ == "__main__":
    main()
