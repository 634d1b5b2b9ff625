"""The command line: flags -> spec -> engine -> files. The only place that prints."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from .. import __version__
from ..distributed import SINGLE, Workers, joined
from ..errors import TrustError
from .audit import add_audit, run_audit
from .bench import add_bench
from .console import console, missing
from .diff import add_diff
from .generate import add_generate
from .list_prompts import add_prompts
from .runs import add_runs, say
from .unlearn import add_demo, add_unlearn, run_unlearn
from .wording import worded

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
    """Run a command: 0 on success, 130 when interrupted, else the error's `exit_code`."""
    try:
        with console():
            args = build_parser().parse_args(arguments)
            shared = args.run in (run_unlearn, run_audit)
            with joined(say) if shared else contextlib.nullcontext(SINGLE) as team:
                return _run(args, team)
    except TrustError as error:  # such as of processes that did not find one another
        print(f"trust_engine: {one_line(worded(error))}", file=sys.stderr)
        return error.exit_code


def _run(args: argparse.Namespace, team: Workers) -> int:
    args.team = team
    code = 0
    try:
        args.run(args)
        team.gather(None)  # what the others still do may fail
    except TrustError as error:
        team.tell(error)
        print(f"trust_engine: {one_line(worded(error))}", file=sys.stderr)
        code = error.exit_code
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
    add_demo(commands)
    add_generate(commands)
    add_unlearn(commands)
    add_prompts(commands)
    add_audit(commands)
    add_diff(commands)
    add_runs(commands)
    add_bench(commands)
    return parser
