"""`sd3`: a small MMDiT with rectified flow (Esser et al. 2024), on the demo's text tower."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.world.scenes import describe
from bench.world.train_unet import load_clip
from bench.world.training import autocast, pick_device
from bench.zoo.archive import Trained
from bench.zoo.files import demo_folder, index_of, write_folder
from bench.zoo.unet import Job, Recipe, Texts
from trust_engine.demo.vocabulary import OBJECTS
from trust_engine.models.contract import Conditioning, ModuleDenoiser, scaled_linear
from trust_engine.models.demo_clip import TEXT_CONFIG, TinyClip, tokenize

TOKENS = 24  # of a caption; the rest is padding
STEPS = 8_000
SHIFT = 3.0
CONFIG: dict[str, Any] = {
    "sample_size": 16,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 6,
    "attention_head_dim": 32,
    "num_attention_heads": 5,
    "joint_attention_dim": TEXT_CONFIG["hidden_size"],
    "caption_projection_dim": 160,
    "pooled_projection_dim": TEXT_CONFIG["projection_dim"],
    "pos_embed_max_size": 16,
}
SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "shift": SHIFT,
}


def developed_on() -> tuple[str, ...]:
    """Name the half of the objects that work on this model may look at; the rest is measured.

    By the first byte of a hash of the name, so that no one chose.
    """
    return tuple(n for n in OBJECTS if hashlib.sha256(n.encode()).digest()[0] % 2 == 0)


def make_net() -> nn.Module:
    """Build the transformer."""
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(**CONFIG)


def texts_of(clip: TinyClip) -> Texts:
    """Encode captions to states (b, 24, 96) and projections (b, 96)."""
    device = pick_device()
    clip = clip.to(device)

    def texts(captions: Sequence[str]) -> Mapping[str, Tensor]:
        ids = tokenize(list(captions))[:, :TOKENS].to(device)
        ids[:, -1] = TEXT_CONFIG["eos_token_id"]
        with torch.no_grad(), autocast(device):
            out = clip.text(ids)
        return {
            "encoder_hidden_states": out.last_hidden_state.float(),
            "pooled_projections": out.text_embeds.float(),
        }

    return texts


class Positional(nn.Module):
    """The transformer, called as a UNet is: (latents, times, **texts)."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor, **told: Tensor) -> Any:
        """Predict the velocity, noise - x0."""
        return self.net(hidden_states=x, timestep=t, **told)


def job(start: tuple[dict[str, Tensor], int] | None = None) -> Job:
    """Set up the training, on the demo's captions."""
    return Job(
        "sd3",
        Positional(make_net()),
        texts_of(load_clip()),
        STEPS,
        "flow",
        Recipe(decay=0.9995),
        lambda rng, scene: describe(scene, rng)[0],
        start,
    )


def as_eps(net: Positional) -> ModuleDenoiser:
    """Lend a rectified flow as a network that predicts noise on SD 1.x's schedule.

    There x_t = a x0 + b n, a^2 + b^2 = 1; divided by a + b this is the flow's state at
    sigma = b / (a + b), where x0 = z - sigma v and n = z + (1 - sigma) v.
    """
    schedule = scaled_linear()

    def forward(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        assert cond.vector is not None
        alphas = schedule.alphas.to(x.device)[t].to(x.dtype)
        a, b = alphas.sqrt(), (1 - alphas).sqrt()
        sigma = b / (a + b)
        z = x / (a + b).view(-1, 1, 1, 1)
        told = {"encoder_hidden_states": cond.context, "pooled_projections": cond.vector}
        return z + (1 - sigma).view(-1, 1, 1, 1) * net(z, 1000 * sigma, **told).sample

    return ModuleDenoiser(net, schedule, forward, str, str)


INDEX = index_of(
    "StableDiffusion3Pipeline", "transformer", "SD3Transformer2DModel",
    "FlowMatchEulerDiscreteScheduler", "CLIPTextModelWithProjection",
)  # fmt: skip


def write(trained: Trained, folder: Path) -> Path:
    """Write a diffusers folder; its text tower and autoencoder are the demo's."""
    parts, configs = demo_folder()
    config = {"_class_name": "SD3Transformer2DModel", **CONFIG}
    parts["transformer"] = trained.part("net.net.")
    return write_folder(
        folder, parts, {**configs, "transformer": config, "scheduler": SCHEDULER}, INDEX
    )
