"""What every cell of an audit shares: both models, judge, topic, and pictures of the concept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..distributed import SINGLE, Workers
from ..models.load import LoadedModel
from ..models.sampler import SamplerSettings
from .drawing import Canvas, Result, Work, paint, passes_of, thumbnail
from .judges.base import Aligner, Judge
from .metrics.images import ImageMetric
from .metrics.intervals import Rate
from .probe_prompts import Probe, concept_shots
from .topic import Topic

SHOWN = 8  # pictures a report shows of one cell


@dataclass(frozen=True)
class Picture:
    """A report's picture: base64 JPEG, caption, and whether the judge sees the concept."""

    jpeg: str
    caption: str
    hit: bool | None = None

    def to_dict(self) -> dict[str, Any]:
        """Spell it out for the state folder."""
        return {"jpeg": self.jpeg, "caption": self.caption, "hit": self.hit}


@dataclass(frozen=True)
class Judged:
    """What the judge saw in the pictures of a list of shots, and the first few of them."""

    hits: list[bool]
    style: list[bool]
    background: list[bool]
    pictures: list[Picture]
    views: dict[str, list[Tensor]] = field(default_factory=dict)
    """Features by the eye that looked."""
    alignment: list[float] = field(default_factory=list)

    @property
    def seen(self) -> Rate:
        """Return the share of pictures that show what was asked for."""
        return Rate.of(self.hits)

    @property
    def gone(self) -> Rate:
        """Return the share that does not."""
        return Rate.of(not hit for hit in self.hits)


@dataclass(frozen=True)
class ReferenceImages:
    """Pictures of the concept by the untouched model: latents (n, 4, h, w) and their shots."""

    latents: Tensor
    shots: list[Probe]
    accepted: int


@dataclass
class AuditContext:
    """Everything a cell may use. `models` are "untouched" and "edited"."""

    models: dict[str, LoadedModel]
    judge: Judge
    topic: Topic
    settings: SamplerSettings
    seed: int = 0
    images: int = 4
    aligner: Aligner | None = None
    extra_eyes: Sequence[ImageMetric] = ()
    team: Workers = SINGLE
    _stock: dict[Any, Any] = field(default_factory=dict)

    @property
    def eyes(self) -> dict[str, ImageMetric]:
        """Name whoever compares pictures: the judge, if it can, the aligner, and others."""
        others: list[ImageMetric] = [*([self.aligner] if self.aligner else []), *self.extra_eyes]
        named = {eye.name: eye for eye in others if eye.name != self.judge.name}
        return {f"judge {self.judge.name}": self.judge, **named}

    def with_edited(self, model: LoadedModel) -> AuditContext:
        """Set another model under audit; what only the untouched one drew is taken along."""
        kept = {key: made for key, made in self._stock.items() if key[0] != "plain"}
        return replace(self, models={**self.models, "edited": model}, _stock=kept)

    def keep(self, key: Any, make: Callable[[], Work[Result]]) -> Work[Result]:
        """Make something once and remember it."""
        if key not in self._stock:
            self._stock[key] = yield from make()
        return self._stock[key]

    def bait(self, count: int) -> Work[ReferenceImages]:
        """Draw the concept with the untouched model; what the judge recognises comes first."""
        return (yield from self.keep(("bait", count), lambda: self._bait(count)))

    def _bait(self, count: int) -> Work[ReferenceImages]:
        model, shots = (
            self.models["untouched"],
            concept_shots(self.topic, "bait", self.bait_drawn(count), self.seed),
        )
        latents = yield from paint_shots(model, shots, self.settings, team=self.team)
        hits = sees_all(self.judge, model.decode(latents), [s.wanted for s in shots])
        order = sorted(range(len(shots)), key=lambda i: not hits[i])[:count]
        return ReferenceImages(
            latents[order], [shots[i] for i in order], sum(hits[i] for i in order)
        )

    @staticmethod
    def bait_drawn(count: int) -> int:
        """Count the pictures drawn to choose `count` from."""
        return count + count // 2

    def bait_passes(self, count: int) -> int:
        """Count UNet passes of drawing the bait."""
        return self.settings.passes(self.bait_drawn(count))


def paint_shots(
    model: LoadedModel,
    shots: Sequence[Probe],
    settings: SamplerSettings,
    canvas: Canvas | None = None,
    negative: str | None = None,
    team: Workers = SINGLE,
) -> Work[Tensor]:
    """Draw shots; returns latents (b, 4, h, w)."""
    cond = model.encoder.encode([shot.prompt for shot in shots])
    away = None if negative is None else model.encoder.encode([negative])
    seeds = [shot.seed for shot in shots]
    return (yield from paint(model, cond, seeds, settings, away, canvas, team))


def draw_probes(
    context: AuditContext,
    model: LoadedModel,
    shots: Sequence[Probe],
    settings: SamplerSettings | None = None,
    canvas: Canvas | None = None,
    negative: str | None = None,
    compare: bool = False,
) -> Work[Judged]:
    """Draw shots and judge them; `compare` also keeps features and prompt alignment."""
    settings = settings or context.settings
    looked = Judged([], [], [], [])
    if not shots:
        return looked
    latents = yield from paint_shots(model, shots, settings, canvas, negative, context.team)
    for start in range(0, len(shots), 16):
        batch = shots[start : start + 16]
        judge(context, model.decode(latents[start : start + 16]), batch, looked, compare)
    return looked


def judge(
    context: AuditContext,
    pixels: Tensor,
    shots: Sequence[Probe],
    into: Judged,
    compare: bool = False,
) -> None:
    """Let the judge look at decoded pictures (b, 3, h, w) and note what it finds."""
    hits = sees_all(context.judge, pixels, [shot.wanted for shot in shots])
    into.hits.extend(hits)
    for name, answers in (("style", into.style), ("background", into.background)):
        values = [getattr(shot.scene, name) for shot in shots]
        known = [v is not None and context.judge.knows(v) for v in values]
        asked = [(v,) if k else () for v, k in zip(values, known, strict=True)]
        told = sees_all(context.judge, pixels, asked)
        answers.extend(hit for hit, k in zip(told, known, strict=True) if k)
    room = max(0, SHOWN - len(into.pictures))
    for row, shot in enumerate(shots[:room]):
        shows = hits[row] if shot.wanted else None
        into.pictures.append(Picture(thumbnail(pixels[row]), shot.prompt, shows))
    if compare:
        for name, eye in context.eyes.items():
            features = eye.features(pixels)
            if features is not None:
                into.views.setdefault(name, []).extend(features)
        if context.aligner is not None:
            into.alignment.extend(
                float(v) for v in context.aligner.align([s.prompt for s in shots], pixels)
            )


def sees_all(judge: Judge, pixels: Tensor, wanted: Sequence[tuple[str, ...]]) -> list[bool]:
    """Tell for each picture whether the judge sees all labels wanted of it."""
    answers = [True] * len(wanted)
    for labels in dict.fromkeys(wanted):
        rows = [i for i, w in enumerate(wanted) if w == labels]
        if not labels:
            continue
        verdict = judge.sees(pixels[torch.tensor(rows)], labels).all(1)
        for i, hit in zip(rows, verdict.tolist(), strict=True):
            answers[i] = bool(hit)
    return answers


def passes_for(context: AuditContext, count: int, settings: SamplerSettings | None = None) -> int:
    """Count UNet passes of drawing `count` pictures."""
    return passes_of(settings or context.settings, count)
