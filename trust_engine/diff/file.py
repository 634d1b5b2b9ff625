"""TRUST diff files: compact, exact, the same bytes for the same content.

The format is described in docs/reference/diff-format.md.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import DiffError
from ..io.files import open_regular
from ..io.safetensors import (
    Header,
    planned,
    read_bytes,
    read_header,
    tensor_bytes,
    write_tensors,
)
from .packing import ENTRIES, FACTORS, Packed, fitting, pack, parts_of, sound_claim, unpack
from .weight_diff import NAME, WeightDiff, check_offset

FORMAT = "trust-diff"
NOTES = "trust-notes"
FORMAT_VERSION = 2  # the newest that is read; what is written is of the first that can hold it
LONGEST_HEADER = 4 << 20  # bytes; the header of an SDXL diff takes about 0.1 MB
PARTS = (*ENTRIES, *FACTORS)
NOTE_FIELDS = ("author", "licence", "notes", "audit")


def save_diff(diff: WeightDiff, path: Path) -> None:
    """Write the diff, whole or not at all; the bytes depend on its content only.

    Folders that are not there yet are made. Raises OutputError where that cannot be written.
    """
    packed = _packed(diff, str(path))
    metadata = {FORMAT: _json(_sealed(diff, packed, str(path)), str(path))}
    if diff.notes:
        notes = _json(dict(diff.notes), str(path))
        sealed = {"notes": dict(diff.notes), "sha256": hashlib.sha256(notes.encode()).hexdigest()}
        metadata[NOTES] = _json(sealed, str(path))
    tensors = {
        f"{key}.{part}": tensor
        for key, one in packed.items()
        for part, tensor in one.tensors.items()
    }
    plan = planned({key: (tensor.dtype, tensor.shape) for key, tensor in tensors.items()})
    if sum(map(len, metadata.values())) + 200 * len(plan) > LONGEST_HEADER:
        raise DiffError(f"{path}: spec, report and notes are too long for a diff; shorten them")
    write_tensors(path, plan, lambda key: (tensor_bytes(tensors[key]),), metadata)


def payload_sha256(diff: WeightDiff) -> str:
    """Return the hash that a file of this diff carries: its name for good, whatever is noted."""
    sha256: str = _sealed(diff, _packed(diff, "diff"), "diff")["sha256"]
    return sha256


def load_diff(path: Path) -> WeightDiff:
    """Read and check a diff file; raises DiffError for anything that is not a sound diff."""
    with open_regular(path, DiffError) as file:
        return read_diff(file, str(path))


def read_diff(file: BinaryIO, name: str) -> WeightDiff:
    """Read a diff from an open file; every claim is checked before memory is taken for it."""
    header = read_header(file, name, DiffError, LONGEST_HEADER)
    label = _read_label(header, name)
    if not set(header.metadata) <= {FORMAT, NOTES}:
        raise DiffError(f"{name}: it holds metadata that no diff has: damaged or edited")
    _check_tensors(header, label, name)
    entries = {
        key: {part: header.entries[f"{key}.{part}"] for part in parts_of(claim)}
        for key, claim in label["tensors"].items()
    }
    contents = {
        key: {part: read_bytes(file, entry) for part, entry in own.items()}
        for key, own in entries.items()
    }
    claimed = label.pop("sha256")
    if claimed != _sha256(label, {key: iter(own.values()) for key, own in contents.items()}):
        raise DiffError(f"{name}: its content does not match its checksum: damaged or edited")
    offsets = {
        key: unpack(key, claim, entries[key], contents.pop(key), name)
        for key, claim in label["tensors"].items()
    }
    return WeightDiff(offsets, label["provenance"], _read_notes(header, name))


def annotate_diff(path: Path, notes: Mapping[str, Any], out: Path) -> WeightDiff:
    """Add or replace notes (None removes one) and write to `out`; the payload stays as it is."""
    unknown = sorted(set(notes) - set(NOTE_FIELDS))
    if unknown:
        raise DiffError(f"{path}: cannot note {unknown}; known: {', '.join(NOTE_FIELDS)}")
    diff = load_diff(path)
    check_audit(diff, notes.get("audit"), str(path))
    merged = {k: v for k, v in {**diff.notes, **notes}.items() if v is not None}
    diff = replace(diff, notes=merged)
    save_diff(diff, out)
    return diff


def check_audit(diff: WeightDiff, audit: Any, name: str = "diff") -> None:
    """Raise DiffError unless an audit that is to be noted on a diff is of that diff alone."""
    if audit is None:
        return
    said = audit_mismatch(audit, payload_sha256(diff))
    if said is not None:
        raise DiffError(f"{name}: the audit is not of this diff: {said}; audit it, and note that")


def audit_mismatch(audit: Any, sha256: str) -> str | None:
    """Say why an audit's figures are not those of the diff with this hash; None if they are."""
    measured = audit.get("diffs") if isinstance(audit, Mapping) else None
    if not isinstance(measured, list) or not all(map(_measured, measured)):
        return "it does not say which diff it measured"
    if len(measured) != 1:
        return f"it measured {len(measured)} diffs together"
    if measured[0]["sha256"] != sha256:
        return f"it measured another one, sha256 {measured[0]['sha256'][:16]}..."
    return "it measured the diff at strength 0" if not measured[0]["strength"] else None


def _measured(one: Any) -> bool:
    return (
        isinstance(one, Mapping)
        and isinstance(one.get("sha256"), str)
        and isinstance(one.get("strength"), int | float)
        and math.isfinite(one["strength"])
    )


def _packed(diff: WeightDiff, name: str) -> dict[str, Packed]:
    packed = {}
    for key, offset in sorted(diff.offsets.items()):
        check_offset(key, offset, name)
        packed[key] = pack(offset)
    return packed


def _sealed(diff: WeightDiff, packed: Mapping[str, Packed], name: str) -> dict[str, Any]:
    """Return the label, with the hash of itself and of all tensors."""
    tensors = {key: dict(one.claim) for key, one in packed.items()}
    # By way of JSON, so that what is hashed is what a reader will find.
    provenance = json.loads(_json(dict(diff.provenance), name))
    _check_provenance(provenance, name)
    label = {"version": _version(tensors), "tensors": tensors, "provenance": provenance}
    contents = {key: map(tensor_bytes, one.tensors.values()) for key, one in packed.items()}
    return {**label, "sha256": _sha256(label, contents)}


def _version(claims: Mapping[str, Any]) -> int:
    """Tell the version of the format that a diff needs: where nothing is of low rank, the first."""
    return 2 if any("rank" in claim for claim in claims.values()) else 1


def _json(value: Any, name: str) -> str:
    try:
        return json.dumps(value, sort_keys=True, allow_nan=False)
    except (ValueError, TypeError) as error:
        raise DiffError(f"{name}: its provenance or notes are not JSON ({error})") from error


def _sha256(label: Mapping[str, Any], contents: Mapping[str, Iterator[Any]]) -> str:
    digest = hashlib.sha256(json.dumps(label, sort_keys=True).encode())
    for key in sorted(contents):
        for part in contents[key]:
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
    return digest.hexdigest()


def _read_label(header: Header, name: str) -> dict[str, Any]:
    text = header.metadata.get(FORMAT)
    if text is None:
        raise DiffError(f"{name}: not a TRUST diff (no {FORMAT!r} in its metadata)")
    label = _parse(text, f"{name}: its TRUST label")
    version = label.get("version")
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise DiffError(
            f"{name}: diff format {ascii(version)[:20]}, this release reads 1 to {FORMAT_VERSION}"
        )
    if "shapes" in label:
        raise DiffError(f"{name}: made by a version before the first release; make it again")
    tensors = label.get("tensors")
    sound = set(label) == {"version", "tensors", "provenance", "sha256"} and isinstance(
        label["provenance"], dict
    )
    if not sound or not isinstance(tensors, dict) or not all(map(sound_claim, tensors.values())):
        raise DiffError(f"{name}: its TRUST label is incomplete; the file is damaged")
    if version != _version(tensors):
        raise DiffError(f"{name}: its content is of another version than it says; refused")
    _check_provenance(label["provenance"], name)
    return label


def _check_provenance(provenance: Mapping[str, Any], name: str) -> None:
    for key in ("spec", "base", "family", "prediction", "engine"):
        if not isinstance(provenance.get(key), str | None):
            raise DiffError(f"{name}: its {key} is not a text; the file is damaged")


def _parse(text: str, what: str) -> dict[str, Any]:
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DiffError(f"{what} cannot be read; the file is damaged") from error
    if not isinstance(parsed, dict):
        raise DiffError(f"{what} cannot be read; the file is damaged")
    return parsed


def _check_tensors(header: Header, label: Mapping[str, Any], name: str) -> None:
    for key, claim in label["tensors"].items():
        if not NAME.fullmatch(key):
            raise DiffError(f"{name}: {ascii(key)[:80]} is no name of a UNet's weight; refused")
        if not fitting(claim, {part: header.entries.get(f"{key}.{part}") for part in PARTS}):
            raise DiffError(
                f"{name}: entry {key} is missing, too large or of another type; refused"
            )
    if len(header.entries) != sum(len(parts_of(claim)) for claim in label["tensors"].values()):
        raise DiffError(f"{name}: it holds tensors that its label does not name; refused")


def _read_notes(header: Header, name: str) -> dict[str, Any]:
    if NOTES not in header.metadata:
        return {}
    sealed = _parse(header.metadata[NOTES], f"{name}: what is noted in it")
    notes = sealed.get("notes")
    digest = hashlib.sha256(json.dumps(notes, sort_keys=True).encode()).hexdigest()
    if not isinstance(notes, dict) or digest != sealed.get("sha256"):
        raise DiffError(f"{name}: what is noted in it was damaged or edited by hand")
    return notes
