"""Names of one UNet tensor: ldm (checkpoints and hosts) and diffusers. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

LDM_PREFIX = "model.diffusion_model."

_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_OUTSIDE = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_PROJECTION = re.compile(r"\.attn2\.to_([qkv])\.weight$")


@dataclass(frozen=True)
class UNetShape:
    """What decides the names: residual blocks a level, and which levels carry attention."""

    blocks: int
    attention: tuple[bool, ...]

    @property
    def levels(self) -> int:
        """Number of resolutions."""
        return len(self.attention)


def projection_of(key: str) -> str | None:
    """Return "q", "k" or "v" if the key is a cross-attention projection's weight, else None."""
    match = _PROJECTION.search(key)
    return match.group(1) if match else None


def layer_of(key: str) -> str:
    """Return the cross-attention layer's name of a projection's key."""
    return key[: key.rindex(".to_")]


def module_pairs(shape: UNetShape) -> Iterator[tuple[str, str]]:
    """Yield (ldm prefix, diffusers prefix) for each module of a UNet, residual parts included."""
    yield from _OUTSIDE.items()
    yield from _encoder(shape)
    for i, name in enumerate(("resnets.0", "attentions.0", "resnets.1")):
        yield from _part(f"middle_block.{i}", f"mid_block.{name}")
    yield from _decoder(shape)


def _encoder(shape: UNetShape) -> Iterator[tuple[str, str]]:
    index = 1
    for level in range(shape.levels):
        for block in range(shape.blocks):
            there = f"down_blocks.{level}"
            yield from _part(f"input_blocks.{index}.0", f"{there}.resnets.{block}")
            if shape.attention[level]:
                yield from _part(f"input_blocks.{index}.1", f"{there}.attentions.{block}")
            index += 1
        if level < shape.levels - 1:
            yield f"input_blocks.{index}.0.op", f"down_blocks.{level}.downsamplers.0.conv"
            index += 1


def _decoder(shape: UNetShape) -> Iterator[tuple[str, str]]:
    index = 0
    for level in range(shape.levels):
        attention = shape.attention[shape.levels - 1 - level]
        there = f"up_blocks.{level}"
        for block in range(shape.blocks + 1):
            yield from _part(f"output_blocks.{index}.0", f"{there}.resnets.{block}")
            if attention:
                yield from _part(f"output_blocks.{index}.1", f"{there}.attentions.{block}")
            if block == shape.blocks and level < shape.levels - 1:
                here = f"output_blocks.{index}.{2 if attention else 1}.conv"
                yield here, f"{there}.upsamplers.0.conv"
            index += 1


def _part(ldm: str, diffusers: str) -> Iterator[tuple[str, str]]:
    if ".resnets." not in diffusers:
        yield ldm, diffusers
        return
    for here, there in _RESNET.items():
        yield f"{ldm}.{here}", f"{diffusers}.{there}"


class KeyMap:
    """Translate parameter names of one UNet between ldm and diffusers."""

    def __init__(self, shape: UNetShape) -> None:
        pairs = list(module_pairs(shape))
        self._there = dict(pairs)
        self._here = {there: here for here, there in pairs}

    def to_diffusers(self, key: str) -> str:
        """Translate `input_blocks.1.1.proj_in.weight` to `down_blocks.0.attentions.0...`."""
        return _translate(key, self._there)

    def to_ldm(self, key: str) -> str:
        """Translate `down_blocks.0.attentions.0.proj_in.weight` to `input_blocks.1.1...`."""
        return _translate(key, self._here)


def _translate(key: str, table: dict[str, str]) -> str:
    parts = key.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        prefix = ".".join(parts[:cut])
        if prefix in table:
            return ".".join([table[prefix], *parts[cut:]])
    raise KeyError(f"{key}: not a parameter of a UNet of this shape")
