"""The main job, start to end, on the demo model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .. import seeds
from ..audit import audit, plan
from ..demo.judge import load_judge
from ..demo.vocabulary import OBJECTS, caption
from ..frontend.before_after import before_after_sheet
from ..frontend.looking import look_at
from ..frontend.pictures import neuron_map, png
from ..frontend.run_report import run_report
from ..frontend.subjects import Subject
from ..frontend.wording import some
from ..io.files import write_atomically
from ..io.outputs import check_outputs
from ..models.load import load_model
from ..spec import ConceptSpec, UnlearnSpec
from ..unlearn.keeping import Keeping, save_or_rescue
from ..unlearn.run import Unlearning
from ..unlearn.run_store import RunStore
from .progress import passes_bar, run_with_bar
from .runs import Stopping
from .runs import say as tell

IMAGES = 1  # pictures an object in the demo's own audit, which says so
ROWS = {
    "ua": "concept gone (UA)",
    "synonyms": "synonyms gone, never named",
    "ira": "other objects kept (IRA)",
    "cra_style": "style kept (CRA)",
    "cra_background": "background kept (CRA)",
}


def run_demo(
    concept: str,
    out: Path,
    seed: int,
    device: str,
    say: Callable[[str], None],
    store: RunStore | None = None,
) -> None:
    """Unlearn `concept`, draw before and after, audit, and write everything to `out`."""
    plan(concept, IMAGES, seed)  # refuse bad input before loading anything
    spec = UnlearnSpec((ConceptSpec((concept,)),), seed=seed)
    names = ("diff.safetensors", "before_after.png", "neurons.png", "audit.json")
    paths = {name: out / name for name in names}
    check_outputs(paths.values(), {"the model": "demo"})
    model = load_model("demo", device)
    run = Unlearning(model.lend(), spec)
    say(f"Unlearning {concept!r} from the demo model. Preserving its neighbours:")
    say("  " + some(run.prompts.kept, 12))
    with Stopping() as stop, Keeping(run, store, say=tell) as kept:
        run_with_bar(stop.between(kept))
        diff = run.diff
        save_or_rescue(diff, paths["diff.safetensors"], kept.store)
    seen = look_at(model, diff, shown(concept, seed, run.prompts.preserve))
    title = f'"{concept}" unlearned: same prompts, same seeds'
    write_atomically(paths["before_after.png"], png(before_after_sheet(title, seen)))
    title = f'Where the concept neurons of "{concept}" sit'
    write_atomically(paths["neurons.png"], png(neuron_map(title, run.neurons)))
    judge = load_judge().to(model.encoder.device)
    with passes_bar("auditing") as on_step:
        report = audit(model, judge, [(diff, 1.0)], concept, IMAGES, seed, on_step=on_step)
    text = json.dumps(report, indent=1) + "\n"
    write_atomically(paths["audit.json"], text.encode())
    say("")
    say(str(run_report(run, diff, seen)))
    say("")
    say(table(report))
    size = paths["diff.safetensors"].stat().st_size / 1024
    say(f"\nIn {out}: {', '.join(names)} (the diff: {size:.0f} KB)")


def shown(concept: str, seed: int, preserve: tuple[str, ...]) -> tuple[Subject, ...]:
    """Choose what the demo shows: the concept, its neighbours, and objects far from it."""
    near = list(dict.fromkeys(n for p in preserve for n in OBJECTS if n in p.split()))[:3]
    far = [name for name in OBJECTS if name != concept and name not in near][:3]
    names = [concept, concept, concept, *near, *far]
    grounds = ("red", "white", "blue", "green", "pink", "yellow", "white", "purple", "blue")
    styles = ("noto", "openmoji", "emojione", "twemoji", "fluent")
    return tuple(
        Subject(
            name,
            caption([name], ground, styles[i % len(styles)]),
            seeds.before_after(seed) + i,
            (name,),
            concept if name == concept else "",
        )
        for i, (name, ground) in enumerate(zip(names, grounds, strict=True))
    )


def table(report: Mapping[str, Any]) -> str:
    """Format an audit for the terminal."""
    lines = [f"{'':28s} {'untouched':>10s} {'now':>8s}   95 % interval      n"]
    for key, label in ROWS.items():
        now, was = report[key], report["untouched"][key]
        span = f"{now['low']:.2f} to {now['high']:.2f}"
        lines.append(
            f"{label:28s} {was['value']:10.2f} {now['value']:8.2f}   {span:14s} {now['n']:5d}"
        )
    worst = sorted(report["per_object"].items(), key=lambda item: item[1]["value"])[:3]
    lines.append("weakest others: " + ", ".join(f"{n} {r['value']:.2f}" for n, r in worst))
    few = report["images_per_object"]
    drawn = f"{few} picture{'s'[: few > 1]} an object"
    lines.append(f"({drawn}, judged by the demo's CNN; attacks are not covered)")
    return "\n".join(lines)
