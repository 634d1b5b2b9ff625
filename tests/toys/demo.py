"""The demo model, read from its file once a process: each who asks gets a copy of its own."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from trust_engine.diff import LowRankOffset, Offset, SparseOffset, WeightDiff, describe_base
from trust_engine.models.demo_architecture import SHAPE, UNET_CONFIG
from trust_engine.models.diffusers_unet import diffusers_denoiser
from trust_engine.models.families import MODELS, ModelFamily
from trust_engine.models.load import LoadedModel, load_model
from trust_engine.unlearn.scrubbing.blocks import picture_layers

NARROW = {**UNET_CONFIG, "block_out_channels": (32, 32, 32)}


@functools.cache
def _read() -> LoadedModel:
    return load_model("demo", "cpu")


def demo_model() -> LoadedModel:
    """Copy the demo model, weights and all, which takes a fraction of loading it."""
    return _with(_read().denoiser.module)


def narrow_demo() -> LoadedModel:
    """Give the demo's text tower and decoder a narrow UNet, with weights by chance.

    It has the same layers, under the same names, for what no trained weight is asked of; the
    engine knows its width where `narrow_family` is among the families.
    """
    return _with(_narrow_unet())


def narrow_family() -> ModelFamily:
    """Return the family that the narrow demo is of: the demo's, at its own width."""
    demo = next(family for family in MODELS if family.unet.name == "demo")
    return replace(demo, unet=replace(demo.unet, config=NARROW))


def _with(unet: nn.Module) -> LoadedModel:
    kept = _read()
    denoiser = diffusers_denoiser(copy.deepcopy(unet), kept.denoiser.schedule, SHAPE)
    encoder = copy.copy(kept.encoder)
    encoder.tower = copy.deepcopy(kept.encoder.tower)
    return replace(kept, denoiser=denoiser, encoder=encoder, decoder=copy.deepcopy(kept.decoder))


@functools.cache
def _narrow_unet() -> nn.Module:
    from diffusers import UNet2DConditionModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel(**NARROW)
    unet = unet.eval().requires_grad_(False)
    for name, module in unet.named_modules():
        if name.endswith(".attn2.to_out.0"):
            module.weight.mul_(6)  # let the text matter as it does to a trained UNet
    return unet


def scrubbed(weights: Mapping[str, Tensor], rank: int = 2, share: float = 0.5) -> WeightDiff:
    """Take a share of some directions by chance out of all that weights read, as scrubbing does."""
    chance, offsets = torch.Generator().manual_seed(0), dict[str, Offset]()
    for key, weight in sorted(weights.items()):
        some = torch.randn(weight.shape[1], rank, generator=chance)
        directions = torch.linalg.qr(some)[0]
        up = -share * torch.einsum("od...,dk->ok...", weight.detach().float().cpu(), directions)
        offsets[key] = LowRankOffset(up, directions.T.contiguous())
    return WeightDiff(offsets).compact()


def scrubbed_demo() -> WeightDiff:
    """Scrub the demo model's layers that work on the picture, of directions by chance.

    One of them has its bias moved, too, as scrubbing around a mean does.
    """
    model = demo_model()
    layers = picture_layers(model.denoiser)
    diff = scrubbed({key: layer.weight for key, layer in layers.items()})  # type: ignore[misc]
    key = "middle_block.1.proj_in.bias"
    size = len(model.denoiser.module.get_parameter(model.denoiser.parameter_name(key)))
    offsets = {**diff.offsets, key: SparseOffset.of(torch.linspace(-0.2, 0.2, size))}
    return WeightDiff(offsets, describe_base(model.denoiser)).compact()
