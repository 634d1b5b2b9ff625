"""The demo's judge: a small CNN, trained on renders only, that says what a picture shows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from einops import reduce
from torch import Tensor, nn

from .vocabulary import BACKGROUNDS, JUDGED, STYLES

ASSETS = Path(__file__).with_name("assets")
LAYERS = ((24, 2), (48, 2), (48, 1), (96, 2), (96, 1), (128, 2), (128, 1))  # width, stride


class Backbone(nn.Module):
    """Four halvings of the picture, then mean and maximum over positions: (b, 256)."""

    width = 2 * LAYERS[-1][0]

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for width, stride in LAYERS:
            layers.append(_conv(before, width, stride))
            before = width
        self.layers = nn.Sequential(*layers)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels (b, 3, h, w) in -1..1 to features (b, 256)."""
        x = self.layers(pixels)
        mean, most = (reduce(x, "b c h w -> b c", how) for how in ("mean", "max"))
        return torch.cat([mean, most], 1)


def _conv(before: int, width: int, stride: int) -> nn.Module:
    conv = nn.Conv2d(before, width, 3, stride, 1)
    return nn.Sequential(conv, nn.GroupNorm(8, width), nn.ReLU())


@dataclass(frozen=True)
class Verdict:
    """What the judge saw: object probabilities (b, 30), style (b, 5), background (b, 8)."""

    objects: Tensor
    style: Tensor
    background: Tensor

    def has(self, name: str) -> Tensor:
        """Tell for each picture whether it shows the object, (b,) bool."""
        return self.objects[:, JUDGED.index(name)] > 0.5

    def is_style(self, name: str) -> Tensor:
        """Tell for each picture whether it is drawn in the style, (b,) bool."""
        return self.style.argmax(1) == STYLES.index(name)

    def is_background(self, name: str) -> Tensor:
        """Tell for each picture whether it has the background, (b,) bool."""
        return self.background.argmax(1) == BACKGROUNDS.index(name)


class Judge(nn.Module):
    """Backbone and three heads: objects (multi-label), style, background."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.objects = nn.Linear(Backbone.width, len(JUDGED))
        self.style = nn.Linear(Backbone.width, len(STYLES))
        self.background = nn.Linear(Backbone.width, len(BACKGROUNDS))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map pixels (b, 3, 128, 128) in -1..1 to the three heads' logits."""
        h = self.backbone(pixels)
        return self.objects(h), self.style(h), self.background(h)

    @torch.no_grad()
    def look(self, pixels: Tensor) -> Verdict:
        """Judge pictures (b, 3, 128, 128) in -1..1."""
        objects, style, background = (logits.float() for logits in self(pixels))
        return Verdict(objects.sigmoid(), style.softmax(1), background.softmax(1))


def load_judge() -> Judge:
    """Load the judge that ships with the package."""
    from safetensors.torch import load_file

    judge = Judge()
    judge.load_state_dict(
        {k: v.float() for k, v in load_file(ASSETS / "judge.safetensors").items()}
    )
    return judge.eval().requires_grad_(False)
