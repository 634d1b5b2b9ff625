"""What a diff file says of itself, for people: like the label on a bottle."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..models.unet_families import family_of
from ..models.unet_keys import layer_of, projection_of
from ..phrases import plain
from .file import audit_mismatch, payload_sha256
from .weight_diff import WeightDiff

WIDTH = 14
LONGEST_NAME = 60
UNSAID = "not said"


def describe(diff: WeightDiff, size: int) -> dict[str, Any]:
    """Collect what a label shows; size: bytes of the file."""
    layers = {layer_of(key) for key in diff.offsets if projection_of(key)}
    return {
        "concepts": concepts(diff.provenance),
        "family": diff.provenance.get("family") or family_of(diff.shapes),
        "prediction": diff.provenance.get("prediction"),
        "base": diff.provenance.get("base"),
        "entries_changed": diff.changed,
        "share_changed": round(diff.share, 6),
        "directions": diff.directions,
        "weights": len(diff.offsets),
        "attention_layers": len(layers),
        "other_weights": sum(projection_of(key) is None for key in diff.offsets),
        "bytes": size,
        "engine": diff.provenance.get("engine"),
        "notes": dict(diff.notes),
        "sha256": payload_sha256(diff),
        "provenance": dict(diff.provenance),
    }


def label(name: str, told: Mapping[str, Any], rest: str = "") -> str:
    """Lay the label out; what strangers wrote is cut, and shown without control characters.

    rest: where all figures of an audit can be seen, if anywhere.
    """
    rows = [
        ("forgets", _names(told["concepts"], 240) if told["entries_changed"] else
         "nothing: it changes no entry"),
        ("made for", f"{told['family'] or 'a family without a name'}, base {told['base'] or '?'}"
         + (f", predicts {told['prediction']}" if told["prediction"] else "")),
        ("changes", f"{told['entries_changed']:,} entries ({told['share_changed']:.2%}) of "
         f"{told['weights']} weights in {told['attention_layers']} cross-attention layers"
         + (f", {told['other_weights']} weights elsewhere" if told["other_weights"] else "")
         + (f"; {told['directions']:,} directions of low rank" if told["directions"] else "")),
        ("strength", "1 as made, 0 off; from -2 to 2 (below 0 it adds what it was made to remove)"),
        *(("audit", line) for line in _audited(told, rest)),
        *((k, str(told["notes"][k])) for k in ("author", "licence", "notes") if k in told["notes"]),
        ("file", f"{told['bytes'] / 1e6:,.2f} MB, engine {told['engine'] or '?'}"),
        ("sha256", told["sha256"]),
    ]  # fmt: skip
    lines = [f"  {title:{WIDTH}s}{plain(text)}" for title, text in rows]
    return "\n".join([f"TRUST diff {plain(name)}", *lines])


def named(provenance: Mapping[str, Any], longest: int = 120) -> str:
    """Name the concepts of a diff in one line of about this length, and how many more there are."""
    return _names(concepts(provenance), longest)


def _names(names: Sequence[str], longest: int) -> str:
    shown: list[str] = []
    for name in (plain(name, LONGEST_NAME) for name in names):
        if shown and len("; ".join([*shown, name])) > longest:
            left = len(names) - len(shown)
            return f"{'; '.join(shown)} and {left} more, {len(names)} in all"
        shown.append(name)
    return "; ".join(shown) or UNSAID


def concepts(provenance: Mapping[str, Any]) -> list[str]:
    """Name every concept of a diff, or of all the parts it was merged from, however deep.

    A part's strength is told unless it is 1; a part that does not say what it forgets counts, too.
    """
    if not isinstance(provenance.get("parts"), list):
        return _own(provenance) or []
    found: dict[Any, tuple[list[str], float]] = {}
    left: list[tuple[Any, float]] = [(provenance, 1.0)]
    while left:
        part, strength = left.pop()
        inner = part.get("parts") if isinstance(part, Mapping) else None
        if isinstance(inner, list):
            left += [(one, strength * _strength(one)) for one in reversed(inner)]
            continue
        own = _own(part) if isinstance(part, Mapping) else None
        name = part.get("sha256") if isinstance(part, Mapping) else None
        key = name if isinstance(name, str) else len(found)
        before = found.get(key, ([], 0.0))[1]
        found[key] = own or [UNSAID], before + strength
    return [
        name if strength == 1 else f"{name} x{strength:g}"
        for names, strength in found.values()
        for name in names
        if abs(strength) > 1e-9
    ]


def _strength(part: Any) -> float:
    value = part.get("strength", 1.0) if isinstance(part, Mapping) else 1.0
    return float(value) if isinstance(value, int | float) else math.nan


def _own(provenance: Mapping[str, Any]) -> list[str] | None:
    """Name the concepts of a spec; None if it cannot be read."""
    try:
        spec = json.loads(provenance["spec"])
        listed = spec.get("concepts") or [spec.get("concept")]
        return [_concept(concept) for concept in listed if isinstance(concept, dict)]
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return None


def _concept(concept: Mapping[str, Any]) -> str:
    words = concept.get("words")
    name = ", ".join(map(str, words)) if isinstance(words, list) else "?"
    if concept.get("companion"):
        name += f" with {concept['companion']}"
    if concept.get("condition"):
        name += f" {concept['condition']}"
    return name if concept.get("kind") in (None, "single") else f"{name} ({concept['kind']})"


def _audited(told: Mapping[str, Any], rest: str) -> Iterator[str]:
    """Show an audit's figures if they are of this diff, and of which strength and base."""
    audit = told["notes"].get("audit")
    if not isinstance(audit, Mapping) or not audit:
        yield "none noted: what it removes and what it harms is not known"
        return
    said = audit_mismatch(audit, told["sha256"])
    if said is not None:
        yield f"noted, and not shown: {said}"
        return
    (measured,) = audit["diffs"]
    if measured["strength"] != 1:
        yield f"at strength {measured['strength']:g}"
    if audit.get("base") != told["base"]:
        yield f"on another base, {plain(audit.get('base'), 40)}"
    figures = {k: v for k, v in audit.items() if k not in ("diffs", "base")}
    shown = [line for line in (_figure(k, v) for k, v in figures.items()) if line]
    yield from shown[:12]
    if len(shown) > 12:
        yield f"... and {len(shown) - 12} more figures{rest}"
    if not shown:
        yield f"noted, without figures at its top level{rest}"


def _figure(name: str, value: Any) -> str | None:
    if isinstance(value, Mapping) and isinstance(value.get("value"), int | float):
        text = f"{name} {value['value']:.3g}"
        if isinstance(value.get("low"), int | float) and isinstance(value.get("high"), int | float):
            text += f" ({value['low']:.3g} to {value['high']:.3g})"
        return text + (f", n {value['n']}" if isinstance(value.get("n"), int) else "")
    if isinstance(value, str | int | float):
        return f"{name} {value}"
    return None
