"""Checkpoints for the command line and the library: load, encode, draw, decode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .conditioning import Conditioning
from .demo.architecture import SHAPE, UNET_CONFIG
from .demo.clip import CHECKPOINT, TEXT_CONFIG, TEXT_PREFIX, load_clip, load_tokenizer, tokenize
from .demo.judge import ASSETS
from .demo.vocabulary import OBJECTS, STYLES
from .denoiser import ModuleDenoiser, scaled_linear
from .denoiser_diffusers import diffusers_denoiser
from .errors import ModelError
from .files import open_safetensors
from .keys import LDM_PREFIX, KeyMap
from .sampler import SamplerSettings, ddim, initial_noise
from .unlearn import LentModel

DEMO = ASSETS / CHECKPOINT
VAE_PREFIX = "first_stage_model."
BATCH = 32


class ClipEncoder:
    """The tokenizer and text tower of a checkpoint: last hidden state, as SD 1.x takes it."""

    def __init__(self, tower: nn.Module, device: torch.device) -> None:
        self.tower, self.device, self.tokenizer = tower, device, load_tokenizer()

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts to (b, 77, d), cut at 77 tokens, padded with the end token."""
        settings: dict[str, Any] = {"padding": "max_length", "truncation": True, "max_length": 77}
        ids = torch.tensor(self.tokenizer(list(prompts), **settings).input_ids)
        with torch.no_grad():
            return Conditioning(self.tower(ids.to(self.device)).last_hidden_state.float())

    def count_tokens(self, prompt: str) -> int:
        """Count the prompt's tokens, start and end not counted."""
        return len(self.tokenizer(prompt).input_ids) - 2


@dataclass(frozen=True)
class LoadedModel:
    """A checkpoint in memory: UNet, text encoder and decoder."""

    denoiser: ModuleDenoiser
    encoder: ClipEncoder
    decoder: nn.Module
    latent_size: tuple[int, int]
    vocabulary: tuple[str, ...]
    styles: tuple[str, ...]

    def score(self, x0: Tensor, prompts: Sequence[str]) -> Tensor:
        """Tell how well latents x0 (b, 4, h, w) show prompts, log-odds (b,), by the tiny CLIP."""
        clip = load_clip().to(x0.device)
        words = clip.embed_text(tokenize(list(prompts)).to(x0.device))
        views = clip.image(self.decoder(x0).clamp(-1, 1))
        return clip.compare(words, views).diagonal()

    def lend(self) -> LentModel:
        """Hand the engine what it needs."""
        return LentModel(
            self.denoiser, self.encoder, self.latent_size, self.vocabulary, self.styles, self.score
        )

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
        for start in range(0, len(prompts), BATCH):
            rows = slice(start, start + BATCH)
            cond = self.encoder.encode(prompts[rows])
            latents = noise = initial_noise(list(seeds[rows]), self.latent_size)
            for _, step in ddim(self.denoiser, noise, cond, uncond, settings):
                latents = step
                done += settings.passes(len(noise)) // settings.steps
                if on_step:
                    on_step(done, total)
            with torch.no_grad():
                yield self.decoder(latents).clamp(-1, 1).cpu()


def load_model(source: str, device: str = "auto") -> LoadedModel:
    """Load "demo" or a single-file safetensors checkpoint; raises ModelError."""
    place = pick_device(device)
    path = DEMO if source == "demo" else Path(source)
    with open_safetensors(path, ModelError) as file:
        keys = list(file.keys())
        _check_family(path, file, keys)
        weights = {key: file.get_tensor(key).float() for key in keys}
    unet, tower, decoder = _unet(weights), _text_tower(weights), _decoder(weights)
    for module in (unet, tower, decoder):
        module.to(place).eval().requires_grad_(False)
    denoiser = diffusers_denoiser(unet, scaled_linear(), SHAPE)
    return LoadedModel(
        denoiser, ClipEncoder(tower, place), decoder, (16, 16), tuple(OBJECTS), STYLES
    )


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


def _check_family(path: Path, file: Any, keys: list[str]) -> None:
    first = LDM_PREFIX + "input_blocks.0.0.weight"
    if first not in keys:
        raise ModelError(
            f"{path}: not a Stable Diffusion checkpoint (it has no {first}); "
            "give a single-file checkpoint in the SD 1.x layout"
        )
    channels = (file.get_slice(first).get_shape() or [0])[0]
    if channels != UNET_CONFIG["block_out_channels"][0]:
        raise ModelError(
            f"{path}: a UNet of {channels} channels; this release reads the demo's family "
            f"({UNET_CONFIG['block_out_channels'][0]} channels) and not full-size models yet"
        )


def _unet(weights: dict[str, Tensor]) -> nn.Module:
    from diffusers import UNet2DConditionModel

    keys = KeyMap(SHAPE)
    part = _part(weights, LDM_PREFIX)
    try:
        renamed = {keys.to_diffusers(key): value for key, value in part.items()}
    except KeyError as error:
        raise ModelError(f"the checkpoint's UNet has another shape: {error}") from error
    unet = UNet2DConditionModel(**UNET_CONFIG)
    _load(unet, renamed, "UNet")
    return unet


def _text_tower(weights: dict[str, Tensor]) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel

    tower = CLIPTextModel(CLIPTextConfig(**TEXT_CONFIG))
    part = _part(weights, TEXT_PREFIX)
    if not any(key.startswith("text_model.") for key in tower.state_dict()):
        part = _part(part, "text_model.")  # transformers 5 dropped the inner prefix
    _load(tower, part, "text encoder")
    return tower


def _decoder(weights: dict[str, Tensor]) -> nn.Module:
    from diffusers import AutoencoderTiny

    decoder = AutoencoderTiny().decoder
    part = {}
    for key, value in _part(weights, VAE_PREFIX + "taesd_decoder.").items():
        index, _, rest = key.partition(".")
        # TAESD counts its clamp as layer 0. A name without a number is left for _load to refuse.
        part[f"layers.{int(index) - 1}.{rest}" if index.isdecimal() else key] = value
    _load(decoder, part, "decoder")
    return decoder


def _part(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)}


def _load(module: nn.Module, weights: dict[str, Tensor], what: str) -> None:
    try:
        missing, unexpected = module.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise ModelError(f"the checkpoint's {what} has other shapes: {error}") from error
    missing = [key for key in missing if not key.endswith("position_ids")]
    if missing or unexpected:
        raise ModelError(f"the checkpoint's {what} lacks {missing[:3]} or adds {unexpected[:3]}")
