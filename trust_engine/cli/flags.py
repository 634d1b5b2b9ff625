"""Flags that several commands share, and how a command and its flags are declared."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..spec import KINDS, SETTINGS

PRESERVE = "what must keep its look (default: the nearest words the model knows)"
ALSO = "further concepts to remove in the same run, one each (beside a style: styles)"
TEMPLATE = 'sentences of your own with {} where the concept goes, e.g. "a photo of {}"'
STAYS = (
    "with --robust: a text file of what its pictures of what must stay show, a prompt a line "
    "(default: what is preserved, alone and in pairs; the command prompts writes such a file)"
)


def add_command(commands: Any, name: str, says: str, about: str = "") -> argparse.ArgumentParser:
    """Declare a command: what the list of commands says, and what its own help begins with."""
    made: argparse.ArgumentParser = commands.add_parser(name, help=says, description=about or None)
    return made


def add_list(parser: Any, flag: str, kind: str, says: str | None = None, **more: Any) -> None:
    """Declare a flag that takes several values, and may be given several times."""
    parser.add_argument(
        flag, nargs="+", action="extend", default=[], metavar=kind, help=says, **more
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """Declare `--model` and `--device`."""
    parser.add_argument(
        "--model",
        required=True,
        metavar="demo|PATH",
        help="demo, a safetensors checkpoint or a diffusers folder",
    )
    add_device(parser)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Declare `--device`."""
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")


def add_memory(parser: argparse.ArgumentParser) -> None:
    """Declare `--memory`, in gigabytes."""
    parser.add_argument(
        "--memory",
        choices=("low", "auto", "high"),
        default="auto",
        help="what recording may take besides the model: low: as much as sampling one picture, "
        "auto: up to 1 GB, high: up to 5 GB; training a layer takes 0.2 GB (SD 1.x, 2.x) to "
        "0.5 GB (SDXL) (default: auto)",
    )


def add_concepts(parser: argparse.ArgumentParser) -> None:
    """Declare what to unlearn, and what must stay."""
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
    add_list(parser, "--preserve", "TEXT", PRESERVE)
    parser.add_argument(
        "--anchor", metavar="TEXT", help="what to draw instead (default: the same without it)"
    )
    add_list(parser, "--also", "TEXT", ALSO)
    add_list(parser, "--template", "TEXT", TEMPLATE)
    parser.add_argument("--stays", type=Path, metavar="FILE.txt", help=STAYS)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Declare the settings that a command line may change; a spec file has them all."""
    group = parser.add_argument_group("settings", "how to unlearn; the defaults suit most uses")
    for name, setting in SETTINGS.items():
        if not setting.flag:
            continue
        if setting.kind == "switch":
            group.add_argument(f"--{name}", action="store_true", default=None, help=setting.help)
            continue
        told: dict[str, Any] = {"choices": setting.options} if setting.options else {}
        if not setting.options:
            whole = setting.kind == "whole number"
            told = {"type": int if whole else float, "metavar": "N" if whole else "X"}
        text = f"{setting.help} (default: {setting.default})"
        group.add_argument(f"--{name}", help=text, **told)


def add_sampler(parser: argparse.ArgumentParser) -> None:
    """Declare how pictures are drawn: `--steps`, `--cfg` and `--sampling`."""
    about = SETTINGS["sampling"]
    parser.add_argument("--steps", type=int, help="sampling steps (default: 20; distilled: 4)")
    parser.add_argument("--cfg", type=float, help="guidance scale (default: 4; distilled: none)")
    parser.add_argument(
        "--sampling",
        choices=about.options,
        help="guided, or which kind of model distilled to draw in a few steps it is (default: as "
        "the diffs' own spec says, else guided)",
    )
