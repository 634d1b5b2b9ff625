"""Record latents, and what enters each cross-attention layer, while the model denoises."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..distributed import ALONE, Team
from ..errors import SpecError
from ..models.attention import cross_attention_modules, watch_inputs
from ..models.conditioning import Conditioning
from ..models.denoiser import Denoiser
from ..models.sampler import SamplerSettings, ddim, initial_noise, timesteps

GROUP = 8  # prompts that keep the same positions, however many are recorded at once
POSITIONS = 24  # image positions kept a layer, prompt and step; each is an independent query


@dataclass
class Recording:
    """States by layer: `told` under each prompt and `free` under "", (prompts, n, d) float16.

    latents: what the UNet was given, (prompts, steps, 4, h, w); timesteps: (steps,) in 0..999.
    All but `passes` is there when recording is over.
    """

    told: dict[str, Tensor] = field(default_factory=dict)
    free: dict[str, Tensor] = field(default_factory=dict)
    latents: Tensor = field(default_factory=lambda: torch.empty(0))
    timesteps: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    passes: int = 0

    def states(self, layer: str) -> tuple[Tensor, Tensor]:
        """Return a layer's told and free states, each (prompts, steps * positions, d)."""
        return self.told[layer].float(), self.free[layer].float()


def record(
    denoiser: Denoiser,
    cond: Conditioning,
    uncond: Conditioning,
    settings: SamplerSettings,
    size: tuple[int, int],
    seed: int,
    batch: int = GROUP,
    team: Team = ALONE,
) -> Iterator[Recording]:
    """Denoise once from every prompt; yields the growing recording after each UNet call.

    A team's processes take turns at the batches; each ends with all of them.
    """
    modules = cross_attention_modules(denoiser)
    recording = Recording()
    noise = initial_noise([(seed * 100_003 + i) % 2**63 for i in range(len(cond))], size)
    chunks: list[_Chunk] = []
    for number, start in enumerate(range(0, len(cond), batch)):
        rows = slice(start, start + batch)
        if not team.mine(number):
            recording.passes += settings.passes(len(noise[rows]))
            continue
        chunk = _Chunk(settings.cfg != 1.0, (seed * 7 + start - start % GROUP) % 2**63)
        steps = ddim(denoiser, noise[rows], cond.select(rows), uncond, settings)
        x = noise[rows]
        for _ in range(settings.steps):
            chunk.latents.append(x)
            with watch_inputs(modules, chunk.see):  # not while the host has the floor: it may draw
                x = next(steps)[1].cpu()
            recording.passes += settings.passes(len(x)) // settings.steps
            yield recording
        chunks.append(chunk)
    recording.latents = _together([torch.stack(chunk.latents, 1) for chunk in chunks], team)
    recording.timesteps = torch.tensor(timesteps(settings.steps))
    for name in modules:  # one by one, for what is exchanged is in memory more than once
        recording.told[name] = _together([torch.cat(c.told[name], 1) for c in chunks], team)
        recording.free[name] = _together([torch.cat(c.free[name], 1) for c in chunks], team)


def _together(mine: list[Tensor], team: Team) -> Tensor:
    return torch.cat(team.interleave(mine))


class _Chunk:
    """What is seen of one batch of prompts, step by step."""

    def __init__(self, guided: bool, seed: int) -> None:
        self.told: dict[str, list[Tensor]] = defaultdict(list)
        self.free: dict[str, list[Tensor]] = defaultdict(list)
        self.latents: list[Tensor] = []
        self._guided = guided
        self._chooser = torch.Generator().manual_seed(seed)

    def see(self, layer: str, x: Tensor) -> None:
        """Keep a random subset of the positions x (b, n, d) that enter a layer."""
        kept = torch.randperm(x.shape[1], generator=self._chooser)[:POSITIONS].to(x.device)
        states = x[:, kept].half().cpu()
        free, told = states.chunk(2) if self._guided else (states, states)
        self.free[layer].append(free)
        self.told[layer].append(told)


@dataclass(frozen=True)
class Plan:
    """Which prompts are recorded (indices), and whose recorded row each prompt meets (p,).

    Robust mode draws prompts, some more than once, and needs no rows.
    """

    recorded: list[int]
    rows: Tensor


def plan_recording(targets: int, preserve: int, room: int) -> Plan:
    """Spend room for `room` prompts on targets, their anchors and what must stay, in this order.

    A layer answers any state under any context: a prompt without a trajectory of its own borrows
    the states of one of its kind. Raises SpecError when there is no room for one of each.
    """
    kinds = [targets, targets, preserve]
    if room < sum(count > 0 for count in kinds):
        raise SpecError(f"passes leaves room for {room} prompts; raise it, or lower the steps")
    shares = list(kinds)
    if sum(kinds) > room:
        erased = min(targets, max(1, room // 4))
        shares = [erased, erased, min(preserve, room - 2 * erased)]
    recorded: list[int] = []
    rows: list[int] = []
    for count, some in zip(kinds, shares, strict=True):
        start = len(rows)
        rows += [len(recorded) + i * some // count for i in range(count)]
        recorded += [start + (2 * j + 1) * count // (2 * some) for j in range(some)]
    return Plan(recorded, torch.tensor(rows))
