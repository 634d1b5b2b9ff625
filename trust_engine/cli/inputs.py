"""What the command line's flags name: specs, diffs, outputs; all checked before a model loads."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import strict_json
from ..errors import SpecError
from ..phrases import by_line
from ..spec import SETTINGS, ConceptSpec, UnlearnSpec, also_named

CONCEPT_FLAGS = (
    "kind", "companion", "condition", "preserve", "anchor", "also", "template", "stays",
)  # fmt: skip
FLAGS = tuple(name for name, setting in SETTINGS.items() if setting.flag)


def read_spec(args: argparse.Namespace) -> UnlearnSpec:
    """Build the spec from a file or from flags; settings such as --steps go with either."""
    spec = _read_spec(args)
    spec.refuse_unheeded()
    return spec


def _read_spec(args: argparse.Namespace) -> UnlearnSpec:
    changes = {k: v for k in FLAGS if (v := getattr(args, k)) is not None}
    if args.spec is not None:
        if any(getattr(args, flag) not in (None, []) for flag in CONCEPT_FLAGS):
            raise SpecError("--spec says all about the concept; give only settings with it")
        try:
            text = args.spec.read_bytes()
        except OSError as error:
            raise SpecError(f"{args.spec}: cannot be read ({error})") from error
        try:
            read = UnlearnSpec.from_json(text)
        except SpecError as error:
            raise SpecError(f"{args.spec}: {error}") from error
        return _with_xi(replace(read, **changes), args.xi)
    concept = ConceptSpec(
        words=tuple(args.concept),
        kind=kind_of(args),
        companion=args.companion,
        condition=args.condition,
        preserve=tuple(args.preserve),
        anchor=args.anchor,
        templates=tuple(args.template),
    )
    concepts = (concept, *also_named(concept, args.also))
    stays = read_lines(args.stays) if args.stays is not None else ()
    return _with_xi(UnlearnSpec(concepts, stays=stays, **changes), args.xi)


def read_lines(path: Path) -> tuple[str, ...]:
    """Read a text file's lines but for empty ones; raises SpecError where there are none."""
    try:
        found = by_line(strict_json.decoded(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise SpecError(f"{path}: cannot be read ({error})") from error
    if not found:
        raise SpecError(f"{path}: is empty; write a prompt a line")
    return found


def kind_of(args: argparse.Namespace) -> Any:
    """Return the kind of concept that flags name, or imply."""
    if args.kind is not None:
        return args.kind
    if args.companion is not None:
        return "combination"
    return "single" if args.condition is None else "conditional"


def _with_xi(spec: UnlearnSpec, xi: float | None) -> UnlearnSpec:
    """Refuse an xi that nothing would look at."""
    if xi is not None and spec.shrinks:
        told = "chooses the neurons of a bounded mask"
        raise SpecError(told, field="xi", remedy="add {schedule bounded}")
    return spec


def sampler_settings(args: argparse.Namespace, diffs: Sequence[tuple[Any, float]]) -> Any:
    """Return the settings that `add_sampler`'s flags ask for; raises SpecError."""
    from ..diff.model_sampling import sampling_of
    from ..models.sampler import SamplerSettings, sampled

    how = args.sampling or sampling_of(diff for diff, _ in diffs)
    asked = {k: v for k in ("steps", "cfg") if (v := getattr(args, k)) is not None}
    settings = sampled(SamplerSettings(**asked), how)
    return replace(settings, **asked)


def read_diffs(texts: Sequence[str]) -> list[tuple[Any, float]]:
    """Read FILE[:STRENGTH]..., in order; whether they fit a model is not known yet."""
    from ..diff import load_diff

    found = [(load_diff(path), strength) for path, strength in map(_split_strength, texts)]
    _refuse_twice(texts, [diff for diff, _ in found])
    return found


def _refuse_twice(texts: Sequence[str], diffs: Sequence[Any]) -> None:
    from ..diff import payload_sha256

    seen: dict[str, str] = {}
    for text, diff in zip(texts, diffs, strict=True) if len(diffs) > 1 else ():
        first = seen.setdefault(payload_sha256(diff), text)
        if first is not text:
            raise SpecError(f"{text}: is the same diff as {first}; name it once, FILE:STRENGTH")


def check_all_fit(
    texts: Sequence[str],
    diffs: Sequence[tuple[Any, float]],
    model: Any,
    strict: bool = False,
) -> None:
    """Raise DiffError for a diff that does not fit or is in the model already.

    Warn of one made from another base.
    """
    from ..diff import check_fits, fingerprint
    from ..diff.base_model import refuse_again

    base = fingerprint(model.denoiser) if diffs else None  # hashes all of q, k and v: once
    for text, (diff, strength) in zip(texts, diffs, strict=True):
        if refuse_again({"diffs": model.applied}, diff, strength, text, "the model"):
            continue  # it takes back what is there
        if warning := check_fits(diff, model.denoiser, text, strict, base):
            print(f"trust_engine: warning: {' '.join(warning.split())}", file=sys.stderr)


def say_applied(model: str, applied: Sequence[Any]) -> None:
    """Say which diffs are in a model's weights already."""
    from ..diff.label import named as names

    if applied:
        inside = names({"parts": list(applied)})
        say = f"{model} has {inside} in it already; the new diff is for the model as it is"
        print(f"trust_engine: note: {say}", file=sys.stderr)


def check_texts(flag: str, texts: Sequence[str]) -> None:
    """Raise SpecError for a text whose bytes are no characters, as no text encoder reads them."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise SpecError(
                f"{flag} {text[:60]!r} is no text in this terminal's encoding; write it in UTF-8"
            ) from error


def say_cut(encoder: Any, prompts: Sequence[str]) -> None:
    """Say where prompts are longer than what a text encoder reads."""
    from ..models.text_encoders import part_read
    from ..phrases import plain

    cut = [(p, part) for p in prompts if (part := part_read(encoder, p)) is not None]
    if not cut:
        return
    (prompt, part), more = cut[0], f", and {len(cut) - 1} more prompts are cut" if cut[1:] else ""
    lost = " ".join(prompt[len(part) :].split())
    print(
        f"trust_engine: warning: the text encoder reads 75 tokens: of {plain(prompt, 40)!r} it "
        f"leaves out {plain(lost, 80)!r}{more}",
        file=sys.stderr,
    )


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
