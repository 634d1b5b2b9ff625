"""Diffs asked for, by whatever way: the one check of a name and a strength, and their spelling."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from trust_engine.diff.apply import STRONGEST
from trust_engine.errors import SpecError
from trust_engine.settings import in_range

from . import folders
from .host import Part

NONE = "None"
SHORT = 10  # digits of a diff's hash in the infotext
RESERVED = "%;@*"  # characters that part the spelling; in a name they are written as %3B and so on
_WRITTEN = re.compile(
    r"(?P<name>[^@*]+?)(?:@(?P<sha>[0-9a-f]{4,64}))?(?:\*(?P<strength>[-+.\w]+))?"
)


@dataclass(frozen=True)
class Wanted:
    """A diff asked for: its file's name, its strength, and the hash it must have if it is known.

    Raises SpecError for a name that no file can have and for a strength beyond what may be drawn.
    """

    name: str
    strength: float = 1.0
    sha: str = ""

    def __post_init__(self) -> None:
        folders.check_name(self.name)
        in_range(f"the strength of {self.name}", self.strength, -STRONGEST, STRONGEST)


def written(wanted: Iterable[Wanted | Part]) -> str:
    """Spell diffs out for the infotext: name@hash*strength; name@hash*strength."""
    return "; ".join(f"{spelled(one.name, one.sha)}*{one.strength:g}" for one in wanted)


def spelled(name: str, sha: str = "") -> str:
    """Spell a name, and the hash if it is known, such that `read` finds the same."""
    kept = "".join(f"%{ord(char):02X}" if char in RESERVED else char for char in name)
    return f"{kept}@{sha[:SHORT]}" if sha else kept


def read(text: str) -> list[Wanted]:
    """Read what `written` wrote; `name` and `name*strength` do as well. Raises SpecError."""
    pieces = [piece.strip() for piece in text.split(";")]
    wanted = [_piece(piece) for piece in pieces if piece]
    if text.strip() and not wanted:
        raise SpecError(f"{text.strip()!r} names no diff; write such as gun.safetensors*0.5")
    return wanted


def _piece(piece: str) -> Wanted:
    match = _WRITTEN.fullmatch(piece)
    try:
        strength = float(match["strength"] or 1) if match else None
    except ValueError:
        strength = None
    if match is None or strength is None:
        raise SpecError(f"{piece!r} is no diff; write such as gun.safetensors*0.5")
    return Wanted(unquote(match["name"].strip()), strength, match["sha"] or "")


def named(text: str) -> list[Wanted]:
    """Read what stands in a field for a diff: a file of the folder, or what the infotext says."""
    return [Wanted(text)] if folders.has(text) else read(text)


def asked(values: Sequence[Any]) -> list[Wanted]:
    """Pair the accordion's values up: name, strength, name, strength; without those that are off.

    A name may be as the infotext writes it, with the hash that it must have, or several of them.
    """
    wanted = []
    for place in range(0, len(values), 2):
        name, strength = values[place], values[place + 1] if place + 1 < len(values) else 1.0
        if name in (None, "", NONE):
            continue
        if not isinstance(name, str) or not name.strip():
            raise SpecError(f"Diff {place // 2 + 1}: {name!r} is no diff's name; choose one, or "
                            f"{NONE}")  # fmt: skip
        in_range(f"the strength of Diff {place // 2 + 1}", strength, -STRONGEST, STRONGEST)
        for one in named(name):
            if strength and one.strength:
                wanted.append(Wanted(one.name, float(strength) * one.strength, one.sha))
    return wanted


def listed(entries: Any) -> list[Wanted]:
    """Read a program's list of {"name": ..., "strength": ...}; raises SpecError."""
    if not isinstance(entries, list):
        raise SpecError('diffs must be a list of {"name": ..., "strength": ...}')
    return [_entry(entry) for entry in entries]


def _entry(entry: Any) -> Wanted:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
        raise SpecError(f'{entry!r} names no diff; write {{"name": "gun.safetensors", '
                        '"strength": 1}')  # fmt: skip
    unknown = sorted(map(str, set(entry) - {"name", "strength"}))
    if unknown:
        raise SpecError(f"unknown fields {', '.join(unknown)}; known: name, strength")
    return Wanted(entry["name"], entry.get("strength", 1.0))
