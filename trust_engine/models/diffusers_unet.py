"""A diffusers UNet2DConditionModel under the engine's contract."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn

from .contract import Conditioning, ModuleDenoiser, NoiseSchedule
from .unet_keys import KeyMap, UNetShape


def diffusers_denoiser(
    unet: nn.Module, schedule: NoiseSchedule, shape: UNetShape
) -> ModuleDenoiser:
    """Adapt a diffusers UNet: `forward(sample, timestep, encoder_hidden_states)`."""
    keys = KeyMap(shape)

    def forward(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        if cond.vector is None:
            return unet(x, t, encoder_hidden_states=cond.context).sample
        with _vector_as_it_is(unet):
            # Their UNet embeds six numbers and appends them; our vector ends in them, embedded.
            added = {"text_embeds": cond.vector[:, :-1], "time_ids": cond.vector[:, -1:]}
            told = {"encoder_hidden_states": cond.context, "added_cond_kwargs": added}
            return unet(x, t, **told).sample

    return ModuleDenoiser(unet, schedule, forward, keys.to_ldm, keys.to_diffusers)


@contextlib.contextmanager
def _vector_as_it_is(unet: nn.Module) -> Iterator[None]:
    """Let SDXL's embedding of size and crop hand on what it gets, for the length of a call."""
    own = unet.add_time_proj
    unet.add_time_proj = nn.Identity()
    try:
        yield
    finally:
        unet.add_time_proj = own
