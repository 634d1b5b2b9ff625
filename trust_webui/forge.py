"""Forge: a UNet of inference tensors with in-place blocks; diffs go on as patches by name."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from backend import memory_management
from backend.patcher import lora as patcher_lora
from modules import prompt_parser, sd_models, sd_samplers_common, shared
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from trust_engine.diff.weight_diff import WeightDiff
from trust_engine.errors import DiffError, ModelError
from trust_engine.models.conditioning import Conditioning
from trust_engine.models.denoiser import NoiseSchedule

from .host import HERE, Host, Part, kept_attributes, named_schedule

PREFIX = "diffusion_model."
OURS = "trust:"
SPARSE = "trust_sparse"
ROWS = 16  # of a batch, for which memory is asked


class Forge(Host):
    """Stable Diffusion WebUI Forge."""

    name = "Forge"
    in_place = True

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
        backup = self.patcher.lora_loader.backup.get(PREFIX + key)
        return (self.unet.get_parameter(key) if backup is None else backup).detach()

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
        patches = model.forge_objects_after_applying_lora.unet.lora_patches
        worn = [Path(str(key[0])).stem for key in patches]  # the key has a file's whole path
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
        for part in parts:
            patches = _patches(part.diff)
            missing = set(patches) - set(_add(unet, part, patches))
            if missing:
                name = sorted(missing)[0].removeprefix(PREFIX)
                raise DiffError(f"{part.name}: {HERE} has no {name}; choose a model of its family")
        objects.unet = unet

    def reached(self, parts: Sequence[Part]) -> bool:
        """Tell whether our patches are among those that the weights have been merged with."""
        merged = str(self.patcher.lora_loader.loaded_hash)
        return all(OURS + part.sha in merged for part in parts)

    def clear(self) -> None:
        """Need nothing: the next sampling starts from patchers that are not ours."""

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


def register() -> None:
    """Teach Forge's merging our sparse patches."""
    known = getattr(patcher_lora, "extra_weight_calculators", None)
    if known is not None:
        known[SPARSE] = _merge


def unregister() -> None:
    """Undo `register`."""
    getattr(patcher_lora, "extra_weight_calculators", {}).pop(SPARSE, None)


def _merge(weight: Tensor, strength: float, payload: Any) -> Tensor:
    """Add strength * values to a weight in place, as Forge's own calculators do."""
    indices, values, shape = payload
    if tuple(weight.shape) != tuple(shape):
        raise DiffError(f"the diff has {list(shape)}, the model {list(weight.shape)}")
    change = torch.zeros(weight.numel(), dtype=weight.dtype, device=weight.device)
    change[indices.long().to(weight.device)] = values.to(weight.device, weight.dtype)
    weight += strength * change.view(weight.shape)
    return weight


def _patches(diff: WeightDiff) -> dict[str, Any]:
    sparse = SPARSE in getattr(patcher_lora, "extra_weight_calculators", {})
    patches: dict[str, Any] = {}
    for key, offset in diff.offsets.items():
        payload = (offset.indices, offset.values, offset.shape)
        patches[PREFIX + key] = (SPARSE, payload) if sparse else ("diff", (offset.dense(),))
    return patches


def _add(unet: Any, part: Part, patches: dict[str, Any]) -> Sequence[str]:
    """Add patches the way this backend has it; the name carries the content's hash."""
    # Merging is skipped when names and strengths are those of last time, whatever the content.
    name = OURS + part.sha
    if "filename" in inspect.signature(unet.add_patches).parameters:
        return unet.add_patches(filename=name, patches=patches, strength_patch=part.strength)
    return unet.add_patches(patches, part.strength)
