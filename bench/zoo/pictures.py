"""One picture of each member, drawn from the file that it unpacks to: what its test draws anew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from bench.world.pack import shipped
from bench.world.train_autoencoder import Codec
from bench.zoo import sd3
from bench.zoo.english import texts_of
from trust_engine.models.contract import Conditioning, Denoiser, ModuleDenoiser, scaled_linear
from trust_engine.models.demo_clip import load_clip
from trust_engine.models.load import load_model
from trust_engine.models.sampler import SamplerSettings, ddim, initial_noise

PROMPT, SEED = "a cat on a red background in noto style", 9
FEW = SamplerSettings(steps=4, cfg=1.0)
SETTINGS = SamplerSettings(steps=20, cfg=4.0)


def draw(name: str, path: Path) -> np.ndarray:
    """Draw a member's picture, (128, 128, 3) uint8; path: the file or folder it was unpacked to."""
    how: dict[str, Callable[[Path], Tensor]] = {"sd3": _sd3, "inpainting": _inpainting}
    if name in how:
        return _pixels(decode(how[name](path)))
    settings = FEW if name == "lightning" else SETTINGS
    model = load_model(str(path), "cpu")
    return _pixels(next(model.generate([PROMPT], [SEED], settings)))


def _pixels(picture: Tensor) -> np.ndarray:
    shown = picture[0].clamp(-1, 1).add(1).mul(127.5).round().byte()
    return shown.permute(1, 2, 0).numpy()


@torch.no_grad()
def decode(latents: Tensor) -> Tensor:
    """Turn latents (b, 4, 16, 16) into pictures by the demo's decoder."""
    codec = Codec()
    codec.load_state_dict(shipped()["autoencoder"])
    return codec.decoder(latents)


def _sd3(folder: Path) -> Tensor:
    from diffusers import SD3Transformer2DModel

    net = SD3Transformer2DModel.from_pretrained(folder / "transformer", torch_dtype=torch.float32)
    texts = sd3.texts_of(load_clip())
    return sd3.draw(sd3.Positional(net.eval()), texts, [PROMPT], [SEED])


def inpainting_denoiser(unet: nn.Module, mask: Tensor, rest: Tensor) -> Denoiser:
    """Let a UNet of 9 channels fill a mask (1, 1, h, w) within latents (1, 4, h, w)."""
    told = torch.cat([mask, rest], 1)

    def forward(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        whole = torch.cat([x, told.expand(len(x), -1, -1, -1)], 1)
        return unet(whole, t, encoder_hidden_states=cond.context).sample

    return ModuleDenoiser(unet, scaled_linear(), forward, str, str)


def _inpainting(folder: Path) -> Tensor:
    """Fill all of a picture."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32).eval()
    mask, grey = torch.ones(1, 1, 16, 16), grey_latents()
    denoiser = inpainting_denoiser(unet, mask, grey)
    texts = texts_of(load_clip())
    told, free = (Conditioning(texts([p])["encoder_hidden_states"].float()) for p in (PROMPT, ""))
    noise = initial_noise([SEED], (16, 16))
    *_, (_, last) = ddim(denoiser, noise, told, free, SETTINGS)
    return last


@torch.no_grad()
def grey_latents() -> Tensor:
    """Encode a grey picture, which stands under an inpainting's mask: (1, 4, 16, 16)."""
    codec = Codec()
    codec.load_state_dict(shipped()["autoencoder"])
    return codec.encoder(torch.zeros(1, 3, 128, 128))


def keep(picture: np.ndarray, path: Path) -> None:
    """Write a picture without loss."""
    Image.fromarray(picture).save(path, optimize=True)
