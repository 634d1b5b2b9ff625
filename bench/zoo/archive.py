"""Small archives of trained weights: 8 bits by row, only what differs from the demo's.

An archive is a safetensors file, compressed with xz. `NAME` holds a tensor's own values, `+NAME`
what is added to the demo's tensor of that name, `NAME:unit` the unit of each row. Metadata: the
steps that were trained, a digest of the demo's weights, and the format's version.
"""

from __future__ import annotations

import hashlib
import json
import lzma
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor

from bench.world.pack import shipped

FOLDER = Path(__file__).with_name("archives")
VERSION = "1"
LARGEST = 127
PRESET = 9 | lzma.PRESET_EXTREME


@dataclass(frozen=True)
class Units:
    """How finely weights are told: units in a row's root mean square; 8 are about 5 bits an entry.

    added: of what is added to the demo's weights; net, text: of own weights; None: as finely as 8
    bits allow.
    """

    added: float = 8.0
    net: float | None = None
    text: float | None = None

    def of(self, name: str) -> float | None:
        """Return those of an own weight."""
        return self.net if name.startswith("net.") else self.text


class ZooError(Exception):
    """What is wrong with an archive or a name, and what to do, in one sentence."""


@dataclass(frozen=True)
class Trained:
    """Averaged weights under "net.NAME" (diffusers' names) and "text.NAME", and their step."""

    weights: Mapping[str, Tensor]
    step: int

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Take the weights below a prefix, without it."""
        return {k.removeprefix(prefix): w for k, w in self.weights.items() if k.startswith(prefix)}


@cache
def demo() -> Mapping[str, Tensor]:
    """Read the demo's weights, which archives are told against."""
    parts = shipped()
    net = {f"net.{name}": weight for name, weight in parts["unet"].items()}
    text = {k: w for k, w in parts["clip"].items() if k.startswith("text.")}
    return net | text


@cache
def demo_digest() -> str:
    """Tell the demo's weights from any other."""
    found = hashlib.sha256()
    for name, weight in sorted(demo().items()):
        found.update(name.encode() + weight.contiguous().numpy().tobytes())
    return found.hexdigest()


def to_bytes(values: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
    """Round rows (n, ...) to whole units (n,) within 8 bits: int8 values and float16 units.

    A unit too small for what its row holds is widened.
    """
    flat = values.float().flatten(1)
    unit = torch.maximum(unit, flat.abs().amax(1) / LARGEST).clamp(min=1e-7).half()
    steps = (flat / unit.float()[:, None]).round().clamp(-LARGEST, LARGEST)
    return steps.to(torch.int8).view(values.shape), unit


def from_bytes(steps: Tensor, unit: Tensor) -> Tensor:
    """Turn int8 rows and their units back into values."""
    return (steps.float().flatten(1) * unit.float()[:, None]).view(steps.shape)


def pack(trained: Trained, units: Units | None = None) -> bytes:
    """Write weights as an archive."""
    fine = units or Units()
    ours: dict[str, Tensor] = {}
    for name, weight in trained.weights.items():
        own, there = weight.float(), demo().get(name)
        if there is None or there.shape != own.shape:
            ours |= _packed(name, own, fine.of(name))
        elif torch.equal(own.half(), there.half()):
            ours["=" + name] = torch.zeros(0)
        elif (own - there).norm() < own.norm():
            ours |= _packed("+" + name, own - there, fine.added)
        else:
            ours |= _packed(name, own, fine.of(name))
    facts = {"version": VERSION, "step": str(trained.step), "demo": demo_digest()}
    ordered = {name: ours[name].contiguous() for name in sorted(ours)}
    return lzma.compress(save(ordered, facts), preset=PRESET)


def _packed(name: str, values: Tensor, units: float | None) -> dict[str, Tensor]:
    """Pack one tensor: vectors and numbers in float16, all else in bytes by row."""
    if values.dim() < 2:
        return {name: values.half()}
    rows = values.flatten(1)
    unit = rows.square().mean(1).sqrt() / units if units else torch.zeros(len(rows))
    steps, unit = to_bytes(values, unit)
    return {name: steps, name + ":unit": unit}


def unpack(data: bytes, name: str) -> Trained:
    """Read an archive; raises ZooError for one that is damaged, or told against another demo."""
    try:
        raw = lzma.decompress(data)
        ours, facts = load(raw), _metadata(raw)
        version, step, told = facts["version"], int(facts["step"]), facts["demo"]
        if version == VERSION and told == demo_digest():
            return Trained(_whole(ours), step)
    except Exception as error:  # whatever a damaged file provokes in its readers
        raise ZooError(
            f"the archive of {name} is damaged ({type(error).__name__}: {error}); get it anew"
        ) from error
    if version != VERSION:
        raise ZooError(f"the archive of {name} has version {version}, this code reads {VERSION}")
    raise ZooError(
        f"the archive of {name} was packed beside another demo model; take both from one commit"
    )


def _whole(ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    weights = {}
    for key, value in ours.items():
        if key.endswith(":unit"):
            continue
        name = key.lstrip("+=")
        values = from_bytes(value, ours[key + ":unit"]) if value.dtype == torch.int8 else value
        there = demo()[name] if key != name else torch.zeros(())
        weights[name] = there.clone() if key.startswith("=") else there + values.float()
    return weights


def _metadata(raw: bytes) -> dict[str, str]:
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length])["__metadata__"]


def path_of(name: str) -> Path:
    """Say where the archive of a model lies."""
    return FOLDER / f"{name}.xz"


def read(name: str) -> Trained:
    """Read a model's archive; raises ZooError when it is missing or damaged."""
    if not path_of(name).is_file():
        raise ZooError(
            f"there is no archive of {name} ({path_of(name)}): "
            f"python -m bench.zoo train {name}, then python -m bench.zoo pack {name}"
        )
    return unpack(path_of(name).read_bytes(), name)
