"""Stage 5: the decoder alone, sharper, on the layouts the UNet draws; its input stays as it is."""

from __future__ import annotations

import numpy as np
import torch

from bench.world.pace import Pace
from bench.world.train_autoencoder import CROP, NOISE, codec_loss, crops
from bench.world.train_unet import LATTICE, load_codec
from bench.world.training import RUNS, Stage, autocast, channels_last, pick_device

STEPS, BATCH, RATE = 1500, 16, 8e-4


def main() -> None:
    """Train, or resume, and keep the averaged decoder beside the encoder."""
    torch.manual_seed(6)
    device = pick_device()
    codec = channels_last(load_codec(), device)
    codec.decoder.requires_grad_(True)
    stage = Stage("decoder", {"decoder": codec.decoder}, Pace(STEPS, RATE))
    rng = np.random.default_rng((6, stage.step))
    encode, decode = torch.compile(codec.encoder), torch.compile(codec.decoder)

    def loss_of(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        x = crops(rng, BATCH, LATTICE).to(device, memory_format=torch.channels_last)
        with autocast(device):
            with torch.no_grad():
                z = encode(x)
            y = decode(z + NOISE * torch.randn(BATCH, 4, CROP // 8, CROP // 8, device=device))
        return codec_loss(x, y.float(), z.float())

    for _ in stage.run(loss_of):
        pass
    codec.decoder.load_state_dict(stage.averaged("decoder"))
    torch.save(codec.state_dict(), RUNS / "autoencoder.pt")


if __name__ == "__main__":
    main()
