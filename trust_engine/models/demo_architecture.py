"""Shapes of the demo model, as diffusers and transformers configurations."""

from __future__ import annotations

from typing import Any

from .keys import UNetShape

SHAPE = UNetShape(blocks=1, attention=(True, True, False))
UNET_CONFIG: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (64, 128, 192),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 96,
    "attention_head_dim": 4,  # diffusers' name for the number of heads in SD 1.x
    "norm_num_groups": 32,
}
