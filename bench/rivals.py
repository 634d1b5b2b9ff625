"""TRUST beside other methods: the same model, prompts, seeds, judge and attacks.

    python -m bench.rivals --quick          # one concept, one seed, two attacks, small budgets
    python -m bench.rivals                  # all of it; hours
    python -m bench.rivals --show           # print what there is
    python -m bench.rivals tune uce esd-x   # search a method's grid on a concept no table shows
    python -m bench.rivals tune uce --kind style    # on a style

Resumable: a cell, method x concept x seed, is one JSON file in bench/figures/rivals (--quick:
rivals-quick); what it holds is not measured again, attack by attack. When our engine's code has
changed, ours are made anew, and measured anew if other weights come of it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from bench.baselines.catalogue import METHODS
from bench.baselines.common import Meter, Task, Weights, metered
from bench.baselines.table import pareto, tables
from bench.measure import SAMPLER, measure, relative
from bench.trained_diffs import SCRUBBING, by_chance, engine_mark
from trust_engine.audit.attacks.base import Attack, attack_check
from trust_engine.audit.attacks.catalogue import make_attack
from trust_engine.audit.checks.core import follow
from trust_engine.audit.context import AuditContext, draw_probes
from trust_engine.audit.judges.base import DemoJudge
from trust_engine.audit.levels import QUICK as AUDITS
from trust_engine.audit.levels import Budgets
from trust_engine.audit.probe_prompts import pair_probes
from trust_engine.audit.topic import demo_topic
from trust_engine.demo.judge import load_judge
from trust_engine.diff import SparseOffset, WeightDiff, fingerprint, save_diff
from trust_engine.io.files import write_atomically
from trust_engine.models.load import LoadedModel, load_model
from trust_engine.models.overrides import weights_of
from trust_engine.models.sampler import SamplerSettings
from trust_engine.spec import ConceptSpec

CONCEPTS = {
    "gun": ConceptSpec(("gun",)),
    "bomb": ConceptSpec(("bomb",)),
    "baby+beer": ConceptSpec(("baby",), "combination", companion="beer"),
    "openmoji": ConceptSpec(("openmoji",), "style"),
}
CHANCE = by_chance()
TUNED_ON = {
    "single": ConceptSpec(("pizza",)),
    "combination": ConceptSpec(("girl",), "combination", companion="wine"),
    "style": ConceptSpec(("noto",), "style"),
}
ATTACKS = (
    "textual_inversion_1", "textual_inversion_3", "unlearn_diff_atk", "p4d", "ring_a_bell",
    "relearning", "relearning_lora", "benign_fine_tuning",
)  # fmt: skip
USUAL = Budgets().relearn_steps
CURVES = {
    name: {n: name if n == USUAL else f"{name}_{n}" for n in (5, 10, USUAL, 50, 100)}
    for name in ("relearning", "relearning_lora")
}
"""Relearning -> steps -> the attack in so many steps: the usual ones are the attack itself."""
STEPPED = {
    attack: (name, n) for name, steps in CURVES.items() for n, attack in steps.items() if n != USUAL
}
"""Attacks of CURVES that ATTACKS has not -> relearning, and its steps."""
UNTOUCHED = "untouched"
STORE = Path("bench/figures")
WEIGHTS = Path("runs/rivals")  # what methods made, until it is measured


@dataclass(frozen=True)
class Size:
    """How much is measured: pictures a group and of pairs, attacks and what they may spend, ...

    name: of the folder of its figures; those of small budgets never stand beside those of large.
    """

    images: int = 48
    pairs: int = 54
    attacks: tuple[str, ...] = ATTACKS
    concepts: tuple[str, ...] = tuple(CONCEPTS)
    seeds: int = 3
    budgets: Budgets = field(default_factory=Budgets)
    sampler: SamplerSettings = SAMPLER
    name: str = "rivals"

    @property
    def store(self) -> Path:
        """Return the folder of its figures."""
        return STORE / self.name


FULL = Size()
QUICK = Size(
    images=12,
    pairs=6,
    attacks=("textual_inversion_1", "relearning"),
    concepts=("gun",),
    seeds=1,
    budgets=replace(AUDITS.budgets, inversion_steps=80),
    sampler=SamplerSettings(steps=10),
    name="rivals-quick",
)


def edit(method: str, concept: ConceptSpec, seed: int, out: Path) -> dict[str, Any]:
    """Run a method; saves the weights it changed and returns what it cost."""
    meter, model = Meter(), load_model("demo", "cpu")
    chosen, before = METHODS[method], weights_of(model.denoiser)
    started = time.monotonic()
    task = Task(metered(model, meter), concept, seed, meter)
    weights = chosen.run(task, chosen.settings_for(concept.kind))
    seconds = time.monotonic() - started
    weights = {n: w.contiguous() for n, w in weights.items() if not torch.equal(w, before[n])}
    save_file(weights, str(out))
    entries = sum(w.numel() for w in before.values())
    diff = meter.diff or diff_of(model, weights)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "diff.safetensors"
        save_diff(diff, path)
        size = path.stat().st_size
    return {
        "seconds": round(seconds, 1),
        "passes": meter.passes,
        "changed": diff.changed / entries,
        "bytes": size,
        "made": digest(weights),
    }


def digest(weights: Weights) -> str:
    """Hash weights by name and bytes: an engine whose code changed may still make the same."""
    whole = hashlib.sha256()
    for name in sorted(weights):
        whole.update(f"{name}:".encode() + weights[name].numpy().tobytes())
    return whole.hexdigest()[:32]


def diff_of(model: LoadedModel, weights: Weights) -> WeightDiff:
    """Express changed weights as a diff."""
    before, name_of = weights_of(model.denoiser), model.denoiser.checkpoint_key
    return WeightDiff({name_of(n): SparseOffset.of(w - before[n]) for n, w in weights.items()})


def edit_apart(method: str, name: str, seed: int, out: Path) -> dict[str, Any]:
    """Run `edit` in a process of its own, so that its peak memory is its own; adds `peak_mb`."""
    command = [sys.executable, "-m", "bench.rivals", "edit", method, name, str(seed), str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        text = child.stdout.read()
        if hasattr(os, "wait4"):
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
            peak = round(usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10))
        else:
            child.wait()
            peak = None
    if child.returncode:
        raise SystemExit(f"{method} on {name}, seed {seed}: failed, see above")
    return {**json.loads(text.splitlines()[-1]), "peak_mb": peak}


class Bench:
    """One concept and seed: the untouched model, its pictures, and every method's cell."""

    def __init__(self, model: LoadedModel, name: str, seed: int, size: Size) -> None:
        self.model, self.name, self.seed, self.size = model, name, seed, size
        self.concept, self.judge = {**CONCEPTS, **CHANCE}[name], load_judge()
        topic = demo_topic(self.concept.words[0], self.concept.kind, self.concept.companion)
        models = {"untouched": model, "edited": model}
        self.context = AuditContext(models, DemoJudge(self.judge), topic, size.sampler, seed)
        self.base = fingerprint(model.denoiser)
        self.folder = size.store / f"{name}" / str(seed)
        self.weights = WEIGHTS / f"{name}" / str(seed)
        for folder in (self.folder, self.weights):
            folder.mkdir(parents=True, exist_ok=True)

    def run(self, method: str, attacked: bool = True) -> None:
        """Measure what a method's cell still lacks, its attacks included unless told not to."""
        attacks = self.size.attacks if attacked else ()
        path, kept = self.folder / f"{method}.json", self.weights / f"{method}.safetensors"
        cell = self._found(path, method)
        seen = cell.get("images", 0) >= self.size.images
        if seen and set(attacks) <= set(cell["attacks"]):
            kept.unlink(missing_ok=True)
            return
        model = self.model
        if method != UNTOUCHED:
            if "cost" not in cell or not kept.exists():
                cell["cost"] = edit_apart(method, self.name, self.seed, kept)
                self._save(path, cell)
            model = model.with_weights(load_file(str(kept)))
        context = self.context.with_edited(model)
        if not seen:
            size = self.size
            cell["figures"] = measure(
                model, self.judge, [], self.concept, size.images, self.seed, None, size.sampler
            )
            pairs = pair_probes(context.topic, self.size.pairs, self.seed)
            if pairs:
                looked = follow(draw_probes(context, model, pairs), 1)
                cell["figures"]["pairs"] = looked.seen.to_dict()
            cell["images"] = self.size.images
            self._save(path, cell)
        for name in attacks:
            if name not in cell["attacks"]:
                cell["attacks"][name] = self._attack(context, name)
                self._save(path, cell)
        kept.unlink(missing_ok=True)

    def _found(self, path: Path, method: str) -> dict[str, Any]:
        """Read a cell; an empty one if it is of another model, other settings, another engine."""
        kind = self.concept.kind
        settings = str(METHODS[method].settings_for(kind)) if method in METHODS else ""
        about = {"base": self.base, "settings": settings, "seed": self.seed}
        if method.startswith("trust"):
            about["engine"] = engine_mark(*(SCRUBBING if method == "trust-scrub" else ()))
        cell = json.loads(path.read_text()) if path.exists() else {}
        same = [key for key in about if cell.get(key) == about[key]]
        if len(same) == len(about):
            return cell
        kept = self.weights / f"{method}.safetensors"
        kept.unlink(missing_ok=True)
        fresh: dict[str, Any] = {**about, "attacks": {}}
        if set(about) - set(same) == {"engine"} and "made" in cell.get("cost", {}):
            fresh["cost"] = edit_apart(method, self.name, self.seed, kept)
            if fresh["cost"]["made"] == cell["cost"]["made"]:
                fresh = {**cell, **about}
            self._save(path, fresh)
        return fresh

    def _attack(self, context: AuditContext, name: str) -> dict[str, Any]:
        budgets = self.size.budgets
        attack = attack_check(context, attack_named(name, budgets), budgets.judged, False)
        found = follow(attack.run(context), attack.passes).figures
        for key in ("bait", "benign", "ring_a_bell"):  # drawn by the untouched model alone
            taken = {k: v for k, v in context._stock.items() if k[0] == key}
            self.context._stock.update(taken)
        wanted = ("asr", "before_attack", "floor", "stance", "budget")
        return {key: found[key] for key in wanted}

    def _save(self, path: Path, cell: dict[str, Any]) -> None:
        write_atomically(path, json.dumps(cell, indent=1).encode())


def attack_named(name: str, budgets: Budgets) -> Attack:
    """Make an attack of ATTACKS or CURVES."""
    if name not in STEPPED:
        return make_attack(name, budgets)
    usual, steps = STEPPED[name]
    return make_attack(usual, replace(budgets, relearn_steps=steps))


def tune(methods: Sequence[str], kind: str | None = None, images: int = 12) -> None:
    """Try a method's grid on a concept that no table shows; prints what each try gives.

    kind: of that concept (None: the first of those that the method was made for).
    """
    model, judge, bases = load_model("demo", "cpu"), load_judge(), dict[str, Any]()
    for name in methods:
        tuned = kind or METHODS[name].kinds[0]
        concept, scores = TUNED_ON[tuned], []
        if tuned not in bases:
            bases[tuned] = measure(model, judge, [], concept, images, 99)
        for changes in METHODS[name].grid:
            method = METHODS[name].with_changes(changes)
            weights = method.run(Task(model, concept, 99), method.settings)
            found = measure(model.with_weights(weights), judge, [], concept, images, 99)
            kept = relative(found, bases[tuned])
            score = len(kept) / sum(1 / max(1e-3, min(1.0, v)) for v in kept.values())
            shown = {k: round(v, 3) for k, v in kept.items()}
            scores.append((round(score, 3), name, dict(changes), shown))
            print(*scores[-1], flush=True)
        print("best:", *max(scores, key=lambda s: s[0]), flush=True)


def main() -> None:
    """Measure what is missing, then print the tables."""
    if sys.argv[1:2] == ["edit"]:
        method, name, number, out = sys.argv[2:6]
        print(json.dumps(edit(method, {**CONCEPTS, **CHANCE}[name], int(number), Path(out))))
        return
    if sys.argv[1:2] == ["tune"]:
        asked = argparse.ArgumentParser(prog="rivals.py tune")
        asked.add_argument("methods", nargs="+", choices=METHODS)
        asked.add_argument("--kind", choices=TUNED_ON)
        given = asked.parse_args(sys.argv[2:])
        if unfit := [m for m in given.methods if given.kind not in (None, *METHODS[m].kinds)]:
            asked.error(f"not made for a {given.kind}: {', '.join(unfit)}")
        tune(**vars(given))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one concept, one seed, two attacks")
    parser.add_argument(
        "--methods", nargs="+", choices=(UNTOUCHED, *METHODS), default=[UNTOUCHED, *METHODS],
        help=f"{UNTOUCHED}: attack the untouched model, too; its pictures are always measured",
    )  # fmt: skip
    parser.add_argument("--concepts", nargs="+", choices=(*CONCEPTS, *CHANCE))
    parser.add_argument(
        "--attacks", nargs="*", choices=(*ATTACKS, *STEPPED), help="some of them; none: no attack"
    )
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--show", action="store_true", help="measure nothing")
    args = parser.parse_args()
    size = QUICK if args.quick else FULL
    if args.attacks is not None:
        size = replace(size, attacks=tuple(args.attacks))
    names, seeds = args.concepts or size.concepts, args.seeds or size.seeds
    model = None if args.show else load_model("demo", "cpu")
    for seed in range(seeds) if model else []:
        for name in names:
            assert model is not None
            bench = Bench(model, name, seed, size)
            chosen = [m for m in METHODS if m in args.methods]
            fit = [m for m in chosen if bench.concept.kind in METHODS[m].kinds]
            for method in (UNTOUCHED, *fit):
                started = time.monotonic()
                bench.run(method, method in args.methods)
                spent = time.monotonic() - started
                print(f"{name}/{seed}/{method}: {spent:.0f} s", file=sys.stderr, flush=True)
    print(tables(size.store, names))
    plot = pareto(size.store, names)
    if plot:
        write_atomically(size.store / "pareto.svg", plot.encode())


if __name__ == "__main__":
    main()
