"""Pack the trained parts into one SD 1.x-style checkpoint and the CLIP file; unpack them again."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.world.train_unet import SHIPPED
from bench.world.training import RUNS
from trust_engine.demo.judge import ASSETS
from trust_engine.models.demo_architecture import SHAPE
from trust_engine.models.demo_clip import TEXT_PREFIX
from trust_engine.models.load import DEMO, VAE_PREFIX
from trust_engine.models.unet_keys import LDM_PREFIX, KeyMap

Part = Mapping[str, Tensor]


def checkpoint(unet: Part, clip: Part, autoencoder: Part) -> dict[str, Tensor]:
    """Name every tensor as a single-file SD 1.x checkpoint with a TAESD does, in float16."""
    keys = KeyMap(SHAPE)
    weights = {LDM_PREFIX + keys.to_ldm(key): value for key, value in unet.items()}
    for key, value in clip.items():
        if key.startswith("text.text_model.") and not key.endswith("position_ids"):
            weights[TEXT_PREFIX + key.removeprefix("text.")] = value
    weights |= taesd(autoencoder)
    return {key: value.half().contiguous() for key, value in weights.items()}


def taesd(autoencoder: Part) -> dict[str, Tensor]:
    """Name the autoencoder as single files hold a TAESD, with its scale."""
    weights = {}
    for key, value in autoencoder.items():
        part, _, index, rest = key.split(".", 3)
        shift = 1 if part == "decoder" else 0  # TAESD counts the decoder's clamp as layer 0
        weights[f"{VAE_PREFIX}taesd_{part}.{int(index) + shift}.{rest}"] = value
    weights[VAE_PREFIX + "vae_scale"] = torch.tensor(0.18215)
    weights[VAE_PREFIX + "vae_shift"] = torch.tensor(0.0)
    return weights


def shipped() -> dict[str, dict[str, Tensor]]:
    """Read what ships, in the parts and under the names of the stages, in float32."""
    keys, whole = KeyMap(SHAPE), {k: v.float() for k, v in load_file(DEMO).items()}
    parts: dict[str, dict[str, Tensor]] = {"unet": {}, "autoencoder": {}}
    parts["clip"] = {k: v.float() for k, v in load_file(ASSETS / "clip.safetensors").items()}
    for key, value in whole.items():
        if key.startswith(LDM_PREFIX):
            parts["unet"][keys.to_diffusers(key.removeprefix(LDM_PREFIX))] = value
        elif key.startswith(TEXT_PREFIX):
            parts["clip"]["text." + key.removeprefix(TEXT_PREFIX)] = value
        elif key.startswith(VAE_PREFIX + "taesd_"):
            part, index, rest = key.removeprefix(VAE_PREFIX + "taesd_").split(".", 2)
            shift = 1 if part == "decoder" else 0
            parts["autoencoder"][f"{part}.layers.{int(index) - shift}.{rest}"] = value
    parts["judge"] = {k: v.float() for k, v in load_file(ASSETS / "judge.safetensors").items()}
    return parts


def unpack() -> None:
    """Put the shipped parts where the stages look for their predecessors' weights."""
    parts = shipped()
    RUNS.mkdir(parents=True, exist_ok=True)
    for name, weights in parts.items():
        torch.save(weights, RUNS / f"{name}.pt")
    torch.save(parts["unet"], RUNS / SHIPPED.name)


def _read(name: str) -> dict[str, Tensor]:
    return torch.load(RUNS / f"{name}.pt", weights_only=True)


def main() -> None:
    """Write emoji-world.safetensors and clip.safetensors."""
    save_file(checkpoint(_read("unet"), _read("clip"), _read("autoencoder")), DEMO)
    towers = {
        key: value.half().contiguous()
        for key, value in _read("clip").items()
        if not key.startswith("text.text_model.")
    }
    save_file(towers, ASSETS / "clip.safetensors")


if __name__ == "__main__":
    main()
