"""Stage 4: the latent diffusion UNet (eps-prediction, scaled-linear schedule of SD 1.x)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from torch import Tensor

from bench.world.pace import Pace
from bench.world.scenes import describe, draw, random_scene
from bench.world.train_autoencoder import Codec
from bench.world.training import RUNS, Stage, autocast, channels_last, pick_device, to_tensor
from trust_engine.demo.vocabulary import OBJECTS, STYLES, Scene
from trust_engine.models.demo_architecture import UNET_CONFIG
from trust_engine.models.demo_clip import TinyClip, tokenize

STEPS, BATCH, RATE = 14_000, 48, 1e-3
MORE = 3000  # steps that train on a UNet that ships
SCENES = 12_000
CAPTIONS = 3  # different ones for each scene
PAIRS = 0.4  # share of two-object scenes in a batch: they are the harder ones
LATTICE = 8  # pixels of one latent cell: it spares the UNet every sprite's sub-cell variants
GRID_STEPS = 20  # of DDIM, in the grids that show how far it is
DROP = 0.1  # share of captions replaced by "", so that guidance works
SNR_CAP = 5.0
SHIPPED = RUNS / "unet-shipped.pt"  # where to go on from, if it is there
HARD = ("bicycle", "bird", "horse", "tree", "umbrella", "fish", "sunflower", "pizza", "gun", "baby")
"""Drawn least well after 14,000 even steps (`bench.world.quality`): twice as often when more."""
LEAN = 0.75  # timesteps are 1000 u^0.75: more of the noisy ones, where the prompt is drawn from


def schedule() -> DDIMScheduler:
    """Return SD 1.x's noise schedule."""
    return DDIMScheduler(
        1000, 0.00085, 0.012, "scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip


@torch.no_grad()
def latents(device: torch.device) -> tuple[Tensor, list[Scene]]:
    """Encode the scenes once: (n, 4, 16, 16) and what each shows."""
    rng = np.random.default_rng(4)
    scenes = [random_scene(rng) for _ in range(SCENES)]
    store = RUNS / "latents.pt"
    if store.exists():
        return torch.load(store, weights_only=True), scenes
    codec = channels_last(load_codec(), device)
    parts = []
    for start in range(0, SCENES, 64):
        pixels = np.stack([draw(scene, rng, LATTICE) for scene in scenes[start : start + 64]])
        x = to_tensor(pixels).to(device, memory_format=torch.channels_last)
        with autocast(device):
            parts.append(codec.encoder(x).float().cpu())
    torch.save(torch.cat(parts), store)
    return torch.cat(parts), scenes


def weight_of(snr: Tensor) -> Tensor:
    """Weigh the squared eps error at a signal-to-noise ratio: x0's error counts min(1 + snr, 5).

    Below the cap that is v-prediction's weighting, above it min-SNR's (arXiv 2303.09556). Plain
    eps weighting hardly teaches the noisiest steps, where the prompt decides what is drawn.
    """
    return (1 + snr).clamp(max=SNR_CAP) / snr


@torch.no_grad()
def captions(scenes: list[Scene], clip: TinyClip, device: torch.device) -> Tensor:
    """Encode CAPTIONS captions of each scene and then one empty one, (n, 77, d) in bfloat16."""
    rng = np.random.default_rng(5)
    texts = [describe(scene, rng)[0] for scene in scenes for _ in range(CAPTIONS)] + [""]
    with autocast(device):
        parts = [
            clip.text(tokenize(texts[i : i + 128]).to(device)).last_hidden_state.bfloat16()
            for i in range(0, len(texts), 128)
        ]
    return torch.cat(parts)


def load_codec() -> Codec:
    """Load the trained autoencoder."""
    codec = Codec()
    codec.load_state_dict(torch.load(RUNS / "autoencoder.pt", weights_only=True))
    return codec.eval().requires_grad_(False)


def load_clip() -> TinyClip:
    """Load the trained towers, frozen."""
    clip = TinyClip()
    clip.load_state_dict(torch.load(RUNS / "clip.pt", weights_only=True))
    return clip.eval().requires_grad_(False)


def make_unet() -> UNet2DConditionModel:
    """Build the UNet with attention written out: its backward is faster on a CPU."""
    unet = UNet2DConditionModel(**UNET_CONFIG)
    unet.set_attn_processor(AttnProcessor())
    return unet


def main() -> None:
    """Train, or resume, keep the averaged weights and sample grids."""
    torch.manual_seed(4)
    device = pick_device()
    z, scenes = latents(device)
    clip = load_clip().to(device)
    texts = captions(scenes, clip, device)
    unet = channels_last(make_unet(), device)
    steps, decay, hard = STEPS, 0.9995, 1.0
    if SHIPPED.exists():
        unet.load_state_dict(torch.load(SHIPPED, weights_only=True))
        steps, decay, hard = MORE, 0.999, 2.0
    stage = Stage("unet", {"unet": unet}, Pace(steps, RATE, decay, muon=True))
    torch.manual_seed(stage.step + 4)
    rng = np.random.default_rng((4, stage.step))
    forward = torch.compile(unet)
    alphas = schedule().alphas_cumprod.to(device)

    count = torch.tensor([len(scene.objects) for scene in scenes])
    share = torch.where(count == 2, PAIRS / (count == 2).sum(), (1 - PAIRS) / (count == 1).sum())
    share *= torch.tensor([hard if set(scene.objects) & set(HARD) else 1.0 for scene in scenes])

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        chosen = torch.multinomial(share, BATCH, replacement=True)
        told = chosen * CAPTIONS + torch.from_numpy(rng.integers(0, CAPTIONS, BATCH))
        told[torch.from_numpy(rng.random(BATCH) < DROP)] = -1
        x = z[chosen].to(device)
        noise = torch.randn_like(x)
        t = (1000 * torch.rand(BATCH, device=device) ** LEAN).long().clamp(max=999)
        signal = alphas[t].view(-1, 1, 1, 1)
        noisy = signal.sqrt() * x + (1 - signal).sqrt() * noise
        with autocast(device):
            out = forward(noisy, t, texts[told.to(texts.device)].float()).sample
        snr = alphas[t] / (1 - alphas[t])
        each = F.mse_loss(out.float(), noise, reduction="none").mean((1, 2, 3))
        plain = round(float(each.detach().mean()), 4)
        return (each * weight_of(snr)).mean(), {"mse": plain}

    for step in stage.run(loss_of):
        if step % 500 == 0 or step == steps:
            torch.save(stage.averaged("unet"), RUNS / "unet.pt")
        if step % 1000 == 0 or step == steps:
            save_grid(stage, clip, device)


@torch.no_grad()
def save_grid(stage: Stage, clip: TinyClip, device: torch.device) -> None:
    """Draw ten objects in each of the five styles, and five pairs."""
    unet = make_unet().to(device)
    unet.load_state_dict(stage.averaged("unet"))
    names = list(OBJECTS)
    start = stage.step // 1000 * 7
    texts = [
        f"a {names[(start + c) % len(names)]} on a blue background in {style} style"
        for style in STYLES
        for c in range(9)
    ]
    for row, style in enumerate(STYLES):
        texts.insert(row * 10 + 9, f"a {names[(start + row) % 28]} and a cat in {style} style")
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(len(texts), 4, 16, 16, generator=generator).to(device)
    both = clip.text(tokenize([""] * len(texts) + texts).to(device)).last_hidden_state
    sampler = schedule()
    sampler.set_timesteps(GRID_STEPS)
    for t in sampler.timesteps:
        with autocast(device):
            free, told = unet(torch.cat([x, x]), t, both).sample.float().chunk(2)
        x = sampler.step(free + 4.0 * (told - free), t, x).prev_sample
    pixels = load_codec().to(device).decoder(x).clamp(-1, 1).add(1).mul(127.5).round().byte()
    pictures = pixels.permute(0, 2, 3, 1).cpu().numpy().reshape(5, 10, 128, 128, 3)
    grid = pictures.transpose(0, 2, 1, 3, 4).reshape(640, 1280, 3)
    Image.fromarray(grid).save(stage.folder / f"grid-{stage.step:05d}.png")


if __name__ == "__main__":
    main()
