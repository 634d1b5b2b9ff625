"""What all baselines share: the task, frozen pictures and states, and a plain training loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from trust_engine.audit.checks.core import follow
from trust_engine.audit.drawing import paint
from trust_engine.diff import WeightDiff
from trust_engine.models.contract import Conditioning, ModuleDenoiser, device_of
from trust_engine.models.load import LoadedModel
from trust_engine.models.overrides import weights_of
from trust_engine.models.sampler import SamplerSettings, ddim, timesteps
from trust_engine.prompts.concept import PromptSet, build_prompts
from trust_engine.spec import ConceptSpec

Weights = dict[str, Tensor]
"""New weights by parameter name; what is not named stays."""
TRAIN_SEED = 7_000_000  # first seed of a baseline's own pictures, apart from all that are judged


@dataclass(frozen=True, kw_only=True)
class Training:
    """What every method that trains is told; the figures stand in the catalogue."""

    steps: int
    rate: float
    batch: int


@dataclass
class Meter:
    """UNet passes, one sample each; a pass that keeps a graph counts three: backward is two.

    diff: what a method of ours made, if it is smaller than its weights show.
    """

    passes: int = 0
    diff: WeightDiff | None = None


@dataclass(frozen=True)
class Task:
    """What to erase, from which model. All methods are told the same prompts.

    meter: what counts the model's passes, for a method whose calls are not whole passes.
    """

    model: LoadedModel
    concept: ConceptSpec
    seed: int = 0
    meter: Meter = field(default_factory=Meter)

    @cached_property
    def prompts(self) -> PromptSet:
        """Write the engine's own prompts: targets, an anchor for each, and what must stay."""
        model = self.model
        return build_prompts([self.concept], model.encoder, model.vocabulary, model.styles)

    @cached_property
    def generator(self) -> torch.Generator:
        """Return the source of all chance."""
        return torch.Generator().manual_seed(self.seed)

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts."""
        with torch.no_grad():
            return self.model.encoder.encode(list(prompts))

    def pick(self, count: int, among: int) -> Tensor:
        """Draw indices (count,)."""
        return torch.randint(among, (count,), generator=self.generator)

    def noise(self, count: int) -> Tensor:
        """Draw latent noise (count, 4, h, w)."""
        size = (count, 4, *self.model.latent_size)
        return torch.randn(size, generator=self.generator).to(device_of(self.model.denoiser))

    def draw(self, prompts: Sequence[str], count: int) -> tuple[Tensor, list[int]]:
        """Draw pictures with the untouched model: latents (count, 4, h, w) and prompt indices."""
        which = [i % len(prompts) for i in range(count)]
        cond = self.encode([prompts[i] for i in which])
        first = TRAIN_SEED + self.seed * 10_000
        seeds = range(first, first + count)
        return follow(paint(self.model, cond, seeds, SamplerSettings()), 1), which


def metered(model: LoadedModel, meter: Meter) -> LoadedModel:
    """Return the model with its UNet passes counted."""
    plain = model.denoiser.forward

    def forward(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        meter.passes += len(x) * (3 if torch.is_grad_enabled() else 1)
        return plain(x, t, cond)

    return replace(model, denoiser=replace(model.denoiser, forward=forward))


def cross_attention(name: str) -> bool:
    """Tell whether a parameter is a cross-attention layer's."""
    return ".attn2." in name


def keys_and_values(name: str) -> bool:
    """Tell whether it is a cross-attention's K or V projection."""
    return name.endswith((".attn2.to_k.weight", ".attn2.to_v.weight"))


def chosen(denoiser: ModuleDenoiser, which: Callable[[str], bool]) -> Weights:
    """Copy the weights to be trained, in float32."""
    return {n: w.detach().float().clone() for n, w in weights_of(denoiser).items() if which(n)}


def train(
    task: Task,
    start: Weights,
    loss: Callable[[LoadedModel, int], Tensor],
    steps: int,
    rate: float,
    masks: Mapping[str, Tensor] | None = None,
    read: Callable[[Weights], Weights] | None = None,
) -> Weights:
    """Minimise `loss(model, step)` with Adam; masks keep entries as they are where they are 0.

    read: turns what is trained into weights (None: it is the weights).
    """
    read = read or (lambda trained: trained)
    theta = {name: w.requires_grad_() for name, w in start.items()}
    adam = torch.optim.Adam(theta.values(), lr=rate)
    for step in range(steps):
        with torch.enable_grad():
            value = loss(task.model.with_weights(read(theta)), step)
            gradients = torch.autograd.grad(value, list(theta.values()), allow_unused=True)
        for (name, weight), gradient in zip(theta.items(), gradients, strict=True):
            weight.grad = gradient
            if masks is not None and gradient is not None:
                weight.grad = gradient * masks[name]
        adam.step()
    with torch.no_grad():
        return {name: w.detach() for name, w in read(theta).items()}


def mse(one: Tensor, other: Tensor) -> Tensor:
    """Return the mean squared distance of predictions."""
    return (one.float() - other.float()).square().mean()


def denoise_to(
    model: LoadedModel,
    cond: Conditioning,
    uncond: Conditioning,
    x: Tensor,
    stop: int,
    settings: SamplerSettings,
) -> tuple[Tensor, Tensor]:
    """Denoise noise x over `stop` of the sampler's steps; returns x_t and t (b,)."""
    steps = ddim(model.denoiser, x, cond, uncond, settings)
    for _ in range(stop):
        x = next(steps)[1]
    grid = timesteps(settings.steps, model.denoiser.schedule.spacing)
    return x, torch.full((len(x),), grid[stop], device=x.device)
