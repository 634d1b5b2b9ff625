"""A member as it is drawn with, from the file or folder that it unpacks to, and its one picture.

That picture is committed; its test draws it anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bench.world.pack import shipped
from bench.world.train_autoencoder import Codec
from bench.zoo import sd3
from trust_engine.models.contract import Conditioning, ModuleDenoiser, scaled_linear
from trust_engine.models.demo_clip import load_clip
from trust_engine.models.load import LoadedModel, load_model
from trust_engine.models.sampler import SamplerSettings

PROMPT, SEED = "a cat on a red background in noto style", 9
FEW = SamplerSettings(steps=4, cfg=1.0)
SETTINGS = SamplerSettings(steps=20, cfg=4.0)


def settings_of(name: str) -> SamplerSettings:
    """Return how a member draws: the few-step LoRA in four steps without guidance."""
    return FEW if name == "lightning" else SETTINGS


def load(name: str, path: Path) -> LoadedModel:
    """Load a member; of those that the engine refuses, diffusers loads the network itself."""
    own: dict[str, Callable[[Path], LoadedModel]] = {"sd3": _sd3, "inpainting": _inpainting}
    return own[name](path) if name in own else load_model(str(path), "cpu")


def draw(name: str, path: Path) -> np.ndarray:
    """Draw a member's picture, (128, 128, 3) uint8; path: the file or folder it was unpacked to."""
    picture = next(load(name, path).generate([PROMPT], [SEED], settings_of(name)))
    shown = picture[0].add(1).mul(127.5).round().byte()
    return shown.permute(1, 2, 0).numpy()


class _Texts:
    """An encoder of captions, as the engine asks for one."""

    def __init__(self, texts: Callable[[Sequence[str]], Any]) -> None:
        self.texts = texts

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        told = self.texts(prompts)
        return Conditioning(told["encoder_hidden_states"], told["pooled_projections"])


def _sd3(folder: Path) -> LoadedModel:
    from diffusers import SD3Transformer2DModel

    net = SD3Transformer2DModel.from_pretrained(folder / "transformer", torch_dtype=torch.float32)
    texts: Any = _Texts(sd3.texts_of(load_clip()))
    lent = sd3.as_eps(sd3.Positional(net.eval()))
    return replace(load_model("demo", "cpu"), denoiser=lent, encoder=texts, family="sd3")


def _inpainting(folder: Path) -> LoadedModel:
    """Lend the inpainting UNet as one that fills all of a picture."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32).eval()
    told = torch.cat([torch.ones(1, 1, 16, 16), grey_latents()], 1)  # the mask, and what it hides

    def forward(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        whole = torch.cat([x, told.expand(len(x), -1, -1, -1)], 1)
        return unet(whole, t, encoder_hidden_states=cond.context).sample

    lent = ModuleDenoiser(unet, scaled_linear(), forward, str, str)
    return replace(load_model("demo", "cpu"), denoiser=lent, family="inpainting")


@torch.no_grad()
def grey_latents() -> Tensor:
    """Encode a grey picture, which stands under an inpainting's mask: (1, 4, 16, 16)."""
    codec = Codec()
    codec.load_state_dict(shipped()["autoencoder"])
    return codec.encoder(torch.zeros(1, 3, 128, 128))


def keep(picture: np.ndarray, path: Path) -> None:
    """Write a picture without loss."""
    Image.fromarray(picture).save(path, optimize=True)
