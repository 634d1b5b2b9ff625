"""Flags that several commands share, and how a command and its flags are declared."""

from __future__ import annotations

import argparse
from typing import Any

from ..spec import SETTINGS


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
