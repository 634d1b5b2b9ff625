"""Work and memory of a UNet call at full size, counted on the meta device: no weights, no wait."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from .bench_memory import LiveTensors, fused_attention_assumed
from .bench_model import family_for, schedule_for
from .conditioning import Conditioning
from .denoiser_diffusers import diffusers_denoiser
from .model import blank_unet
from .text_encoders import TIME_WIDTH

GB = 1e9
RECORDED = 8  # prompts that are recorded at once, each as two samples


@dataclass(frozen=True)
class Counted:
    """What one call of a UNet takes at full size: TFLOP, and GB of tensors besides its weights."""

    tflop: float
    gb: float


def count_pass(family: str, samples: int) -> Counted:
    """Count a call's work and float16 tensors, attention fused, without doing it."""
    described = family_for(family)
    unet = blank_unet(described).half().requires_grad_(False)
    denoiser = diffusers_denoiser(unet, schedule_for(family), described.unet.shape)
    side = described.sizes[denoiser.schedule.prediction == "v"]
    with torch.device("meta"), torch.no_grad():
        vector = None
        if described.sized:
            pooled = described.towers[-1].config["projection_dim"]
            vector = torch.zeros(samples, pooled + 6 * TIME_WIDTH)
        cond = Conditioning(torch.zeros(samples, 77, described.unet.context), vector)
        x, t = torch.zeros(samples, 4, *side), torch.zeros(samples, dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            denoiser(x, t, cond)
        with fused_attention_assumed(), LiveTensors() as live:
            denoiser(x, t, cond)
    return Counted(counter.get_total_flops() / 1e12, live.peak / GB)


def count_full_size(family: str, one: Counted) -> dict[str, Any]:
    """Count memory at full size: a picture is sampled as two samples, recording takes more."""
    sampling, recording = count_pass(family, 2).gb, count_pass(family, 2 * RECORDED).gb
    side = family_for(family).sizes[schedule_for(family).prediction == "v"][0]
    return {
        "resolution": 8 * side,
        "tflop_a_pass": round(one.tflop, 3),
        "sampling_gb": round(sampling, 3),
        "recording_gb": round(recording, 3),
        "recording_above_sampling_gb": round(recording - sampling, 3),
    }
