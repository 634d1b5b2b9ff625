"""What a diff file says of itself, for people: like the label on a bottle."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from ..models.keys import layer_of, projection_of
from ..models.unet_families import family_of
from .file import payload_sha256
from .weight_diff import WeightDiff, plain

WIDTH = 14


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
        "weights": len(diff.offsets),
        "attention_layers": len(layers),
        "other_weights": sum(projection_of(key) is None for key in diff.offsets),
        "bytes": size,
        "engine": diff.provenance.get("engine"),
        "notes": dict(diff.notes),
        "sha256": payload_sha256(diff),
        "provenance": dict(diff.provenance),
    }


def label(name: str, told: Mapping[str, Any]) -> str:
    """Lay the label out; what strangers wrote is cut, and shown without control characters."""
    rows = [
        ("forgets", "; ".join(told["concepts"]) or "not said"),
        ("made for", f"{told['family'] or 'a family without a name'}, base {told['base'] or '?'}"
         + (f", predicts {told['prediction']}" if told["prediction"] else "")),
        ("changes", f"{told['entries_changed']:,} entries ({told['share_changed']:.2%}) of "
         f"{told['weights']} weights in {told['attention_layers']} cross-attention layers"
         + (f", {told['other_weights']} weights elsewhere" if told["other_weights"] else "")),
        ("strength", "1 as made, 0 off; from -2 to 2 (below 0 it adds what it was made to remove)"),
        *(("audit", line) for line in audit_lines(told["notes"].get("audit"))),
        *((k, str(told["notes"][k])) for k in ("author", "licence", "notes") if k in told["notes"]),
        ("file", f"{told['bytes'] / 1e6:,.2f} MB, engine {told['engine'] or '?'}"),
        ("sha256", told["sha256"]),
    ]  # fmt: skip
    lines = [f"  {title:{WIDTH}s}{plain(text)}" for title, text in rows]
    return "\n".join([f"TRUST diff {plain(name)}", *lines])


def concepts(provenance: Mapping[str, Any], depth: int = 0) -> list[str]:
    """Name the concepts of a diff, or of the parts it was merged from."""
    parts = provenance.get("parts")
    if isinstance(parts, list) and depth < 4:
        return [
            f"{name} x{part.get('strength')}" if part.get("strength") != 1.0 else name
            for part in parts[:20]
            if isinstance(part, dict)
            for name in concepts(part, depth + 1)
        ]
    try:
        spec = json.loads(provenance["spec"])
        listed = spec.get("concepts") or [spec.get("concept")]
        return [_concept(concept) for concept in listed if isinstance(concept, dict)]
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return []


def _concept(concept: Mapping[str, Any]) -> str:
    words = concept.get("words")
    name = ", ".join(map(str, words)) if isinstance(words, list) else "?"
    if concept.get("companion"):
        name += f" with {concept['companion']}"
    if concept.get("condition"):
        name += f" {concept['condition']}"
    return name if concept.get("kind") in (None, "single") else f"{name} ({concept['kind']})"


def audit_lines(audit: Any) -> Iterator[str]:
    """Put an audit's figures in a few lines; any JSON object with figures in it will do."""
    if not isinstance(audit, Mapping) or not audit:
        yield "none noted: what it removes and what it harms is not known"
        return
    shown = [line for line in (_figure(k, v) for k, v in audit.items()) if line]
    yield from shown[:12]
    if len(shown) > 12:
        yield f"... and {len(shown) - 12} more figures (--json shows all)"
    if not shown:
        yield "noted, without figures at its top level (--json shows it)"


def _figure(name: str, value: Any) -> str | None:
    if isinstance(value, Mapping) and isinstance(value.get("value"), int | float):
        text = f"{name} {value['value']:.3g}"
        if isinstance(value.get("low"), int | float) and isinstance(value.get("high"), int | float):
            text += f" ({value['low']:.3g} to {value['high']:.3g})"
        return text + (f", n {value['n']}" if isinstance(value.get("n"), int) else "")
    if isinstance(value, str | int | float):
        return f"{name} {value}"
    return None
