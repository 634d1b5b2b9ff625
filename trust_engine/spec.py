"""What to forget and how: frozen, validated, JSON-serialisable; the engine's only defaults."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from .errors import SpecError

Kind = Literal["single", "combination", "conditional", "style"]
Objective = Literal["csr", "cip", "none"]
Engine = Literal["local", "global"]
KINDS: tuple[str, ...] = get_args(Kind)
SPEC_VERSION = 1


@dataclass(frozen=True)
class ConceptSpec:
    """One concept: the words that mean it, and what must stay.

    companion: the second member of a combination; condition: a phrase such as "on a table";
    preserve: what must keep its look (empty: the engine proposes); anchor: what to draw instead
    (None: the prompt without the concept).
    """

    words: tuple[str, ...]
    kind: Kind = "single"
    companion: str | None = None
    condition: str | None = None
    preserve: tuple[str, ...] = ()
    anchor: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "words", _phrases(self.words, "concept"))
        object.__setattr__(self, "preserve", _phrases(self.preserve, "preserve", least=0))
        if self.kind not in KINDS:
            raise SpecError(f"kind {self.kind!r} is unknown; use one of {', '.join(KINDS)}")
        for name in ("companion", "condition", "anchor"):
            if not isinstance(getattr(self, name), str | None):
                raise SpecError(f"{name} must be a text, not {getattr(self, name)!r}")
        self._check_partner("companion", "combination", "--with")
        self._check_partner("condition", "conditional", "--when")
        if self.anchor is not None and not self.anchor.strip():
            raise SpecError("anchor is empty; name what to draw instead, or leave it out")
        for phrase in self.preserve:
            if phrase.lower() in {word.lower() for word in self.words}:
                raise SpecError(f"preserve names the concept itself ({phrase!r}); take it out")

    def _check_partner(self, field: str, kind: str, flag: str) -> None:
        value = getattr(self, field)
        if self.kind == kind and not (value and value.strip()):
            raise SpecError(f"a {kind} concept needs a {field}; add {flag} TEXT")
        if self.kind != kind and value is not None:
            raise SpecError(f"{flag} belongs to --kind {kind}, not to {self.kind}")
        if value and value.strip().lower() in {word.lower() for word in self.words}:
            raise SpecError(f"{field} equals the concept ({value!r}); name two different things")

    @property
    def name(self) -> str:
        """Return the concept's name for people: its first word, and its partner if it has one."""
        if self.kind == "combination":
            return f"{self.words[0]} with {self.companion}"
        return f"{self.words[0]} {self.condition}" if self.condition else self.words[0]


@dataclass(frozen=True)
class UnlearnSpec:
    """A concept and how to unlearn it.

    steps: optimiser updates of each layer (more: less of the concept is left, slower);
    xi: z-score above which an entry is a concept neuron (higher: fewer entries);
    budget: the largest share of each layer's q/k/v entries that may change, 0..1;
    beta: weight of preservation (higher: others keep better, the concept goes slower);
    lam: weight of the objective's penalty (paper: lambda); gamma, tau: CIP's threshold, width;
    trajectory_steps, cfg: DDIM steps and guidance of the recorded trajectories.
    """

    concept: ConceptSpec
    objective: Objective = "csr"
    engine: Engine = "local"
    steps: int = 240
    rate: float = 2e-2
    xi: float = 1.0
    budget: float = 0.03
    beta: float = 4.0
    lam: float = 0.1
    gamma: float = 2.0
    tau: float = 0.5
    trajectory_steps: int = 8
    cfg: float = 4.0
    seed: int = 0

    def __post_init__(self) -> None:
        in_range("steps", self.steps, 1, 100_000, whole=True)
        in_range("trajectory_steps", self.trajectory_steps, 1, 100, whole=True)
        in_range("seed", self.seed, 0, 2**63 - 1, whole=True)
        in_range("rate", self.rate, 1e-8, 1.0)
        in_range("xi", self.xi, -10.0, 100.0)
        in_range("budget", self.budget, 1e-6, 1.0)
        in_range("cfg", self.cfg, 1.0, 30.0)
        in_range("gamma", self.gamma, -100.0, 100.0)
        in_range("tau", self.tau, 1e-6, 100.0)
        for name in ("beta", "lam"):
            in_range(name, getattr(self, name), 0.0, 1e6)
        for name, options in (("objective", Objective), ("engine", Engine)):
            if getattr(self, name) not in get_args(options):
                raise SpecError(
                    f"{name} {getattr(self, name)!r} is unknown; "
                    f"use one of {', '.join(get_args(options))}"
                )

    def to_json(self) -> str:
        """Serialise to one line of JSON, stable for equal specs."""
        return json.dumps({"version": SPEC_VERSION, **dataclasses.asdict(self)}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> UnlearnSpec:
        """Read what `to_json` wrote; raises SpecError naming the field that is wrong."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise SpecError(f"spec is not JSON: {error}") from error
        if not isinstance(data, dict) or not isinstance(data.get("concept"), dict):
            raise SpecError('spec must be an object with a "concept" object in it')
        version = data.pop("version", SPEC_VERSION)
        if version != SPEC_VERSION:
            raise SpecError(f"spec version {version} is not {SPEC_VERSION}; update TRUST Unlearn")
        concept = _build(ConceptSpec, data.pop("concept"), "concept")
        return _build(cls, {"concept": concept, **data}, "spec")


def _build(cls: type, values: Mapping[str, Any], where: str) -> Any:
    known = {field.name for field in dataclasses.fields(cls)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise SpecError(f"{where} has unknown fields {', '.join(unknown)}; known: {sorted(known)}")
    try:
        return cls(**values)
    except TypeError as error:
        raise SpecError(f"{where}: {error}") from error


def _phrases(values: Iterable[str], what: str, least: int = 1) -> tuple[str, ...]:
    listed = isinstance(values, Iterable) and not isinstance(values, str | Mapping)
    values = tuple(values) if listed else ()
    if not listed or not all(isinstance(value, str) for value in values):
        raise SpecError(f"{what} must be a list of texts")
    phrases = tuple(" ".join(value.split()) for value in values)
    if not all(phrases) or len(phrases) < least:
        raise SpecError(f"{what} is empty; name it in a word or a phrase")
    return phrases


def in_range(name: str, value: float, low: float, high: float, whole: bool = False) -> None:
    """Raise SpecError naming the setting unless value is a number in low..high."""
    allowed = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, allowed):
        raise SpecError(f"{name} must be a {'whole ' if whole else ''}number, not {value!r}")
    if not low <= value <= high:
        raise SpecError(f"{name} is {value}; it must lie between {low:g} and {high:g}")
