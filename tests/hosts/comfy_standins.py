"""What stands in for parts of a real ComfyUI beside its own small models."""

from __future__ import annotations

import zlib
from typing import Any

import torch

WIDTH = 64  # of the text that small models read
WIDE = 1280  # of SDXL's second text tower


class Clip:
    """Words to rows by their hash, in the shape of the host's CLIP."""

    def tokenize(self, text: str) -> dict[str, list]:
        """Cut a text into (token, weight)."""
        words = [(100 + zlib.crc32(word.encode()) % 49_000, 1.0) for word in text.split()[:10]]
        return {"l": [[(1, 1.0), *words] + [(2, 1.0)] * (11 - len(words))]}

    def encode_from_tokens(self, tokens: dict, return_pooled: bool = False) -> Any:
        """Return rows (1, n, 64) and the pooled text (1, 1280)."""
        seeds = [token for token, _ in tokens["l"][0]]
        rows = [torch.randn(WIDTH, generator=torch.Generator().manual_seed(s)) for s in seeds]
        rows = torch.stack(rows)
        return (rows + rows.mean(0))[None], rows.mean().expand(1, 1280)


class Vae:
    """Decodes by taking three of the four channels."""

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Return pictures (b, h, w, 3)."""
        image = latents[:, :3].float().cpu().sigmoid().movedim(1, -1)
        return image.repeat_interleave(8, 1).repeat_interleave(8, 2)


class Lowvram:
    """Load as the host does when memory is short: each weight is patched anew where it is used."""

    def __init__(self) -> None:
        self.loaded: Any = None
        self.patches = 0

    def load(self, models: Any, **_more: Any) -> None:
        """Be the host's load_models_gpu."""
        (model,) = models
        if self.loaded is not model:
            self.unload()
            self.loaded = model
            model.patch_model(torch.device("cpu"), lowvram_model_memory=1)
            self.patches = max(self.patches, model.model.lowvram_patch_counter)

    def unload(self) -> None:
        """Take everything off again."""
        if self.loaded is not None:
            self.loaded.detach()
        self.loaded = None
