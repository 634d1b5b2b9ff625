"""A diffusers UNet2DConditionModel under the engine's contract."""

from __future__ import annotations

from torch import Tensor, nn

from .conditioning import Conditioning
from .denoiser import ModuleDenoiser, NoiseSchedule
from .keys import KeyMap, UNetShape


def diffusers_denoiser(
    unet: nn.Module, schedule: NoiseSchedule, shape: UNetShape
) -> ModuleDenoiser:
    """Adapt a diffusers UNet: `forward(sample, timestep, encoder_hidden_states)`."""
    keys = KeyMap(shape)

    def forward(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        return unet(x, t, encoder_hidden_states=cond.context).sample

    return ModuleDenoiser(unet, schedule, forward, keys.to_ldm, keys.to_diffusers)
