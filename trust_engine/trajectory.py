"""Record what enters each cross-attention layer while the model denoises."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .attention import cross_attention_modules, watch_inputs
from .conditioning import Conditioning
from .denoiser import Denoiser
from .sampler import SamplerSettings, ddim, initial_noise

POSITIONS = 24  # image positions kept a layer, prompt and step; each is an independent query


@dataclass
class Recording:
    """States by layer: `told` under each prompt and `free` under "", both (b, n, d) float16."""

    told: dict[str, list[Tensor]] = field(default_factory=dict)
    free: dict[str, list[Tensor]] = field(default_factory=dict)
    passes: int = 0

    def states(self, layer: str) -> tuple[Tensor, Tensor]:
        """Return a layer's told and free states, each (prompts, steps * positions, d)."""
        return torch.cat(self.told[layer], 1).float(), torch.cat(self.free[layer], 1).float()


def record(
    denoiser: Denoiser,
    cond: Conditioning,
    uncond: Conditioning,
    settings: SamplerSettings,
    size: tuple[int, int],
    seed: int,
    batch: int = 8,
) -> Iterator[Recording]:
    """Denoise once from every prompt; yields the growing recording after each UNet call."""
    modules = cross_attention_modules(denoiser)
    recording = Recording({name: [] for name in modules}, {name: [] for name in modules})
    noise = initial_noise([(seed * 100_003 + i) % 2**63 for i in range(len(cond))], size)
    chunks: list[Recording] = []
    for start in range(0, len(cond), batch):
        rows = slice(start, start + batch)
        part = Recording({name: [] for name in modules}, {name: [] for name in modules})
        see = _keeper(part, settings.cfg != 1.0, (seed * 7 + start) % 2**63)
        steps = ddim(denoiser, noise[rows], cond.select(rows), uncond, settings)
        for _ in range(settings.steps):
            with watch_inputs(modules, see):  # not while the host has the floor: it may draw
                next(steps)
            recording.passes += settings.passes(len(noise[rows])) // settings.steps
            yield recording
        chunks.append(part)
    for name in modules:
        recording.told[name] = [torch.cat([torch.cat(part.told[name], 1) for part in chunks])]
        recording.free[name] = [torch.cat([torch.cat(part.free[name], 1) for part in chunks])]


def _keeper(part: Recording, guided: bool, seed: int) -> Callable[[str, Tensor], None]:
    chooser = torch.Generator().manual_seed(seed)

    def see(layer: str, x: Tensor) -> None:
        kept = torch.randperm(x.shape[1], generator=chooser)[:POSITIONS].to(x.device)
        states = x[:, kept].half().cpu()
        free, told = states.chunk(2) if guided else (states, states)
        part.free[layer].append(free)
        part.told[layer].append(told)

    return see
