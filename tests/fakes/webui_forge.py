"""A pretended Forge: the demo's weights as inference tensors, in-place blocks, named patches."""

from __future__ import annotations

import copy
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from fakes.webui import module
from fakes.webui_text import count, encode
from toys.tiny import LdmUNet
from trust_engine.models.demo_architecture import SHAPE
from trust_engine.models.load import load_model


class ForgeUNet(LdmUNet):
    """ldm names, Forge's signature; every block adds in place to what others may have saved."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__(unet, SHAPE)
        for block in unet.modules():
            if hasattr(block, "attn2"):
                block.forward = _in_place(block)

    def forward(  # type: ignore[override]
        self, x: Tensor, timesteps: Tensor, context: Tensor, y: Any = None,
        transformer_options: Any = None,
    ) -> Tensor:  # fmt: skip
        """Predict eps, (b, 4, h, w)."""
        return self.unet(x, timesteps, encoder_hidden_states=context).sample


def _in_place(block: Any) -> Any:
    def forward(x: Tensor, *_: Any, encoder_hidden_states: Any = None, **__: Any) -> Tensor:
        x = x.clone()
        x += block.attn1(block.norm1(x))
        x += block.attn2(block.norm2(x), encoder_hidden_states)
        out = block.ff(block.norm3(x))
        out += x
        return out

    return forward


class Loader:
    """LoraLoader: merging is skipped while names and strengths are those of last time."""

    def __init__(self, model: nn.Module, calculators: dict[str, Any]) -> None:
        self.model, self.calculators = model, calculators
        self.backup: dict[str, Tensor] = {}
        self.loaded_hash = str([])

    @torch.inference_mode()
    def refresh(self, patches: dict[Any, dict[str, list[Any]]]) -> None:
        """Merge patches into new inference tensors, after restoring the old ones."""
        hashes = str(list(patches))
        if hashes == self.loaded_hash:
            return
        for key, weight in self.backup.items():
            _set(self.model, key, weight)
        self.backup = {}
        together: dict[str, list[Any]] = {}
        for parts in patches.values():
            for key, entries in parts.items():
                together.setdefault(key, []).extend(entries)
        for key, entries in together.items():
            old = self.model.get_parameter(key)
            self.backup[key] = old
            weight = old.float().clone()
            for strength, value in entries:
                if value[0] == "diff":
                    weight += strength * value[1][0]
                else:
                    weight = self.calculators[value[0]](weight, strength, value[1])
            _set(self.model, key, weight.to(old.dtype))
        self.loaded_hash = hashes


def _set(model: nn.Module, key: str, weight: Tensor) -> None:
    path, _, last = key.rpartition(".")
    setattr(model.get_submodule(path), last, nn.Parameter(weight, requires_grad=False))


class Patcher:
    """UnetPatcher."""

    load_device = torch.device("cpu")

    def __init__(self, model: nn.Module, loader: Loader) -> None:
        self.model, self.lora_loader = model, loader
        self.lora_patches: dict[Any, dict[str, list[Any]]] = {}

    def clone(self) -> Patcher:
        """Share the model, copy the patches."""
        other = Patcher(self.model, self.lora_loader)
        other.lora_patches = self.lora_patches.copy()
        return other

    def add_patches(
        self, *, filename: str, patches: dict[str, Any], strength_patch: float = 1.0
    ) -> set[str]:
        """Note patches under their file's name; unknown keys are left out without a word."""
        known = {name for name, _ in self.model.named_parameters()}
        kept = {k: [[strength_patch, v]] for k, v in patches.items() if k in known}
        self.lora_patches[(filename, strength_patch, 1.0, False)] = kept
        return set(kept)

    def refresh_loras(self) -> None:
        """Merge."""
        self.lora_loader.refresh(self.lora_patches)

    def memory_required(self, shape: Any) -> float:
        """Say anything."""
        return 1.0


class Objects:
    """ForgeObjects."""

    def __init__(self, unet: Patcher) -> None:
        self.unet = unet

    def shallow_copy(self) -> Objects:
        """Copy."""
        return copy.copy(self)


class FakeForge:
    """The host: its model, its memory management, its sampler."""

    def __init__(self) -> None:
        self.demo = load_model("demo", "cpu")
        unet = self.demo.denoiser.module
        with torch.inference_mode():  # as Forge loads
            for owner in list(unet.modules()):
                for name, weight in list(owner._parameters.items()):
                    if weight is not None:
                        owner._parameters[name] = nn.Parameter(weight.clone(), False)
        self.unet = ForgeUNet(unet)
        alphas = self.demo.denoiser.schedule.alphas
        kmodel = nn.Module()
        kmodel.diffusion_model = self.unet
        kmodel.computation_dtype = torch.float32
        self.kmodel = kmodel
        kmodel.predictor = SimpleNamespace(
            sigmas=((1 - alphas) / alphas).sqrt(), prediction_type="epsilon"
        )
        self.calculators: dict[str, Any] = {}
        patcher = Patcher(kmodel, Loader(kmodel, self.calculators))
        self.loaded: list[Any] = []
        self.model = SimpleNamespace(
            sd_checkpoint_info=SimpleNamespace(filename="/nowhere/demo.safetensors"),
            set_clip_skip=lambda _: None,
            get_learned_conditioning=self._encode,
            get_prompt_lengths_on_ui=lambda text: (count(text), 75),
            decode_first_stage=self._decode,
            forge_objects=Objects(patcher), forge_objects_original=Objects(patcher),
            forge_objects_after_applying_lora=Objects(patcher),
        )  # fmt: skip

    @torch.inference_mode()
    def half(self) -> None:
        """Hold the UNet in half precision, and compute in it."""
        self.kmodel.computation_dtype = torch.float16
        for owner in self.unet.modules():
            for name, weight in owner._parameters.items():
                if weight is not None:
                    owner._parameters[name] = nn.Parameter(weight.half(), False)

    @torch.inference_mode()
    def _encode(self, prompts: Any) -> Tensor:
        made = torch.zeros(1)  # an inference tensor, written to in place, as its text towers do
        return encode(self.demo, prompts).clone() + made.add_(0)

    @torch.inference_mode()
    def _decode(self, latents: Tensor) -> Tensor:
        return self.demo.decoder(latents).add_(0)

    def load(self, models: list[Patcher], memory_required: float = 0) -> None:
        """Load: what is loaded already is left as it is, patches and all."""
        for patcher in models:
            if not any(there.model is patcher for there in self.loaded):
                self.loaded = [SimpleNamespace(model=patcher)]
                self.management.current_loaded_models = self.loaded
                patcher.refresh_loras()

    def modules(self, shared: Any) -> dict[str, ModuleType]:
        """Name the modules that only this host has."""
        self.management = module("backend.memory_management", current_loaded_models=self.loaded,
                                 load_models_gpu=self.load)  # fmt: skip
        lora = module("backend.patcher.lora", extra_weight_calculators=self.calculators)
        patcher = module("backend.patcher", lora=lora)
        data = SimpleNamespace(sd_model=self.model)
        threads = module("modules_forge.main_thread", run_and_wait_result=_swallowing)
        forge = module("modules_forge", main_thread=threads)
        return {
            "modules.sd_models": module("modules.sd_models", model_data=data,
                                        forge_model_reload=lambda: (self.model, False)),
            "backend": module("backend", memory_management=self.management, patcher=patcher),
            "backend.memory_management": self.management,
            "backend.patcher": patcher,
            "backend.patcher.lora": lora,
            "modules_forge": forge,
            "modules_forge.main_thread": threads,
        }  # fmt: skip

    def activate(self, p: Any) -> None:
        """Give the sampling the patchers as the LoRAs in the prompt left them."""
        unet = self.model.forge_objects_original.unet
        for name, patches in p.loras:
            unet = unet.clone()
            unet.add_patches(filename=name, patches=patches)
        self.model.forge_objects_after_applying_lora = Objects(unet)

    def before_sampling(self, p: Any) -> None:
        """Take the objects that the LoRAs are on."""
        self.model.forge_objects = self.model.forge_objects_after_applying_lora.shallow_copy()

    def sampler(self) -> Any:
        """Make a sampler that takes one step."""
        return SimpleNamespace(sample=self._sample)

    @torch.inference_mode()
    def _sample(self, p: Any) -> Tensor:
        self.load([self.model.forge_objects.unet])
        x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(7))
        return self.unet(x, torch.tensor([500.0]), self._encode([p.prompt]))

    def bits(self) -> dict[str, Tensor]:
        """Take every weight down."""
        return {name: p.detach().clone() for name, p in self.unet.named_parameters()}


def _swallowing(work: Any) -> Any:
    try:
        return work()
    except Exception:
        return None
