"""A UNet as the engine sees it, and the noise schedule it was trained with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from .conditioning import Conditioning
from .keys import projection_of

Prediction = Literal["eps", "v"]
Spacing = Literal["leading", "trailing", "linspace"]
COMPUTES_IN = "_trust_computes_in"  # a module's attribute: its layers widen what they store


@dataclass(frozen=True)
class NoiseSchedule:
    """Cumulative signal shares `alphas` (1000,), and what the UNet predicts.

    spacing: how the timesteps of a few steps are chosen.
    """

    alphas: Tensor
    prediction: Prediction = "eps"
    spacing: Spacing = "leading"

    def split(self, x: Tensor, t: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
        """Return (x0, eps), each (b, 4, h, w), from the UNet's output at timesteps t (b,)."""
        a = self.alphas.to(x.device, torch.float32)[t].view(-1, 1, 1, 1)
        if self.prediction == "v":
            return a.sqrt() * x - (1 - a).sqrt() * output, a.sqrt() * output + (1 - a).sqrt() * x
        return (x - (1 - a).sqrt() * output) / a.sqrt(), output

    def noised(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Diffuse x0 (b, 4, h, w) to timesteps t (b,)."""
        a = self.alphas.to(x0.device, torch.float32)[t].view(-1, 1, 1, 1)
        return a.sqrt() * x0 + (1 - a).sqrt() * noise


def scaled_linear(prediction: Prediction = "eps") -> NoiseSchedule:
    """Return Stable Diffusion's schedule: beta from 0.00085 to 0.012 over 1000 steps."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    return NoiseSchedule((1 - betas).cumprod(0).float(), prediction)


class Denoiser(Protocol):
    """A UNet on loan: call it, read its schedule, translate its parameters' names."""

    @property
    def module(self) -> nn.Module:
        """Return the UNet itself."""
        ...

    @property
    def schedule(self) -> NoiseSchedule:
        """Return the schedule it was trained with."""
        ...

    def __call__(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Predict eps or v: x (b, 4, h, w), t (b,) in 0..999 -> (b, 4, h, w)."""
        ...

    def checkpoint_key(self, name: str) -> str:
        """Translate a parameter name of `module` to its ldm name, without prefix."""
        ...

    def parameter_name(self, key: str) -> str:
        """Translate an ldm name back to the parameter's name in `module`."""
        ...


@dataclass(frozen=True)
class ModuleDenoiser:
    """A UNet module, the way to call it, and its parameters' ldm names both ways."""

    module: nn.Module
    schedule: NoiseSchedule
    forward: Callable[[Tensor, Tensor, Conditioning], Tensor]
    to_ldm: Callable[[str], str]
    from_ldm: Callable[[str], str]

    def __call__(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Predict eps or v: x (b, 4, h, w), t (b,) in 0..999 -> (b, 4, h, w)."""
        dtype = compute_dtype(self.module)
        return self.forward(x.to(dtype), t, cond.to(dtype))

    def checkpoint_key(self, name: str) -> str:
        """Translate a parameter name of `module` to its ldm name, without prefix."""
        return self.to_ldm(name)

    def parameter_name(self, key: str) -> str:
        """Translate an ldm name back to the parameter's name in `module`."""
        return self.from_ldm(key)


def ldm_denoiser(module: nn.Module, schedule: NoiseSchedule) -> ModuleDenoiser:
    """Adapt an ldm UNet (A1111, Forge, ComfyUI): `forward(x, timesteps, context, y)`."""

    def forward(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        extra = {} if cond.vector is None else {"y": cond.vector}
        return module(x, t, context=cond.context, **extra)

    return ModuleDenoiser(module, schedule, forward, _same, _same)


def _same(name: str) -> str:
    return name


def projections(denoiser: Denoiser) -> dict[str, Tensor]:
    """List the cross-attention q/k/v weights under their ldm names, in the UNet's order."""
    named = ((denoiser.checkpoint_key(n), p) for n, p in denoiser.module.named_parameters())
    return {key: weight.detach() for key, weight in named if projection_of(key)}


def compute_dtype(module: nn.Module) -> torch.dtype:
    """Tell what a UNet computes in; weights stored in 8 bits are widened by their host."""
    own = getattr(module, COMPUTES_IN, None)
    if own is not None:
        return own
    kinds = (p.dtype for p in module.parameters())
    return next((d for d in kinds if d.is_floating_point and d.itemsize > 1), torch.float32)


def device_of(denoiser: Denoiser) -> torch.device:
    """Tell where the UNet lives."""
    return next(denoiser.module.parameters()).device
