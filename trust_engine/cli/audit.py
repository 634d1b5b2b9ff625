"""The command `audit`: what is gone, what is kept, what comes back under attack."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..audit.judges.catalogue import explained, forms
from ..errors import OutputError
from ..io.files import write_atomically
from ..io.outputs import check_outputs, check_suffix
from ..spec import KINDS, ConceptSpec
from .flags import add_command, add_list, add_model, add_sampler
from .inputs import (
    check_all_fit,
    check_texts,
    kind_of,
    named,
    read_diffs,
    sampler_settings,
    say_cut,
)
from .runs import add_store, open_store, say

if TYPE_CHECKING:
    from ..audit.request import AuditRequest


ABOUT = (
    "Draw the concept, other words for it and what should stay, with and without the diff, on the "
    "same seeds; let the judge count; then attack. Quick asks the main questions, full runs every "
    "attack."
)


def add_audit(commands: Any) -> None:
    """Declare `audit`."""
    says = "measure what is gone, what is kept, and what attackers bring back"
    parser = add_command(commands, "audit", says, ABOUT)
    add_model(parser)
    add_list(parser, "--diff", "FILE[:STRENGTH]", required=True)
    parser.add_argument("--strict", action="store_true", help="refuse a diff for another base")
    parser.add_argument("--concept", required=True, metavar="TEXT", help="what was unlearned")
    parser.add_argument("--kind", choices=KINDS, help="default: single, or as --with/--when imply")
    parser.add_argument("--with", dest="companion", metavar="TEXT", help="of a combination")
    parser.add_argument("--when", dest="condition", metavar="TEXT", help="of a conditional concept")
    parser.add_argument(
        "--level", choices=("quick", "full"), default="quick", help="default: quick"
    )
    parser.add_argument(
        "--judge",
        default="demo",
        metavar=forms(),
        help=f"who says what a picture shows; {explained()} (default: demo)",
    )
    add_list(parser, "--eye", "lpips:FILE|clip:PATH",
             "measure also by these how far pictures moved")  # fmt: skip
    _add_words(parser)
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--images", type=int, help="pictures an object (quick: 1, full: 4)")
    add_sampler(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with pictures")
    parser.add_argument(
        "--blur",
        choices=("auto", "on", "off"),
        default="auto",
        help="blur the page's pictures at first (auto: when the concept is sensitive)",
    )
    parser.add_argument(
        "--state",
        type=Path,
        metavar="DIR",
        help="keep finished cells there instead of in the run store, and go on from them",
    )
    add_store(parser)
    parser.set_defaults(run=run_audit)


def _add_words(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("words", "for judges other than demo, which knows its own")
    for name, text in (
        ("synonym", "other words for the concept"),
        ("retain", "what should stay and the judge looks for"),
        ("style", "styles that should stay"),
    ):
        add_list(group, f"--{name}", "TEXT", text)


def read_request(args: argparse.Namespace) -> AuditRequest:
    """Build the request from flags; raises SpecError or ModelError."""
    from ..audit.request import AuditRequest

    words = [args.concept, args.companion or "", args.condition or ""]
    check_texts("audit's words:", [*words, *args.synonym, *args.retain, *args.style])
    concept = ConceptSpec((args.concept,), kind_of(args), args.companion, args.condition)
    own = (tuple(args.synonym), tuple(args.retain), tuple(args.style), tuple(args.eye))
    return AuditRequest(concept, args.judge, args.level, args.images, args.seed, *own)


def _inputs(args: argparse.Namespace) -> dict[str, str]:
    """Name all that an audit reads."""
    files = [eye.partition(":")[2] for eye in (args.judge, *args.eye)]
    judges = {f"the file {file} of a judge": file for file in files if file}
    return {"the model": args.model, **named(args.diff), **judges}


def run_audit(args: argparse.Namespace) -> None:
    """Audit, print the figures and write what was asked for."""
    from ..audit import render_page, summary
    from ..models.load import load_model
    from .progress import passes_bar

    request = read_request(args)
    sampler_settings(args, [])
    if args.state and args.state.exists() and not args.state.is_dir():
        raise OutputError(f"{args.state}: is a file; name a folder for finished cells")
    if args.team.first:
        cells = args.state / "core.json" if args.state else None
        check_outputs([args.json, args.html, cells], _inputs(args))
        check_suffix(args.json, ".json")
        check_suffix(args.html, ".html", ".htm")
    diffs, eyes = read_diffs(args.diff), request.loaded_eyes()
    settings = sampler_settings(args, diffs)
    model = load_model(args.model, args.device, settings.distilled)
    check_all_fit(args.diff, diffs, model, args.strict)
    place = args.state or (open_store(args) if args.team.first else None)
    tell = say if args.team.first else lambda text: None
    device = model.encoder.device
    run = request.audit(model, diffs, settings, place, tell, eyes, args.team, device)
    if args.team.first:
        say_cut(model.encoder, run.prompts)
    try:
        with passes_bar("auditing") as on_step:
            for step in run:
                on_step(step.done, step.total)
    except KeyboardInterrupt:
        if place is not None:
            tell("the parts of the audit that are finished are kept; the same audit goes on there")
        raise
    if not args.team.first:
        return
    report = run.report
    if args.json:
        text = json.dumps(report.figures, indent=1, allow_nan=False) + "\n"
        write_atomically(args.json, text.encode())
    if args.html:
        blur = {"auto": None, "on": True, "off": False}[args.blur]
        write_atomically(args.html, render_page(report, blur).encode())
    print(summary(report.figures))
