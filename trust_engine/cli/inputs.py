"""What the command line's flags name: specs, diffs, outputs; all checked before a model loads."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ..errors import SpecError
from ..spec import CHOICES, ConceptSpec, UnlearnSpec, also_named

CONCEPT_FLAGS = ("kind", "companion", "condition", "preserve", "anchor", "also", "template")
DEFAULTS = {field.name: field.default for field in fields(UnlearnSpec)}
SETTINGS = ("objective", "engine", "schedule", "budget", "xi", "eta", "steps", "robust", "seed")


def read_spec(args: argparse.Namespace) -> UnlearnSpec:
    """Build the spec from a file or from flags; settings such as --steps go with either."""
    changes = {k: v for k in SETTINGS if (v := getattr(args, k)) is not None}
    if args.spec is not None:
        if any(getattr(args, flag) not in (None, []) for flag in CONCEPT_FLAGS):
            raise SpecError("--spec says all about the concept; give only settings with it")
        try:
            text = args.spec.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SpecError(f"{args.spec}: cannot be read ({error})") from error
        return _with_xi(replace(UnlearnSpec.from_json(text), **changes), args.xi)
    kind: Any = args.kind
    if kind is None and args.companion is not None:
        kind = "combination"
    elif kind is None:
        kind = "single" if args.condition is None else "conditional"
    concept = ConceptSpec(
        words=tuple(args.concept),
        kind=kind,
        companion=args.companion,
        condition=args.condition,
        preserve=tuple(args.preserve),
        anchor=args.anchor,
        templates=tuple(args.template),
    )
    concepts = (concept, *also_named(concept, args.also))
    return _with_xi(UnlearnSpec(concepts, **changes), args.xi)


def _with_xi(spec: UnlearnSpec, xi: float | None) -> UnlearnSpec:
    """Refuse an xi that nothing would look at."""
    if xi is not None and spec.shrinks:
        raise SpecError("--xi chooses the neurons of a bounded mask; add --schedule bounded")
    return spec


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
    """Declare the settings that a command line may change."""
    group = parser.add_argument_group("settings", "how to unlearn; the defaults suit most uses")
    meanings = {
        "objective": "",
        "engine": "",
        "schedule": "shrinking: begin with all entries and keep those that did most; bounded: "
        "those that stand out, taken anew at every step. ",
    }
    for name, text in meanings.items():
        options, usual = CHOICES[name], DEFAULTS[name]
        group.add_argument(f"--{name}", choices=options, help=f"{text}default: {usual}")
    group.add_argument(
        "--robust", action="store_true", default=None,
        help="stand up to attackers, too: all weights learn, several times slower, a larger diff",
    )  # fmt: skip
    numbers = {
        "steps": (int, "N", "updates a layer, for one concept; more: less is left of it, slower"),
        "budget": (float, "X", "largest share of q/k/v entries that a concept may change, 0..1"),
        "xi": (
            float,
            "X",
            "of --schedule bounded: z-score above which an entry is a concept neuron",
        ),
        "eta": (float, "X", "push beyond the anchor, away from the concept"),
        "seed": (int, "N", "of trajectories and samples"),
    }
    for name, (kind, unit, text) in numbers.items():
        text = f"{text} (default: {DEFAULTS[name]})"
        group.add_argument(f"--{name}", type=kind, metavar=unit, help=text)


def read_diffs(texts: Sequence[str]) -> list[tuple[Any, float]]:
    """Read FILE[:STRENGTH]..., in order; whether they fit a model is not known yet."""
    from ..diff import load_diff

    named = [_split_strength(text) for text in texts]
    return [(load_diff(path), strength) for path, strength in named]


def check_all_fit(
    texts: Sequence[str],
    diffs: Sequence[tuple[Any, float]],
    denoiser: Any,
    strict: bool = False,
) -> None:
    """Raise DiffError for a diff that does not fit; warn of one made from another base."""
    from ..diff import check_fits

    for text, (diff, _) in zip(texts, diffs, strict=True):
        if warning := check_fits(diff, denoiser, text, strict):
            print(f"trust_engine: warning: {' '.join(warning.split())}", file=sys.stderr)


def named(diffs: Sequence[str]) -> dict[str, str]:
    """Name the diff files of FILE[:STRENGTH]... as inputs of a command."""
    return {f"the diff {path}": str(path) for path, _ in map(_split_strength, diffs)}


def _split_strength(text: str) -> tuple[Path, float]:
    path, colon, number = text.rpartition(":")
    try:
        strength = float(number)
    except ValueError:
        return Path(text), 1.0  # no strength: a colon may belong to a drive letter
    if not colon:
        return Path(text), 1.0
    if not -2.0 <= strength <= 2.0:
        raise SpecError(f"{text}: strength {strength} must lie between -2 and 2")
    return Path(path), strength
