"""Forge: a UNet of inference tensors with in-place blocks; diffs go on as patches by name."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from backend import memory_management, operations
from modules import prompt_parser, sd_models, sd_samplers_common, shared
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from trust_engine.errors import DiffError, ModelError
from trust_engine.models.contract import Conditioning, NoiseSchedule

from . import demo_forge, merging
from .host import HERE, NOT_APPLIED, Host, Part, kept_attributes, named_schedule
from .proof import prove

PREFIX = "diffusion_model."
OURS = "trust:"
ROWS = 16  # of a batch, for which memory is asked


class Forge(Host):
    """Stable Diffusion WebUI Forge."""

    name = "Forge"
    in_place = True
    _proved = False  # whether the diffs of the last `put` were found in the weights that draw

    @property
    def model(self) -> Any:
        """Return the loaded model; Forge loads none before it is first needed."""
        model = sd_models.model_data.sd_model
        if not self.ready:
            raise ModelError("no checkpoint is loaded; choose one at the top of the page")
        return model

    @property
    def ready(self) -> bool:
        """Tell whether a model is loaded; asking loads none."""
        return getattr(sd_models.model_data.sd_model, "forge_objects", None) is not None

    @property
    def patcher(self) -> Any:
        """Return the UNet's patcher as the checkpoint has it, without LoRAs."""
        return self.model.forge_objects_original.unet

    @property
    def unet(self) -> nn.Module:
        """Return the UNet."""
        return self.patcher.model.diffusion_model

    @property
    def schedule(self) -> NoiseSchedule:
        """Read the predictor's sigmas and prediction_type."""
        predictor = self.patcher.model.predictor
        sigmas = getattr(predictor, "sigmas", None)
        kind = type(predictor).__name__
        if sigmas is None or "EDM" in kind or "Flux" in kind or "Flow" in kind:
            raise ModelError(f"{HERE} samples by {kind}; TRUST Unlearn works with SD 1.x, 2.x, "
                             "SDXL")  # fmt: skip
        alphas = 1 / (1 + sigmas.detach().to("cpu", torch.float32, copy=True).square())
        return named_schedule(alphas, str(predictor.prediction_type))

    def read(self, key: str) -> Tensor:
        """Read a weight, from the LoRA loader's backup while it is patched."""
        backup = self._backup(self.patcher, PREFIX + key)
        return (self.unet.get_parameter(key) if backup is None else backup).detach()

    @staticmethod
    def _backup(patcher: Any, name: str) -> Tensor | None:
        """Return the checkpoint's own weight while the UNet's is patched."""
        found: Tensor | None = patcher.lora_loader.backup.get(name)
        return found

    def forward(self) -> Callable[..., Tensor]:
        """Call the UNet itself: KModel.apply_model takes sigmas and returns pictures."""
        patcher = self.patcher
        kmodel, unet = patcher.model, self.unet

        def forward(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
            self._load(patcher, tuple(x.shape))
            place, kind = patcher.load_device, kmodel.computation_dtype
            extra = {} if cond.vector is None else {"y": cond.vector.to(place, kind)}
            out = unet(
                x.to(place, kind), t.to(place).float(), context=cond.context.to(place, kind),
                transformer_options={}, **extra,
            )  # fmt: skip
            return out.to(x.device)

        return forward

    @staticmethod
    @torch.inference_mode()
    def _load(patcher: Any, shape: tuple[int, ...]) -> None:
        """Have the UNet on its device, with its own patches; nothing to do when it is there."""
        there = memory_management.current_loaded_models
        if not any(loaded.model is patcher for loaded in there):
            needed = patcher.memory_required(list(shape))
            memory_management.load_models_gpu([patcher], memory_required=needed)
        patcher.refresh_loras()

    def learned(self, prompts: Sequence[str], size: tuple[int, int]) -> Any:
        """Encode as processing does."""
        model = self.model
        model.set_clip_skip(int(shared.opts.CLIP_stop_at_last_layers))
        batch = prompt_parser.SdConditioning(list(prompts), width=size[1], height=size[0])
        with _disable_current_modes():  # that of `stepping` fails on Forge's inference tensors
            return model.get_learned_conditioning(batch)

    @property
    def emphasis(self) -> bool:
        """Tell whether the host reads brackets in prompts as emphasis."""
        named = [engine.emphasis.name for engine in self._engines() if hasattr(engine, "emphasis")]
        return not named or named[0] != "None"

    def embeddings(self) -> Sequence[Any]:
        """List the tables in which the host looks up embeddings by the names among the words."""
        tables = (getattr(engine, "embeddings", None) for engine in self._engines())
        return [table for table in tables if hasattr(table, "ids_lookup")]

    def _engines(self) -> list[Any]:
        """List the text engines of the model: one, or one a tower."""
        parts = vars(self.model)
        return [parts[name] for name in parts if name.startswith("text_processing_engine")]

    def count_tokens(self, prompt: str) -> int:
        """Count as the counter beside the prompt does."""
        return int(self.model.get_prompt_lengths_on_ui(prompt)[0])

    def decode(self, latents: Tensor) -> Tensor:
        """Decode by the VAE and the method that Settings choose."""
        with _disable_current_modes(), torch.inference_mode():
            made = sd_samplers_common.decode_first_stage(self.model, latents.float())
        return made.detach().float().cpu().clone().clamp(-1, 1)

    @contextlib.contextmanager
    def borrowed(self) -> Iterator[list[str]]:
        """Work on forge_objects_original; what was in use before is in use again afterwards."""
        sd_models.forge_model_reload()
        model = self.model
        _ = self.family, self.schedule
        self.check_precision()
        said: list[str] = []
        worn = self._worn(model.forge_objects_after_applying_lora.unet)
        if worn:
            said.append(f"LoRAs in use ({', '.join(worn)}) were left off: "
                        "the checkpoint itself is used")  # fmt: skip
        with (
            kept_attributes(model, "forge_objects"),
            kept_attributes(shared, "parallel_processing_allowed"),
        ):
            shared.parallel_processing_allowed = False
            model.forge_objects = model.forge_objects_original.shallow_copy()
            self._load(model.forge_objects.unet, (ROWS, 4, 64, 64))
            self.check_in_one_place()
            yield said

    @staticmethod
    def _worn(patcher: Any) -> list[str]:
        """Name the LoRAs in use; the key of each has its file's whole path."""
        return [Path(str(key[0])).stem for key in patcher.lora_patches]

    @contextlib.contextmanager
    def stepping(self) -> Iterator[None]:
        """Let blocks write in place to what autograd has saved, and give it the old values."""
        with torch.autograd.graph.allow_mutation_on_saved_tensors():
            yield

    def bring(self) -> None:
        """Load the UNet, which the text encoder or the VAE may have taken the room of."""
        self._load(self.patcher, (ROWS, 4, 64, 64))

    def put(self, p: Any, parts: Sequence[Part]) -> None:
        """Give this sampling a clone of the UNet's patcher with the diffs among its patches."""
        objects = p.sd_model.forge_objects
        unet = objects.unet.clone()
        self._strip(unet)
        for part in parts:
            patches = {PREFIX + key: merging.patch(o) for key, o in part.diff.offsets.items()}
            missing = set(patches) - set(_add(unet, part, patches))
            if missing:
                name = sorted(missing)[0].removeprefix(PREFIX)
                raise DiffError(f"{part.name}: {HERE} has no {name}; choose a model of its family")
        self._proved = False
        unet.add_conditioning_modifier(self._looking(p, parts))
        objects.unet = unet

    def _looking(self, p: Any, parts: Sequence[Part]) -> Callable[..., tuple[Any, ...]]:
        """Return a hook that reads the diffs back at the first step, when all is loaded.

        It belongs to the patcher that draws: had another taken its place, it would not be called,
        and `reached` would say so.
        """

        def look(*told: Any) -> tuple[Any, ...]:
            if not self._proved:
                try:
                    prove(_Weights(self, p.sd_model.forge_objects.unet), parts, self.name)
                except DiffError as error:
                    raise DiffError(f"{NOT_APPLIED}: {error}") from error
                self._proved = True
            return told

        return look

    @staticmethod
    def _strip(unet: Any) -> None:
        """Take off diffs of an earlier pass, which another extension may have carried along."""
        for key in [key for key in unet.lora_patches if str(key[0]).startswith(OURS)]:
            del unet.lora_patches[key]

    @staticmethod
    def _others(unet: Any, name: str) -> list[Any]:
        """Return the patches of a weight that are not ours."""
        listed = unet.lora_patches.items()
        return [one for key, patches in listed if not str(key[0]).startswith(OURS)
                for one in patches.get(name, ())]  # fmt: skip

    def reached(self, parts: Sequence[Part]) -> bool:
        """Tell whether the weights were proved to be under our patches, and still are."""
        merged = str(self.patcher.lora_loader.loaded_hash)
        return self._proved and all(OURS + part.sha in merged for part in parts)

    def clear(self) -> None:
        """Need nothing: the next sampling starts from patchers that are not ours."""

    def unet_of(self, model: Any) -> nn.Module:
        """Return the UNet of a model that the host has just loaded."""
        unet = getattr(model.forge_objects.unet.model, "diffusion_model", None)
        return unet if isinstance(unet, nn.Module) else nn.Module()

    def know_demo(self, folder: Path, checkpoints: Sequence[Path]) -> None:
        """Add the family to those that the host knows."""
        demo_forge.teach(folder)

    def see_demo(self, model: Any, small: Any) -> None:
        """Let the engine decode and encode by the small autoencoder."""
        demo_forge.see(model, small)

    def begin(self) -> None:
        """Offer merging our kind of patch."""
        merging.register()

    def end(self) -> None:
        """Undo `begin` and `know_demo`."""
        merging.unregister()
        demo_forge.forget()

    def on_its_thread(self, work: Callable[[], Any]) -> Any:
        """Run work on Forge's main thread, which swallows errors: they are carried across."""
        from modules_forge import main_thread

        caught: list[BaseException] = []

        def guarded() -> Any:
            try:
                return work()
            except Exception as error:
                caught.append(error)
                return None

        result = main_thread.run_and_wait_result(guarded)
        if caught:
            raise caught[0]
        return result


class _Weights:
    """The UNet's weights under the patches of one sampling."""

    def __init__(self, host: Any, unet: Any) -> None:
        self.host, self.unet = host, unet
        self.kmodel = unet.model

    def drawn(self, key: str) -> Tensor:
        """Return a weight as its layer's forward takes it, cast by the host's own function."""
        layer, kind = self._layer(key)
        if kind != "weight" or not hasattr(layer, "parameters_manual_cast"):
            return getattr(layer, kind)
        if not layer.parameters_manual_cast:
            return operations.get_weight_and_bias(layer)[0]
        like = torch.empty(0, dtype=self.kmodel.computation_dtype, device=self.unet.load_device)
        made = operations.weights_manual_cast(layer, like)
        with operations.main_stream_worker(*made):  # which waits until the weight has arrived
            return made[0].float().cpu()

    def without(self, key: str) -> Tensor:
        """Merge what is not ours into the checkpoint's weight, by the host's own function."""
        layer, kind = self._layer(key)
        backup = self.host._backup(self.unet, PREFIX + key)
        weight = getattr(layer, kind) if backup is None else backup
        others = self.host._others(self.unet, PREFIX + key)
        return merging.merged(others, weight, key) if others else weight

    def way(self, key: str) -> str:
        """Tell weights that are merged beforehand from those that are made at each use."""
        layer, kind = self._layer(key)
        lent = getattr(layer, "forge_online_loras", {}).get(kind)
        return "at each use" if lent or getattr(layer, f"{kind}_function", ()) else "beforehand"

    def _layer(self, key: str) -> tuple[Any, str]:
        path, _, kind = key.rpartition(".")
        return self.kmodel.diffusion_model.get_submodule(path), kind


def _add(unet: Any, part: Part, patches: dict[str, Any]) -> Sequence[str]:
    """Add patches the way this backend has it; the name carries the content's hash."""
    # Merging is skipped when names and strengths are those of last time, whatever the content.
    name = OURS + part.sha
    if "filename" in inspect.signature(unet.add_patches).parameters:
        return unet.add_patches(filename=name, patches=patches, strength_patch=part.strength)
    return unet.add_patches(patches, part.strength)
