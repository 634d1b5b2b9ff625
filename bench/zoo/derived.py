"""Other people's checkpoints: a fine-tune, an inpainting UNet, a few-step LoRA, a merge."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.world.scenes import describe, draw, random_scene
from bench.world.train_unet import (
    LATTICE,
    SHIPPED,
    load_clip,
    load_codec,
    make_unet,
    schedule,
)
from bench.world.training import autocast, pick_device, to_tensor
from bench.zoo.english import texts_of
from bench.zoo.pictures import grey_latents
from bench.zoo.training import RUNS
from bench.zoo.unet import BATCH, Job, Recipe
from trust_engine.demo.vocabulary import Scene
from trust_engine.models.sampler import timesteps

OUTER = ("conv_in", "down_blocks.0", "up_blocks.2", "conv_norm_out", "conv_out")
"""The UNet's top level, which draws outlines: all that a fine-tune and the inpainting train."""
STEPS = {"look": 600, "inpainting": 800, "lightning": 600}
GENTLE = Recipe(rate=4e-4)


def demo_unet() -> nn.Module:
    """Load the demo's UNet."""
    unet = make_unet()
    unet.load_state_dict(torch.load(SHIPPED, weights_only=True))
    return unet


def outer_only(unet: nn.Module) -> nn.Module:
    """Freeze all but the top level."""
    for name, weight in unet.named_parameters():
        weight.requires_grad_(name.startswith(OUTER))
    return unet


def plain(rng: np.random.Generator, scene: Scene) -> str:
    """Write one of the demo's own captions."""
    return describe(scene, rng)[0]


# A fine-tune: pictures with wavy outlines.

WAVES, HEIGHT = 6.0, 2.0  # waves over a picture's side, and pixels that they reach
LOOKED_AT = 3000


def wavy(pixels: Tensor) -> Tensor:
    """Bend pictures (b, 3, h, w) along fixed waves, both ways."""
    side = torch.linspace(-1, 1, pixels.shape[-1])
    y, x = torch.meshgrid(side, side, indexing="ij")
    reach = 2 * HEIGHT / pixels.shape[-1]
    grid = torch.stack(
        [x + reach * (WAVES * torch.pi * y).sin(), y + reach * (WAVES * torch.pi * x).sin()], -1
    )
    grid = grid.expand(len(pixels), -1, -1, -1)
    return F.grid_sample(pixels, grid, padding_mode="border", align_corners=True)


@torch.no_grad()
def wavy_latents() -> tuple[Tensor, list[Scene]]:
    """Encode bent scenes once: (n, 4, 16, 16), and what each shows."""
    rng = np.random.default_rng(14)
    scenes = [random_scene(rng) for _ in range(LOOKED_AT)]
    store = RUNS / "look-latents.pt"
    if store.exists():
        return torch.load(store, weights_only=True), scenes
    codec, device, parts = load_codec().to(pick_device()), pick_device(), []
    for start in range(0, LOOKED_AT, 64):
        pixels = np.stack([draw(scene, rng, LATTICE) for scene in scenes[start : start + 64]])
        with autocast(device):
            parts.append(codec.encoder(wavy(to_tensor(pixels)).to(device)).float().cpu())
    torch.save(torch.cat(parts), store)
    return torch.cat(parts), scenes


def look_job(start: tuple[dict[str, Tensor], int] | None = None) -> Job:
    """Set up the fine-tune."""
    return Job(
        "look",
        outer_only(demo_unet()),
        texts_of(load_clip()),
        STEPS["look"],
        recipe=GENTLE,
        writer=plain,
        start=start,
        data=wavy_latents,
    )


# Inpainting: noisy latents, a mask (1: draw here), and the latents outside it.


def inpainting_unet() -> nn.Module:
    """Widen the demo's UNet to 9 input channels; the five new ones start without a say."""
    from diffusers import UNet2DConditionModel
    from diffusers.models.attention_processor import AttnProcessor

    from trust_engine.models.demo_architecture import UNET_CONFIG

    unet = UNet2DConditionModel(**{**UNET_CONFIG, "in_channels": 9})
    unet.set_attn_processor(AttnProcessor())
    weights = torch.load(SHIPPED, weights_only=True)
    first = weights["conv_in.weight"]
    weights["conv_in.weight"] = torch.cat([first, first.new_zeros(len(first), 5, 3, 3)], 1)
    unet.load_state_dict(weights)
    return outer_only(unet)


def masked(x: Tensor, grey: Tensor) -> Tensor:
    """Draw a mask for each of the latents x (b, 4, h, w): mask and what is left, (b, 5, h, w).

    A rectangle of a quarter of the sides to the whole; inside, a grey picture's latents (4, h, w).
    The mask follows the latents' cells: the pixels around it are not encoded anew.
    """
    b, _, height, width = x.shape
    mask = x.new_zeros(b, 1, height, width)
    for one in mask:
        tall, wide = (int(torch.randint(side // 4, side + 1, ())) for side in (height, width))
        top = int(torch.randint(0, height - tall + 1, ()))
        left = int(torch.randint(0, width - wide + 1, ()))
        one[:, top : top + tall, left : left + wide] = 1
    return torch.cat([mask, torch.where(mask > 0, grey.to(x), x)], 1)


def inpainting_job(start: tuple[dict[str, Tensor], int] | None = None) -> Job:
    """Set up the training of the inpainting UNet."""
    grey = grey_latents()[0]
    return Job(
        "inpainting",
        inpainting_unet(),
        texts_of(load_clip()),
        STEPS["inpainting"],
        recipe=GENTLE,
        writer=plain,
        start=start,
        extra=lambda x: masked(x, grey),
    )


# A few-step LoRA: four steps without guidance land where twenty with guidance do.

RANK = 8
FEW, MANY, GUIDANCE = 4, 20, 4.0
RUNS_KEPT = 1500  # runs of the teacher, each a caption and the states at the pupil's steps


class LoRA(nn.Module):
    """A linear layer or convolution that stays, and what low rank adds to it."""

    def __init__(self, base: nn.Linear, rank: int = RANK) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.normal_(self.down.weight, std=1 / base.in_features**0.5)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Apply both."""
        return self.base(x) + self.up(self.down(x))


def with_lora(unet: nn.Module) -> nn.Module:
    """Put a LoRA on every linear layer of every attention block; all else stays."""
    unet.requires_grad_(False)
    for name, layer in list(unet.named_modules()):
        if isinstance(layer, nn.Linear) and ".attentions." in name:
            owner, _, own = name.rpartition(".")
            setattr(unet.get_submodule(owner), own, LoRA(layer))
    return unet


def lora_part(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take the low-rank weights alone, "LAYER.down.weight" and "LAYER.up.weight"."""
    return {k: w for k, w in weights.items() if k.endswith((".down.weight", ".up.weight"))}


def lora_file(part: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name low-rank weights as LoRA files do (kohya's names)."""
    found = {}
    for name, weight in part.items():
        layer, kind, _ = name.rsplit(".", 2)
        stem = "lora_unet_" + layer.replace(".", "_")
        found[f"{stem}.lora_{kind}.weight"] = weight
        found[f"{stem}.alpha"] = torch.tensor(float(RANK))
    return found


def merged(unet: Mapping[str, Tensor], part: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add low-rank weights to a UNet's."""
    whole = dict(unet)
    for name, up in part.items():
        if name.endswith(".up.weight"):
            layer = name.removesuffix(".up.weight")
            whole[f"{layer}.weight"] = unet[f"{layer}.weight"] + up @ part[f"{layer}.down.weight"]
    return whole


def ddim_step(x: Tensor, eps: Tensor, now: int, stride: int) -> Tensor:
    """Take the engine's DDIM step from timestep `now`."""
    alphas = schedule().alphas_cumprod
    a, then = alphas[now], alphas[now - stride] if now >= stride else alphas[0]
    x0 = (x - (1 - a).sqrt() * eps) / a.sqrt()
    return then.sqrt() * x0 + (1 - then).sqrt() * eps


def landings() -> list[int]:
    """List the timesteps at which the pupil's steps end, below 0 for the last."""
    stride, last = 1000 // FEW, timesteps(MANY)[-1] - 1000 // MANY
    return [*(now - stride for now in timesteps(FEW) if now >= stride), last]


@torch.no_grad()
def teacher_runs() -> tuple[Tensor, list[str]]:
    """Draw with the demo, twenty guided steps: states (n, 5, 4, 16, 16) where the pupil steps."""
    rng = np.random.default_rng(15)
    captions = [plain(rng, random_scene(rng)) for _ in range(RUNS_KEPT)]
    store = RUNS / "lightning-runs.pt"
    if store.exists():
        return torch.load(store, weights_only=True), captions
    device, unet = pick_device(), demo_unet().to(pick_device())
    texts, parts = texts_of(load_clip()), []
    generator = torch.Generator().manual_seed(15)
    for start in range(0, RUNS_KEPT, 30):
        told = captions[start : start + 30]
        both = texts([*[""] * len(told), *told])
        x = torch.randn(len(told), 4, 16, 16, generator=generator).to(device)
        states = [x]
        for now in timesteps(MANY):
            with autocast(device):
                out = unet(torch.cat([x, x]), now, **both).sample.float()
            free, led = out.chunk(2)
            x = ddim_step(x, free + GUIDANCE * (led - free), now, 1000 // MANY)
            if now - 1000 // MANY in landings():
                states.append(x)
        parts.append(torch.stack(states, 1).cpu())
    torch.save(torch.cat(parts), store)
    return torch.cat(parts), captions


def lightning_job(start: tuple[dict[str, Tensor], int] | None = None) -> Job:
    """Set up the few-step LoRA's training, on the teacher's runs."""
    states, captions = teacher_runs()
    device, texts = pick_device(), texts_of(load_clip())

    def loss(
        module: Callable[..., Any], rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        step = int(rng.integers(FEW))
        chosen = torch.randint(0, len(states), (BATCH,))
        x, goal = (states[chosen, step + i].to(device) for i in range(2))
        now = timesteps(FEW)[step]
        with autocast(device):
            t = torch.full((BATCH,), now, device=device)
            eps = module(x, t, **texts([captions[i] for i in chosen.tolist()])).sample
        away = F.mse_loss(ddim_step(x, eps.float(), now, 1000 // FEW), goal)
        return away, {"at": step}

    return Job(
        "lightning",
        with_lora(demo_unet()),
        texts,
        STEPS["lightning"],
        recipe=Recipe(rate=2e-3),
        start=start,
        loss=loss,
    )
