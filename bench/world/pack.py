"""Pack the trained parts into one SD 1.x-style checkpoint and the CLIP file that ship."""

from __future__ import annotations

import torch
from safetensors.torch import save_file
from torch import Tensor

from bench.world.training import RUNS
from trust_engine.demo.architecture import SHAPE
from trust_engine.demo.judge import ASSETS
from trust_engine.keys import LDM_PREFIX, KeyMap
from trust_engine.model import DEMO, TEXT_PREFIX, VAE_PREFIX


def checkpoint() -> dict[str, Tensor]:
    """Name every tensor as a single-file SD 1.x checkpoint with a TAESD does, in float16."""
    keys = KeyMap(SHAPE)
    unet = _read("unet")
    weights = {LDM_PREFIX + keys.to_ldm(key): value for key, value in unet.items()}
    for key, value in _read("clip").items():
        if key.startswith("text.text_model.") and not key.endswith("position_ids"):
            weights[TEXT_PREFIX + key.removeprefix("text.")] = value
    for key, value in _read("autoencoder").items():
        part, _, index, rest = key.split(".", 3)
        shift = 1 if part == "decoder" else 0  # TAESD counts the decoder's clamp as layer 0
        weights[f"{VAE_PREFIX}taesd_{part}.{int(index) + shift}.{rest}"] = value
    weights[VAE_PREFIX + "vae_scale"] = torch.tensor(0.18215)
    weights[VAE_PREFIX + "vae_shift"] = torch.tensor(0.0)
    return {key: value.half().contiguous() for key, value in weights.items()}


def _read(name: str) -> dict[str, Tensor]:
    return torch.load(RUNS / f"{name}.pt", weights_only=True)


def main() -> None:
    """Write emoji-world.safetensors and clip.safetensors."""
    save_file(checkpoint(), DEMO)
    towers = {
        key: value.half().contiguous()
        for key, value in _read("clip").items()
        if not key.startswith("text.text_model.")
    }
    save_file(towers, ASSETS / "clip.safetensors")


if __name__ == "__main__":
    main()
