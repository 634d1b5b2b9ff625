"""The commands `unlearn` and `demo`: from flags to a run, its diff, pictures and a report."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import seeds
from ..audit.judges.catalogue import explained, forms
from ..errors import DivergenceError, SpecError, TrustError
from ..io.outputs import check_outputs, check_suffix
from ..settings import in_range
from .flags import (
    add_command,
    add_concepts,
    add_device,
    add_memory,
    add_model,
    add_settings,
)
from .inputs import read_spec, say_applied, say_cut
from .runs import Stopping, add_store, open_store, say
from .wording import worded

if TYPE_CHECKING:
    from ..diff import WeightDiff
    from ..frontend.before_after import BeforeAfter
    from ..frontend.subjects import Subject
    from ..models.load import LoadedModel
    from ..unlearn.run import Unlearning

ABOUT = (
    "Fine-tune the cross-attention q/k/v weights so that the concept is no longer drawn, put back "
    "all but its neurons, and save the change as a small diff. The model file is not touched."
)
ABOUT_DEMO = (
    "Unlearn one concept from the embedded demo model and show the result: diff.safetensors, "
    "before_after.png, neurons.png and audit.json in --out."
)
FAILED, INCOMPLETE = "failed", "incomplete"  # of runs whose diff is not what was asked for
IMAGES = 1  # pictures an object in the demo's own audit, which says so
ROWS = {
    "ua": "concept gone (UA)",
    "synonyms": "synonyms gone, never named",
    "ira": "other objects kept (IRA)",
    "cra_style": "style kept (CRA)",
    "cra_background": "background kept (CRA)",
}


def add_unlearn(commands: Any) -> None:
    """Declare `unlearn`."""
    parser = add_command(commands, "unlearn", "make a diff that removes a concept", ABOUT)
    add_model(parser)
    add_concepts(parser)
    add_settings(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.safetensors")
    parser.add_argument(
        "--state",
        type=Path,
        metavar="FILE",
        help="keep the run's state here, too, while it works, and go on from it next time",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="refuse words that the model does not know, and runs that strengthen the concept",
    )
    add_store(parser)
    add_memory(parser)
    add_looking(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=run_unlearn)


def run_unlearn(args: argparse.Namespace) -> None:
    """Run, save the diff and report."""
    from ..models.load import load_model
    from ..models.memory import exhaustion_told
    from ..unlearn.autosave import Keeping, StateFile, save_or_rescue
    from ..unlearn.run import Unlearning
    from ..unlearn.scrubbing.picture_stage import memory_of
    from .progress import run_with_bar

    check_looking(args)
    spec, team, state = read_spec(args), args.team, args.state if args.team.first else None
    if team.first:
        judge = args.judge.partition(":")[2]
        inputs = {"the model": args.model, "the spec": args.spec, "the judge": judge}
        check_outputs([args.out, state], inputs)
        check_suffix(args.out, ".safetensors")
        check_outputs([beside(args.out, why) for why in (FAILED, INCOMPLETE)], inputs)
    store = open_store(args) if team.first else None
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(StateFile(state)) if state else None
        model = load_model(args.model, args.device, spec.sampling != "guided")
        lent = model.lend(args.memory)
        model.check_room(spec, args.memory, memory_of(lent, spec) if spec.robust else 0)
        run = Unlearning(lent, spec, team=team, strict=args.strict)
        say_applied(args.model, model.applied)
        say_cut(model.encoder, [*run.prompts.targets, *run.prompts.preserve, *spec.stays])
        try:
            stop = stack.enter_context(Stopping())
            with exhaustion_told(), Keeping(run, store, file, say if team.first else None) as kept:
                run.resume = team.of_first(run.resume)
                for _ in run.ask():
                    pass
                if team.first:
                    say_asked(run)
                run_with_bar(stop.between(kept))
                if team.first:
                    diff = run.diff
                    failed = args.strict and run.failure
                    out = beside(args.out, FAILED) if failed else args.out
                    save_or_rescue(diff, out, kept.store)
        except DivergenceError as error:
            if not team.first:
                raise
            raise _saved_what_there_is(run, args.out, error) from error
    if not team.first:
        return
    if run.failure and args.strict:
        raise DivergenceError(f"{run.failure}; the diff is in {out}")
    tell(args, model, run, diff)


def say_asked(run: Unlearning) -> None:
    """Tell what the model knows of the words, and what will be preserved."""
    from ..frontend.wording import some

    knowledge = run.knowledge
    if knowledge is not None and knowledge.passes:
        known = "no: see the warning" if knowledge.unknown else "yes"
        if all(word.known is None for word in knowledge.words):
            known = "it cannot be told"
        say(f"does the model know {run.spec.name!r}? {known} ({knowledge.passes} UNet passes)")
        for warning in knowledge.warnings:
            _warn(warning)
        if knowledge.same:
            say(f"the same to the model, and not preserved: {', '.join(knowledge.same)}")
    say(f"preserving: {some(run.prompts.kept, 12)}")


def _warn(text: str) -> None:
    say(f"warning: {text}")


def beside(out: Path, why: str) -> Path:
    """Name the file for a diff that is not to be taken for the one that was asked for."""
    return out.with_suffix(f".{why}{out.suffix}")


def _saved_what_there_is(run: Unlearning, out: Path, error: DivergenceError) -> DivergenceError:
    """Save the last good state of a run that diverged, under a name that tells."""
    from ..diff import save_diff

    try:
        diff = run.last_good
    except SpecError:
        return error
    path = beside(out, INCOMPLETE)
    save_diff(diff, path)
    return DivergenceError(f"{error}; the last good state is in {path}")


def add_looking(parser: argparse.ArgumentParser) -> None:
    """Declare how a finished run is looked at."""
    group = parser.add_argument_group(
        "test pictures", "drawn at the end without and with the diff; the report rests on them"
    )
    group.add_argument(
        "--pictures", type=int, default=None, metavar="N",
        help="how many, half of them of what must stay, 0: none (default: 8, which takes 384 UNet "
        "passes besides those of training)",
    )  # fmt: skip
    group.add_argument(
        "--judge", default="auto", metavar=f"auto|none|{forms()}",
        help="who says what they show; auto: the demo's judge for the demo model, else a CLIP that "
        "is on this machine already, else nobody, and only how far they moved is said; "
        + explained(),
    )  # fmt: skip


def check_looking(args: argparse.Namespace) -> None:
    """Refuse a number of pictures, or a judge that is not there; raises SpecError or ModelError."""
    from ..audit.judges.catalogue import check_judge
    from ..frontend.subjects import COUNT, MOST

    args.pictures = COUNT if args.pictures is None else args.pictures
    in_range("pictures", args.pictures, 0, MOST, whole=True)
    if args.judge not in ("auto", "none"):
        check_judge(args.judge)


def looked(
    args: argparse.Namespace, model: LoadedModel, run: Unlearning, diff: WeightDiff
) -> tuple[BeforeAfter | None, list[str]]:
    """Look at a run whose diff is saved already; what keeps us from it is said, no more."""
    from ..frontend.draw_and_judge import look
    from ..models.memory import exhaustion_told
    from .progress import passes_bar

    if not args.pictures:
        return None, []
    try:
        with exhaustion_told(), passes_bar("test pictures") as on_step:
            return look(model, run, diff, args.pictures, args.judge, on_step), []
    except KeyboardInterrupt:
        why = "stopped by you"
    except (TrustError, MemoryError) as error:
        why = " ".join(worded(error).split())
    return None, [f"No test pictures: {why}. The diff is saved."]


def tell(args: argparse.Namespace, model: LoadedModel, run: Unlearning, diff: WeightDiff) -> None:
    """Look at a finished run and print its report, as JSON if asked for."""
    from ..frontend.run_report import as_dict, run_report

    seen, said = looked(args, model, run, diff)
    report = run_report(run, diff, seen, said=said)
    if args.json:
        told: dict[str, Any] = {"diff": str(args.out), **as_dict(run, diff, report, seen)}
        print(json.dumps(told))
    else:
        print(f"{args.out}: {report}")


def add_demo(commands: Any) -> None:
    """Declare `demo`."""
    says = "the whole job on the embedded demo model, with pictures and an audit"
    parser = add_command(commands, "demo", says, ABOUT_DEMO)
    parser.add_argument("--concept", default="gun", help="an object to forget (default: gun)")
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="default: out/demo")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    add_store(parser)
    add_device(parser)
    parser.set_defaults(run=run_demo)


def run_demo(args: argparse.Namespace) -> None:
    """Unlearn a concept, draw before and after, audit, and write everything to a folder."""
    from ..audit import audit, plan
    from ..audit.judges.catalogue import judge_of
    from ..frontend.before_after import before_after_sheet
    from ..frontend.draw_and_judge import look_at
    from ..frontend.pictures import neuron_map, png
    from ..frontend.run_report import run_report
    from ..frontend.wording import some
    from ..io.files import write_atomically
    from ..models.load import load_model
    from ..spec import ConceptSpec, UnlearnSpec
    from ..unlearn.autosave import Keeping, save_or_rescue
    from ..unlearn.run import Unlearning
    from .progress import passes_bar, run_with_bar

    concept, seed, out, store = args.concept, args.seed, args.out, open_store(args)
    plan(concept, IMAGES, seed)  # refuse bad input before loading anything
    spec = UnlearnSpec((ConceptSpec((concept,)),), seed=seed)
    names = ("diff.safetensors", "before_after.png", "neurons.png", "audit.json")
    paths = {name: out / name for name in names}
    check_outputs(paths.values(), {"the model": "demo"})
    model = load_model("demo", args.device)
    run = Unlearning(model.lend(), spec)
    print(f"Unlearning {concept!r} from the demo model. Preserving its neighbours:")
    print("  " + some(run.prompts.kept, 12))
    with Stopping() as stop, Keeping(run, store, say=say) as kept:
        run_with_bar(stop.between(kept))
        diff = run.diff
        save_or_rescue(diff, paths["diff.safetensors"], kept.store)
    seen = look_at(model, diff, shown(concept, seed, run.prompts.preserve))
    title = f'"{concept}" unlearned: same prompts, same seeds'
    write_atomically(paths["before_after.png"], png(before_after_sheet(title, seen)))
    title = f'Where the concept neurons of "{concept}" sit'
    write_atomically(paths["neurons.png"], png(neuron_map(title, run.neurons)))
    judge = judge_of("demo", {}, model.encoder.device)
    with passes_bar("auditing") as on_step:
        report = audit(model, judge, [(diff, 1.0)], concept, IMAGES, seed, on_step=on_step)
    text = json.dumps(report, indent=1) + "\n"
    write_atomically(paths["audit.json"], text.encode())
    print()
    print(str(run_report(run, diff, seen)))
    print()
    print(table(report))
    size = paths["diff.safetensors"].stat().st_size / 1024
    print(f"\nIn {out}: {', '.join(names)} (the diff: {size:.0f} KB)")


def shown(concept: str, seed: int, preserve: tuple[str, ...]) -> tuple[Subject, ...]:
    """Choose what the demo shows: the concept, its neighbours, and objects far from it."""
    from ..demo.vocabulary import OBJECTS, caption
    from ..frontend.subjects import Subject

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
