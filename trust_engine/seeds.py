"""Every stream of chance in the engine, by name; nowhere else is a seed made of another.

All chance is drawn on the processor. The numbers are such that a run's streams do not meet, but for
`ancestral_noise`, and they stay as they are: a diff's bytes hang on them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

LARGEST = 2**63  # a generator takes seeds below it
PROBE = 0  # of fixed latents by which a model is known again, or timed
EFFECT, HARM = 0, 1  # the two samples of a step


def generator(seed: int) -> torch.Generator:
    """Make a stream on the processor, which nobody else draws from."""
    import torch

    return torch.Generator().manual_seed(seed)


def recording_noise(seed: int, prompt: int) -> int:
    """Seed the latent that a recorded prompt's trajectory, or a picture, starts from."""
    return (seed * 100_003 + prompt) % LARGEST


def recorded_positions(seed: int, group: int) -> int:
    """Seed the choice of the positions that a group of recorded prompts keeps."""
    return (seed * 7 + group) % LARGEST


def sample(seed: int, step: int, which: int = EFFECT) -> int:
    """Seed what a step looks at, its number alone deciding; below 0: before training."""
    return (seed * 1_000_003 + 2 * step + which) % LARGEST


def before_training(seed: int, batch: int) -> int:
    """Seed a batch that tells how large the effect is at theta_0."""
    return (seed * 1_000_003 - 1 - batch) % LARGEST


def fisher(seed: int) -> int:
    """Seed the pictures on which Fisher information is measured."""
    return before_training(seed, 0)


def random_mask(seed: int) -> int:
    """Seed a mask of entries by chance."""
    return seed


def ancestral_noise(seed: int) -> int:
    """Seed the noise that a sampler adds on the way of a picture of this seed, as ComfyUI does.

    That of picture s thus begins as the latent of picture s + 1 does.
    """
    return seed + 1


def redrawn_noise(seed: int, step: int) -> int:
    """Seed the noise under which a distilled model's picture is put after a step."""
    return (seed * 1009 + step + 1) % LARGEST


def scrubbed_order(seed: int) -> int:
    """Seed the pass that tells in which order scrubbed layers work."""
    return seed


def relabelled(seed: int, step: int) -> int:
    """Seed what a step of relabelling looks at, apart from all steps of training."""
    return (seed * 1_000_003 + 500_000 + step) % LARGEST


def knowledge(number: int) -> int:
    """Seed a latent under which words are asked for: the same, whatever the run's seed."""
    return 0x7E57_0DD5 + number


def before_after(seed: int) -> int:
    """Return the first of the seeds that a run's test pictures have, apart from its own."""
    return 500_000 + 100 * seed


def core_pictures(seed: int) -> int:
    """Return the first of 10,000 seeds of an audit's core pictures."""
    return 1_000_000 + 10_000 * seed


def group_pictures(seed: int, group: int, groups: int) -> int:
    """Return the first of 10,000 seeds that each further group of an audit's pictures has."""
    return 2**50 + 10_000 * (seed * groups + group)


def evolved_prompt(seed: int, number: int) -> int:
    """Seed the search for one of an attack's prompts."""
    return 100 * seed + number
