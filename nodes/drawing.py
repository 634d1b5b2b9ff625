"""Pictures by the engine's sampler on a lent MODEL, decoded by the host's VAE; heat maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..trust_engine.models.sampler import SamplerSettings, initial_noise, sample, sampled
from ..trust_engine.spec import Sampling
from .charts import from_image
from .lending import Lent

SEED = 500_000  # pictures shown start apart from the engine's seeds, which are near zero
MOMENTS = (801, 601, 401, 201)  # timesteps at which attention is looked at


def draw(
    lent: Lent,
    prompts: Sequence[str],
    seed: int,
    on_step: Callable[[], None],
    sampling: Sampling = "guided",
) -> Tensor:
    """Draw one picture a prompt; returns latents (b, 4, h, w)."""
    settings = sampled(SamplerSettings(), sampling)
    cond, uncond = lent.encoder.encode(prompts), lent.encoder.encode([""])
    seeds = [SEED + seed + i for i in range(len(prompts))]
    noise = initial_noise(seeds, lent.model.latent_size)
    drawn = noise
    for _, latents in sample(lent.host, noise, cond, uncond, settings, seeds):
        drawn = latents
        on_step()
    return drawn


def decoded(vae: Any, model: Any, latents: Tensor) -> list[Any]:
    """Turn latents into PIL pictures."""
    with torch.inference_mode():
        images = vae.decode(model.model.latent_format.process_out(latents))
    return [from_image(image) for image in images]


def previewed(model: Any, latents: Tensor) -> Any:
    """Sketch the first of some latents (b, 4, h, w) by a linear map to colours, if there is one."""
    factors = getattr(model.model.latent_format, "latent_rgb_factors", None)
    if factors is None or latents is None:
        return None
    bias = getattr(model.model.latent_format, "latent_rgb_factors_bias", None)
    colours = torch.tensor(factors, dtype=torch.float32)
    image = latents[0].float().cpu().movedim(0, -1) @ colours
    if bias is not None:
        image = image + torch.tensor(bias)
    return from_image((image + 1) / 2)


class HeatMap:
    """Where in the picture the concept's tokens are attended to, averaged over layers and heads."""

    def __init__(self, lent: Lent, places: Sequence[int]) -> None:
        self.lent, self.places = lent, list(places)
        self.total = torch.zeros(lent.model.latent_size)
        self.count = 0

    def see(self, layer: str, n: Tensor, context: Tensor) -> None:
        """Add what one layer does with positions n (1, p, d) and context (1, tokens, c)."""
        site = self.lent.host.sites[layer]
        q, k = (
            F.linear(a[-1].float(), w.weight).unflatten(-1, (site.heads, -1)).transpose(0, 1)
            for a, w in ((n, site.to_q), (context, site.to_k))
        )
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        seen = weights[..., self.places].sum(-1).mean(0)
        side = round(len(seen) ** 0.5)
        if side * side != len(seen):
            return  # not a square picture
        grid = seen.view(1, 1, side, side)
        size = self.lent.model.latent_size
        self.total += F.interpolate(grid, size, mode="bilinear").view(size).cpu()
        self.count += 1

    def watch(self, prompt: str, latents: Tensor, on_step: Callable[[], None]) -> Tensor:
        """Look at a drawn picture (1, 4, h, w) at several levels of noise; returns (h, w)."""
        host, cond = self.lent.host, self.lent.encoder.encode([prompt])
        noise = initial_noise([SEED], self.lent.model.latent_size)
        host.see = self.see
        try:
            for moment in MOMENTS:
                t = torch.tensor([moment])
                host(host.schedule.noised(latents.cpu().float(), t, noise), t, cond)
                on_step()
        finally:
            host.see = None
        return self.total / max(1, self.count)
