"""Sampling with classifier-free guidance: DDIM, and three others that users have at hand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import SpecError
from ..seeds import ancestral_noise, generator, redrawn_noise
from ..settings import in_range
from ..spec import Sampling
from .contract import Conditioning, Denoiser, Spacing, device_of, stack

SamplerName = Literal["ddim", "euler", "euler_a", "dpmpp_2m", "lcm"]
SAMPLERS: tuple[str, ...] = get_args(SamplerName)
FEW = 4  # steps of a distilled model
STIRRED = ("turbo", "lcm")  # distilled models whose samplers add fresh noise between steps


@dataclass(frozen=True)
class SamplerSettings:
    """Steps, guidance scale (1: no guidance, half the passes) and the sampler's name.

    spacing: of the timesteps, where it is not the schedule's own; a distilled model has one.
    """

    steps: int = 20
    cfg: float = 4.0
    sampler: SamplerName = "ddim"
    spacing: Spacing | None = None

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise SpecError(
                f"sampler {self.sampler!r} is unknown; use one of {', '.join(SAMPLERS)}"
            )
        in_range("steps", self.steps, 1, 999, whole=True)
        in_range("cfg", self.cfg, 1.0, 30.0)

    @property
    def distilled(self) -> bool:
        """Tell whether they are a distilled model's: few steps, without guidance."""
        return self.spacing is not None

    def grid(self, denoiser: Denoiser) -> list[int]:
        """Return the timesteps at which a denoiser is called, falling."""
        return timesteps(self.steps, self.spacing or denoiser.schedule.spacing)

    def passes(self, images: int) -> int:
        """Count UNet passes, one sample each, that drawing `images` pictures takes."""
        return images * self.steps * (1 if self.cfg == 1.0 else 2)


def sampled(settings: SamplerSettings, sampling: Sampling) -> SamplerSettings:
    """Return settings as a model is sampled: a distilled one in few steps, without guidance.

    Its first step is at the last timestep, from pure noise. Lightning and Hyper-SD take what DDIM
    does (Lin et al. 2024, arXiv 2402.13929; Ren et al. 2024, arXiv 2404.13686); Turbo and LCM add
    fresh noise to the picture that each step predicts (Sauer et al. 2023, arXiv 2311.17042; Luo et
    al. 2023, arXiv 2310.04378, algorithm 1).
    """
    if sampling == "guided":
        return settings
    name: SamplerName = "lcm" if sampling in STIRRED else "ddim"
    few = min(FEW, settings.steps)
    return replace(settings, steps=few, cfg=1.0, sampler=name, spacing="trailing")


def timesteps(steps: int, spacing: Spacing = "leading") -> list[int]:
    """Space `steps` timesteps in 0..999, falling (Lin et al. 2023, arXiv 2305.08891, table 2).

    leading, in 1..981 for 20, is Stable Diffusion's; trailing and linspace begin at 999.
    """
    if spacing == "trailing":
        return [round(1000 - i * 1000 / steps) - 1 for i in range(steps)]
    if spacing == "linspace":
        return (
            [round(i * 999 / (steps - 1)) for i in reversed(range(steps))] if steps > 1 else [999]
        )
    stride = 1000 // steps
    return [i * stride + 1 for i in reversed(range(steps))]


def initial_noise(seeds: list[int], size: tuple[int, int]) -> Tensor:
    """Draw each picture's starting noise from its own seed, (b, 4, h, w) on the CPU."""
    rows = [torch.randn(4, *size, dtype=torch.float32, generator=generator(s)) for s in seeds]
    return torch.stack(rows)


def ddim(
    denoiser: Denoiser,
    x: Tensor,
    cond: Conditioning,
    uncond: Conditioning,
    settings: SamplerSettings,
    skip: int = 0,
) -> Iterator[tuple[int, Tensor]]:
    """Yield (timestep, latents) after each step (Song et al. 2021, equation 12, eta = 0).

    x: noise (b, 4, h, w), or, when the first `skip` steps are left out, latents noised to the
    step that comes next; cond: (b, 77, d); uncond: one row, or one a picture.
    """
    guided = Guided(denoiser, cond, uncond, settings, len(x))
    x, alphas = x.to(guided.device), denoiser.schedule.alphas.to(guided.device)
    grid = settings.grid(denoiser)
    for now, then in list(zip(grid, [*grid[1:], 0], strict=True))[skip:]:
        x0, eps = guided.split(x, now)
        a = alphas[then]
        x = a.sqrt() * x0 + (1 - a).sqrt() * eps
        yield now, x


class Guided:
    """The denoiser under classifier-free guidance (Ho and Salimans 2022, equation 6)."""

    def __init__(
        self,
        denoiser: Denoiser,
        cond: Conditioning,
        uncond: Conditioning,
        settings: SamplerSettings,
        count: int,
    ) -> None:
        self.denoiser, self.cfg, self.device = denoiser, settings.cfg, device_of(denoiser)
        self.on = settings.cfg != 1.0
        if self.on and len(uncond) == 1:
            uncond = stack([uncond] * count)
        self.cond = stack([uncond, cond]) if self.on else cond

    def split(self, x: Tensor, now: int) -> tuple[Tensor, Tensor]:
        """Return the guided (x0, eps), each (b, 4, h, w), at one timestep."""
        batch = torch.cat([x, x]) if self.on else x
        t = torch.full((len(batch),), now, device=self.device, dtype=torch.long)
        with torch.no_grad():
            output = self.denoiser(batch, t, self.cond).float()
            if self.on:
                free, told = output.chunk(2)
                output = free + self.cfg * (told - free)
            return self.denoiser.schedule.split(x, t[: len(x)], output)


def sample(
    denoiser: Denoiser,
    x: Tensor,
    cond: Conditioning,
    uncond: Conditioning,
    settings: SamplerSettings,
    seeds: list[int] | None = None,
    skip: int = 0,
) -> Iterator[tuple[int, Tensor]]:
    """Yield (timestep, latents) with the sampler of the settings; shapes as `ddim` takes them.

    The others step in k-diffusion's coordinates y = x / sqrt(alpha), sigma^2 = (1 - alpha) / alpha
    (Karras et al. 2022, arXiv 2206.00364) and end at sigma 0. `seeds`, one a picture, feed the
    noise that euler_a and lcm add.
    """
    if settings.sampler == "lcm":
        yield from _lcm(denoiser, x, cond, uncond, settings, seeds or list(range(len(x))), skip)
        return
    if settings.sampler == "ddim":
        yield from ddim(denoiser, x, cond, uncond, settings, skip)
        return
    guided = Guided(denoiser, cond, uncond, settings, len(x))
    grid = settings.grid(denoiser)[skip:]
    alphas = denoiser.schedule.alphas.to(guided.device)
    sigmas = [float((1 / alphas[t] - 1).sqrt()) for t in grid] + [0.0]
    y = x.to(guided.device) * (1 + sigmas[0] ** 2) ** 0.5
    stir = [generator(ancestral_noise(s)) for s in (seeds or range(len(x)))]
    earlier: Tensor | None = None
    for i, now in enumerate(grid):
        here, there = sigmas[i], sigmas[i + 1]
        x0, _ = guided.split(y / (1 + here**2) ** 0.5, now)
        if settings.sampler == "dpmpp_2m":
            y = _dpmpp_2m(y, x0, earlier, sigmas[max(0, i - 1) : i + 2], first=i == 0)
            earlier = x0
        else:
            y = _euler(y, x0, here, there, stir if settings.sampler == "euler_a" else [])
        yield now, y / (1 + there**2) ** 0.5


def _lcm(
    denoiser: Denoiser,
    x: Tensor,
    cond: Conditioning,
    uncond: Conditioning,
    settings: SamplerSettings,
    seeds: list[int],
    skip: int,
) -> Iterator[tuple[int, Tensor]]:
    """Diffuse each predicted picture anew to the next timestep; the last one stays as it is.

    The noise hangs on a picture's seed and on the step alone, so that a run that was interrupted
    goes on with the same.
    """
    guided = Guided(denoiser, cond, uncond, settings, len(x))
    x, grid = x.to(guided.device), settings.grid(denoiser)
    for i in range(skip, len(grid)):
        x, _ = guided.split(x, grid[i])
        if i + 1 < len(grid):
            again = [redrawn_noise(s, i) for s in seeds]
            fresh = initial_noise(again, (x.shape[2], x.shape[3]))
            t = torch.full((len(x),), grid[i + 1], device=x.device)
            x = denoiser.schedule.noised(x, t, fresh.to(x.device))
        yield grid[i], x


def _euler(y: Tensor, x0: Tensor, here: float, there: float, stir: list[torch.Generator]) -> Tensor:
    """Step along (y - x0) / sigma; with `stir`, overshoot and add fresh noise (Algorithm 2)."""
    up = (there**2 * (here**2 - there**2) / here**2) ** 0.5 if stir else 0.0
    down = (there**2 - up**2) ** 0.5
    y = y + (y - x0) / here * (down - here)
    if up:
        rows = [torch.randn(y.shape[1:], dtype=torch.float32, generator=g) for g in stir]
        y = y + up * torch.stack(rows).to(y.device)
    return y


def _dpmpp_2m(
    y: Tensor, x0: Tensor, earlier: Tensor | None, sigmas: list[float], first: bool
) -> Tensor:
    """Take a second-order multistep step in log sigma (Lu et al. 2022, arXiv 2211.01095)."""
    here, there = sigmas[-2], sigmas[-1]
    if there == 0:
        return x0
    slope = x0
    if not first and earlier is not None:
        ratio = math.log(sigmas[0] / here) / math.log(here / there)
        slope = x0 + (x0 - earlier) / (2 * ratio)
    return there / here * y + (1 - there / here) * slope
