"""modules.sd_vae_taesd as far as the demo needs it: TAESD's layers under their own names."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor, nn

from fakes.webui import module

WIDTH = 64


class Clamp(nn.Module):
    """Bring latents into the range that the decoder knows."""

    def forward(self, x: Tensor) -> Tensor:
        """Clamp softly."""
        return torch.tanh(x / 3) * 3


class Block(nn.Module):
    """Three convolutions beside a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(_conv(), nn.ReLU(), _conv(), nn.ReLU(), _conv())
        self.skip, self.fuse = nn.Identity(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Add."""
        return self.fuse(self.conv(x) + self.skip(x))


def decoder(latent_channels: int = 4) -> nn.Sequential:
    """Build the decoder."""
    up = [layer for _ in range(3)
          for layer in (*_blocks(3), nn.Upsample(scale_factor=2), _conv(bias=False))]  # fmt: skip
    return nn.Sequential(
        Clamp(), _conv(latent_channels), nn.ReLU(), *up, Block(), _conv(made=3)
    )  # fmt: skip


def encoder(latent_channels: int = 4) -> nn.Sequential:
    """Build the encoder."""
    down = [layer for _ in range(3) for layer in (_conv(bias=False, stride=2), *_blocks(3))]
    return nn.Sequential(_conv(3), Block(), *down, _conv(made=latent_channels))


def taesd() -> ModuleType:
    """Make the module."""
    return module("modules.sd_vae_taesd", decoder=decoder, encoder=encoder)


def _blocks(count: int) -> list[nn.Module]:
    return [Block() for _ in range(count)]


def _conv(given: int = WIDTH, made: int = WIDTH, **more: object) -> nn.Conv2d:
    return nn.Conv2d(given, made, 3, padding=1, **more)  # type: ignore[arg-type]
