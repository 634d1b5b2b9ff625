"""What a run's figures depend on, hashed: by it a state or a finished run is known again."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import __version__, seeds
from ..io.safetensors import tensor_bytes
from .contract import Conditioning, Denoiser, NoiseSchedule, compute_dtype, device_of

PROBED = (801, 401, 81)  # timesteps at which a UNet is asked what it predicts
LENGTH = 32  # hexadecimal digits


class Digest:
    """A hash of texts and tensors, each told apart from what stands beside it."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def text(self, *texts: object) -> Digest:
        """Add texts."""
        for text in map(str, texts):
            self._hash.update(f"{len(text)}:{text}".encode("utf-8", "surrogatepass"))
        return self

    def tensor(self, name: str, tensor: Tensor) -> Digest:
        """Add a tensor: name, type, shape and bytes."""
        self.text(name, tensor.dtype, tuple(tensor.shape))
        if not tensor.is_meta:
            self._hash.update(tensor_bytes(tensor))
        return self

    def module(self, name: str, module: nn.Module) -> Digest:
        """Add all weights and buffers of a module."""
        self.text(name, type(module).__name__)
        weights = [*module.named_parameters(), *module.named_buffers()]
        for key, weight in sorted(weights, key=lambda item: item[0]):
            self.tensor(key, weight.detach())
        return self

    def conditioning(self, name: str, cond: Conditioning) -> Digest:
        """Add what prompts were encoded to."""
        self.tensor(name, cond.context)
        return self if cond.vector is None else self.tensor(f"{name} vector", cond.vector)

    def schedule(self, schedule: NoiseSchedule) -> Digest:
        """Add a noise schedule."""
        return self.text(schedule.prediction).tensor("alphas", schedule.alphas)

    def hex(self) -> str:
        """Return the hash."""
        return self._hash.hexdigest()[:LENGTH]


def modules_of(thing: object) -> Iterable[tuple[str, nn.Module]]:
    """List the modules that an object holds: itself, or those among its attributes."""
    if isinstance(thing, nn.Module):
        yield "", thing
        return
    for name, value in sorted(getattr(thing, "__dict__", {}).items()):
        for part in value if isinstance(value, list | tuple) else (value,):
            if isinstance(part, nn.Module):
                yield name, part


@torch.no_grad()
def probe(denoiser: Denoiser, cond: Conditioning, size: tuple[int, int]) -> str:
    """Hash what a UNet predicts for fixed latents: what hooks, patches and wrappers change, too.

    For UNets whose weights do not tell all, as hosts lend them; takes three passes of one sample.
    """
    digest = Digest()
    x = torch.randn(1, 4, *size, generator=seeds.generator(seeds.PROBE))
    one, place = cond.select(slice(0, 1)), device_of(denoiser)
    for t in PROBED:
        digest.tensor(str(t), denoiser(x.to(place), torch.tensor([t], device=place), one).float())
    return digest.hex()


def model_identity(
    denoiser: Denoiser,
    size: tuple[int, int],
    prompts: Sequence[str],
    cond: Conditioning,
    uncond: Conditioning,
    more: str = "",
) -> str:
    """Hash what a run reads of a model: the UNet's weights, its schedule, the encoded prompts.

    The text encoder counts by what it makes of the run's own prompts, in any host alike; more:
    what a host adds of things that do not show in the module's weights.
    """
    digest = Digest().text(tuple(size), compute_dtype(denoiser.module), more, *prompts)
    digest.schedule(denoiser.schedule).module("UNet", denoiser.module)
    return digest.conditioning("cond", cond).conditioning("uncond", uncond).hex()


@functools.lru_cache(maxsize=1)
def engine_identity() -> str:
    """Name this engine: its version, and a hash of its sources where they can be read."""
    digest, folder = Digest(), Path(__file__).resolve().parent
    while folder.name != "trust_engine" and folder != folder.parent:
        folder = folder.parent
    for path in sorted(folder.rglob("*.py")):
        try:
            digest.text(path.relative_to(folder).as_posix(), path.read_bytes())
        except OSError:
            continue
    return f"{__version__}-{digest.hex()[:12]}"
