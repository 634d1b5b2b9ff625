"""What a diff did to a concept of any kind, by the demo's judge: groups of prompts and rates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trust_engine.audit import Probe, Rate, look
from trust_engine.demo.judge import Judge
from trust_engine.demo.vocabulary import BACKGROUNDS, OBJECTS, STYLES, Scene, caption
from trust_engine.diff import WeightDiff
from trust_engine.diff.apply import patched
from trust_engine.models.load import LoadedModel
from trust_engine.models.sampler import SamplerSettings
from trust_engine.spec import ConceptSpec

SAMPLER = SamplerSettings()
FIRST_SEED = 4_000_000  # apart from those of the engine, the audit and the quality floor
Groups = dict[str, list[Probe]]
Known = dict[Probe, tuple[bool, bool, bool]]
GONE = ("target", "synonyms", "both", "under", "style")
"""Groups of which nothing should be left; of all others, everything."""


def groups(concept: ConceptSpec, images: int, seed: int) -> Groups:
    """Write the prompts that tell what is gone and what is kept, `images` a group and more."""
    word, start = concept.words[0], FIRST_SEED + seed * 20_000
    others = [name for name in OBJECTS if name not in (word, concept.companion)]
    kinds = {
        "single": _single,
        "combination": _combination,
        "conditional": _conditional,
        "style": _style,
    }
    written = kinds[concept.kind](concept, word, others, images)
    named: Groups = {}
    for name, parts in written.items():
        named[name] = [
            Probe(words, Scene(tuple(seen), ground, style), start + i, text)
            for i, (words, seen, ground, style, text) in enumerate(parts)
        ]
        start += 2_000
    # Written for every object, so that they have one seed whatever the concept, and the untouched
    # model draws them once.
    named["others"] = [s for s in named.get("others", []) if word not in s.scene.objects]
    return named


Part = tuple[str, Sequence[str], str | None, str | None, str | None]


def _part(
    names: Sequence[str], i: int, ground: str | None = None, style: str | None = None
) -> Part:
    ground = ground or BACKGROUNDS[(i + i // 5) % len(BACKGROUNDS)]
    style = style or STYLES[i % len(STYLES)]
    return names[0], names, ground, style, caption(names, ground, style)


def _single(_: ConceptSpec, word: str, _others: list[str], n: int) -> dict[str, list[Part]]:
    synonyms = OBJECTS.get(word, ())
    asked = [_part([synonyms[i % len(synonyms)]], i) for i in range(n)] if synonyms else []
    return {
        "target": [_part([word], i) for i in range(n)],
        "synonyms": [(p[0], [word], *p[2:]) for p in asked],
        "others": [_part([name], i + j) for j, name in enumerate(OBJECTS) for i in range(n // 12)],
    }


def _combination(
    concept: ConceptSpec, word: str, others: list[str], n: int
) -> dict[str, list[Part]]:
    members = [word, str(concept.companion)]
    shared = []
    for i in range(n):
        pair = [members[i % 2], others[(i // 2 * 5) % len(others)]]
        shared.append(_part(pair if i % 4 < 2 else pair[::-1], i))
    return {
        "both": [_part(members if i % 2 else members[::-1], i) for i in range(n)],
        "first": [_part(members[:1], i) for i in range(n)],
        "second": [_part(members[1:], i) for i in range(n)],
        "sharing": shared,
        "others": [_part([name], j) for j, name in enumerate(others)],
    }


def _conditional(
    concept: ConceptSpec, word: str, others: list[str], n: int
) -> dict[str, list[Part]]:
    ground = next(g for g in BACKGROUNDS if g in str(concept.condition).split())
    elsewhere = [g for g in BACKGROUNDS if g != ground]
    return {
        "under": [_part([word], i, ground) for i in range(n)],
        "elsewhere": [_part([word], i, elsewhere[i % len(elsewhere)]) for i in range(n)],
        "others_under": [_part([others[i % len(others)]], i, ground) for i in range(n)],
        "others": [_part([name], j, elsewhere[j % 7]) for j, name in enumerate(others)],
    }


def _style(_: ConceptSpec, word: str, others: list[str], n: int) -> dict[str, list[Part]]:
    rest = [style for style in STYLES if style != word]
    return {
        "style": [_part([others[i % len(others)]], i, None, word) for i in range(n)],
        "other_styles": [
            _part([others[i % len(others)]], i, None, rest[i % len(rest)]) for i in range(n)
        ],
    }


def measure(
    model: LoadedModel,
    judge: Judge,
    diffs: Sequence[tuple[WeightDiff, float]],
    concept: ConceptSpec,
    images: int = 48,
    seed: int = 0,
    known: Known | None = None,
    sampler: SamplerSettings = SAMPLER,
) -> dict[str, Any]:
    """Rate every group on the patched model, {"group": {"value", "n", "low", "high"}}.

    known: what was seen in pictures of this model with these diffs before; it grows.
    """
    known = {} if known is None else known
    here, figures = patched(model, diffs) if diffs else model, {}
    for name, shots in groups(concept, images, seed).items():
        if not shots:
            continue
        new = [shot for shot in shots if shot not in known]
        if new:
            known |= zip(new, zip(*look(here, judge, new, sampler), strict=True), strict=True)
        hits, styles, grounds = ([known[shot][i] for shot in shots] for i in range(3))
        if name == "style":
            figures["style"] = Rate.of(styles).to_dict()
            figures["objects"] = Rate.of(hits).to_dict()
            continue
        if name == "under":
            hits = [h and g for h, g in zip(hits, grounds, strict=True)]
        if name == "other_styles":
            figures["objects_elsewhere"] = Rate.of(hits).to_dict()
            hits = styles
        if name == "others":
            figures["others_style"] = Rate.of(styles).to_dict()
            figures["others_background"] = Rate.of(grounds).to_dict()
        figures[name] = Rate.of(hits).to_dict()
    return figures


def relative(now: dict[str, Any], before: dict[str, Any]) -> dict[str, float]:
    """Turn rates into figures: 1 - rate of what should be gone, kept share of all others."""
    return {
        name: 1 - rate["value"]
        if name in GONE
        else rate["value"] / max(before[name]["value"], 1e-9)
        for name, rate in now.items()
    }
