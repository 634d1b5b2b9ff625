"""Who says what a picture shows: the interface, and the demo's judge; `catalogue` has them all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ...demo import judge as demo
from ...demo.vocabulary import BACKGROUNDS, JUDGED, STYLES


class Judge(Protocol):
    """Tells for labels, which are words, whether pictures show them."""

    @property
    def name(self) -> str:
        """Name it for the report."""
        ...

    @property
    def note(self) -> str:
        """Say in a sentence what it is and what it was trained on."""
        ...

    def knows(self, label: str) -> bool:
        """Tell whether it can judge this label."""
        ...

    def sees(self, pixels: Tensor, labels: Sequence[str]) -> Tensor:
        """Judge pictures (b, 3, h, w) in -1..1: (b, labels) bool."""
        ...

    def features(self, pixels: Tensor) -> Tensor | None:
        """Map pictures to unit vectors (b, d) whose cosine compares them, if it can."""
        ...


class Aligner(Protocol):
    """Tells how well a picture fits its prompt, and how alike pictures are."""

    @property
    def name(self) -> str:
        """Name it for the report."""
        ...

    def align(self, prompts: Sequence[str], pixels: Tensor) -> Tensor:
        """Return the cosine (b,) of each prompt with its picture."""
        ...

    def features(self, pixels: Tensor) -> Tensor:
        """Map pictures to unit vectors (b, d)."""
        ...


class DemoJudge:
    """Emoji World's CNN: objects independently of each other, style and background by the best."""

    name = "demo"
    note = "a CNN trained on real renders of Emoji World, never on what the model draws"

    def __init__(self, net: demo.Judge) -> None:
        self.net = net

    def knows(self, label: str) -> bool:
        """Tell whether it is an object, style or background of Emoji World."""
        return label in (*JUDGED, *STYLES, *BACKGROUNDS)

    def sees(self, pixels: Tensor, labels: Sequence[str]) -> Tensor:
        """Judge pictures (b, 3, 128, 128) in -1..1: (b, labels) bool."""
        verdict = self.net.look(pixels.to(next(self.net.parameters()).device))
        columns = []
        for label in labels:
            if label in JUDGED:
                columns.append(verdict.has(label))
            elif label in STYLES:
                columns.append(verdict.is_style(label))
            else:
                columns.append(verdict.is_background(label))
        return torch.stack(columns, 1).cpu()

    @torch.no_grad()
    def features(self, pixels: Tensor) -> Tensor:
        """Return the backbone's features (b, 256), normalised."""
        place = next(self.net.parameters()).device
        return F.normalize(self.net.backbone(pixels.to(place)).float(), dim=-1).cpu()


class TinyAligner:
    """Emoji World's own CLIP. Its text tower is the demo model's: it is no independent witness."""

    name = "demo-clip (shares the model's text tower)"

    def __init__(self, clip: Any = None) -> None:
        if clip is None:
            from ...models.demo_clip import load_clip

            clip = load_clip()
        self.clip = clip

    @torch.no_grad()
    def align(self, prompts: Sequence[str], pixels: Tensor) -> Tensor:
        """Return the cosine (b,) of each prompt with its picture."""
        from ...models.demo_clip import tokenize

        words = self.clip.embed_text(tokenize(list(prompts)))
        return (words * self.features(pixels)).sum(1)

    @torch.no_grad()
    def features(self, pixels: Tensor) -> Tensor:
        """Map pictures to unit vectors (b, 96)."""
        return self.clip.image(pixels.cpu())


def as_judge(judge: Any) -> Judge:
    """Take a judge, or the demo's bare network."""
    return DemoJudge(judge) if isinstance(judge, demo.Judge) else judge


def is_coupled(judge: Judge, diffs: Iterable[tuple[Any, float]]) -> bool:
    """Tell whether the judge also helped to find the neurons, by the diffs' provenance.

    A provenance may name judges; a spec whose saliency is "clip" was led by CLIP's score.
    """
    used: set[str] = set()
    for diff, _ in diffs:
        value = diff.provenance.get("judge", ())
        used |= {value} if isinstance(value, str) else {str(name) for name in value or ()}
        try:
            spec = json.loads(diff.provenance.get("spec", "{}"))
        except (TypeError, ValueError):
            spec = {}
        if isinstance(spec, dict) and spec.get("saliency") == "clip":
            used.add("clip")
    return judge.name in used or judge.name.split(":")[0] in used
