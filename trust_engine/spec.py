"""What to forget and how: frozen, validated, JSON-serialisable; the engine's only defaults."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from . import strict_json
from .errors import SpecError
from .phrases import (
    clean,
    empty,
    holds,
    named_in,
    names_in,
    quoted,
    same_name,
    style_name,
    words_of,
)
from .settings import choice, number, settings_of, switch

Kind = Literal["single", "combination", "conditional", "style"]
Objective = Literal["csr", "cip", "none", "zero"]
Engine = Literal["local", "global"]
Hessian = Literal["auto", "exact", "finite"]
Saliency = Literal["attention", "noise", "clip"]
Selection = Literal["neurons", "random", "all"]
Pool = Literal["layer", "projection"]
Granularity = Literal["entry", "row", "head"]
Schedule = Literal["shrinking", "bounded"]
Syntax = Literal["literal", "host"]
Sampling = Literal["guided", "lightning", "hyper", "turbo", "lcm"]
NAME_IT = "name it in a word or a phrase"
KINDS: tuple[str, ...] = get_args(Kind)
JOINT = ("combination", "conditional")  # several things together, or one under a condition
SPEC_VERSION = 1
MOST_STAYS = 2_000  # prompts, which a diff's label has to hold


@dataclass(frozen=True)
class ConceptSpec:
    """One concept: the words that mean it, and what must stay.

    words: names of one thing; one text may hold several, with commas between; a style is named as
    it is asked for, "X", "X style" or "in the style of X"; companion: the second member of a
    combination; condition: a phrase such as "on a table"; preserve: what must keep its look (empty:
    the engine proposes); anchor: what to draw instead (None: the prompt without the concept);
    templates: sentences with {} where the concept goes (empty: the engine's own).
    """

    words: tuple[str, ...]
    kind: Kind = "single"
    companion: str | None = None
    condition: str | None = None
    preserve: tuple[str, ...] = ()
    anchor: str | None = None
    templates: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            use = f"use one of {', '.join(KINDS)}"
            raise SpecError(f"{self.kind!r} is unknown", field="kind", remedy=use)
        read = style_name if self.kind == "style" else str
        words = tuple(map(read, _phrases(self.words, "concept", split=True)))
        object.__setattr__(self, "words", _each_once(words))
        kept = _phrases(self.preserve, "preserve", least=0, split=True)
        object.__setattr__(self, "preserve", _each_once(kept))
        object.__setattr__(self, "templates", _phrases(self.templates, "templates", least=0))
        for name in ("companion", "condition", "anchor"):
            if not isinstance(getattr(self, name), str | None):
                raise SpecError(f"must be a text, not {getattr(self, name)!r}", field=name)
        self._check_partner("companion", "combination")
        self._check_partner("condition", "conditional")
        self._take_phrase("anchor")
        if self.anchor is not None and self._is_itself(self.anchor):
            raise SpecError(
                f"is the concept itself ({quoted(self.anchor)})",
                field="anchor",
                remedy="name something else",
            )
        for phrase in self.preserve:
            if self.carried_by(phrase):
                raise SpecError(
                    f"names the concept itself ({quoted(phrase)})",
                    field="preserve",
                    remedy="take it out",
                )
        for template in self.templates:
            if template.count("{}") != 1 or set("{}") & set(template.replace("{}", "")):
                raise SpecError(
                    f"{quoted(template)} needs {{}} once, where the concept goes",
                    field="template",
                )

    def _take_phrase(self, name: str) -> None:
        """Clean a field that holds one phrase or none."""
        value = getattr(self, name)
        if value is None:
            return
        if empty(value):
            told = "is empty" if not value.strip() else f"{quoted(value)} has no word in it"
            other = ", or leave it out" if name == "anchor" else ""
            raise SpecError(told, field=name, remedy=f"{NAME_IT}{other}")
        if name == "companion" and len(names_in(value)) > 1:
            told = f"{quoted(value)} names several things"
            raise SpecError(told, field=name, remedy="name one of them")
        style = name == "anchor" and self.kind == "style"
        object.__setattr__(self, name, style_name(clean(value)) if style else clean(value))

    def _check_partner(self, field: str, kind: str) -> None:
        value = getattr(self, field)
        if self.kind == kind and not (value and value.strip()):
            raise SpecError(f"is missing: a {kind} concept needs it", field=field, remedy=NAME_IT)
        if self.kind != kind and value is not None:
            raise SpecError(f"belongs to kind {kind}, not to {self.kind}", field=field)
        self._take_phrase(field)
        if value and named_in(value, self.words):
            told = f"equals the concept ({quoted(value)})"
            raise SpecError(told, field=field, remedy="name two different things")

    def _is_itself(self, anchor: str) -> bool:
        """Tell whether an anchor is what is to be erased; "a toy gun" is none for "gun"."""
        if self.companion or self.condition:
            return self.carried_by(anchor)
        return named_in(anchor, self.words)

    def carried_by(self, prompt: str) -> bool:
        """Tell whether a prompt names the concept: one of its words, and its partner if any."""
        if not any(holds(prompt, word) for word in self.words):
            return False
        partner = self.companion or self.condition
        return partner is None or holds(prompt, partner)

    @property
    def name(self) -> str:
        """Return the concept's name for people: its first word, and its partner if it has one."""
        if self.kind == "combination":
            return f"{self.words[0]} with {self.companion}"
        return f"{self.words[0]} {self.condition}" if self.condition else self.words[0]


@dataclass(frozen=True)
class Ablation:
    """What the engine's choices were tried against; no door shows it, a spec may say it."""

    hessian: Hessian = choice(
        "auto", get_args(Hessian), help="How the penalty's gradient is taken; auto chooses."
    )
    selection: Selection = choice(
        "neurons", get_args(Selection),
        help="Which entries may change: the neurons, as many by chance, or all.",
    )  # fmt: skip
    pool: Pool = choice(
        "layer", get_args(Pool),
        help="Compare entries within a layer, or within each of q, k and v. For Find Neurons and a "
        "bounded schedule.",
    )  # fmt: skip
    granularity: Granularity = choice(
        "entry", get_args(Granularity), help="Choose single entries, rows, or whole heads."
    )

    def __post_init__(self) -> None:
        for name, setting in settings_of(Ablation).items():
            setting.check(name, getattr(self, name))


@dataclass(frozen=True)
class UnlearnSpec:
    """Concepts and how to unlearn them, together; `resolve_spec.resolve` may make it more.

    Each setting says what it means and may be (`SETTINGS`). lam: the paper's lambda; eta: ESD's
    negative guidance; rate: a share of a tensor's root mean square; xi: in z-scores; budget: a
    fraction 0..1; passes: beyond them prompts borrow others' states. With `robust`, training is
    preceded by scrubbing and relabelling (unlearn/scrubbing), for which `passes`, `cfg`,
    `sampling`, `seed` and, of the latter, `steps` count. stays: the prompts, a picture each, of
    what must stay in its pictures (empty: the engine's own). ablation: what no user needs.
    """

    concepts: tuple[ConceptSpec, ...]
    objective: Objective = choice(
        "csr", get_args(Objective), flag=True,
        help="csr: flatten the loss along the neurons, so that the concept comes back less easily. "
        "cip: few influential entries. none: no penalty. zero: switch the neurons off without "
        "training.",
    )  # fmt: skip
    engine: Engine = choice(
        "local", get_args(Engine), flag=True,
        help="local: each layer by itself, fast, little memory. global: through the whole UNet, as "
        "in the paper; needs a private copy.",
    )  # fmt: skip
    saliency: Saliency = choice(
        "attention", get_args(Saliency),
        help="Where concept neurons are read from: each layer's own effect, or the whole UNet's "
        "(slower, needs a private copy of the UNet).",
    )  # fmt: skip
    schedule: Schedule = choice(
        "shrinking", get_args(Schedule), flag=True,
        help="bounded: the most salient entries, never more than the budget. shrinking: begin with "
        "all and keep fewer and fewer, down to the budget.",
    )  # fmt: skip
    refresh: int = number(
        1,
        0,
        100_000,
        1,
        "A shrinking schedule drops entries, a bounded one looks for the neurons "
        "anew, every so many steps. 0: only once.",
    )
    steps: int = number(
        500, 1, 100_000, 1, flag=True,
        help="Training steps of each layer. More: less of the concept is left, slower.",
    )  # fmt: skip
    rate: float = number(
        0.05, 1e-8, 10.0, 0.01, usual=(0.01, 2.0), label="Rate",
        help="Size of a training step. Lower it if the loss is not finite.",
    )  # fmt: skip
    xi: float = number(
        1.0, -10.0, 100.0, 0.1, flag=True,
        help="How far an entry must stand out to be a concept neuron, in z-scores. Higher: fewer "
        "neurons. For Find Neurons and a bounded schedule; a shrinking one goes without.",
    )  # fmt: skip
    budget: float = number(
        0.03, 1e-6, 1.0, 0.001, usual=(0.001, 0.3), label="Budget", flag=True,
        help="The largest share of q, k and v entries that a concept may change. More: forgets "
        "harder, a larger diff.",
    )  # fmt: skip
    beta: float = number(
        10.0, 0.0, 1e6, 0.5, usual=(0.0, 20.0), label="Weight of what must stay (beta)",
        help="Weight of what must stay. Higher: others keep better, the concept goes more slowly.",
    )  # fmt: skip
    lam: float = number(
        0.1, 0.0, 1e6, 0.01, usual=(0.0, 2.0), label="Weight of the penalty (lambda)",
        help="Weight of the objective's penalty (lambda in the paper).",
    )  # fmt: skip
    gamma: float = number(2.0, -100.0, 100.0, 0.1, "CIP only: its threshold.")
    tau: float = number(0.5, 1e-6, 100.0, 0.05, "CIP only: how soft the threshold is.")
    eta: float = number(
        0.8, 0.0, 10.0, 0.1, usual=(0.0, 3.0), label="Push beyond the anchor (eta)", flag=True,
        help="How far beyond the anchor to push. 0: to it; more removes harder and may cost more "
        "elsewhere. Does nothing for a style, which is not pushed.",
    )  # fmt: skip
    trajectory_steps: int = number(8, 1, 100, 1, "Denoising steps of each recorded picture.")
    cfg: float = number(4.0, 1.0, 30.0, 0.5, "Guidance of the recorded pictures.")
    passes: int = number(
        640, 1, 10_000_000, 16, usual=(64, 4096), label="UNet passes for recording",
        help="UNet passes that recording may take for a concept. Fewer: faster, from fewer "
        "recorded prompts.",
    )  # fmt: skip
    stop_effect: float = number(
        0.0, 0.0, 1e6, 0.01, "Stop early when less than this is left. 0: never."
    )
    stop_harm: float = number(
        1.0, 0.0, 1e6, 0.01, "Stop early only while what must stay changes less than this."
    )
    checkpointing: bool = switch(False, "Global engine: less memory, slower.")
    robust: bool = switch(
        False, flag=True, label="Robust",
        help="Stand up to attackers who ask in other words, or by a learned token: first, "
        "what only the concept's pictures have is taken out of the whole UNet. For things and "
        "styles. Takes up to three times as long on the demo, several times on a large model, "
        "needs a private copy of the UNet and room for gradients, and changes many layers "
        "a little.",
    )  # fmt: skip
    syntax: Syntax = choice(
        "literal", get_args(Syntax), label="Prompt syntax",
        help="literal: words mean what they spell, in every program alike. host: emphasis such as "
        "(word:1.2), embeddings and BREAK are read as the program's own prompts are.",
    )  # fmt: skip
    sampling: Sampling = choice(
        "guided", get_args(Sampling), label="How the model is sampled", flag=True,
        help="guided: as usual, with guidance. The others are for models distilled to draw in a "
        "few steps without it: what is recorded is drawn as they draw, in 4 steps; turbo and lcm "
        "add fresh noise between them.",
    )  # fmt: skip
    seed: int = number(
        0, 0, 2**63 - 1, 1, "Another seed gives another run; the same one the same diff, on the "
        "same machine with the same versions and number of threads.",
        label="Seed", flag=True,
    )  # fmt: skip
    stays: tuple[str, ...] = ()
    ablation: Ablation = Ablation()

    def __post_init__(self) -> None:
        concepts: Any = self.concepts
        if isinstance(concepts, ConceptSpec):
            concepts = (concepts,)
        if not isinstance(concepts, tuple | list) or not all(
            isinstance(concept, ConceptSpec) for concept in concepts
        ):
            raise SpecError("concepts must be a list of concepts")
        if not concepts:
            raise SpecError("there is no concept to unlearn; name at least one")
        object.__setattr__(self, "concepts", tuple(concepts))
        object.__setattr__(self, "stays", _phrases(self.stays, "stays", least=0))
        self._check_contradictions()
        for name, setting in SETTINGS.items():
            setting.check(name, getattr(self, name))
        if not isinstance(self.ablation, Ablation):
            raise SpecError("ablation must be an Ablation")

    def _check_contradictions(self) -> None:
        for i, concept in enumerate(self.concepts):
            for other in self.concepts[:i]:
                if _same_concept(concept, other):
                    raise SpecError(
                        f"concepts has the same concept twice ({quoted(other.name)}, "
                        f"{quoted(concept.name)}); take one out"
                    )
        if told := contradiction(self.concepts):
            raise SpecError(told)
        if len(self.stays) > MOST_STAYS:
            told = f"lists {len(self.stays):,} pictures; use at most {MOST_STAYS:,}"
            raise SpecError(told, field="stays")
        for prompt in self.stays:
            if any(concept.carried_by(prompt) for concept in self.concepts):
                raise SpecError(
                    f"shows what is to be forgotten ({quoted(prompt)})",
                    field="stays",
                    remedy="take it out",
                )

    def refuse_unheeded(self) -> None:
        """Raise SpecError for a choice that a run would pass over.

        Reading a spec does not ask it, so that diffs of such a run stay readable.
        """
        if self.robust and self.engine == "global":
            raise SpecError(
                "trains layer by layer, and passes over the global engine",
                field="robust",
                remedy="take {engine local}, or switch {robust} off",
            )
        if self.robust and self.saliency != "attention":
            raise SpecError(
                f"finds neurons by each layer's own effect, and passes over saliency "
                f"{self.saliency}",
                field="robust",
                remedy="take {saliency attention}, or switch {robust} off",
            )
        if self.stays and not self.robust:
            raise SpecError(
                "lists pictures, which only robust mode draws",
                field="stays",
                remedy="switch {robust} on, or leave it out",
            )
        joint = [concept for concept in self.concepts if concept.kind in JOINT]
        if self.robust and joint:
            raise SpecError(
                f"cannot take {quoted(joint[0].name)} out of pictures: nothing in them is its own, "
                "only what its parts have, which stay",
                field="robust",
                remedy="switch {robust} off",
            )

    @property
    def shrinks(self) -> bool:
        """Tell whether the mask shrinks; a saliency from elsewhere, or no choice, bounds it."""
        own = self.saliency == ("attention" if self.engine == "local" else "noise")
        chosen = self.ablation.selection == "neurons" and self.objective != "zero"
        return self.schedule == "shrinking" and own and chosen

    @property
    def together(self) -> bool:
        """Tell whether all layers are trained together, by gradients through the UNet."""
        return self.engine == "global"

    @property
    def through_unet(self) -> bool:
        """Tell whether gradients pass through it at all: to train it, or for saliency."""
        return self.together or self.saliency != "attention"

    @property
    def whole_unet(self) -> bool:
        """Tell whether a run needs the UNet itself: for gradients, or to exchange any weight."""
        return self.robust or self.through_unet

    @property
    def exact_hessian(self) -> bool:
        """Tell whether the penalty's gradient takes a double backward; "auto": locally it does."""
        penalised = self.objective in ("csr", "cip") and self.lam > 0
        hessian = self.ablation.hessian
        exact = hessian == "exact" or (hessian == "auto" and self.engine == "local")
        return penalised and exact

    @property
    def name(self) -> str:
        """Return the concepts' names for people."""
        return ", ".join(concept.name for concept in self.concepts)

    def to_json(self) -> str:
        """Serialise to one line of JSON, stable for equal specs."""
        told = {"version": SPEC_VERSION, **dataclasses.asdict(self)}
        told["ablation"] = {k: v for k, v in told["ablation"].items() if v != ABLATIONS[k].default}
        later = (("stays", ()), *((name, DEFAULTS[name]) for name in ("syntax", "sampling")))
        for name, usual in (("ablation", {}), *later):
            if told[name] == usual:
                del told[name]  # a spec is compared by its text
        return json.dumps(told, sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> UnlearnSpec:
        """Read what `to_json` wrote; raises SpecError naming the field that is wrong."""
        try:
            data = strict_json.parse(text)
        except (ValueError, RecursionError) as error:
            raise SpecError(f"spec is not JSON: {error}") from error
        if not isinstance(data, dict):
            raise SpecError("spec must be a JSON object")
        if "concepts" not in data and "concept" in data:
            data["concepts"] = [data.pop("concept")]
        parts = data.pop("concepts", None)
        if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
            raise SpecError('spec needs a "concept" object, or a list of them as "concepts"')
        version = data.pop("version", SPEC_VERSION)
        if version != SPEC_VERSION:
            raise SpecError(f"spec version {version} is not {SPEC_VERSION}; update TRUST Unlearn")
        concepts = tuple(_build(ConceptSpec, part, "concept") for part in parts)
        ablation = data.pop("ablation", {})
        if not isinstance(ablation, dict):
            raise SpecError('the spec\'s "ablation" must be an object')
        # Until November 2026 these stood among the rest.
        flat = {name: data.pop(name) for name in ABLATIONS if name in data}
        data["ablation"] = _build(Ablation, {**flat, **ablation}, "ablation")
        return _build(cls, {"concepts": concepts, **data}, "spec")


def _build(cls: type, values: Mapping[str, Any], where: str) -> Any:
    known = {field.name for field in dataclasses.fields(cls)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise SpecError(f"{where} has unknown fields {', '.join(unknown)}; known: {sorted(known)}")
    try:
        return cls(**values)
    except TypeError as error:
        raise SpecError(f"{where}: {error}") from error


def also_named(concept: ConceptSpec, also: Sequence[str]) -> tuple[ConceptSpec, ...]:
    """Build the further concepts of a run: styles beside a style, else things."""
    kind: Any = "style" if concept.kind == "style" else "single"
    return tuple(ConceptSpec((word,), kind) for word in also)


def contradiction(concepts: Sequence[ConceptSpec]) -> str | None:
    """Say where concepts ask for what cannot be had together, in one run or in one diff."""
    for concept in concepts:
        for other in concepts:
            for phrase in other.preserve:
                if concept.carried_by(phrase):
                    return (
                        f"preserve names the concept {quoted(concept.name)} ({quoted(phrase)}); "
                        "take it out"
                    )
            if other is concept:
                continue
            if other.anchor is not None and concept.carried_by(other.anchor):
                return (
                    f"{quoted(other.name)} is to be drawn as {quoted(other.anchor)}, which is to "
                    "be forgotten itself; name another anchor"
                )
            if concept.kind == "single" and other.kind in ("combination", "conditional"):
                gone = [word for word in (*other.words, other.companion) if word]
                for word in gone:
                    if concept.carried_by(word):
                        return (
                            f"{quoted(word)} is to be forgotten everywhere, and to stay but for "
                            f"{quoted(other.name)}; take one of the two out"
                        )
    return None


def _same_concept(one: ConceptSpec, other: ConceptSpec) -> bool:
    """Tell whether two concepts are one: of a kind, with a name in common, and one partner."""
    if one.kind != other.kind:
        return False
    if one.kind == "combination":
        members = ((c.words, (str(c.companion),)) for c in (one, other))
        (a, b), (c, d) = members
        return (_share(a, c) and _share(b, d)) or (_share(a, d) and _share(b, c))
    alike = one.condition == other.condition or same_name(str(one.condition), str(other.condition))
    return alike and _share(one.words, other.words)


def _share(names: Iterable[str], others: Sequence[str]) -> bool:
    return any(named_in(name, others) for name in names)


def _each_once(phrases: Iterable[str]) -> tuple[str, ...]:
    """Leave out a phrase that reads as one before it."""
    first: dict[tuple[str, ...], str] = {}
    for phrase in phrases:
        first.setdefault(words_of(phrase), phrase)
    return tuple(first.values())


def _phrases(
    values: Iterable[str], what: str, least: int = 1, split: bool = False
) -> tuple[str, ...]:
    listed = isinstance(values, Iterable) and not isinstance(values, str | Mapping)
    values = tuple(values) if listed else ()
    if not listed or not all(isinstance(value, str) for value in values):
        raise SpecError("must be a list of texts", field=what)
    read = names_in if split else lambda value: (clean(value),)
    phrases = tuple(name for value in values for name in read(value))
    templates = what == "templates"  # of which "{}" alone is one
    for phrase in phrases:
        if empty(phrase) and phrase and not (templates and "{" in phrase):
            raise SpecError(f"{quoted(phrase)} has no word in it", field=what, remedy=NAME_IT)
    if not all(phrases) or not all(map(clean, values)) or len(phrases) < least:
        raise SpecError("is empty", field=what, remedy=NAME_IT)
    return phrases


SETTINGS = settings_of(UnlearnSpec)
ABLATIONS = settings_of(Ablation)
CHOICES = {name: setting.options for name, setting in SETTINGS.items() if setting.options}
DEFAULTS = {name: setting.default for name, setting in SETTINGS.items()}
