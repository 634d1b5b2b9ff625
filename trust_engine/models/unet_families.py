"""Families of UNets whose weights have the same names and shapes, known by their text width."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .demo_architecture import SHAPE, UNET_CONFIG, V_CONFIG, XL_CONFIG, XL_SHAPE
from .unet_keys import UNetShape, projection_of

_CROSS, _PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
_UP_CROSS, _UP_PLAIN = "CrossAttnUpBlock2D", "UpBlock2D"
_SD: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "down_block_types": [_CROSS, _CROSS, _CROSS, _PLAIN],
    "up_block_types": [_UP_PLAIN, _UP_CROSS, _UP_CROSS, _UP_CROSS],
}
_SD1 = {**_SD, "cross_attention_dim": 768, "attention_head_dim": 8}
_SD2 = {
    **_SD,
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
}
_SDXL: dict[str, Any] = {
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [320, 640, 1280],
    "layers_per_block": 2,
    "down_block_types": [_PLAIN, _CROSS, _CROSS],
    "up_block_types": [_UP_CROSS, _UP_CROSS, _UP_PLAIN],
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "transformer_layers_per_block": [1, 2, 10],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_SD_SHAPE = UNetShape(2, (True, True, True, False))


@dataclass(frozen=True)
class Family:
    """One family: its name, text width, layout, diffusers config, and how LoRA files name it.

    tags: the `ss_*` metadata without which a host hides a file of the family, or takes it for
    another's.
    """

    name: str
    context: int
    shape: UNetShape
    config: Mapping[str, Any]
    tags: Mapping[str, str]


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("sd1", 768, _SD_SHAPE, _SD1, {"ss_base_model_version": "sd_v1"}),
        Family("sd2", 1024, _SD_SHAPE, _SD2, {"ss_base_model_version": "sd_v2", "ss_v2": "True"}),
        Family(
            "sdxl",
            2048,
            UNetShape(2, (False, True, True)),
            _SDXL,
            {"ss_base_model_version": "sdxl_base_v1-0"},
        ),
        Family("demo", 96, SHAPE, UNET_CONFIG, {"ss_base_model_version": "sd_v1"}),
        Family("demo-v", 128, SHAPE, V_CONFIG, {"ss_base_model_version": "sd_v2", "ss_v2": "True"}),
        Family("demo-xl", 160, XL_SHAPE, XL_CONFIG, {"ss_base_model_version": "sdxl_base_v1-0"}),
    )
}


def family_of(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Name the family by the width of the text that k and v read; None when that tells nothing."""
    widths = {
        shape[1]
        for key, shape in shapes.items()
        if projection_of(key) in ("k", "v") and len(shape) == 2
    }
    named = [family.name for family in FAMILIES.values() if {family.context} == widths]
    return named[0] if named else None
