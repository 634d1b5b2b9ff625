"""The tab's fields as values, presets of them, and the way from them to the engine's spec."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from trust_engine.errors import OutputError, SpecError
from trust_engine.frontend.subjects import COUNT
from trust_engine.io.files import write_atomically
from trust_engine.phrases import by_line, names_in
from trust_engine.spec import DEFAULTS, ConceptSpec, UnlearnSpec, also_named
from trust_engine.unlearn.effort import steps_of

from . import folders
from .one_line import one_line
from .unlearn_job import Order

PARTNERS = {
    "combination": "goes together with, such as: beer",
    "conditional": "hangs on, such as: on a red background",
}
LARGEST = 1 << 16  # characters of one field: a spec has to fit into a diff's label


@dataclass(frozen=True)
class Form:
    """What the tab asks. Words and what to preserve are separated by commas or lines.

    also: further things to forget in the same run; partner: of a combination or condition;
    templates, stays: one a line, commas and all; rate, beta, eta, lam, seed and the rest mean what
    the spec says.
    """

    words: str = ""
    also: str = ""
    kind: str = "single"
    partner: str = ""
    preserve: str = ""
    anchor: str = ""
    objective: str = DEFAULTS["objective"]
    effort: str = "normal"
    budget: float = DEFAULTS["budget"]
    engine: str = DEFAULTS["engine"]
    robust: bool = DEFAULTS["robust"]
    resolution: int = 0
    pictures: int = COUNT
    seed: int = DEFAULTS["seed"]
    rate: float = DEFAULTS["rate"]
    beta: float = DEFAULTS["beta"]
    eta: float = DEFAULTS["eta"]
    lam: float = DEFAULTS["lam"]
    passes: int = DEFAULTS["passes"]
    syntax: str = DEFAULTS["syntax"]
    sampling: str = DEFAULTS["sampling"]
    templates: str = ""
    stays: str = ""

    @property
    def concepts(self) -> tuple[ConceptSpec, ...]:
        """Return the concept, and those to forget with it; raises SpecError."""
        kept, anchor = listed(self.preserve), self.anchor.strip() or None
        own = by_line(self.templates)
        first = concept_of(self.words, self.kind, self.partner, kept, anchor, own)
        return (first, *also_named(first, listed(self.also)))

    @property
    def spec(self) -> UnlearnSpec:
        """Return the engine's spec; raises SpecError."""
        same = ("objective", "budget", "engine", "robust", "rate", "beta", "eta", "lam",
                "syntax", "sampling")  # fmt: skip
        settings: dict[str, Any] = {name: getattr(self, name) for name in same}
        whole = {name: int(getattr(self, name)) for name in ("seed", "passes")}
        settings |= {"steps": steps_of(self.effort), "stays": by_line(self.stays)}
        spec = UnlearnSpec(self.concepts, **settings, **whole)
        spec.refuse_unheeded()
        return spec

    @property
    def order(self) -> Order:
        """Return what the job is asked for; raises SpecError."""
        return Order(self.spec, int(self.resolution or 0), int(self.pictures))


TYPES = {str: "text", int: "whole number", float: "number", bool: "yes or no"}
NAMES = tuple(field.name for field in fields(Form))


def concept_of(
    words: str,
    kind: str,
    partner: str,
    preserve: tuple[str, ...] = (),
    anchor: str | None = None,
    templates: tuple[str, ...] = (),
) -> ConceptSpec:
    """Build a concept of what a page's fields say; raises SpecError in the page's own words."""
    if not listed(words):
        raise SpecError("name what to forget, in a word or a phrase")
    other = partner.strip() or None
    if kind in PARTNERS and other is None:
        raise SpecError(f"With, or when: say what it {PARTNERS[kind]}")
    if kind not in PARTNERS and other is not None:
        raise SpecError(f"With, or when says {other!r}, which the kind {kind} does not use: choose "
                        f"{' or '.join(PARTNERS)}, or empty the field")  # fmt: skip
    companion = other if kind == "combination" else None
    condition = other if kind == "conditional" else None
    about: Any = (kind, companion, condition, preserve, anchor, templates)
    return ConceptSpec(listed(words), *about)


def listed(text: str) -> tuple[str, ...]:
    """Split at commas and lines."""
    return names_in(text)


def filled(values: Mapping[str, Any]) -> Form:
    """Build a form of what a page or a preset says; raises SpecError for a field of no form."""
    unknown = sorted(set(values) - set(NAMES))
    if unknown:
        raise SpecError(f"unknown fields {', '.join(unknown)}; known: {', '.join(NAMES)}")
    form, given = Form(), {name: value for name, value in values.items() if value is not None}
    for name, value in given.items():
        kind = type(getattr(form, name))
        fits = isinstance(value, kind) or (kind is float and isinstance(value, int))
        if kind is int and isinstance(value, float) and value.is_integer():
            given[name], fits = int(value), True  # how the page's sliders say it
        if not fits or (isinstance(value, bool) and kind is not bool):
            raise SpecError(f"{name} must be a {TYPES[kind]}, not {one_line(repr(value), 60)}")
        if isinstance(value, str) and len(value) > LARGEST:
            raise SpecError(f"{name} has {len(value)} characters; use at most {LARGEST}")
    return replace(form, **given)


def presets() -> list[str]:
    """List the saved presets."""
    return sorted(path.stem for path in folders.presets().glob("*.json"))


def save_preset(name: str, form: Form) -> str:
    """Save a form under a name, replacing one of that name; returns the name it got."""
    path = _preset(name)
    write_atomically(path, (json.dumps(asdict(form), indent=1) + "\n").encode())
    return path.stem


def load_preset(name: str) -> Form:
    """Read a preset; raises OutputError or SpecError."""
    path, shown = _preset(name), one_line(repr(name), 60)
    try:
        told = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise OutputError(f"preset {shown} cannot be read ({_why(error)})") from error
    if not isinstance(told, dict):
        raise SpecError(f"preset {shown} is damaged; save it anew")
    try:
        return filled(told)
    except SpecError as error:
        raise SpecError(f"preset {shown}: {error}") from error


def _why(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or one_line(error, 120))


def _preset(name: str) -> Path:
    if not name.strip():
        raise SpecError("name the preset")
    folder = folders.presets()
    folders.ready(folder)
    return folder / f"{folders.harmless(name)}.json"
