"""From prompts to noised pictures: what a scrubbing is shown, and what that costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from ... import seeds
from ...distributed import SINGLE, Workers
from ...models.contract import Conditioning, Denoiser
from ...models.sampler import SamplerName, SamplerSettings, initial_noise, sample, sampled
from ...spec import DEFAULTS, Sampling, UnlearnSpec
from ..trajectory import Part, Recording, batches
from .noised import Drawn, Noised, chance, on_the_way, renoised, together
from .picture_lists import Counts

Source = Literal["renoised", "on the way", "both"]
MANY = 0.5  # exponent: with n concepts what stays is shown n^MANY times as often


@dataclass(frozen=True)
class Recipe:
    """How pictures are drawn and noised.

    steps, cfg, name: of the sampler; sampling: as the spec says; source: noise finished
    pictures, take what the sampler went through on the way, or half and half; concept: samples of
    each concept; rest: of all that stays; untold: the share of them that meets the empty prompt.
    """

    counts: Counts = field(default_factory=Counts)
    steps: int = 12
    cfg: float = 4.0
    name: SamplerName = "ddim"
    source: Source = "both"
    concept: int = 144
    rest: int = 288
    untold: float = 0.4
    sampling: Sampling = "guided"

    @property
    def sampler(self) -> SamplerSettings:
        """Return how pictures are drawn."""
        return sampled(SamplerSettings(self.steps, self.cfg, self.name), self.sampling)

    def samples(self, concepts: int) -> int:
        """Count all samples that a scrubbing of so many concepts is shown."""
        return self.concept * concepts + self.rest


def recipe_of(spec: UnlearnSpec) -> Recipe:
    """Return a run's: `passes` says how many pictures are drawn and how often they are noised."""
    usual, share = Recipe(), spec.passes / DEFAULTS["passes"]
    rest = share * len(spec.concepts) ** MANY

    def some(count: int, of: float) -> int:
        return max(2, round(count * of)) if count else 0

    counts = usual.counts
    return Recipe(
        Counts(
            some(counts.concept, share),
            some(counts.alone, rest), some(counts.pairs, rest), some(counts.near, rest),
        ),
        cfg=spec.cfg,
        concept=some(usual.concept, share),
        rest=some(usual.rest, rest),
        sampling=spec.sampling,
    )  # fmt: skip


def draw(
    denoiser: Denoiser,
    cond: Conditioning,
    uncond: Conditioning,
    how: SamplerSettings,
    size: tuple[int, int],
    seed: int,
    batch: int,
    team: Workers = SINGLE,
    begun: Recording | None = None,
    numbers: Sequence[int] | None = None,
) -> Iterator[Recording]:
    """Draw a picture of each prompt (a row of cond), and keep what the sampler came to on the way.

    Yields the growing recording after each UNet call, in the end with latents (pictures, steps, 4,
    h, w): the state after each step. A team's processes take turns at the batches. `begun`: what a
    run before this one had drawn; numbers: of the noise that each is drawn from, if not its own.
    """
    recording = Recording()
    noises = [seeds.recording_noise(seed, i) for i in numbers or range(len(cond))]
    before = begun.parts if begun and team.size == 1 else ()
    for number, (rows, part) in enumerate(batches(len(cond), batch, before)):
        mine = noises[rows]
        each = how.passes(len(mine)) // how.steps
        if not team.mine(number):
            recording.passes += each * how.steps
            continue
        part = part.again() if part else Part(initial_noise(mine, size))
        recording.passes += each * part.done
        recording.parts.append(part)
        for _, x in sample(denoiser, part.x, cond.select(rows), uncond, how, mine, part.done):
            part.latents.append(x.cpu())
            part.stepped(x.cpu())
            recording.passes += each
            yield recording
    drawn = [torch.stack(part.latents, 1) for part in recording.parts]
    recording.latents = torch.cat(team.interleave(drawn))
    recording.timesteps = torch.tensor(how.grid(denoiser), dtype=torch.long)
    recording.parts = []
    yield recording


def noised(
    denoiser: Denoiser,
    uncond: Conditioning,
    pictures: Drawn,
    counts: Sequence[int],
    recipe: Recipe,
    seed: int,
) -> tuple[list[Noised], Noised]:
    """Noise what was drawn: samples of each concept, and of what stays.

    counts: how many pictures show each concept, and at last what stays, in their order. The two
    halves of either kind are of different pictures.
    """

    def made(kind: Drawn, count: int, generator: torch.Generator) -> Noised:
        new = {"renoised": count, "on the way": 0, "both": (count + 1) // 2}[recipe.source]
        new = new if kind.usable else count  # a sampler of one or two steps
        parts = []
        if new:
            parts.append(renoised(denoiser, kind, uncond, new, recipe.untold, generator))
        if new < count:
            parts.append(on_the_way(kind, uncond, count - new, recipe.untold, generator))
        return together(parts)

    def halves(kind: Drawn, count: int, generator: torch.Generator) -> Noised:
        n = len(kind.latents)
        if n < 2 or count < 2:
            return made(kind, count, generator)
        ends = ((slice(0, None, 2), count - count // 2), (slice(1, None, 2), count // 2))
        return together([made(kind.rows(some), part, generator) for some, part in ends])

    ends = torch.tensor(counts).cumsum(0).tolist()
    kinds = [
        pictures.rows(slice(end - count, end)) for end, count in zip(ends, counts, strict=True)
    ]
    concepts = [
        halves(kind, recipe.concept, chance(seed, seeds.EFFECT, i))
        for i, kind in enumerate(kinds[:-1])
    ]
    return concepts, halves(kinds[-1], recipe.rest, chance(seed, seeds.HARM))
