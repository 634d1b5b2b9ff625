"""Deterministic DDIM sampling with classifier-free guidance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .conditioning import Conditioning, stack
from .denoiser import Denoiser, device_of
from .spec import in_range


@dataclass(frozen=True)
class SamplerSettings:
    """DDIM steps and guidance scale; 1 means no guidance and half the passes."""

    steps: int = 20
    cfg: float = 4.0

    def __post_init__(self) -> None:
        in_range("steps", self.steps, 1, 999, whole=True)
        in_range("cfg", self.cfg, 1.0, 30.0)

    def passes(self, images: int) -> int:
        """Count UNet passes, one sample each, that drawing `images` pictures takes."""
        return images * self.steps * (1 if self.cfg == 1.0 else 2)


def timesteps(steps: int) -> list[int]:
    """Space `steps` timesteps in 1..981, falling: the "leading" spacing of Stable Diffusion."""
    stride = 1000 // steps
    return [i * stride + 1 for i in reversed(range(steps))]


def initial_noise(seeds: list[int], size: tuple[int, int]) -> Tensor:
    """Draw each picture's starting noise from its own seed, (b, 4, h, w) on the CPU."""
    rows = [torch.randn(4, *size, generator=torch.Generator().manual_seed(s)) for s in seeds]
    return torch.stack(rows)


def ddim(
    denoiser: Denoiser,
    x: Tensor,
    cond: Conditioning,
    uncond: Conditioning,
    settings: SamplerSettings,
) -> Iterator[tuple[int, Tensor]]:
    """Yield (timestep, latents) after each step (Song et al. 2021, equation 12, eta = 0).

    x: noise (b, 4, h, w); cond: (b, 77, d); uncond: one row, or one a picture.
    """
    device = device_of(denoiser)
    x = x.to(device)
    guided = settings.cfg != 1.0
    if guided and len(uncond) == 1:
        uncond = stack([uncond] * len(x))
    both = stack([uncond, cond]) if guided else cond
    alphas = denoiser.schedule.alphas.to(device)
    stride = 1000 // settings.steps
    for now in timesteps(settings.steps):
        batch = torch.cat([x, x]) if guided else x
        t = torch.full((len(batch),), now, device=device, dtype=torch.long)
        with torch.no_grad():
            output = denoiser(batch, t, both).float()
            if guided:
                free, told = output.chunk(2)
                output = free + settings.cfg * (told - free)
            x0, eps = denoiser.schedule.split(x, t[: len(x)], output)
        a = alphas[now - stride] if now >= stride else alphas[0]
        x = a.sqrt() * x0 + (1 - a).sqrt() * eps
        yield now, x
