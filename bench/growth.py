"""What one run over many concepts costs on the demo model: `python -m bench.growth [1 5 50]`.

Only cost: the words beyond the demo's own objects are everyday ones that it never saw.
"""

from __future__ import annotations

import argparse
import json
import time

import torch

from trust_engine.demo.vocabulary import OBJECTS
from trust_engine.models.common_words import THINGS
from trust_engine.models.load import load_model
from trust_engine.models.memory import Peak
from trust_engine.spec import ConceptSpec, UnlearnSpec
from trust_engine.unlearn.run import Unlearning

KEPT = ("a house", "a person", "a tree", "a dog", "a car", "a flower", "a boat", "a bird")


def words(count: int) -> list[str]:
    """Take the demo's objects, then everyday things, as concepts."""
    kept = {phrase.split()[1] for phrase in KEPT}
    known = [word for word in dict.fromkeys([*OBJECTS, *THINGS]) if not kept & set(word.split())]
    return known[:count]


def main() -> None:
    """Unlearn 1, 5, ... concepts, each number in one run, with the engine's defaults."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("counts", nargs="*", type=int, default=[1, 5, 10, 25, 50])
    parser.add_argument("--steps", type=int, default=0, help="default: the engine's")
    args = parser.parse_args()
    changes = {"steps": args.steps} if args.steps else {}
    model, first = load_model("demo", "cpu"), 0.0
    for count in args.counts:
        concepts = tuple(ConceptSpec((word,), preserve=KEPT) for word in words(count))
        run = Unlearning(model.lend(), UnlearnSpec(concepts, **changes))
        peak, begun = Peak(torch.device("cpu")), time.process_time()
        for _ in run:
            pass
        seconds = time.process_time() - begun
        first = first or seconds
        found = {
            "concepts": len(concepts),
            "targets": len(run.prompts.targets),
            "passes": run.passes,
            "cpu_seconds": round(seconds, 1),
            "times_the_first": round(seconds / first, 2),
            "extra_mb": round(peak.extra / 1e6),
        }
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
