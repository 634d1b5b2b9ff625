"""From latents to pictures: AutoencoderKL's decoder, TAESD's for the demo, or none."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import ModelError
from .checkpoint import VAE_PREFIX, Checkpoint, fill
from .contract import compute_dtype
from .families import ModelFamily
from .tower_keys import LazyTensors, decoder_names


class KLDecoder(nn.Module):
    """Turn latents (b, 4, h, w) into pictures (b, 3, 8h, 8w), about -1..1, in float32."""

    def __init__(self, decoder: nn.Module, quant: nn.Module, scaling: float) -> None:
        super().__init__()
        self.decoder, self.post_quant_conv, self.scaling = decoder, quant, scaling

    def forward(self, latents: Tensor) -> Tensor:
        """Decode."""
        z = latents.to(compute_dtype(self)) / self.scaling
        return self.decoder(self.post_quant_conv(z)).float()


class NoDecoder(nn.Module):
    """Stand in for the decoder of a file without one: unlearning needs none."""

    def forward(self, latents: Tensor) -> Tensor:
        """Refuse."""
        raise ModelError(
            "the checkpoint holds no VAE, so that no picture can be drawn; "
            "give the version with its VAE (first_stage_model)"
        )


def decoder_stock(model: Checkpoint, family: ModelFamily) -> LazyTensors:
    """Find the decoder's weights in a checkpoint, under the decoder module's own names."""
    if family.decoder is None:
        return _taesd(model.part(VAE_PREFIX + "taesd_decoder."))
    part = model.part(VAE_PREFIX if model.layout == "ldm" else "vae/")
    return decoder_names(part, len(family.decoder["block_out_channels"]))


def load_decoder(stock: LazyTensors, family: ModelFamily, device: torch.device) -> nn.Module:
    """Build the family's decoder and read its weights."""
    if family.decoder is None:
        tiny = blank_tiny_decoder()
        fill(tiny, stock, "decoder", device, family.whole)
        return tiny
    if not stock:
        return NoDecoder()
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        kl = AutoencoderKL(**family.decoder)
    decoder = KLDecoder(kl.decoder, kl.post_quant_conv, family.scaling)
    fill(decoder, stock, "VAE decoder", device, whole=_narrow(stock, device))
    return decoder


def blank_tiny_decoder() -> nn.Module:
    """Build TAESD's decoder without memory for its weights."""
    from diffusers import AutoencoderTiny

    with torch.device("meta"):
        return AutoencoderTiny().decoder


def _narrow(stock: LazyTensors, device: torch.device) -> bool:
    # SDXL's activations leave float16's range here; the weights are few, so float32 holds them.
    return device.type != "cpu" and any(s.dtype == torch.float16 for s in stock.values())


def _taesd(part: LazyTensors) -> LazyTensors:
    found = {}
    for key, stored in part.items():
        index, _, rest = key.partition(".")
        # TAESD counts its clamp as layer 0. A name without a number is left to be refused.
        found[f"layers.{int(index) - 1}.{rest}" if index.isdecimal() else key] = stored
    return found
