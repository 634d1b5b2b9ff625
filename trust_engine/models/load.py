"""Models for the command line and the library: load, encode, draw, decode."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..demo.judge import ASSETS
from ..demo.vocabulary import OBJECTS, STYLES
from ..errors import ModelError
from ..spec import UnlearnSpec
from .checkpoint import VAE_PREFIX, Checkpoint, fill, open_checkpoint, size_of
from .common_words import STYLES as LOOKS
from .common_words import THINGS
from .contract import (
    LentModel,
    ModuleDenoiser,
    NoiseSchedule,
    compute_dtype,
    device_of,
    projections,
)
from .demo_clip import CHECKPOINT, load_clip, tokenize
from .diffusers_unet import diffusers_denoiser
from .families import ModelFamily, detect
from .memory import (
    batch_for,
    check_memory,
    check_unlearning,
    recording_needs,
    training_needs,
)
from .overrides import override, weights_of
from .precision import in_float32
from .sampler import SamplerSettings, initial_noise, sample
from .schedule import schedule_of
from .text_encoders import ClipEncoder, SDXLEncoder, load_encoder, tower_stock
from .tower_keys import LazyTensor, LazyTensors
from .unet_keys import KeyMap
from .vae import NoDecoder, decoder_stock, load_decoder

__all__ = ["DEMO", "VAE_PREFIX", "ClipEncoder", "LoadedModel", "load_model", "pick_device"]

DEMO = ASSETS / CHECKPOINT
BATCH = 32
DECODED = 8  # pictures that are decoded at once
POSITIONS = 8192  # of latents that are drawn at once: 32 pictures of the demo, 2 of SD 1.x


@dataclass(frozen=True)
class LoadedModel:
    """A checkpoint in memory: UNet, text encoder and decoder; family: "sd1", "sdxl", "demo"...

    applied: the diffs that its file's record says are in it.
    """

    denoiser: ModuleDenoiser
    encoder: ClipEncoder | SDXLEncoder
    decoder: nn.Module
    latent_size: tuple[int, int]
    vocabulary: tuple[str, ...]
    styles: tuple[str, ...]
    family: str = "demo"
    applied: tuple[Mapping[str, Any], ...] = ()

    @property
    def batch(self) -> int:
        """How many pictures are drawn at once."""
        return min(BATCH, max(1, POSITIONS // (self.latent_size[0] * self.latent_size[1])))

    @property
    def device(self) -> torch.device:
        """Tell where the UNet lives."""
        return device_of(self.denoiser)

    @property
    def draws(self) -> bool:
        """Tell whether there is a decoder."""
        return not isinstance(self.decoder, NoDecoder)

    def decode(self, latents: Tensor) -> Tensor:
        """Turn latents (b, 4, h, w) into pictures (b, 3, h, w) in -1..1 on the CPU."""
        with torch.no_grad():
            parts = [self.decoder(part.to(self.device)) for part in latents.split(DECODED)]
        parts = [part.float().clamp(-1, 1).cpu() for part in parts]
        return torch.cat(parts) if parts else latents

    @property
    def weights(self) -> dict[str, Tensor]:
        """List the UNet's weights in force, by parameter name."""
        return weights_of(self.denoiser)

    def with_weights(self, weights: Mapping[str, Tensor]) -> LoadedModel:
        """Return the model with weights replaced, by parameter name; itself stays as it is."""
        return replace(self, denoiser=override(self.denoiser, weights))

    def differentiable(self) -> LoadedModel:
        """Stand clones in for weights made in inference mode: autograd refuses those."""
        with torch.inference_mode(False):
            clones = {n: w.clone() for n, w in self.weights.items() if w.is_inference()}
        return self.with_weights(clones) if clones else self

    def score(self, x0: Tensor, prompts: Sequence[str]) -> Tensor:
        """Tell how well latents x0 (b, 4, h, w) show prompts, log-odds (b,), by the tiny CLIP."""
        clip = load_clip().to(x0.device)
        words = clip.embed_text(tokenize(list(prompts)).to(x0.device))
        views = clip.image(self.decoder(x0).clamp(-1, 1))
        return clip.compare(words, views).diagonal()

    def lend(self, memory: str = "auto") -> LentModel:
        """Hand the engine its needs; memory (low, auto, high) for what is recorded at once."""
        score = self.score if self.family.startswith("demo") else None
        return LentModel(
            self.denoiser,
            self.encoder,
            self.latent_size,
            self.vocabulary,
            self.styles,
            score,
            batch_for(memory, self.latent_size, compute_dtype(self.denoiser.module)),
            applied=self.applied,
        )

    def check_room(self, spec: UnlearnSpec, memory: str, beside: int = 0) -> None:
        """Raise ModelError when what a spec asks for would not fit beside the model.

        beside: bytes that a run takes in main memory, wherever the model is.
        """
        dtype, size, place = compute_dtype(self.denoiser.module), self.latent_size, self.device
        trained = training_needs(projections(self.denoiser), spec.together)
        batch = batch_for(memory, size, dtype)
        needed, least = (max(trained, recording_needs(n, size, dtype)) for n in (batch, 1))
        slim = "take {engine local}" if spec.together else ""
        if place.type == "cpu":
            needed, least = needed + beside, least + beside
        elif beside:
            check_unlearning(beside, beside, torch.device("cpu"), "leave {robust} out")
        check_unlearning(needed, least, place, "leave {robust} out" if spec.robust else slim)

    @in_float32
    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        settings: SamplerSettings | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Iterator[Tensor]:
        """Yield batches of pictures (b, 3, h, w) in -1..1; `on_step(done, total)` in passes."""
        settings = settings or SamplerSettings()
        uncond = self.encoder.encode([""])
        total, done = settings.passes(len(prompts)), 0
        for start in range(0, len(prompts), self.batch):
            rows = slice(start, start + self.batch)
            cond, own = self.encoder.encode(prompts[rows]), list(seeds[rows])
            latents = noise = initial_noise(own, self.latent_size)
            for _, step in sample(self.denoiser, noise, cond, uncond, settings, own):
                latents = step
                done += settings.passes(len(noise)) // settings.steps
                if on_step:
                    on_step(done, total)
            with torch.no_grad():
                yield self.decoder(latents).clamp(-1, 1).cpu()


@in_float32
def load_model(source: str, device: str = "auto", distilled: bool = False) -> LoadedModel:
    """Load "demo", a single-file safetensors checkpoint or a diffusers folder; raises ModelError.

    The family is told by the tensors' names and shapes. Nothing is downloaded, weights keep the
    dtype they are stored in, and those of one tensor at a time are in memory twice. distilled: take
    a model that says it draws in a few steps; it is refused otherwise.
    """
    _check_interpreter()
    place = pick_device(device)
    path = DEMO if source == "demo" else Path(source)
    with open_checkpoint(path) as model:
        family = detect(str(path), {name: s.shape for name, s in model.unet.items()})
        unet = named_unet(model, family)
        towers = [tower_stock(model, tower) for tower in family.towers]
        decoder = decoder_stock(model, family)
        needed = sum(size_of(stock, family.whole) for stock in (unet, *towers, decoder))
        check_memory(needed, place, f"{path} ({family.title})")
        schedule = schedule_of(model, family, distilled)
        applied = tuple(model.applied.get("diffs", ()))
        loaded = assemble(family, unet, towers, decoder, schedule, place)
        return replace(loaded, applied=applied)


def _check_interpreter() -> None:
    if sys.flags.optimize < 2:
        return
    try:
        from transformers import CLIPTextModel as _  # noqa: F401
    except ValueError as error:
        raise ModelError(
            "Python runs with -OO (or PYTHONOPTIMIZE=2), without the texts that transformers "
            "reads in its own code; start it without that, or with -O"
        ) from error


def assemble(
    family: ModelFamily,
    unet: LazyTensors,
    towers: Sequence[LazyTensors],
    decoder: LazyTensors,
    schedule: NoiseSchedule,
    device: torch.device,
) -> LoadedModel:
    """Build a family's modules and give them their weights, by diffusers' and transformers' names.

    Without a decoder's weights the model does all but draw.
    """
    size = family.sizes[schedule.prediction == "v"]
    module = blank_unet(family)
    fill(module, unet, "UNet", device, family.whole)
    denoiser = diffusers_denoiser(module, schedule, family.unet.shape)
    encoder = load_encoder(towers, family, device, size)
    words, styles = (tuple(OBJECTS), STYLES) if family.emoji else (THINGS, LOOKS)
    pictures = load_decoder(decoder, family, device)
    return LoadedModel(denoiser, encoder, pictures, size, words, styles, family.unet.name)


def pick_device(name: str) -> torch.device:
    """Resolve auto, cpu, cuda or mps; raises ModelError for one this machine lacks."""
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if there[kind])
    if not there.get(name, False):
        usable = ", ".join(kind for kind, usable in there.items() if usable)
        raise ModelError(f"device {name!r} is not available here; use one of auto, {usable}")
    return torch.device(name)


def named_unet(model: Checkpoint, family: ModelFamily) -> LazyTensors:
    """Rename the UNet's tensors to diffusers' names; raises ModelError for a foreign one."""
    if model.layout == "diffusers":
        return model.unet
    keys, renamed = KeyMap(family.unet.shape), dict[str, LazyTensor]()
    for key, stored in model.unet.items():
        try:
            renamed[keys.to_diffusers(key)] = stored
        except KeyError as error:
            raise ModelError(
                f"{model.path}: looks like {family.title}, but its UNet has another shape: "
                f"{error.args[0]}; distilled and extended variants are not supported"
            ) from error
    return renamed


def blank_unet(family: ModelFamily) -> nn.Module:
    """Build a family's UNet without memory for its weights."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(**family.unet.config)
