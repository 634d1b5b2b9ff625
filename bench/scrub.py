"""Trials of scrubbing: a row for each setting, on one concept and seed.

    python -m bench.scrub gun --only first "tau 4"     # what is missing of these settings
    python -m bench.scrub gun --relearning --only first    # relearning curves and inversion, too
    python -m bench.scrub gun --show

Resumable: a cell is one JSON file in bench/figures/scrub/CONCEPT/SEED; pictures, which settings
share, are kept in runs/scrub. A cell of another model or another setting is made again. Settings
are chosen on gun and bomb alone (and openmoji for styles): nothing else may be named here.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.baselines import scrubbed as method
from bench.baselines.common import Task, Weights
from bench.baselines.scrubbed import Order, Settings
from bench.measure import Known, measure, relative
from bench.results import scrubbing
from bench.rivals import CONCEPTS
from bench.trained_diffs import SCRUBBING, engine_mark
from trust_engine.audit.attacks.base import attack_check
from trust_engine.audit.attacks.catalogue import make_attack
from trust_engine.audit.checks.core import follow
from trust_engine.audit.context import AuditContext, draw_probes
from trust_engine.audit.drawing import paint
from trust_engine.audit.judges.base import DemoJudge
from trust_engine.audit.levels import Budgets
from trust_engine.audit.probe_prompts import pair_probes
from trust_engine.audit.topic import demo_topic
from trust_engine.demo.judge import load_judge
from trust_engine.diff import fingerprint
from trust_engine.io.files import write_atomically
from trust_engine.models.contract import Conditioning
from trust_engine.models.load import LoadedModel, load_model
from trust_engine.models.sampler import SamplerSettings
from trust_engine.phrases import with_article
from trust_engine.unlearn.scrubbing.noised import Drawn
from trust_engine.unlearn.scrubbing.picture_lists import Counts, PictureLists
from trust_engine.unlearn.scrubbing.pictures import Recipe
from trust_engine.unlearn.scrubbing.relabel import RelabelPlan
from trust_engine.unlearn.scrubbing.run import ScrubPlan

ALLOWED = ("gun", "bomb", "openmoji")
STORE, KEPT = Path("bench/figures/scrub"), Path("runs/scrub")
IMAGES, PAIRS = 24, 54
SAMPLER = SamplerSettings(steps=10)  # of what tells settings apart; the benchmark's has 20
CURVE = (5, 10, 20, 50)  # steps of relearning
SEED = 0
HELD_SEED = 6_000_000  # of pictures that predictions are compared on

# What robust mode's scrubbing was when the trials began, beside tau 6.
FIRST = Recipe(counts=Counts(24, 24, 24), rest=144)


def of(
    recipe: dict[str, Any] | None = None,
    layerwise: Order = "no",
    relabel: RelabelPlan | None = None,
    **plan: Any,
) -> Settings:
    """Change the first setting that robust mode had."""
    recipes, plans = replace(FIRST, **(recipe or {})), replace(ScrubPlan(tau=6.0), **plan)
    return Settings(recipes, plans, layerwise, relabel)


# Half the calls a picture, and so more of them: 32 + 96 pictures, 2,048 passes.
MANY: dict[str, Any] = {"steps": 8, "name": "dpmpp_2m", "counts": Counts(32, 32, 64), "rest": 192}
ANEW: dict[str, Any] = {**MANY, "source": "renoised"}
TWICE: dict[str, Any] = {"source": "renoised", "rest": 288}
SLOW: dict[str, Any] = {"steps": 20, "source": "renoised"}
SETTINGS: dict[str, Settings] = {
    "first": of(),
    "today": Settings(Recipe(), ScrubPlan(), "after", RelabelPlan()),
    "renoised": of({"source": "renoised"}),
    "on the way": of({"source": "on the way"}),
    "20 steps, renoised": of(SLOW),
    "20 steps, 64 + 192 pictures": of({**SLOW, "counts": Counts(64, 96, 96)}),
    "half the samples": of({"concept": 72, "rest": 72}),
    "twice the samples": of({"concept": 288, "rest": 288}),
    "16 + 32 pictures": of({"counts": Counts(16, 16, 16)}),
    "tau 3": of(tau=3.0),
    "tau 4": of(tau=4.0),
    "tau 8": of(tau=8.0),
    "eps .05": of(eps=0.05),
    "tau 4, eps .05": of(tau=4.0, eps=0.05),
    "many": of(MANY),
    "anew": of(ANEW),
    "anew, checked": of(ANEW, checked=True),
    "anew, checked, tau 4": of(ANEW, checked=True, tau=4.0),
    "anew, checked, tau 3": of(ANEW, checked=True, tau=3.0),
    "anew, checked, hard": of(ANEW, checked=True, soft=False),
    "anew, checked, hard, tau 4": of(ANEW, checked=True, soft=False, tau=4.0),
    "anew, checked, hard, tau 3": of(ANEW, checked=True, soft=False, tau=3.0),
    "anew, checked, hard, eps .005": of(ANEW, checked=True, soft=False, eps=0.005),
    "anew, checked, centred": of(ANEW, checked=True, centred=True),
    "anew, checked, hard, centred": of(ANEW, checked=True, centred=True, soft=False),
    "anew, twice the samples, checked": of({**ANEW, "concept": 288, "rest": 384}, checked=True),
    "anew, checked, both": of(ANEW, "before", checked=True),
    "anew, checked, after": of(ANEW, "after", checked=True),
    "anew, checked, tau 4, both": of(ANEW, "before", checked=True, tau=4.0),
    "anew, checked, tau 3, both": of(ANEW, "before", checked=True, tau=3.0),
    "anew, checked, hard, both": of(ANEW, "before", checked=True, soft=False),
    "anew, checked, hard, tau 4, both": of(ANEW, "before", checked=True, soft=False, tau=4.0),
    "anew, checked, hard, tau 3, both": of(ANEW, "before", checked=True, soft=False, tau=3.0),
    "many, checked": of(MANY, checked=True),
    "many, checked, tau 4": of(MANY, checked=True, tau=4.0),
    "many, checked, tau 3": of(MANY, checked=True, tau=3.0),
    "many, checked, hard": of(MANY, checked=True, soft=False),
    "many, checked, both": of(MANY, "before", checked=True),
    "many, checked, hard, both": of(MANY, "before", checked=True, soft=False),
    "many, checked, hard, tau 4, both": of(MANY, "before", checked=True, soft=False, tau=4.0),
    "many, renoised": of({**MANY, "source": "renoised"}),
    "many, eps .05": of(MANY, eps=0.05),
    "many, eps .1": of(MANY, eps=0.1),
    "many, eps .05, tau 4": of(MANY, eps=0.05, tau=4.0),
    "many, eps .05, tau 3": of(MANY, eps=0.05, tau=3.0),
    "many, eps .05, hard": of(MANY, eps=0.05, soft=False),
    "many, eps .05, hard, tau 4": of(MANY, eps=0.05, soft=False, tau=4.0),
    "many, eps .05, tau 4, both": of(MANY, "before", eps=0.05, tau=4.0),
    "many, eps .05, hard, both": of(MANY, "before", eps=0.05, soft=False),
    "24 + 96 pictures": of({"counts": Counts(24, 32, 64)}),
    "24 + 72 pairs": of({"counts": Counts(24, 0, 72)}),
    "12 + 72 pictures": of({"counts": Counts(12, 24, 48)}),
    "12 + 72 pictures, tau 8": of({"counts": Counts(12, 24, 48)}, tau=8.0),
    "twice the rest": of({"rest": 288}),
    "twice the rest, tau 5": of({"rest": 288}, tau=5.0),
    "thrice the rest, tau 5": of({"rest": 432}, tau=5.0),
    "renoised, twice the rest": of({"source": "renoised", "rest": 288}),
    "anew, twice the rest": of({**ANEW, "rest": 384}),
    "centred": of(centred=True),
    "centred, tau 4": of(centred=True, tau=4.0),
    "hard, centred": of(centred=True, soft=False),
    "queries and keys spared": of(spared=(".to_q.", ".to_k.")),
    "renoised, twice the rest, after": of({"source": "renoised", "rest": 288}, "after"),
    "renoised, twice the rest, tau 5, after": of(
        {"source": "renoised", "rest": 288}, "after", tau=5.0
    ),
    "relabelled": of(relabel=RelabelPlan()),
    "relabelled, after": of(layerwise="after", relabel=RelabelPlan()),
    "relabelled, beta 4": of(relabel=RelabelPlan(beta=4.0)),
    "relabelled, tau 4": of(relabel=RelabelPlan(), tau=4.0),
    "twice the rest, relabelled": of(TWICE, relabel=RelabelPlan()),
    "twice the rest, relabelled, beta 16": of(TWICE, relabel=RelabelPlan(beta=16.0)),
    "twice the rest, relabelled, after": of(TWICE, "after", RelabelPlan()),
    "layer-wise before": of(layerwise="before"),
    "layer-wise after": of(layerwise="after"),
    "layer-wise before, hard": of(layerwise="before", soft=False),
    "layer-wise before, hard, tau 4": of(layerwise="before", soft=False, tau=4.0),
    "layer-wise before, tau 4": of(layerwise="before", tau=4.0),
    "layer-wise alone": of(layerwise="before", tau=1e9),
    "hard, tau 8": of(soft=False, tau=8.0),
    "hard, tau 6, eps .05": of(soft=False, eps=0.05),
}


def pictures(task: Task, recipe: Recipe, lists: PictureLists) -> tuple[Drawn, int]:
    """Draw what a recipe asks for, or read it back."""
    mark = repr((lists, recipe.sampler, task.seed, fingerprint(task.model.denoiser)))
    path = KEPT / f"pictures-{hashlib.sha256(mark.encode()).hexdigest()[:16]}.pt"
    if path.exists():
        kept = torch.load(path)
        prompts = task.encode(lists.prompts)
        found = Drawn(kept["latents"], prompts, kept["way"], kept["timesteps"])
        return found, int(kept["passes"])
    found, passes = method.pictures(task, recipe, lists)
    KEPT.mkdir(parents=True, exist_ok=True)
    tensors = {name: getattr(found, name) for name in ("latents", "way", "timesteps")}
    torch.save({**tensors, "passes": torch.tensor(passes)}, path)
    return found, passes


def layerwise(task: Task) -> Weights:
    """Run the default mode, or read back what it made."""
    mark = repr((task.concept, task.seed, fingerprint(task.model.denoiser), engine_mark()))
    path = KEPT / f"layerwise-{hashlib.sha256(mark.encode()).hexdigest()[:16]}.pt"
    if not path.exists():
        KEPT.mkdir(parents=True, exist_ok=True)
        torch.save(method.layerwise(task), path)
    found: Weights = torch.load(path)
    return found


def scrubbed(task: Task, setting: Settings) -> tuple[Weights, dict[str, Any]]:
    """Scrub: the new weights, and what there is to tell."""
    lists = method.lists_of(task, setting)
    found, passes = pictures(task, setting.recipe, lists)
    before = layerwise(task) if setting.layerwise == "before" else None
    started = time.monotonic()
    work = method.scrubbing(task, setting, found, lists, before)
    for _ in work:
        pass
    weights, layers = work.weights, list(work.edits.values())
    if setting.relabel:
        weights = method.relabelled(task, setting.relabel, found, lists, work)
    if setting.layerwise == "after":
        weights = method.layerwise(task, weights)
    return weights, {
        "passes": passes + work.passes + (setting.relabel.passes if setting.relabel else 0),
        "backward": setting.relabel.backward if setting.relabel else 0,
        "drawing": passes,
        "seconds of scrubbing": round(time.monotonic() - started, 1),
        "directions": sum(edit.rank for edit in layers),
        "layers": len(layers),
        "harm": sum(edit.harm for edit in layers),
        "worst harm": max((edit.harm for edit in layers), default=0.0),
        "bytes": sum(2 * (e.up.numel() + e.down.numel()) for e in layers),
    }


@dataclass(frozen=True)
class Held:
    """Noised pictures that no setting is shown: x, t, the noise, and the prompts' context."""

    x: Tensor
    t: Tensor
    noise: Tensor
    cond: Conditioning


def held_out(task: Task) -> dict[str, Held]:
    """Noise pictures of other seeds: the concept, others alone, and those when it is asked, too."""
    model, word = task.model, with_article(task.concept.words[0])
    things = [with_article(thing) for thing in task.prompts.kept]
    own = [f"a picture of {word}"] * len(things)
    alone = [f"a picture of {thing}" for thing in things]
    path = KEPT / f"held-out-{task.concept.words[0]}-{fingerprint(model.denoiser)}.pt"
    if not path.exists():
        KEPT.mkdir(parents=True, exist_ok=True)
        seeds = range(HELD_SEED, HELD_SEED + 2 * len(things))
        how = SamplerSettings(8, sampler="dpmpp_2m")
        torch.save(follow(paint(model, task.encode([*own, *alone]), seeds, how), 1), path)
    drawn = torch.load(path)
    generator = torch.Generator().manual_seed(HELD_SEED)
    beside = [f"{word} and {thing}" for thing in things]
    pictures = {"concept": (0, own), "blank": (0, [""] * len(things)), "rest": (1, alone),
                "beside": (1, beside)}  # fmt: skip
    found = {}
    for name, (half, prompts) in pictures.items():
        x0 = drawn.chunk(2)[half].repeat(2, 1, 1, 1)
        t = torch.randint(100, 900, (len(x0),), generator=generator)
        noise = torch.randn(x0.shape, generator=generator)
        x = model.denoiser.schedule.noised(x0, t, noise)
        found[name] = Held(x, t, noise, task.encode(prompts * 2))
    return found


def predictions(task: Task, weights: Weights) -> dict[str, float]:
    """Tell how far predictions on held-out pictures have moved, and the concept's denoising loss.

    In units of the noise's energy: moved, loss.
    """
    edited, found = task.model.with_weights(weights), dict[str, float]()
    with torch.no_grad():
        for name, held in held_out(task).items():
            before, now = (
                torch.cat(
                    [
                        m.denoiser(held.x[i : i + 18], held.t[i : i + 18],
                                   held.cond.select(slice(i, i + 18)))
                        for i in range(0, len(held.x), 18)
                    ]
                )
                for m in (task.model, edited)
            )  # fmt: skip
            found[name] = float((now - before).square().mean())
            if name in ("concept", "blank"):
                loss = [float((e - held.noise).square().mean()) for e in (before, now)]
                found[f"{name}'s loss"] = loss[1] / loss[0]
    return found


def quick(name: str, titles: Sequence[str], seed: int) -> None:
    """Print what settings do to predictions, without drawing."""
    task = Task(load_model("demo", "cpu"), CONCEPTS[name], seed)
    path = STORE / name / f"predictions-{seed}.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    for title in titles:
        if title not in kept or kept[title]["setting"] != told(SETTINGS[title]):
            weights, cost = scrubbed(task, SETTINGS[title])
            found = predictions(task, weights)
            kept[title] = {**found, **cost, "setting": told(SETTINGS[title])}
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(kept, indent=1).encode())
        row = {k: round(v, 4) for k, v in kept[title].items() if isinstance(v, float)}
        print(title, row, kept[title]["directions"], kept[title]["passes"], flush=True)


def told(setting: Settings | None) -> dict[str, str]:
    """Tell a setting's fields, flat; None: the untouched model's, which has none."""
    if setting is None:
        return {}
    parts = (("recipe", setting.recipe), ("plan", setting.plan))
    named = [
        (f"{name}.{f.name}", getattr(part, f.name)) for name, part in parts for f in fields(part)
    ]
    order = [("layerwise", setting.layerwise), ("relabel", setting.relabel)]
    return {name: str(value) for name, value in [*named, *order]}


class Trial:
    """One concept and seed: every setting's cell."""

    def __init__(self, name: str, seed: int) -> None:
        self.model, self.judge = load_model("demo", "cpu"), load_judge()
        self.name, self.seed, self.concept = name, seed, CONCEPTS[name]
        self.task = Task(self.model, self.concept, seed)
        topic = demo_topic(self.concept.words[0], self.concept.kind, self.concept.companion)
        both = {"untouched": self.model, "edited": self.model}
        # Attacks as the benchmark has them, so that its figures of other methods stand beside ours.
        self.studio = AuditContext(both, DemoJudge(self.judge), topic, SamplerSettings(), seed)
        self.folder = STORE / name / str(seed)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.base = fingerprint(self.model.denoiser)

    def path(self, title: str) -> Path:
        """Name a cell's file."""
        return self.folder / f"{title.replace(' ', '-').replace(',', '')}.json"

    def cell(self, title: str, setting: Settings | None, relearning: bool) -> dict[str, Any]:
        """Measure what a cell still lacks; setting None: the untouched model."""
        mark = engine_mark(*SCRUBBING) if setting is not None else ""
        about = {"setting": told(setting), "base": self.base, "title": title, "engine": mark}
        path = self.path(title)
        cell = json.loads(path.read_text()) if path.exists() else {}
        # A field that came later is as if it had always had its default.
        same = (cell.get("base"), cell.get("engine")) == (self.base, mark)
        if not same or {**told(Settings()), **cell["setting"]} != {
            **told(Settings()),
            **told(setting),
        }:
            cell = {**about, "attacks": {}}
        if "figures" in cell and not (relearning and len(cell["attacks"]) < len(CURVE) + 2):
            return cell
        model = self.model
        if setting is not None:
            weights, cell["cost"] = scrubbed(self.task, setting)
            model = model.with_weights(weights)
        studio = self.studio.with_edited(model)
        if "figures" not in cell:
            cell["figures"] = self._figures(model, studio)
            write_atomically(path, json.dumps(cell, indent=1).encode())
        for attack, budgets in attacks() if relearning else ():
            if attack not in cell["attacks"]:
                cell["attacks"][attack] = self._attack(studio, attack.split(" ")[0], budgets)
                write_atomically(path, json.dumps(cell, indent=1).encode())
        return cell

    def _figures(self, model: LoadedModel, studio: AuditContext) -> dict[str, Any]:
        known: Known = {}
        found = measure(model, self.judge, [], self.concept, IMAGES, self.seed, known, SAMPLER)
        pairs = pair_probes(studio.topic, PAIRS, self.seed)
        if pairs:
            quick = replace(studio, settings=SAMPLER)
            found["pairs"] = follow(draw_probes(quick, model, pairs), 1).seen.to_dict()
        return found

    def _attack(self, studio: AuditContext, name: str, budgets: Budgets) -> Any:
        path = KEPT / f"bait-{self.name}-{self.seed}-{self.base}.pt"
        if path.exists():
            studio._stock.update(torch.load(path, weights_only=False))
        check = attack_check(studio, make_attack(name, budgets), budgets.judged, False)
        found = follow(check.run(studio), check.passes).figures
        bait = {k: v for k, v in studio._stock.items() if k[0] == "bait"}
        torch.save(bait, path)  # drawn by the untouched model alone
        return found["asr"]


def attacks() -> list[tuple[str, Budgets]]:
    """List the attacks of a finalist, by name and steps, with the benchmark's budgets."""
    curve = {n: (f"relearning {n}", Budgets(relearn_steps=n)) for n in CURVE}
    one, three = ((f"textual_inversion_{n}", Budgets()) for n in (1, 3))
    return [curve[20], one, curve[50], curve[10], curve[5], three]


def main() -> None:
    """Measure what is missing, then print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("concept", choices=ALLOWED)
    parser.add_argument("--predictions", action="store_true", help="draw nothing: quick")
    titles = ("untouched", *SETTINGS)
    parser.add_argument("--only", nargs="+", choices=titles, default=list(SETTINGS))
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--relearning", action="store_true", help="and inversion")
    parser.add_argument("--show", action="store_true", help="measure nothing")
    args = parser.parse_args()
    if args.predictions:
        quick(args.concept, args.only, args.seed)
        return
    trial = Trial(args.concept, args.seed)
    if not args.show:
        base = trial.cell("untouched", None, False)["figures"]
        for title in args.only:
            cell = trial.cell(title, SETTINGS.get(title), args.relearning)
            kept = {k: round(v, 3) for k, v in relative(cell["figures"], base).items()}
            stood = {k: round(v["value"], 2) for k, v in cell["attacks"].items()}
            print(title, kept, stood, cell.get("cost"), flush=True)
    print(scrubbing(args.concept))


if __name__ == "__main__":
    main()
