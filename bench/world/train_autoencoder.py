"""Stage 2: the 4-channel, eight-fold autoencoder of TAESD's architecture, on crops of scenes."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from PIL import Image
from torch import Tensor, nn

from bench.world.pace import Pace
from bench.world.training import RUNS, Stage, autocast, channels_last, pick_device, scene_batch

STEPS, BATCH, RATE = 5500, 16, 8e-4
CROP = 64  # the network is convolutional: crops teach it as well and cost a quarter
NOISE = 0.1  # standard deviation added to latents, so that a denoiser's small errors stay small


class Codec(nn.Module):
    """Encoder and decoder as one module: pixels (b, 3, h, w) -> latents -> pixels."""

    def __init__(self) -> None:
        super().__init__()
        tiny = AutoencoderTiny()
        self.encoder, self.decoder = tiny.encoder, tiny.decoder

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return the reconstruction and the clean latents (b, 4, h/8, w/8)."""
        z = self.encoder(x)
        return self.decoder(z + NOISE * noise), z


def codec_loss(x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Sum of pixel and edge L1, and a pull of each latent channel to mean 0, deviation 1."""
    pixel = F.l1_loss(y, x)
    edge = F.l1_loss(y.diff(dim=-1), x.diff(dim=-1)) + F.l1_loss(y.diff(dim=-2), x.diff(dim=-2))
    mean, deviation = z.mean((0, 2, 3)), z.std((0, 2, 3))
    moments = mean.square().mean() + (deviation - 1).square().mean()
    loss = pixel + edge + 0.3 * F.mse_loss(y, x) + 0.05 * moments
    told = {"pixel": float(pixel.detach()), "deviation": float(deviation.detach().mean())}
    return loss, {name: round(figure, 4) for name, figure in told.items()}


def crops(rng: np.random.Generator, count: int, lattice: int = 1) -> Tensor:
    """Cut a lively window out of each of `count` scenes, (b, 3, 64, 64)."""
    x, _ = scene_batch(rng, count, lattice=lattice)
    room = (x.shape[-1] - CROP) // 8 + 1
    windows = []
    for picture in x:
        tries = [8 * rng.integers(0, room, 2) for _ in range(2)]
        cut = [picture[:, i : i + CROP, j : j + CROP] for i, j in tries]
        windows.append(max(cut, key=lambda window: float(window.std())))
    return torch.stack(windows)


def main() -> None:
    """Train, or resume, and keep the averaged weights."""
    torch.manual_seed(1)
    device = pick_device()
    codec = channels_last(Codec(), device)
    stage = Stage("autoencoder", {"codec": codec}, Pace(STEPS, RATE))
    rng = np.random.default_rng((1, stage.step))
    forward = torch.compile(codec)

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        x = crops(rng, BATCH).to(device, memory_format=torch.channels_last)
        noise = torch.randn(BATCH, 4, CROP // 8, CROP // 8, device=device)
        with autocast(device):
            y, z = forward(x, noise)
        return codec_loss(x, y.float(), z.float())

    for step in stage.run(loss_of):
        if step % 500 == 0 or step == STEPS:
            save_grid(stage, device)
    torch.save(stage.averaged("codec"), RUNS / "autoencoder.pt")


@torch.no_grad()
def save_grid(stage: Stage, device: torch.device) -> None:
    """Write originals above their reconstructions."""
    codec = Codec()
    codec.load_state_dict(stage.averaged("codec"))
    x, _ = scene_batch(np.random.default_rng(7), 8)
    y = codec(x, torch.zeros(8, 4, 16, 16))[0].clamp(-1, 1)
    rows = torch.cat([torch.cat(list(x), 2), torch.cat(list(y), 2)], 1)
    pixels = rows.add(1).mul(127.5).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(stage.folder / f"grid-{stage.step:05d}.png")


if __name__ == "__main__":
    main()
