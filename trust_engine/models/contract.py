"""What the engine asks of a model: encoded prompts, a denoiser with its schedule, and the loan."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from ..errors import ModelError, SpecError
from .memory import batch_for
from .unet_keys import projection_of

Prediction = Literal["eps", "v"]
Spacing = Literal["leading", "trailing", "linspace"]
COMPUTES_IN = "_trust_computes_in"  # a module's attribute: its layers widen what they store
Score = Callable[[Tensor, Sequence[str]], Tensor]
"""Latents x0 (b, 4, h, w) and prompts -> how well each decoded picture shows its prompt, (b,)."""


@dataclass(frozen=True)
class Conditioning:
    """Encoded prompts: context (b, tokens, d) and, for SDXL, a vector (b, adm)."""

    context: Tensor
    vector: Tensor | None = None

    def __len__(self) -> int:
        return len(self.context)

    def select(self, index: Tensor | slice) -> Conditioning:
        """Take some of the prompts."""
        vector = None if self.vector is None else self.vector[index]
        return Conditioning(self.context[index], vector)

    def to(self, kind: torch.dtype | torch.device) -> Conditioning:
        """Convert to a dtype or move to a device."""
        vector = None if self.vector is None else self.vector.to(kind)
        return Conditioning(self.context.to(kind), vector)

    def repeated(self, length: int) -> Conditioning:
        """Repeat the context as a whole, up to a length that it goes into: the same to a UNet."""
        # Attention over tokens that stand there n times each is attention over each once; were
        # only some of them repeated, those would count for more.
        times, rest = divmod(length, self.context.shape[1])
        if rest:
            raise ModelError(f"{self.context.shape[1]} tokens cannot be repeated to {length}")
        return Conditioning(self.context.repeat(1, times, 1), self.vector)


def stack(parts: Sequence[Conditioning]) -> Conditioning:
    """Join conditionings along the batch; contexts of several lengths are repeated to one."""
    length = math.lcm(*(part.context.shape[1] for part in parts))
    context = torch.cat([part.repeated(length).context for part in parts])
    vectors = [part.vector for part in parts if part.vector is not None]
    if not vectors:
        return Conditioning(context)
    if len(vectors) < len(parts):
        raise ModelError("some prompts come with a pooled vector and others without")
    return Conditioning(context, torch.cat(vectors))


class TextEncoder(Protocol):
    """A host's or checkpoint's way from words to conditioning."""

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts, one row each."""
        ...

    def count_tokens(self, prompt: str) -> int:
        """Count the prompt's tokens, start and end not counted."""
        ...


def with_syntax(encoder: TextEncoder) -> TextEncoder:
    """Return a host's encoder that reads emphasis and embeddings; raises SpecError for others."""
    made = getattr(encoder, "with_syntax", None)
    if made is None:
        raise SpecError(
            "prompts in a host's syntax can be read in that host alone; set syntax to literal"
        )
    found: TextEncoder = made()
    return found


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


@dataclass(frozen=True)
class LentModel:
    """What a host lends: the UNet, text encoding and latent size (h, w).

    vocabulary, styles: words the model knows, from which the engine proposes what to preserve;
    score: how well latents show prompts, for the saliency source "clip"; batch: prompts to record
    at once, 0: as many as take about a gigabyte; more: what predictions depend on besides the
    weights of `denoiser.module`, hashed, for a UNet that hooks and patches change; applied: diffs
    that are in its weights already, as its file's record tells them; in_place: its blocks may
    write to what they hold (`models/recompute.py`).
    """

    denoiser: Denoiser
    encoder: TextEncoder
    latent_size: tuple[int, int]
    vocabulary: Sequence[str] = ()
    styles: Sequence[str] = ()
    score: Score | None = None
    batch: int = 0
    more: Callable[[Conditioning], str] | None = None
    applied: Sequence[Mapping[str, Any]] = ()
    in_place: bool = False

    @property
    def at_once(self) -> int:
        """Count the prompts that are predicted at once."""
        dtype = compute_dtype(self.denoiser.module)
        return self.batch or batch_for("auto", self.latent_size, dtype)

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts into ordinary tensors; hosts may hand out inference tensors."""
        with torch.no_grad():
            cond = self.encoder.encode(prompts)
        vector = None if cond.vector is None else cond.vector.clone()
        return Conditioning(cond.context.clone(), vector)
