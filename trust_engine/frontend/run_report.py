"""What a run has done, in words: the same in every door."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..diff import WeightDiff
from ..unlearn.run import Unlearning
from ..unlearn.trainer import Metrics
from .before_after import BeforeAfter
from .prompt_lists import prompt_lists
from .wording import some

SHOWN = 12  # of the things that are preserved
WHOLE = 1.0  # effect left of a run that did nothing
NOT_LOOKED = "unlearned; no test pictures were drawn, so nobody knows yet what it draws"


@dataclass(frozen=True)
class RunReport:
    """The headline, whether the run failed, and the lines below it.

    effect, harm: means of the pieces' last figures, 1 at the start and 0 at the start.
    """

    headline: str
    failed: bool
    effect: float
    harm: float
    lines: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join([self.headline, *self.lines])


def run_report(
    run: Unlearning,
    diff: WeightDiff,
    seen: BeforeAfter | None,
    seconds: float | None = None,
    said: Sequence[str] = (),
) -> RunReport:
    """Put a finished run into words; said: what else there is to say, a line each."""
    effect, harm = figures(run.final)
    name = run.spec.name
    headline = seen.headline if seen is not None and seen.seen else f"{name}: {NOT_LOOKED}"
    bad = failure(run, seen, effect)
    lines = [
        *([bad] if bad else []),
        *map(sentence, run.knowledge.warnings if run.knowledge else ()),
        *([sentence(run.failure)] if run.failure and not bad else []),
        *([seen.explained] if seen is not None and seen.seen else []),
        explained(run, effect, harm),
        cost(run, diff, seen, seconds),
        f"Preserved: {first(run.prompts.kept, SHOWN)}.",
        *([drawn] if (drawn := drawn_for(run)) else []),
        *said,
    ]
    return RunReport(headline, bool(bad), effect, harm, tuple(lines))


def figures(final: Mapping[str, Metrics]) -> tuple[float, float]:
    """Average the pieces' last effect and harm."""
    ended = list(final.values())
    count = max(1, len(ended))
    return sum(one.effect for one in ended) / count, sum(one.harm for one in ended) / count


def failure(run: Unlearning, seen: BeforeAfter | None, effect: float) -> str:
    """Say that a run failed, and what to do; empty when it did not."""
    more = "train longer, allow a larger budget, or check the word with a picture of it"
    still = seen.failed if seen is not None else []
    if still:
        return f"This run failed: {some(still)} is still drawn as before. To mend it, {more}."
    unseen = seen is None or all(not seen.judged(name) for name in seen.concepts)
    if unseen and effect >= WHOLE:
        return (
            f"This run failed by its own measure: {effect:.0%} of the effect is left, no less than "
            f"at the start. To mend it, {more}."
        )
    return ""


def explained(run: Unlearning, effect: float, harm: float) -> str:
    """Give the run's own figures, and say what they are."""
    scrubbed, first = run.results.scrubbed, ""
    if scrubbed is not None:
        first = (
            f"Scrubbing: left of what only the concept's pictures have: {scrubbed.left:.1%} of its "
            f"energy; change of what must stay: {scrubbed.harm:.2f}, a share of each layer's "
            "output added up over all layers; what is left was then trained to be seen as the "
            "anchor. Training of the prompts after it: "
        )
    where = "the UNet answers" if run.spec.together else "the cross-attention layers answer"
    return (
        f"{first}Effect left: {effect:.1%}; change of what must stay: {harm:.1%}. This is how far "
        f"{where} the concept's prompts other than wanted, 100 % at the start: the training's own "
        "measure, which a picture need not follow. A concept can be gone from every picture at "
        "30 %, or after zeroing above 100 %, and what stays can change at 1 %."
    )


def cost(run: Unlearning, diff: WeightDiff, seen: BeforeAfter | None, seconds: float | None) -> str:
    """Count what was changed and what it took, test pictures apart."""
    took = f" in {seconds:.0f} s" if seconds is not None else ""
    drawn = f", and {seen.passes} more for the test pictures" if seen and seen.passes else ""
    asked = run.knowledge.passes if run.knowledge else 0
    if asked:
        drawn = f", {asked} more to ask whether the model knows the word{drawn}"
    back = f" and {run.backward} back" if run.backward else ""
    changed = f"{diff.changed:,} entries, {diff.share:.2%} of q, k and v"
    if run.spec.robust:
        trained = sum(offset.changed for offset in run.results.offsets.values())
        changed = (
            f"{len(diff.offsets)} of the UNet's layers, by {diff.directions:,} directions in all, "
            f"and {trained:,} entries of q, k and v"
        )
    return f"Changed {changed}{took}: {run.passes} UNet passes{back}{drawn}."


def drawn_for(run: Unlearning) -> str:
    """Say what pictures robust mode has drawn; empty without it."""
    if run.lists is None:
        return ""
    names = [concept.name for concept in run.spec.concepts]
    own = [f"{len(p)} of {name}" for name, p in zip(names, run.lists.concepts, strict=True)]
    rest = run.lists.rest
    return f"Drawn: {', '.join(own)}; {len(rest)} of what must stay, such as {some(rest, 4)}."


def sentence(text: str) -> str:
    """Make a sentence of a warning."""
    return f"{text[:1].upper()}{text[1:].removesuffix('.')}."


def first(names: Sequence[str], count: int) -> str:
    """Name the first of many, and say how many more there are."""
    rest = len(names) - count
    return ", ".join(names[:count]) + (f" and {rest} more" if rest > 0 else "")


def as_dict(run: Unlearning, diff: WeightDiff, report: RunReport, seen: Any) -> dict[str, Any]:
    """Spell a finished run out for programs."""
    return {
        "concept": run.spec.name,
        "headline": report.headline,
        "failed": report.failed,
        "entries_changed": diff.changed,
        "share_changed": round(diff.share, 5),
        "effect_left": round(report.effect, 5),
        "unet_passes": run.passes,
        "asking_passes": run.knowledge.passes if run.knowledge else 0,
        "knowledge": run.knowledge.to_dict() if run.knowledge else None,
        "warnings": list(run.warnings),
        "picture_passes": seen.passes if seen else 0,
        "pictures": seen.to_dict()["pictures"] if seen else [],
        "preserved": list(run.prompts.kept),
        "prompts": prompt_lists(run).to_dict(),
    }
