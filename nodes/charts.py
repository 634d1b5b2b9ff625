"""Pictures of a run, heat maps, and the way to the host's IMAGE."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..trust_engine.frontend.charts import Curves, chart, side_by_side, stacked, where

__all__ = [
    "chart",
    "from_image",
    "heated",
    "side_by_side",
    "stacked",
    "summary_picture",
    "to_image",
    "where",
]


def to_image(*pictures: Any) -> Tensor:
    """Turn PIL pictures of one size into the host's IMAGE (b, h, w, 3), 0..1."""
    arrays = [np.asarray(picture.convert("RGB"), dtype=np.float32) / 255 for picture in pictures]
    return torch.from_numpy(np.stack(arrays))


def from_image(image: Tensor) -> Any:
    """Turn one picture (h, w, 3), 0..1, into a PIL picture."""
    return Image.fromarray((image.float().cpu().clamp(0, 1) * 255).round().byte().numpy())


def summary_picture(title: str, curves: Curves, steps: int, below: Any = None) -> Any:
    """Put the chart above a map of what was changed, if there is one."""
    parts = [chart(title, curves, steps)]
    return stacked(parts if below is None else [*parts, below])


def heated(picture: Any, heat: Tensor) -> Any:
    """Lay a heat map (h, w), any scale, over a picture."""
    low, high = float(heat.min()), float(heat.max())
    level = ((heat - low) / max(high - low, 1e-12)).float().cpu().numpy()
    mask = Image.fromarray((level * 255).astype(np.uint8)).resize(picture.size, Image.BICUBIC)
    share = np.asarray(mask, dtype=np.float32)[..., None] / 255
    grey = np.asarray(picture.convert("L").convert("RGB"), dtype=np.float32) * 0.6
    warm = np.array([255, 96, 32], dtype=np.float32)
    return Image.fromarray((grey * (1 - share) + warm * share).astype(np.uint8))
