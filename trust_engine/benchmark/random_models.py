"""Full-size models of random weights: on them speed, memory, names and shapes can be measured."""

from __future__ import annotations

import zlib
from dataclasses import replace

import torch
from torch import Tensor, nn

from .. import seeds
from ..models.contract import NoiseSchedule, scaled_linear
from ..models.families import MODELS, ModelFamily
from ..models.load import LoadedModel, assemble, blank_unet
from ..models.text_encoders import blank_tower
from ..models.tower_keys import LazyTensor, LazyTensors
from ..models.vae import blank_tiny_decoder

FAMILY_NAMES = {
    "sd15": "sd1",
    "sd2": "sd2",
    "sdxl": "sdxl",
    "demo": "demo",
}  # for people: for the engine


def family_for(name: str) -> ModelFamily:
    """Return the family that people call sd15, sd2 or sdxl."""
    return next(family for family in MODELS if family.unet.name == FAMILY_NAMES[name])


def random_model(
    name: str,
    device: torch.device,
    dtype: torch.dtype = torch.float16,
    latent_size: tuple[int, int] | None = None,
) -> LoadedModel:
    """Draw a model's weights, stored in `dtype`; SD 2.x predicts v. Only the demo's has a decoder.

    latent_size: (h, w), for less work than the family's own asks.
    """
    family = family_for(name)
    if latent_size is not None:
        family = replace(family, sizes=(latent_size, latent_size))
    unet = random_stock(blank_unet(family), dtype)
    towers = [random_stock(blank_tower(tower), dtype) for tower in family.towers]
    decoder = {} if family.decoder else random_stock(blank_tiny_decoder(), dtype)
    return assemble(family, unet, towers, decoder, schedule_for(name), device)


def schedule_for(name: str) -> NoiseSchedule:
    """Return the schedule of a family's best known model: SD 2.1 predicts v."""
    return scaled_linear("v" if name == "sd2" else "eps")


def random_stock(module: nn.Module, dtype: torch.dtype) -> LazyTensors:
    """Offer weights for a module made without memory, each drawn when it is read."""
    return {
        name: _drawn(name, tuple(weight.shape), dtype)
        for name, weight in module.state_dict().items()
        if not name.endswith("position_ids")
    }


def _drawn(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> LazyTensor:
    def read() -> Tensor:
        if len(shape) < 2:
            return torch.full(shape, float(name.endswith("weight")), dtype=dtype)
        # By this spread the output of a layer is as large as its input.
        spread = torch.Size(shape[1:]).numel() ** -0.5
        generator = seeds.generator(zlib.crc32(name.encode()))
        return (spread * torch.randn(shape, generator=generator)).to(dtype)

    return LazyTensor(name, shape, dtype, read)
