"""What is seen in a run's test pictures, before and after: the headline of every report."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..audit.drawing import to_pixels
from ..audit.judges.base import Judge
from ..audit.judges.catalogue import check_judge, judge_of
from ..audit.topic import COMMON
from ..errors import ModelError
from ..spec import Sampling
from .pictures import contact_sheet
from .subjects import Subject, passes
from .wording import some

CHANGED = 0.45  # of the distance between two other pictures: from there on it shows
SAME = 0.15  # likewise: below it the two look the same, and a judge who differs is unsure
GRID = 8  # blocks a side, over which a latent is averaged before it is compared
SEES_NONE = "distance"
CLIPS = ("openai--clip-vit-large-patch14", "openai--clip-vit-base-patch16",
         "openai--clip-vit-base-patch32")  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """What was seen of one subject: before, after (None: by nobody), and how far it moved.

    moved: distance of the two pictures, 1: as far apart as two other pictures are.
    """

    subject: Subject
    before: bool | None
    after: bool | None
    moved: float

    @property
    def lost(self) -> bool:
        """Tell whether a judge saw it before and does not now, in a picture that changed."""
        return bool(self.before) and self.after is False and self.moved >= SAME

    @property
    def changed(self) -> bool:
        """Tell whether the picture visibly changed."""
        return self.moved > CHANGED


@dataclass(frozen=True)
class BeforeAfter:
    """All that was seen, by whom, what it cost, and the pictures (n, 3, h, w) if there are any."""

    seen: tuple[Seen, ...]
    judge: str
    passes: int
    before: Tensor | None = field(default=None, compare=False, repr=False)
    after: Tensor | None = field(default=None, compare=False, repr=False)

    @property
    def headline(self) -> str:
        """Say in one line what became of the concepts and of what stays."""
        return "; ".join([*self._erased(), *self._kept()])

    def _erased(self) -> list[str]:
        told = [_told(name, self.of(name)) for name in self.concepts]
        if len(told) <= FEW:
            return told
        parts = [one for name in self.concepts for one in self.of(name)]
        still = [one.subject.concept for one in parts if one.before and not one.lost]
        line = _told(f"{len(self.concepts)} concepts", parts)
        return [f"{line} (still there: {some(still)})" if still else line]

    def _kept(self) -> list[str]:
        kept = [one for one in self.seen if not one.subject.concept]
        groups: dict[str, list[str]] = {name: [] for name in ("same", "other", "lost")}
        for one in kept:
            kind = "lost" if one.lost else "other" if one.changed else "same"
            groups[kind].append(one.subject.name)
        # A thing that was lost or changed in any of its pictures is not called unchanged.
        lost = list(dict.fromkeys(groups["lost"]))
        other = [name for name in dict.fromkeys(groups["other"]) if name not in lost]
        same = [n for n in dict.fromkeys(groups["same"]) if n not in lost and n not in other]
        told = ((same, "unchanged"), (other, "drawn differently"), (lost, "no longer recognised"))
        return [f"{', '.join(names)} {what}" for names, what in told if names]

    @property
    def concepts(self) -> list[str]:
        """List the concepts that were looked at."""
        return list(dict.fromkeys(s.subject.concept for s in self.seen if s.subject.concept))

    def of(self, concept: str) -> list[Seen]:
        """Return what was seen of a concept; of "", what stays."""
        return [one for one in self.seen if one.subject.concept == concept]

    def judged(self, concept: str) -> bool:
        """Tell whether a judge saw the concept in some of its pictures before."""
        return any(one.before for one in self.of(concept))

    @property
    def failed(self) -> list[str]:
        """Name the concepts that a judge still sees in every picture that showed them."""
        found = []
        for name in self.concepts:
            shown = [one for one in self.of(name) if one.before]
            if shown and not any(one.lost for one in shown):
                found.append(name)
        return found

    @property
    def explained(self) -> str:
        """Say who looked, at what, and what that does not say."""
        pairs = f"{len(self.seen)} pictures without the diff and the same with it"
        if self.judge == SEES_NONE:
            return (
                f"Nobody judged what they show: {pairs} were compared by distance, "
                f"and one that moved more than {CHANGED:.0%} of the way to another picture counts "
                "as changed."
            )
        return f"Seen by {self.judge} in {pairs}; an audit looks at many more, and attacks."

    def to_dict(self) -> dict[str, Any]:
        """Spell it out for programs."""
        return {
            "headline": self.headline,
            "judge": self.judge,
            "passes": self.passes,
            "failed": self.failed,
            "pictures": [
                {
                    "name": one.subject.name,
                    "prompt": one.subject.prompt,
                    "seed": one.subject.seed,
                    "to_be_gone": bool(one.subject.concept),
                    "seen_before": one.before,
                    "seen_after": one.after,
                    "moved": round(one.moved, 4),
                }
                for one in self.seen
            ],
        }


FEW = 6  # concepts that a headline names one by one


def _told(name: str, parts: Sequence[Seen]) -> str:
    """Say what became of one concept."""
    if all(one.before is None for one in parts):
        changed = sum(one.changed for one in parts)
        return f"{name}: changed in {changed} of {len(parts)} test pictures"
    shown = [one for one in parts if one.before]
    if not shown:
        return f"{name}: in none of {len(parts)} test pictures even before, so they say nothing"
    lost = sum(one.lost for one in shown)
    if not lost:
        return f"{name}: still in {len(shown)} of {len(shown)} test pictures"
    return f"{name}: gone in {lost} of {len(shown)} test pictures"


def compared(
    asked: Sequence[Subject],
    before: Tensor,
    after: Tensor,
    judge: Judge | None = None,
    decode: Callable[[Tensor], Tensor] | None = None,
    sampling: Sampling = "guided",
) -> BeforeAfter:
    """Look at latents (n, 4, h, w) drawn without and with a diff, from the same seeds.

    decode: latents -> pictures (n, 3, h, w) in -1..1; without it nobody judges, and the distance
    between the latents decides. So it does for what the judge does not know. sampling: how they
    were drawn.
    """
    moved = distances(before, after)
    pictures = [None if decode is None else decode(x).float().cpu() for x in (before, after)]
    looks = judge is not None and pictures[0] is not None
    found, asked_any = [], False
    for i, subject in enumerate(asked):
        answers: list[bool | None] = [None, None]
        if looks and all(judge.knows(label) for label in subject.labels):  # type: ignore[union-attr]
            asked_any = True
            answers = [bool(judge.sees(p[i : i + 1], subject.labels).all()) for p in pictures]  # type: ignore[union-attr,index]
        found.append(Seen(subject, answers[0], answers[1], float(moved[i])))
    name = judge.name if asked_any else SEES_NONE  # type: ignore[union-attr]
    return BeforeAfter(tuple(found), _named(name), passes(len(asked), sampling), *pictures)


def _named(judge: str) -> str:
    return "the demo's judge" if judge == "demo" else judge


def distances(before: Tensor, after: Tensor) -> Tensor:
    """Compare latents (n, 4, h, w) pairwise, (n,); 1: as far as two of the untouched are apart.

    What is finer than a grid of blocks is left out: it changes with every weight.
    """
    a, b = _coarse(before), _coarse(after)
    apart = torch.cdist(a, a)
    n = len(a)
    unit = apart.sum() / (n * (n - 1)) if n > 1 else 2**0.5 * a.norm()
    return (a - b).norm(dim=1) / unit.clamp(min=1e-12)


def _coarse(latents: Tensor) -> Tensor:
    side = [max(1, size // GRID) for size in latents.shape[2:]]
    return F.avg_pool2d(latents.float(), side).flatten(1)


def judge_for(
    family: str, asked: Sequence[Subject], wanted: str = "auto", device: Any = "cpu"
) -> Judge | None:
    """Return who looks: as wanted, or the demo's judge for its model, or a local CLIP, or nobody.

    wanted: auto, none, or a judge of the catalogue; raises SpecError or ModelError for one that is
    not there.
    """
    if wanted == "none" or not asked:
        return None
    if wanted == "auto":
        place = local_clip()
        if family == "demo":
            return judge_for(family, asked, "demo", device)
        with contextlib.suppress(ModelError):  # one that cannot be read is none at hand
            return judge_for(family, asked, f"clip:{place}" if place else "none", device)
        return None
    check_judge(wanted)
    words = dict.fromkeys([*(label for one in asked for label in one.labels), *COMMON])
    return judge_of(wanted, {"object": words}, "cpu" if wanted == "demo" else device)


def local_clip() -> Path | None:
    """Find a CLIP model that is on this machine already; nothing is downloaded."""
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except ImportError:
        return None
    for name in CLIPS:
        for folder in sorted(Path(HF_HUB_CACHE).glob(f"models--{name}/snapshots/*")):
            if (folder / "model.safetensors").is_file() and (folder / "config.json").is_file():
                return folder
    return None


def before_after_sheet(title: str, seen: BeforeAfter) -> Any:
    """Lay the pictures out in two rows, without the diff and with it; ValueError for none."""
    if seen.before is None or seen.after is None:
        raise ValueError("these test pictures were never decoded")
    rows = [("before", to_pixels(seen.before)), ("after", to_pixels(seen.after))]
    return contact_sheet(title, rows, [one.subject.name for one in seen.seen])
