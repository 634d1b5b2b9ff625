"""The demo model, read from its file once a process: each who asks gets a copy of its own."""

from __future__ import annotations

import copy
import functools
from dataclasses import replace

from trust_engine.models.demo_architecture import SHAPE
from trust_engine.models.diffusers_unet import diffusers_denoiser
from trust_engine.models.load import LoadedModel, load_model


@functools.cache
def _read() -> LoadedModel:
    return load_model("demo", "cpu")


def demo_model() -> LoadedModel:
    """Copy the demo model, weights and all, which takes a fraction of loading it."""
    kept = _read()
    encoder = copy.copy(kept.encoder)
    encoder.tower = copy.deepcopy(kept.encoder.tower)
    unet, schedule = copy.deepcopy(kept.denoiser.module), kept.denoiser.schedule
    denoiser = diffusers_denoiser(unet, schedule, SHAPE)
    return replace(kept, denoiser=denoiser, encoder=encoder, decoder=copy.deepcopy(kept.decoder))
