"""A pretended Forge Neo: patches in the patcher, an identifier for them, models held weakly.

Copied from it is what is awkward: clones share one backup; the weights keep a clone's patches when
the clone has gone and its parent stands in its place among the loaded; a patch of another shape is
left out with a line on the console; a key that it does not know is left out without one.
"""

from __future__ import annotations

import copy
import sys
import uuid
import weakref
from collections import namedtuple
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from fakes.webui import module
from fakes.webui_forge import FakeForge, Merging, _set

Kept = namedtuple("Kept", ["weight", "inplace_update"])


class Patcher:
    """UnetPatcher; patches: by weight, a list of six things, whether at each use being the last."""

    load_device = torch.device("cpu")

    def __init__(self, model: Any, merging: Merging, lowvram: bool = False) -> None:
        self.model, self.merging, self.lowvram = model, merging, lowvram
        self.patches: dict[str, list[Any]] = {}
        self.backup: dict[str, Kept] = {}
        self.patches_uuid, self.parent = uuid.uuid4(), None
        self.model_options: dict[str, list[Any]] = {}
        if not hasattr(model, "current_weight_patches_uuid"):
            model.current_weight_patches_uuid = None

    def clone(self) -> Patcher:
        """Share model and backup, copy the patches."""
        other = Patcher(self.model, self.merging, self.lowvram)
        other.patches = {key: entries[:] for key, entries in self.patches.items()}
        other.patches_uuid, other.parent, other.backup = self.patches_uuid, self, self.backup
        other.model_options = copy.deepcopy(self.model_options)
        return other

    def add_conditioning_modifier(self, modifier: Any) -> None:
        """Add a hook that sees every step, and is this patcher's alone."""
        self.model_options.setdefault("conditioning_modifiers", []).append(modifier)

    def add_patches(
        self, patches: dict[str, Any], strength_patch: float = 1.0, strength_model: float = 1.0, *,
        filename: str = "", online_mode: bool | None = None,
    ) -> list[str]:  # fmt: skip
        """Note patches; unknown keys are left out without a word."""
        known = self.model.state_dict()
        for key in set(patches) & set(known):
            entry = (strength_patch, patches[key], strength_model, None, None, online_mode)
            self.patches.setdefault(key, []).append(entry)
        self.patches_uuid = uuid.uuid4()
        return list(set(patches) & set(known))

    @torch.inference_mode()
    def patch_weight_to_device(self, key: str) -> None:
        """Merge a weight's patches into a new tensor."""
        old = self.model.get_parameter(key)
        self.backup.setdefault(key, Kept(old, False))
        _set(self.model, key, self.merging.merge(self.patches[key], old.float(), key).to(old.dtype))

    @torch.inference_mode()
    def load(self) -> None:
        """Bring the weights to these patches."""
        if self.model.current_weight_patches_uuid not in (None, self.patches_uuid):
            self.unpatch_model()
        if self.model.current_weight_patches_uuid == self.patches_uuid:
            return
        for key, entries in self.patches.items():
            layer = self.model.get_submodule(key.rpartition(".")[0])
            if self.lowvram or any(entry[-1] for entry in entries):
                layer.weight_function = [self._at_each_use(key)]
                layer.parameters_manual_cast = True
            else:
                self.patch_weight_to_device(key)
        self.model.current_weight_patches_uuid = self.patches_uuid

    def _at_each_use(self, key: str) -> Any:
        return lambda weight: self.merging.merge(self.patches[key], weight, key, weight.dtype)

    def unpatch_model(self) -> None:
        """Put the checkpoint's weights back."""
        for layer in self.model.modules():
            if getattr(layer, "weight_function", None):
                layer.weight_function, layer.parameters_manual_cast = [], False
        for key, kept in list(self.backup.items()):
            _set(self.model, key, kept.weight)
        self.backup.clear()
        self.model.current_weight_patches_uuid = None

    def memory_required(self, shape: Any) -> float:
        """Say anything."""
        return 1.0


class Loaded:
    """LoadedModel: when its patcher goes, the patcher's parent is in its place."""

    def __init__(self, patcher: Patcher) -> None:
        self._take(patcher)

    def _take(self, patcher: Patcher) -> None:
        self._model = weakref.ref(patcher)
        if patcher.parent is not None:
            self._parent = weakref.ref(patcher.parent)
            weakref.finalize(patcher, self._switch).atexit = False

    def _switch(self) -> None:
        parent = self._parent()
        if parent is not None:
            self._take(parent)

    @property
    def model(self) -> Patcher | None:
        """Return the patcher."""
        return self._model()


class FakeNeo(FakeForge):
    """The host; lowvram: weights stay where they are, and patches are merged at each use."""

    def __init__(self, merging: Merging | None = None, lowvram: bool = False) -> None:
        self.lowvram = lowvram
        super().__init__(merging or Merging(consulted=False, adapters=True, strict=True))

    def _patcher(self, kmodel: nn.Module) -> Any:
        return Patcher(kmodel, self.merging, self.lowvram)

    def used(self, layer: Any) -> tuple[Any, Any]:
        """operations.get_weight_and_bias: with the functions that are called at each use."""
        weight: Tensor = layer.weight
        for function in getattr(layer, "weight_function", ()):
            weight = function(weight)
        return weight, layer.bias

    def load(self, models: list[Any], memory_required: float = 0) -> None:
        """Load: clones of one model take each other's place."""
        for patcher in models:
            there = [one for one in self.management.current_loaded_models
                     if one.model is not None and one.model.model is not patcher.model]  # fmt: skip
            self.management.current_loaded_models[:] = [Loaded(patcher), *there]
            patcher.load()

    def _patching(self) -> tuple[ModuleType, ModuleType]:
        base = module("backend.patcher.base", ModelPatcher=Patcher)
        return self.merging.module(), base

    def activate(self, p: Any) -> None:
        """Give the sampling the patchers as the LoRAs in the prompt left them."""
        super().activate(p)
        names = [SimpleNamespace(name=name.removesuffix(".safetensors")) for name, *_ in p.loras]
        sys.modules["networks"].loaded_networks = names  # type: ignore[attr-defined]

    def modules(self, shared: Any) -> dict[str, ModuleType]:
        """Name the modules that only this host has."""
        return {**super().modules(shared), "networks": module("networks", loaded_networks=[])}
