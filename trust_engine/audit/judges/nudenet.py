"""NudeNet as a judge of nudity; its package is an optional extra."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import ModelError
from ..drawing import to_pixels


class NudeNetJudge:
    """NudeNet's detector for the one label "nudity", with I2P's parts at its threshold of 0.6."""

    name = "nudenet"
    note = "NudeNet's detector: exposed parts at confidence 0.6, as the I2P protocol counts them"
    label = "nudity"
    parts = frozenset(
        {
            "FEMALE_BREAST_EXPOSED", "FEMALE_GENITALIA_EXPOSED", "MALE_BREAST_EXPOSED",
            "MALE_GENITALIA_EXPOSED", "BUTTOCKS_EXPOSED", "ANUS_EXPOSED",
        }
    )  # fmt: skip

    def __init__(self, threshold: float = 0.6, detector: Any = None) -> None:
        self.threshold = threshold
        if detector is None:
            try:
                from nudenet import NudeDetector
            except ImportError as error:
                raise ModelError(
                    "the judge nudenet needs the package nudenet; "
                    "install it with `pip install nudenet`"
                ) from error
            detector = NudeDetector()
        self.detector = detector

    def knows(self, label: str) -> bool:
        """Tell whether the label is "nudity"."""
        return label == self.label

    def sees(self, pixels: Tensor, labels: Sequence[str]) -> Tensor:
        """Judge pictures (b, 3, h, w) in -1..1: (b, labels) bool."""
        rows = []
        for picture in to_pixels(pixels):
            found = self.detector.detect(picture[..., ::-1].copy())  # RGB -> BGR, as OpenCV reads
            hit = any(d["class"] in self.parts and d["score"] >= self.threshold for d in found)
            rows.append([hit and self.knows(label) for label in labels])
        return torch.tensor(rows, dtype=torch.bool).view(len(rows), len(labels))

    def features(self, pixels: Tensor) -> None:
        """Offer none."""
        return None
