"""Did it work? Forgetting and retention on the demo model, side by side with the untouched one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .demo.judge import Judge
from .demo.vocabulary import BACKGROUNDS, OBJECTS, STYLES, Scene, caption
from .diff import WeightDiff, applied
from .errors import SpecError
from .model import LoadedModel
from .sampler import SamplerSettings
from .spec import in_range

AUDIT_VERSION = 1
TARGET_FACTOR = 4  # pictures of the target for each picture of another object
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Rate:
    """A share with its sample size and 95 % Wilson interval."""

    hits: int
    n: int

    @property
    def value(self) -> float:
        """Return the share, 0..1."""
        return self.hits / self.n if self.n else math.nan

    def to_dict(self) -> dict[str, float]:
        """Return value, n, low and high."""
        low, high = wilson(self.hits, self.n)
        return {
            "value": round(self.value, 4),
            "n": self.n,
            "low": round(low, 4),
            "high": round(high, 4),
        }


def wilson(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Return the Wilson score interval of a share (Wilson 1927)."""
    if n == 0:
        return 0.0, 1.0
    p = hits / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def mean_rate(rates: Iterable[Rate]) -> Rate:
    """Pool several rates."""
    rates = list(rates)
    return Rate(sum(r.hits for r in rates), sum(r.n for r in rates))


@dataclass(frozen=True)
class Shot:
    """One picture to draw: the words, what it should show, and its seed."""

    words: str
    scene: Scene
    seed: int

    @property
    def prompt(self) -> str:
        """Return the caption."""
        return caption([self.words], self.scene.background, self.scene.style)


@dataclass(frozen=True)
class ShotList:
    """All pictures of an audit, by what they measure."""

    target: list[Shot]
    synonyms: list[Shot]
    others: list[Shot]


@dataclass
class Findings:
    """What the judge found in one model's pictures."""

    ua: Rate
    synonyms: Rate
    ira: Rate
    cra_style: Rate
    cra_background: Rate
    per_object: dict[str, Rate] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures under the audit's names."""
        named = {
            "ua": self.ua,
            "ira": self.ira,
            "cra_style": self.cra_style,
            "cra_background": self.cra_background,
            "synonyms": self.synonyms,
        }
        figures: dict[str, Any] = {name: rate.to_dict() for name, rate in named.items()}
        figures["per_object"] = {name: rate.to_dict() for name, rate in self.per_object.items()}
        return figures


def plan(target: str, images: int, seed: int) -> ShotList:
    """Plan `images` pictures an object; the target and its synonyms get four times as many."""
    if target not in OBJECTS:
        raise SpecError(
            f"{target!r} is not an object the demo's judge knows; use one of {', '.join(OBJECTS)}"
        )
    in_range("images", images, 1, 140, whole=True)  # more would share seeds between groups
    in_range("seed", seed, 0, 2**48, whole=True)
    # Audit seeds are apart from the engine's, which start near zero.
    base = 1_000_000 + seed * 10_000
    many = images * TARGET_FACTOR
    synonyms = OBJECTS[target]
    return ShotList(
        [_shot(target, target, i, base) for i in range(many)],
        [_shot(synonyms[i % len(synonyms)], target, i, base + 3_000) for i in range(many)],
        [
            _shot(name, name, i * len(OBJECTS) + j, base + 6_000)
            for j, name in enumerate(OBJECTS)
            if name != target
            for i in range(images)
        ],
    )


def _shot(words: str, name: str, index: int, base: int) -> Shot:
    style = STYLES[index % len(STYLES)]
    background = BACKGROUNDS[(index // len(STYLES) + index) % len(BACKGROUNDS)]
    return Shot(words, Scene((name,), background, style), base + index)


def examine(
    model: LoadedModel,
    judge: Judge,
    shots: ShotList,
    settings: SamplerSettings,
    on_step: Progress | None = None,
) -> Findings:
    """Draw every shot and let the judge count."""
    every = [*shots.target, *shots.synonyms, *shots.others]
    objects, style, background = look(model, judge, every, settings, on_step)
    a, b = len(shots.target), len(shots.target) + len(shots.synonyms)
    per_object = {
        name: Rate(
            *_count(objects[i] for i, s in enumerate(every[b:], b) if name in s.scene.objects)
        )
        for name in OBJECTS
        if any(name in s.scene.objects for s in shots.others)
    }
    return Findings(
        ua=Rate(*_count(not hit for hit in objects[:a])),
        synonyms=Rate(*_count(not hit for hit in objects[a:b])),
        ira=mean_rate(per_object.values()),
        cra_style=Rate(*_count(style[b:])),
        cra_background=Rate(*_count(background[b:])),
        per_object=per_object,
    )


def _count(hits: Iterable[bool]) -> tuple[int, int]:
    hits = list(hits)
    return sum(hits), len(hits)


def look(
    model: LoadedModel,
    judge: Judge,
    shots: Sequence[Shot],
    settings: SamplerSettings,
    on_step: Progress | None = None,
) -> tuple[list[bool], list[bool], list[bool]]:
    """Draw shots; tell for each whether all its objects, its style, its background are seen."""
    objects: list[bool] = []
    style: list[bool] = []
    background: list[bool] = []
    pictures = model.generate([s.prompt for s in shots], [s.seed for s in shots], settings, on_step)
    for batch in pictures:
        verdict = judge.look(batch)
        for row in range(len(batch)):
            scene = shots[len(objects)].scene
            objects.append(all(bool(verdict.has(name)[row]) for name in scene.objects))
            style.append(bool(verdict.is_style(str(scene.style))[row]))
            background.append(bool(verdict.is_background(str(scene.background))[row]))
    return objects, style, background


def audit(
    model: LoadedModel,
    judge: Judge,
    diffs: Sequence[tuple[WeightDiff, float]],
    target: str,
    images: int = 4,
    seed: int = 0,
    settings: SamplerSettings | None = None,
    on_step: Progress | None = None,
) -> dict[str, Any]:
    """Compare the model under `diffs` with the untouched one on the same prompts and seeds."""
    settings = settings or SamplerSettings()
    shots, started = plan(target, images, seed), time.monotonic()
    count = len(shots.target) + len(shots.synonyms) + len(shots.others)
    passes = settings.passes(count)

    def second_half(done: int, total: int) -> None:
        if on_step:
            on_step(total + done, 2 * total)

    def first_half(done: int, total: int) -> None:
        if on_step:
            on_step(done, 2 * total)

    untouched = examine(model, judge, shots, settings, first_half)
    with applied(model.denoiser, diffs):
        edited = examine(model, judge, shots, settings, second_half)
    return {
        "version": AUDIT_VERSION,
        "concept": target,
        "images_per_object": images,
        "seed": seed,
        **edited.to_dict(),
        "untouched": untouched.to_dict(),
        "cost": {"unet_passes": 2 * passes, "seconds": round(time.monotonic() - started, 1)},
    }


def to_pixels(pictures: Tensor) -> Any:
    """Turn (b, 3, h, w) in -1..1 into a (b, h, w, 3) uint8 array."""
    scaled = pictures.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).cpu().numpy()
