"""Noised pictures: what the network is shown while it is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ... import seeds
from ...models.contract import Conditioning, Denoiser, device_of, stack
from ...prompts.subset import deal
from ..trajectory import Recording

EARLIEST, LATEST = 20, 750  # timesteps: noise enough to tell nothing by, and picture enough to see


@dataclass(frozen=True)
class Drawn:
    """Pictures: latents (n, 4, h, w), and the prompt (n rows of context) each was drawn from.

    way: what the sampler went through on the way to each, (n, k, 4, h, w); timesteps (k,): at which
    timestep each of these is what the network is given.
    """

    latents: Tensor
    prompts: Conditioning
    way: Tensor | None = None
    timesteps: Tensor | None = None

    @classmethod
    def of(cls, recording: Recording, prompts: Conditioning) -> Drawn:
        """Take what `pictures.draw` recorded: the sampler's last step is the picture."""
        states = recording.latents
        return cls(states[:, -1], prompts, states[:, :-1], recording.timesteps[1:])

    @property
    def usable(self) -> list[int]:
        """List the steps of the way that show something and not everything."""
        times = [] if self.timesteps is None else self.timesteps.tolist()
        return [i for i, t in enumerate(times) if EARLIEST <= t < LATEST]

    def rows(self, some: slice | Tensor) -> Drawn:
        """Take some of the pictures."""
        way = None if self.way is None else self.way[some]
        return Drawn(self.latents[some], self.prompts.select(some), way, self.timesteps)


@dataclass(frozen=True)
class Noised:
    """What the network is shown: x (n, 4, h, w) at timesteps t (n,) under prompts (n rows)."""

    x: Tensor
    t: Tensor
    cond: Conditioning

    def __len__(self) -> int:
        return len(self.x)

    def batches(self, size: int) -> list[Noised]:
        """Cut into batches, the last of which may be smaller."""
        return [
            Noised(self.x[i : i + size], self.t[i : i + size], self.cond.select(slice(i, i + size)))
            for i in range(0, len(self), size)
        ]


def renoised(
    denoiser: Denoiser,
    drawn: Drawn,
    uncond: Conditioning,
    count: int,
    untold: float,
    generator: torch.Generator,
) -> Noised:
    """Noise finished pictures, each in its turn, to timesteps by chance.

    untold: the share that meets the empty prompt.
    """
    some = torch.arange(count) % len(drawn.latents)
    t = torch.randint(EARLIEST, LATEST, (count,), generator=generator)
    x0 = drawn.latents[some].cpu()
    noise = torch.randn(x0.shape, generator=generator)
    blank = torch.rand(count, generator=generator) < untold
    x = denoiser.schedule.noised(x0, t, noise)
    return Noised(x, t, replaced(_rows(drawn.prompts, some), uncond, blank))


def on_the_way(
    drawn: Drawn,
    uncond: Conditioning,
    count: int,
    untold: float,
    generator: torch.Generator,
) -> Noised:
    """Take what the sampler went through on the way to each picture, at no further pass.

    A picture that is met again is met at another step.
    """
    assert drawn.way is not None and drawn.timesteps is not None
    n, steps = len(drawn.latents), drawn.usable
    some = torch.arange(count) % n
    rounds = -(-count // n)
    dealt = deal(steps, n, rounds, step=max(1, len(steps) // rounds))
    which = torch.tensor([dealt[i % n][i // n] for i in range(count)])
    blank = torch.rand(count, generator=generator) < untold
    x, t = drawn.way[some, which], drawn.timesteps[which]
    return Noised(x, t, replaced(_rows(drawn.prompts, some), uncond, blank))


def replaced(cond: Conditioning, uncond: Conditioning, blank: Tensor) -> Conditioning:
    """Put the empty prompt where blank (b,) says so."""
    rows = blank.to(cond.context.device).view(-1, 1, 1)
    context = torch.where(rows, uncond.context.to(cond.context.dtype), cond.context)
    if cond.vector is None or uncond.vector is None:
        return Conditioning(context, cond.vector)
    return Conditioning(context, torch.where(rows[:, 0], uncond.vector, cond.vector))


def _rows(cond: Conditioning, some: Tensor) -> Conditioning:
    return cond.select(some.to(cond.context.device))


def together(parts: Sequence[Noised]) -> Noised:
    """Join samples."""
    x, t = torch.cat([part.x for part in parts]), torch.cat([part.t for part in parts])
    return Noised(x, t, stack([part.cond for part in parts]))


def shown_to(denoiser: Denoiser, batch: Noised) -> None:
    """Let the network see a batch."""
    place = device_of(denoiser)
    denoiser(batch.x.to(place), batch.t.to(place), batch.cond.to(place))


def chance(seed: int, which: int, number: int = 0) -> torch.Generator:
    """Return the stream of a scrubbing's noise: which = seeds.EFFECT, of a concept, or HARM."""
    return seeds.generator(seeds.sample(seed, number, which))
