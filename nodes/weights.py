"""The UNet's weights as the host computes with them: its file's, plus LoRAs. Only ever read."""

from __future__ import annotations

from typing import Any

import comfy.lora
import torch
from torch import Tensor

from ..trust_engine.diff.apply import fingerprint_of
from ..trust_engine.errors import ModelError
from ..trust_engine.models.keys import projection_of
from .patching import is_ours

PREFIX = "diffusion_model."


class Weights:
    """Read effective weights by name; ours=False leaves diffs that our nodes applied out.

    The state dict of the host's module is no source: it holds whatever is patched in right now.
    """

    def __init__(self, patcher: Any, ours: bool = True, prefix: str = PREFIX) -> None:
        self.patcher, self.ours, self.prefix = patcher, ours, prefix
        named = patcher.model_state_dict(prefix)
        self.shapes = {
            name.removeprefix(prefix): tuple(weight.shape)
            for name, weight in named.items()
            if name.startswith(prefix)
        }

    @property
    def projections(self) -> list[str]:
        """List the cross-attention q/k/v weights in the UNet's order."""
        return [key for key in self.shapes if projection_of(key)]

    def read(self, key: str) -> Tensor:
        """Return one weight, float32 on the CPU, rounded as the host rounds what it patches."""
        name = self.prefix + key
        found = self.patcher.get_key_patches(name).get(name)
        if found is None:
            raise ModelError(f"the model has no weight {key}; choose an SD 1.x, 2.x or SDXL model")
        first, *patches = found
        weight, convert = first if isinstance(first, tuple) else (first, None)
        stored = weight.dtype
        whole = weight.detach().to("cpu", torch.float32, copy=True)
        if convert is not None:
            whole = convert(whole, inplace=True)
        if not self.ours:
            patches = [patch for patch in patches if not is_ours(patch)]
        if patches:
            whole = comfy.lora.calculate_weight(patches, whole, name)
            if stored.itemsize > 1:  # 8 bits are rounded by chance, which tells nothing
                whole = whole.to(stored).float()
        return whole

    def fingerprint(self) -> str:
        """Hash the cross-attention q/k/v weights, as `diff.fingerprint` does."""
        return fingerprint_of(self.projections, self.read)
