"""Zero-shot CLIP as a judge, from a local folder or file, safetensors only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..topic import named
from .clip_files import load_clip_model


class ClipJudge:
    """Zero-shot CLIP (Radford et al. 2021, arXiv 2103.00020) from a local folder or file.

    A label is seen when no rival fits the picture better: the other labels of its group (objects,
    styles, backgrounds) that were not asked for with it, and captions of nothing in particular.
    """

    note = "zero-shot CLIP: a label is seen when no other label and no empty caption fits better"
    neutral = ("a picture", "an empty picture", "a picture of something else", "a plain background")
    forms: Mapping[str, str] = {
        "object": "a picture of {}",
        "style": "a picture in {} style",
        "background": "a picture with a {} background",
    }

    def __init__(
        self, path: str | Path, groups: Mapping[str, Iterable[str]], device: str = "cpu"
    ) -> None:
        self.name = f"clip:{Path(path).name}"
        self.model, self.tokenizer = load_clip_model(Path(path))
        self.model.to(device)
        self.device = device
        self.groups = {kind: tuple(dict.fromkeys(labels)) for kind, labels in groups.items()}

    def knows(self, label: str) -> bool:
        """Tell whether the label is in one of the groups."""
        return any(label in labels for labels in self.groups.values())

    def sees(self, pixels: Tensor, labels: Sequence[str]) -> Tensor:
        """Judge pictures (b, 3, h, w) in -1..1: (b, labels) bool."""
        views = self.features(pixels)
        columns = []
        for label in labels:
            kind = next((k for k, known in self.groups.items() if label in known), "object")
            rivals = [other for other in self.groups.get(kind, ()) if other not in labels]
            texts = [self._caption(kind, name) for name in (label, *rivals)]
            scores = views @ self._words((*texts, *self.neutral)).T
            columns.append(scores[:, 0] >= scores[:, 1:].amax(1))
        return torch.stack(columns, 1)

    def _caption(self, kind: str, label: str) -> str:
        return self.forms[kind].format(named(label) if kind == "object" else label)

    @torch.no_grad()
    def align(self, prompts: Sequence[str], pixels: Tensor) -> Tensor:
        """Return the cosine (b,) of each prompt with its picture."""
        return (self._words(tuple(prompts)) * self.features(pixels)).sum(1)

    @torch.no_grad()
    def features(self, pixels: Tensor) -> Tensor:
        """Embed pictures, resized to CLIP's own size, as unit vectors (b, d)."""
        size = self.model.config.vision_config.image_size
        x = F.interpolate(
            pixels, (size, size), mode="bicubic", align_corners=False, antialias=True
        ).clamp(-1, 1)
        mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
        spread = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)
        x = ((x + 1) / 2 - mean) / spread
        out = [
            _vectors(self.model.get_image_features(pixel_values=part.to(self.device)))
            for part in x.split(16)
        ]
        return F.normalize(torch.cat(out).float(), dim=-1).cpu()

    @torch.no_grad()
    def _words(self, texts: Sequence[str]) -> Tensor:
        ids = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=77, return_tensors="pt"
        )
        out = self.model.get_text_features(
            input_ids=ids.input_ids.to(self.device),
            attention_mask=ids.attention_mask.to(self.device),
        )
        return F.normalize(_vectors(out).float(), dim=-1).cpu()


def _vectors(out: Any) -> Tensor:
    """Unwrap what transformers returns: a tensor before version 5, an object since."""
    return out if isinstance(out, Tensor) else out.pooler_output
