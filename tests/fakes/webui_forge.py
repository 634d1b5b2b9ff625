"""A pretended Forge: a narrow demo's weights as inference tensors, in-place blocks, named patches.

Forks of it differ in which patches their merging takes: `Merging` pretends to be each of them.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from fakes.webui import module
from fakes.webui_taesd import taesd
from fakes.webui_text import count, encode
from toys.demo import narrow_demo
from toys.tiny import LdmUNet
from trust_engine.models.demo_architecture import SHAPE


class ForgeUNet(LdmUNet):
    """ldm names, Forge's signature; every block adds in place to what others may have saved."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__(unet, SHAPE)
        for block in unet.modules():
            if hasattr(block, "attn2"):
                block.forward = in_place(block)

    def forward(  # type: ignore[override]
        self, x: Tensor, timesteps: Tensor, context: Tensor, y: Any = None,
        transformer_options: Any = None,
    ) -> Tensor:  # fmt: skip
        """Predict eps, (b, 4, h, w)."""
        return self.unet(x, timesteps, encoder_hidden_states=context).sample


def in_place(block: Any) -> Any:
    """Return a transformer block's forward that adds to what it holds."""

    def forward(x: Tensor, *_: Any, encoder_hidden_states: Any = None, **__: Any) -> Tensor:
        x = x.clone()
        x += block.attn1(block.norm1(x))
        x += block.attn2(block.norm2(x), encoder_hidden_states)
        out = block.ff(block.norm3(x))
        out += x
        return out

    return forward


class Adapter:
    """weight_adapter.WeightAdapterBase."""

    name = ""


class Merging:
    """backend.patcher.lora: merges patches by their kind.

    consulted: whether `extra_weight_calculators`, which is there, is looked at too; otherwise a
    kind that is not known is left out, and a line on the console is all there is of it. adapters:
    whether an adapter is asked to calculate. strict: whether an unknown kind is an error instead.
    """

    def __init__(
        self, consulted: bool = True, adapters: bool = False, strict: bool = False
    ) -> None:
        self.consulted, self.adapters, self.strict = consulted, adapters, strict
        self.calculators: dict[str, Any] = {}

    @torch.inference_mode()
    def merge(
        self, patches: Any, weight: Tensor, key: str = "", computation_dtype: Any = torch.float32
    ) -> Tensor:
        """Return the weight under patches: (strength, value, strength of the model, ...)."""
        kind = weight.dtype
        weight = weight.to(computation_dtype, copy=True)
        for strength, value, *_ in patches:
            if self.adapters and isinstance(value, Adapter):
                weight = value.calculate_weight(  # type: ignore[attr-defined]
                    weight, key, strength, 1.0, None, None, computation_dtype
                )
            elif value[0] == "diff":
                weight += strength * value[1][0].to(weight.dtype)
            elif self.consulted and value[0] in self.calculators:
                weight = self.calculators[value[0]](weight, strength, value[1])
            elif self.strict:
                raise ValueError(f"{key} of type {value[0]} is not recognized")
        return weight.to(kind)

    def module(self, **more: Any) -> ModuleType:
        """Make backend.patcher.lora."""
        content = {"merge_lora_to_weight": self.merge, **more}
        if not self.strict:
            content["extra_weight_calculators"] = self.calculators
        if self.adapters:
            content["weight_adapter"] = SimpleNamespace(WeightAdapterBase=Adapter)
        return module("backend.patcher.lora", **content)


class Loader:
    """LoraLoader: merging is skipped while names and strengths are those of last time."""

    def __init__(self, model: nn.Module, merging: Merging) -> None:
        self.model, self.merging = model, merging
        self.backup: dict[str, Tensor] = {}
        self.lent: list[Any] = []
        self.loaded_hash = str([])

    @torch.inference_mode()
    def refresh(self, patches: dict[Any, dict[str, list[Any]]]) -> None:
        """Merge patches into new inference tensors, after restoring the old ones."""
        hashes = str(list(patches))
        if hashes == self.loaded_hash:
            return
        for layer in self.lent:
            del layer.forge_online_loras
        for key, weight in self.backup.items():
            _set(self.model, key, weight)
        self.backup, self.lent = {}, []
        together: dict[tuple[str, bool], list[Any]] = {}
        for (*_, online), parts in patches.items():
            for key, entries in parts.items():
                together.setdefault((key, online), []).extend(entries)
        for (key, online), entries in together.items():
            if online:
                path, _, last = key.rpartition(".")
                layer: Any = self.model.get_submodule(path)
                layer.forge_online_loras = {last: entries}
                self.lent.append(layer)
                continue
            old = self.model.get_parameter(key)
            self.backup[key] = old
            _set(self.model, key, self.merging.merge(entries, old, key))
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
        self.model_options: dict[str, list[Any]] = {"conditioning_modifiers": []}

    def clone(self) -> Patcher:
        """Share the model, copy the patches."""
        other = Patcher(self.model, self.lora_loader)
        other.lora_patches = self.lora_patches.copy()
        other.model_options = copy.deepcopy(self.model_options)
        return other

    def add_conditioning_modifier(self, modifier: Any) -> None:
        """Add a hook that sees every step, and is this patcher's alone."""
        self.model_options["conditioning_modifiers"].append(modifier)

    def add_patches(
        self, *, filename: str, patches: dict[str, Any], strength_patch: float = 1.0,
        online_mode: bool = False,
    ) -> set[str]:  # fmt: skip
        """Note patches under their file's name; unknown keys are left out without a word."""
        known = {name for name, _ in self.model.named_parameters()}
        kept = {k: [[strength_patch, v, 1.0, None, None]] for k, v in patches.items() if k in known}
        self.lora_patches[(filename, strength_patch, 1.0, online_mode)] = kept
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

    def __init__(self, merging: Merging | None = None) -> None:
        self.merging = merging or Merging()
        self.calculators = self.merging.calculators
        self.families = _families()
        self.engine = type("StableDiffusion", (), {"matched_guesses": [self.families.SD15]})
        self.demo = narrow_demo()
        unet = self.demo.denoiser.module
        for layer in unet.modules():
            if isinstance(layer, nn.Linear):
                layer.parameters_manual_cast = False
                layer.forward = self._linear(layer)  # type: ignore[method-assign]
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
        patcher = self._patcher(kmodel)
        self.loaded: list[Any] = []
        self.model = SimpleNamespace(
            sd_checkpoint_info=SimpleNamespace(filename="/nowhere/demo.safetensors"),
            set_clip_skip=lambda _: None, text_processing_engine=_Engine(),
            get_learned_conditioning=self._encode,
            get_prompt_lengths_on_ui=lambda text: (count(text), 75),
            decode_first_stage=self._decode,
            forge_objects=Objects(patcher), forge_objects_original=Objects(patcher),
            forge_objects_after_applying_lora=Objects(patcher),
        )  # fmt: skip

    def _patcher(self, kmodel: nn.Module) -> Any:
        return Patcher(kmodel, Loader(kmodel, self.merging))

    def _linear(self, layer: Any) -> Any:
        def forward(x: Tensor) -> Tensor:
            if layer.parameters_manual_cast:
                weight, bias, _ = self.cast(layer, x)
            else:
                weight, bias = self.used(layer)
            return nn.functional.linear(x, weight, bias)

        return forward

    def used(self, layer: Any) -> tuple[Any, Any]:
        """operations.get_weight_and_bias: with the patches that are merged at each use."""
        entries = getattr(layer, "forge_online_loras", {}).get("weight")
        weight = self.merging.merge(entries, layer.weight) if entries else layer.weight
        return weight, layer.bias

    def cast(self, layer: Any, x: Tensor) -> tuple[Any, Any, None]:
        """operations.weights_manual_cast: the same, brought to where and what the input is."""
        weight, bias = self.used(layer)
        bias = None if bias is None else bias.to(x.device, x.dtype)
        return weight.to(x.device, x.dtype), bias, None

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
        lora, base = self._patching()
        operations = module("backend.operations", get_weight_and_bias=self.used,
                            weights_manual_cast=self.cast, main_stream_worker=_worker)  # fmt: skip
        patcher = module("backend.patcher", lora=lora, base=base)
        data = SimpleNamespace(sd_model=self.model)
        threads = module("modules_forge.main_thread", run_and_wait_result=_swallowing)
        forge = module("modules_forge", main_thread=threads)
        return {
            "huggingface_guess": module("huggingface_guess", model_list=self.families),
            "backend.diffusion_engine": module("backend.diffusion_engine"),
            "backend.diffusion_engine.sd15": module(
                "backend.diffusion_engine.sd15", StableDiffusion=self.engine
            ),
            "modules.sd_vae_taesd": taesd(),
            "modules.sd_models": module("modules.sd_models", model_data=data,
                                        list_models=lambda: None,
                                        forge_model_reload=lambda: (self.model, False)),
            "backend": module("backend", memory_management=self.management, patcher=patcher,
                              operations=operations),
            "backend.operations": operations,
            "backend.memory_management": self.management,
            "backend.patcher": patcher,
            "backend.patcher.lora": lora,
            "backend.patcher.base": base,
            "modules_forge": forge,
            "modules_forge.main_thread": threads,
        }  # fmt: skip

    def _patching(self) -> tuple[ModuleType, ModuleType]:
        return self.merging.module(LoraLoader=Loader), module("backend.patcher.base")

    def activate(self, p: Any) -> None:
        """Give the sampling the patchers as the LoRAs in the prompt left them."""
        unet = self.model.forge_objects_original.unet
        for name, patches, *online in p.loras:
            unet = unet.clone()
            unet.add_patches(filename=name, patches=patches, online_mode=bool(online))
        self.model.forge_objects_after_applying_lora = Objects(unet)

    def before_sampling(self, p: Any) -> None:
        """Take the objects that the LoRAs are on."""
        self.model.forge_objects = self.model.forge_objects_after_applying_lora.shallow_copy()

    def sampler(self) -> Any:
        """Make a sampler that takes one step."""
        return SimpleNamespace(sample=self._sample)

    @torch.inference_mode()
    def _sample(self, p: Any) -> Tensor:
        drawing = self.model.forge_objects.unet
        self.load([drawing])
        x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(7))
        told = (drawing.model, x, None, None, None, 1.0, drawing.model_options, 7)
        for modifier in drawing.model_options.get("conditioning_modifiers", []):
            told = modifier(*told)
        kind = self.kmodel.computation_dtype
        cond = self._encode([p.prompt]).to(kind)
        return self.unet(x.to(kind), torch.tensor([500.0]), cond).float()

    def bits(self) -> dict[str, Tensor]:
        """Take every weight down."""
        return {name: p.detach().clone() for name, p in self.unet.named_parameters()}


class _Engine:
    """ClassicTextProcessingEngine: it loads embeddings of one width alone, when it is told to."""

    def __init__(self) -> None:
        self.embeddings, self.expected_shape, self.loaded_for = self, 768, 768

    def load_textual_inversion_embeddings(self) -> None:
        """Load."""
        self.loaded_for = self.expected_shape


def _families() -> Any:
    """huggingface_guess.model_list: families by their shapes; the first that fits is taken."""
    shapes = {"context_dim": 768, "model_channels": 320, "use_temporal_attention": False}
    known = type("SD15", (), {"huggingface_repo": "stable-diffusion-v1-5", "unet_config": shapes,
                              "unet_extra_config": {"num_heads": 8}})  # fmt: skip
    return SimpleNamespace(SD15=known, models=[known])


@contextlib.contextmanager
def _worker(*_: Any) -> Iterator[None]:
    yield


def _swallowing(work: Any) -> Any:
    try:
        return work()
    except Exception:
        return None
