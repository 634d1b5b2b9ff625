"""The command `bench`: speed and memory on this machine, on models of random weights."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..errors import SpecError
from ..io.files import check_writable, write_atomically
from ..settings import in_range
from .flags import add_command

FAMILIES = ("sd15", "sd2", "sdxl")
PARTS = ("local", "global", "baselines")


ABOUT = (
    "Draw a full-size model's weights at random, stored in float16, and measure sampling, the "
    "local and the global engine, and single steps of ESD, SalUn and UCE: seconds by stage, UNet "
    "passes, memory. Nothing is downloaded."
)


def add_bench(commands: Any) -> None:
    """Declare `bench speed`."""
    parser = add_command(commands, "bench", "measure speed and memory on this machine")
    kinds = parser.add_subparsers(required=True, metavar="WHAT")
    says = "both engines and other methods' steps on a full-size model"
    speed = add_command(kinds, "speed", says, ABOUT)
    speed.add_argument("--family", choices=FAMILIES, required=True)
    speed.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    speed.add_argument(
        "--resolution", type=int, default=0, metavar="N", help="side in pixels (default: its own)"
    )
    speed.add_argument(
        "--passes", type=int, default=0, metavar="N", help="of recording (default: the engine's)"
    )
    speed.add_argument(
        "--steps", type=int, default=0, metavar="N", help="of each layer (default: the engine's)"
    )
    speed.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    speed.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    speed.set_defaults(run=_speed)


def _speed(args: argparse.Namespace) -> None:
    from ..benchmark.run import Question, bench
    from ..models.load import pick_device

    if args.resolution:
        in_range("resolution", args.resolution, 64, 4096, whole=True)
        if args.resolution % 64:
            raise SpecError(f"resolution {args.resolution} must be a multiple of 64")
    if args.json:
        check_writable(args.json)
    asked = Question(
        args.family,
        pick_device(args.device),
        args.resolution,
        args.passes,
        args.steps,
        tuple(args.part),
    )
    asked.spec  # noqa: B018 - refuses bad numbers before a model is made
    found: dict[str, Any] = {}
    for part, figures in bench(asked):
        found[part] = figures
        print(part)
        for line in lines(figures):
            print(f"  {line}", flush=True)
    if args.json:
        write_atomically(args.json, (json.dumps(found, indent=1) + "\n").encode())


def lines(figures: dict[str, Any], before: str = "") -> list[str]:
    """Write figures one a line; those of a group after the group's name."""
    found: list[str] = []
    for name, value in figures.items():
        if isinstance(value, dict):
            found += lines(value, f"{before}{name}.")
        else:
            shown = f"{value:.4g}" if isinstance(value, float) else str(value)
            found.append(f"{before}{name:<30} {shown}")
    return found
