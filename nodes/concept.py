"""TRUST Concept: what to forget, what to keep, and what to draw instead."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from ..trust_engine.errors import SpecError
from ..trust_engine.phrases import by_line
from ..trust_engine.spec import KINDS, ConceptSpec
from .declaring import Output, node
from .inputs import choice, lines, socket, text, verdict
from .sockets import CONCEPT

PARTNERS = {
    "combination": "name in `partner` what it goes together with, such as: beer",
    "conditional": "name in `partner` when it goes, such as: on a red background",
}


@node("describe")
class TrustConcept:
    """Describe one concept; chain several to forget them in one run."""

    DESCRIPTION = (
        "Names what a model shall forget: a thing, a combination whose members stay, a thing under "
        "a condition, or a style. Chain several through `and_also`."
    )

    REQUIRED: ClassVar = {
        "words": text(
            "gun",
            "The concept in a word or phrase. Several words that mean it: separate them by commas.",
        ),
        "kind": choice(
            KINDS,
            KINDS[0],
            "single: a thing. combination: two things together, each of which stays. "
            "conditional: a thing under a condition, elsewhere it stays. style: a way to "
            "draw.",
        ),
    }
    OPTIONAL: ClassVar = {
        "partner": text(
            "",
            "For combination: the second thing. For conditional: the condition, such as "
            "'on a red background'. Otherwise leave it empty.",
        ),
        "preserve": text(
            "",
            "What must keep its look, one a line or separated by commas. Empty: the "
            "nearest words that the model knows.",
            multiline=True,
            hint="what must stay (optional)",
        ),
        "anchor": text(
            "",
            "What to draw instead. Empty: the same picture without the concept; for a "
            "combination or a style, with other things or in another style.",
        ),
        "templates": text(
            "",
            "Sentences of your own with {} where the concept goes, one a line. Empty: "
            "the built-in ones.",
            multiline=True,
            hint="a photo of {} (optional)",
        ),
        "and_also": socket(CONCEPT, "Another concept, to be forgotten in the same run."),
    }
    GIVES: ClassVar = (
        Output(
            "concept",
            CONCEPT,
            "Connect to Unlearn, Find Neurons, Prompts or Audit, or to another Concept.",
        ),
    )

    @classmethod
    def VALIDATE_INPUTS(
        cls, words: str | None = None, kind: str | None = None, partner: str | None = None
    ) -> bool | str:
        """Refuse a concept without words, or without the second part that its kind asks for."""
        if words is None or kind is None or partner is None:
            return True if words is None else verdict(lambda: check_words(words))
        return verdict(lambda: parts_of(words, kind, partner))

    def describe(
        self,
        words: str,
        kind: str,
        partner: str = "",
        preserve: str = "",
        anchor: str = "",
        templates: str = "",
        and_also: tuple[ConceptSpec, ...] = (),
    ) -> tuple[tuple[ConceptSpec, ...]]:
        """Return the concepts of the chain, this one last."""
        concept = replace(
            parts_of(words, kind, partner),
            preserve=lines(preserve),
            anchor=anchor.strip() or None,
            templates=by_line(templates),
        )
        return ((*and_also, concept),)


def check_words(words: str) -> None:
    """Raise SpecError where there is no concept."""
    if not lines(words):
        raise SpecError("there is no concept: write a word or phrase into `words`")


def parts_of(words: str, kind: str, partner: str) -> ConceptSpec:
    """Return a concept of its words and its second part; raises SpecError where one is missing."""
    check_words(words)
    if kind not in KINDS:
        raise SpecError(f"`kind` is {kind!r}; choose {', '.join(KINDS)}")
    found = lines(partner)
    if kind in PARTNERS and not found:
        raise SpecError(f"a {kind} concept needs a second part: {PARTNERS[kind]}")
    if kind not in PARTNERS and found:
        raise SpecError(
            f"`partner` ({partner.strip()!r}) belongs to kinds combination and conditional, not to "
            f"{kind}; empty it or change `kind`"
        )
    if kind == "combination" and len(found) > 1:
        raise SpecError(
            f"`partner` names {len(found)} things ({', '.join(found)}); name one, and give each "
            "other a Concept node of its own"
        )
    return ConceptSpec(
        lines(words),
        kind,  # type: ignore[arg-type]
        companion=found[0] if kind == "combination" else None,
        condition=partner.strip() if kind == "conditional" else None,
    )
