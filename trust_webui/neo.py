"""Forge Neo: Forge's models under ComfyUI's memory management; patches live in the patcher itself.

A patcher is held weakly where models are loaded: when a sampling's clone goes, its parent stands
there in its place, while the weights still have the clone's patches. An identifier of the patches
tells: the patcher's, and that of those which the weights have.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from backend import memory_management
from torch import Tensor

from . import merging
from .forge import Forge
from .host import Part


class Neo(Forge):
    """Stable Diffusion WebUI Forge Neo."""

    name = "Forge Neo"

    @staticmethod
    def _backup(patcher: Any, name: str) -> Tensor | None:
        """Return the checkpoint's own weight while the UNet's is patched."""
        kept = patcher.backup.get(name)
        return None if kept is None else kept.weight

    @staticmethod
    @torch.inference_mode()
    def _load(patcher: Any, shape: tuple[int, ...]) -> None:
        """Have the UNet on its device, with its own patches; nothing to do when it is so."""
        there = memory_management.current_loaded_models
        here = any(loaded.model is patcher for loaded in there)
        if not here or patcher.model.current_weight_patches_uuid != patcher.patches_uuid:
            needed = patcher.memory_required(list(shape))
            memory_management.load_models_gpu([patcher], memory_required=needed)

    @staticmethod
    def _worn(patcher: Any) -> list[str]:
        """Name the LoRAs in use."""
        networks = sys.modules.get("networks")
        names = [str(net.name) for net in getattr(networks, "loaded_networks", ())]
        return (names or ["unnamed"]) if patcher.patches else []

    @staticmethod
    def _strip(unet: Any) -> None:
        """Take off diffs of an earlier pass, which another extension may have carried along."""
        for name, patches in list(unet.patches.items()):
            kept = [one for one in patches if not merging.is_ours(one[1])]
            if kept:
                unet.patches[name] = kept
            else:
                del unet.patches[name]

    @staticmethod
    def _others(unet: Any, name: str) -> list[Any]:
        """Return the patches of a weight that are not ours."""
        return [one for one in unet.patches.get(name, ()) if not merging.is_ours(one[1])]

    def reached(self, parts: Sequence[Part]) -> bool:
        """Tell whether the weights were proved to be under our patches, and still are."""
        drew = self.model.forge_objects.unet
        return self._proved and drew.model.current_weight_patches_uuid == drew.patches_uuid
