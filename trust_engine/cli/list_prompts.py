"""The command `prompts`: what a run would ask of a model, before it is made."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..errors import SpecError
from ..io.outputs import check_outputs
from .flags import add_command, add_concepts, add_memory, add_model, add_settings
from .inputs import read_spec, say_applied
from .unlearn import say_asked

ABOUT = (
    "Show the prompts of a run, without making it: what is erased, and answered as what; what must "
    "be answered as before; and which pictures --robust draws. The model is asked which words it "
    "draws as the concept, as a run asks it first."
)


def add_prompts(commands: Any) -> None:
    """Declare `prompts`."""
    says = "show what a run erases, preserves and, with --robust, draws"
    parser = add_command(commands, "prompts", says, ABOUT)
    add_model(parser)
    add_concepts(parser)
    add_settings(parser)
    add_memory(parser)
    parser.add_argument(
        "--out", type=Path, metavar="FILE.txt",
        help="with --robust: write what its pictures of what must stay show, a prompt a line, to "
        "be edited and given to unlearn as --stays",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print all prompts as JSON")
    parser.set_defaults(run=run_prompts)


def run_prompts(args: argparse.Namespace) -> None:
    """Ask the model what it knows of the words, as a run does first, and list the prompts."""
    from ..frontend.prompt_lists import prompt_lists
    from ..io.files import write_atomically
    from ..models.load import load_model
    from ..unlearn.run import Unlearning
    from .progress import passes_bar

    spec = read_spec(args)
    if args.out is not None and not spec.robust:
        raise SpecError("--out writes what robust mode's pictures show; add --robust")
    inputs = {"the model": args.model, "the spec": args.spec, "what stays": args.stays}
    check_outputs([args.out], inputs)
    model = load_model(args.model, args.device, spec.sampling != "guided")
    run = Unlearning(model.lend(args.memory), spec)
    say_applied(args.model, model.applied)
    with passes_bar("asking what the model knows") as on_step:
        for report in run.ask():
            on_step(report.done, run.asking)
    say_asked(run)
    found = prompt_lists(run)
    if args.out is not None:
        write_atomically(args.out, "".join(f"{prompt}\n" for prompt in found.stays).encode())
    print(json.dumps(found.to_dict()) if args.json else found)
