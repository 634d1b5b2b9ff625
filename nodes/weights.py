"""The UNet's weights as the host computes with them: its file's, plus LoRAs. Only ever read."""

from __future__ import annotations

from typing import Any

import comfy.lora
import torch
from torch import Tensor

from ..trust_engine.diff.apply import fingerprint_of
from ..trust_engine.errors import ModelError
from ..trust_engine.models.unet_keys import projection_of
from .patching import is_ours
from .stored_weight import PREFIX, Entry, entry_of

LOAD = "load the model's fp16 or bf16 file instead"
KINDS = (".weight", ".bias")  # what else a state dict holds belongs to its way of storing


class Weights:
    """Read effective weights by name; ours=False leaves diffs that our nodes applied out.

    The state dict of the host's module is no source: it holds whatever is patched in right now.
    """

    def __init__(self, patcher: Any, ours: bool = True, prefix: str = PREFIX) -> None:
        self.patcher, self.ours, self.prefix = patcher, ours, prefix
        named = patcher.model_state_dict(prefix)
        self.shapes = {
            name.removeprefix(prefix): self._shape(name, weight)
            for name, weight in named.items()
            if name.startswith(prefix) and name.endswith(KINDS)
        }

    @property
    def projections(self) -> list[str]:
        """List the cross-attention q/k/v weights in the UNet's order."""
        return [key for key in self.shapes if projection_of(key)]

    def _shape(self, name: str, weight: Tensor) -> tuple[int, ...]:
        """Return a weight's shape, not that of the bits it is stored in."""
        if weight.is_floating_point() and weight.dtype.itemsize > 1:
            return tuple(weight.shape)
        entry = entry_of(self.patcher, name)
        return tuple((weight if entry is None else entry.stored).shape)

    def read(self, key: str) -> Tensor:
        """Return one weight, float32 on the CPU, rounded as the host rounds what it patches."""
        name = self.prefix + key
        entry = entry_of(self.patcher, name)
        if entry is None:
            raise ModelError(f"the model has no weight {key}; choose an SD 1.x, 2.x or SDXL model")
        whole, patches = _whole(entry), entry.patches
        if not self.ours:
            patches = [patch for patch in patches if not is_ours(patch)]
        if patches:
            whole = comfy.lora.calculate_weight(patches, whole, name)
            # 8 bits and fewer are rounded by chance, which tells nothing.
            if entry.stored.dtype.itemsize > 1 and not entry.quantised:
                whole = whole.to(entry.stored.dtype).float()
        return whole

    def check_storage(self) -> str | None:
        """Refuse weights of too few bits to change; return a warning for quantised ones of eight.

        Raises ModelError, and reads none of the weights.
        """
        found = (entry_of(self.patcher, self.prefix + key) for key in self.projections)
        worst = min((e for e in found if e is not None), key=lambda e: e.bits, default=None)
        if worst is None or (worst.known and not worst.quantised):
            return None
        if not worst.known:
            raise ModelError(
                f"this model's weights are stored as {worst.form}, which cannot be read; {LOAD}"
            )
        if worst.bits < 8:
            raise ModelError(
                f"this model is quantised ({worst.form}): its steps are larger than what "
                f"unlearning changes; {LOAD}"
            )
        return (
            f"this model is quantised ({worst.form}): the host rounds each changed weight anew, "
            "which adds noise; its fp16 or bf16 file takes the change as it is"
        )

    def fingerprint(self) -> str:
        """Hash the cross-attention q/k/v weights, as `diff.fingerprint` does."""
        return fingerprint_of(self.projections, self.read)


def _whole(entry: Entry) -> Tensor:
    """Copy a weight to the CPU in float32, as the host reads it before it is patched."""
    stored, convert = entry.stored.detach(), entry.convert
    if entry.quantised:
        return convert(stored).detach().to("cpu", torch.float32, copy=True)
    whole = stored.to("cpu", torch.float32, copy=True)
    return whole if convert is None else convert(whole, inplace=True)
