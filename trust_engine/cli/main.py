"""The command line: flags -> spec -> engine -> files. The only place that prints."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .. import __version__
from ..distributed import SINGLE, Workers, joined
from ..errors import DivergenceError, SpecError, TrustError
from ..io.files import write_atomically
from ..io.outputs import check_outputs, check_suffix
from ..settings import in_range
from ..spec import KINDS
from .audit import add_audit, run_audit
from .bench import add_bench
from .console import console, missing
from .diff import add_diff
from .inputs import (
    add_memory,
    add_sampler,
    add_settings,
    check_all_fit,
    check_texts,
    named,
    read_diffs,
    read_spec,
    sampler_settings,
    say_applied,
    say_cut,
)
from .report import add_looking, check_looking, tell
from .runs import Stopping, add_runs, add_store, open_store, say

if TYPE_CHECKING:
    from ..unlearn.run import Unlearning

EPILOG = """examples:
  python -m trust_engine demo
  python -m trust_engine unlearn --model demo --concept gun --out gun.safetensors
  python -m trust_engine generate --model demo --diff gun.safetensors \\
      --prompt "a gun on a red background" "a cat" --seed 1 --out after.png
  python -m trust_engine audit --model demo --diff gun.safetensors --concept gun

Start with `demo`; `python -m trust_engine COMMAND --help` explains a command."""


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line, as all our others are."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        self.exit(2, f"trust_engine: {one_line(message)}; see python -m {self.prog} --help\n")


def one_line(message: object) -> str:
    """Join an error's lines to one."""
    return " ".join(str(message).split())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 on success, 2 for what the user can mend, 130 when interrupted."""
    try:
        with console():
            args = build_parser().parse_args(arguments)
            shared = args.run in (_unlearn, run_audit)
            with joined(say) if shared else contextlib.nullcontext(SINGLE) as team:
                return _run(args, team)
    except TrustError as error:  # such as of processes that did not find one another
        print(f"trust_engine: {one_line(error)}", file=sys.stderr)
        return 2


def _run(args: argparse.Namespace, team: Workers) -> int:
    args.team = team
    code = 0
    try:
        args.run(args)
        team.gather(None)  # what the others still do may fail
    except TrustError as error:
        team.tell(error)
        print(f"trust_engine: {one_line(error)}", file=sys.stderr)
        code = 2
    except ModuleNotFoundError as error:
        said = missing(error)
        if said is None:
            raise
        team.tell(error)
        print(f"trust_engine: {said}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("\ntrust_engine: stopped; no half-written file is left", file=sys.stderr)
        return 130
    team.leave(code)
    return code


def build_parser() -> argparse.ArgumentParser:
    """Declare the commands; their words are part of the product and stay."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = Parser("trust_engine", epilog=EPILOG, formatter_class=formatter)
    parser.description = "Make a text-to-image model forget a concept, and measure what is left."
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_generate(commands)
    _add_unlearn(commands)
    add_audit(commands, _add_model)
    add_diff(commands)
    add_runs(commands)
    add_bench(commands)
    return parser


def _add_demo(commands: Any) -> None:
    parser = commands.add_parser(
        "demo",
        help="the whole job on the embedded demo model, with pictures and an audit",
        description="Unlearn one concept from the embedded demo model and show the result: "
        "diff.safetensors, before_after.png, neurons.png and audit.json in --out.",
    )
    parser.add_argument("--concept", default="gun", help="an object to forget (default: gun)")
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="default: out/demo")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    add_store(parser)
    _add_device(parser)
    parser.set_defaults(run=_demo)


def _add_generate(commands: Any) -> None:
    parser = commands.add_parser(
        "generate",
        help="draw prompts, with or without diffs",
        description="Draw one picture a prompt, side by side in one PNG.",
    )
    _add_model(parser)
    parser.add_argument("--prompt", nargs="+", required=True, metavar="TEXT")
    parser.add_argument(
        "--diff",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE[:STRENGTH]",
        help="apply a diff; several are applied in the order given (strength -2..2, default 1)",
    )
    parser.add_argument("--strict", action="store_true", help="refuse a diff for another base")
    parser.add_argument("--seed", type=int, default=0, help="of the first picture (default: 0)")
    add_sampler(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.png")
    parser.set_defaults(run=_generate)


def _add_unlearn(commands: Any) -> None:
    parser = commands.add_parser(
        "unlearn",
        help="make a diff that removes a concept",
        description="Find the concept's neurons in the cross-attention q/k/v weights, fine-tune "
        "only those, and save the change as a small diff. The model file is not touched.",
    )
    _add_model(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--concept",
        nargs="+",
        metavar="TEXT",
        help="one or more words or phrases that mean it; a comma separates them, too",
    )
    what.add_argument(
        "--spec", type=Path, metavar="FILE.json", help="a saved spec instead of flags"
    )
    parser.add_argument("--kind", choices=KINDS, help="default: single, or as --with/--when imply")
    parser.add_argument("--with", dest="companion", metavar="TEXT", help="e.g. beer (combination)")
    parser.add_argument(
        "--when", dest="condition", metavar="TEXT", help='e.g. "on a red background" (conditional)'
    )
    parser.add_argument(
        "--preserve",
        nargs="+",
        action="extend",
        default=[],
        metavar="TEXT",
        help="what must keep its look (default: the nearest words the model knows)",
    )
    parser.add_argument(
        "--anchor", metavar="TEXT", help="what to draw instead (default: the same without it)"
    )
    parser.add_argument(
        "--also",
        nargs="+",
        action="extend",
        default=[],
        metavar="TEXT",
        help="further concepts to remove in the same run, one each (beside a style: styles)",
    )
    parser.add_argument(
        "--template",
        nargs="+",
        action="extend",
        default=[],
        metavar="TEXT",
        help='sentences of your own with {} where the concept goes, e.g. "a photo of {}"',
    )
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
    parser.set_defaults(run=_unlearn)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        required=True,
        metavar="demo|PATH",
        help="demo, a safetensors checkpoint or a diffusers folder",
    )
    _add_device(parser)


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")


def _demo(args: argparse.Namespace) -> None:
    from .demo import run_demo

    run_demo(args.concept, args.out, args.seed, args.device, print, open_store(args))


def _generate(args: argparse.Namespace) -> None:
    import numpy as np
    from PIL import Image

    from ..audit import to_pixels
    from ..diff import applied
    from ..frontend.pictures import FORMATS, encoded
    from ..models.load import load_model
    from .progress import passes_bar

    sampler_settings(args, [])
    check_texts("--prompt", args.prompt)
    in_range("seed", args.seed, 0, 2**48, whole=True)
    check_outputs([args.out], {"the model": args.model, **named(args.diff)})
    check_suffix(args.out, *FORMATS)
    diffs = read_diffs(args.diff)
    settings = sampler_settings(args, diffs)
    model = load_model(args.model, args.device, settings.distilled)
    check_all_fit(args.diff, diffs, model, args.strict)
    say_cut(model.encoder, args.prompt)
    seeds = range(args.seed, args.seed + len(args.prompt))
    with applied(model.denoiser, diffs), passes_bar("drawing") as on_step:
        pictures = [to_pixels(b) for b in model.generate(args.prompt, seeds, settings, on_step)]
    row = np.concatenate(list(np.concatenate(pictures)), axis=1)
    write_atomically(args.out, encoded(Image.fromarray(row), args.out.suffix))
    print(f"{len(args.prompt)} pictures in {args.out}")


def _unlearn(args: argparse.Namespace) -> None:
    from ..models.load import load_model
    from ..models.memory import exhaustion_told
    from ..unlearn.keeping import Keeping, StateFile, save_or_rescue
    from ..unlearn.run import Unlearning
    from .progress import run_with_bar

    check_looking(args)
    spec, team, state = read_spec(args), args.team, args.state if args.team.first else None
    if team.first:
        judge = args.judge.partition(":")[2]
        inputs = {"the model": args.model, "the spec": args.spec, "the judge": judge}
        check_outputs([args.out, state], inputs)
        check_suffix(args.out, ".safetensors")
    store = open_store(args) if team.first else None
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(StateFile(state)) if state else None
        model = load_model(args.model, args.device, spec.sampling != "guided")
        model.check_room(spec, args.memory)
        run = Unlearning(model.lend(args.memory), spec, team=team, strict=args.strict)
        say_applied(args.model, model.applied)
        say_cut(model.encoder, [*run.prompts.targets, *run.prompts.preserve])
        try:
            stop = stack.enter_context(Stopping())
            with exhaustion_told(), Keeping(run, store, file, say if team.first else None) as kept:
                run.resume = team.of_first(run.resume)
                for _ in run.ask():
                    pass
                if team.first:
                    _say_asked(run)
                run_with_bar(stop.between(kept))
                if team.first:
                    diff = run.diff
                    failed = args.strict and run.failure
                    out = args.out.with_suffix(f".failed{args.out.suffix}") if failed else args.out
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


def _say_asked(run: Unlearning) -> None:
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


def _saved_what_there_is(run: Unlearning, out: Path, error: DivergenceError) -> DivergenceError:
    """Save the last good state of a run that diverged, under a name that tells."""
    from ..diff import save_diff

    try:
        diff = run.last_good
    except SpecError:
        return error
    path = out.with_suffix(f".incomplete{out.suffix}")
    save_diff(diff, path)
    return DivergenceError(f"{error}; the last good state is in {path}")
