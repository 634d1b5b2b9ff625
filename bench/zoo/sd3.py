"""`sd3`: a small MMDiT with rectified flow (Esser et al. 2024), on the demo's text tower."""

from __future__ import annotations

import hashlib
import itertools
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
from trust_engine.models.demo_clip import TEXT_CONFIG, TinyClip, tokenize

TOKENS = 24  # of a caption; the rest is padding
STEPS = 20_000
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


@torch.no_grad()
def draw(
    net: Positional, texts: Texts, captions: Sequence[str], seeds: Sequence[int], steps: int = 28,
    cfg: float = 4.0,
) -> Tensor:  # fmt: skip
    """Sample latents (b, 4, 16, 16) by Euler's method on SD 3's shifted times."""
    from trust_engine.models.sampler import initial_noise

    x = initial_noise(list(seeds), (16, 16))
    both = texts([*[""] * len(captions), *captions])
    u = torch.linspace(1, 0, steps + 1)
    sigmas = SHIFT * u / (1 + (SHIFT - 1) * u)
    for now, then in itertools.pairwise(sigmas.tolist()):
        t = torch.full((2 * len(x),), 1000 * now)
        free, told = net(torch.cat([x, x]), t, **both).sample.float().chunk(2)
        x = x + (then - now) * (free + cfg * (told - free))
    return x


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
