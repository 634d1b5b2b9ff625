"""From prompts to noised pictures: what a scrubbing is shown, and what that costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch

from ... import seeds
from ...models.contract import Denoiser, TextEncoder
from ...models.sampler import SamplerName, SamplerSettings
from .lists import Counts, PictureLists
from .samples import Drawn, Noised, chance, draw, on_the_way, renoised, together

Source = Literal["renoised", "on the way", "both"]


@dataclass(frozen=True)
class Recipe:
    """How pictures are drawn and noised.

    steps, cfg, name: of the sampler; source: noise finished pictures, take what the sampler went
    through on the way, or half and half; concept, rest: samples of either kind; untold: the share
    of them that meets the empty prompt; batch: pictures drawn at once.
    """

    counts: Counts = field(default_factory=Counts)
    steps: int = 12
    cfg: float = 4.0
    name: SamplerName = "ddim"
    source: Source = "both"
    concept: int = 144
    rest: int = 144
    untold: float = 0.4
    batch: int = 24

    @property
    def sampler(self) -> SamplerSettings:
        """Return how pictures are drawn."""
        return SamplerSettings(self.steps, self.cfg, self.name)


@torch.inference_mode(False)
@torch.no_grad()
def drawn(
    denoiser: Denoiser,
    encoder: TextEncoder,
    size: tuple[int, int],
    lists: PictureLists,
    recipe: Recipe,
    seed: int,
) -> Iterator[tuple[int, Drawn | None]]:
    """Draw a picture of each prompt, the concept's first; yields as `draw` does."""
    prompts, uncond = encoder.encode(list(lists.prompts)), encoder.encode([""])
    noises = [seeds.recording_noise(seed, i) for i in range(len(prompts))]
    yield from draw(denoiser, prompts, uncond, recipe.sampler, size, noises, recipe.batch)


def noised(
    denoiser: Denoiser,
    encoder: TextEncoder,
    pictures: Drawn,
    concept: int,
    recipe: Recipe,
    seed: int,
) -> tuple[Noised, Noised]:
    """Noise what was drawn, of which the first `concept` show the concept: (concept, rest).

    The two halves of either kind are of different pictures.
    """
    uncond = encoder.encode([""])
    kinds = (pictures.rows(slice(0, concept)), pictures.rows(slice(concept, None)))

    def made(kind: Drawn, count: int, generator: torch.Generator) -> Noised:
        new = {"renoised": count, "on the way": 0, "both": (count + 1) // 2}[recipe.source]
        new = new if kind.usable else count  # a sampler of one or two steps
        parts = []
        if new:
            parts.append(renoised(denoiser, kind, uncond, new, recipe.untold, generator))
        if new < count:
            parts.append(on_the_way(kind, uncond, count - new, recipe.untold, generator))
        return together(parts)

    def halves(kind: Drawn, count: int, which: int) -> Noised:
        n, generator = len(kind.latents), chance(seed, which)
        if n < 2 or count < 2:
            return made(kind, count, generator)
        ends = ((slice(0, None, 2), count - count // 2), (slice(1, None, 2), count // 2))
        return together([made(kind.rows(some), part, generator) for some, part in ends])

    return (
        halves(kinds[0], recipe.concept, seeds.EFFECT),
        halves(kinds[1], recipe.rest, seeds.HARM),
    )
