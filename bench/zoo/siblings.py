"""`sd2` and `sdxl`: the demo's UNet in the shapes of SD 2.x and SDXL, on towers of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bench.world.scenes import describe
from bench.world.train_unet import SHIPPED
from bench.world.training import autocast, pick_device
from bench.zoo.archive import Trained
from bench.zoo.files import hf_tower, ldm_unet, ldm_vae, openclip_tower
from bench.zoo.towers import Towers, full_config, load_towers
from bench.zoo.unet import Job, Recipe, Texts
from trust_engine.models.families import MODELS, ModelFamily

FAMILY = {"sd2": "demo-v", "sdxl": "demo-xl"}
TEXT_STEPS = 1200
STEPS = {"sd2": 1500, "sdxl": 2500}  # sdxl's attention at the lowest level starts from nothing
PREDICTION = {"sd2": "v", "sdxl": "eps"}


def family(name: str) -> ModelFamily:
    """Return what the engine knows of a sibling's shape."""
    return next(one for one in MODELS if one.unet.name == FAMILY[name])


def started_unet(name: str, head: Tensor) -> torch.nn.Module:
    """Build a sibling's UNet from the demo's weights, where there are such.

    head: (96, d): the demo's text states out of this sibling's; it goes into `to_k` and `to_v`.
    """
    from diffusers import UNet2DConditionModel
    from diffusers.models.attention_processor import AttnProcessor

    unet = UNet2DConditionModel(**family(name).unet.config)
    unet.set_attn_processor(AttnProcessor())
    weights, known = unet.state_dict(), torch.load(SHIPPED, weights_only=True)
    for key, weight in weights.items():
        there = known.get(key)
        if there is None:
            continue
        if key.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
            there = there @ head
        if there.numel() == weight.numel():  # 1x1 convolutions become linear layers
            weights[key] = there.view(weight.shape)
    unet.load_state_dict(weights)
    return unet


def texts_of(name: str, towers: Towers) -> Texts:
    """Encode captions as the family's UNet takes them."""
    device, kin = pick_device(), family(name)
    towers = towers.to(device)
    side = 8 * kin.sizes[0][0]

    def texts(captions: Sequence[str]) -> Mapping[str, Tensor]:
        with torch.no_grad(), autocast(device):
            states, pooled = towers(captions)
        told = {"encoder_hidden_states": states}
        if kin.sized:
            numbers = torch.tensor([side, side, 0, 0, side, side], device=device)
            ids = numbers.expand(len(captions), -1)
            told["added_cond_kwargs"] = {"text_embeds": pooled.float(), "time_ids": ids}
        return told

    return texts


def job(name: str, start: tuple[dict[str, Tensor], int] | None = None) -> Job:
    """Set up a sibling's training, on the demo's captions."""
    towers = load_towers(name, family(name))
    return Job(
        name,
        started_unet(name, towers.head.weight),
        texts_of(name, towers),
        STEPS[name],
        PREDICTION[name],
        Recipe(rate=6e-4),
        lambda rng, scene: describe(scene, rng)[0],
        start,
    )


def tensors_of(name: str, trained: Trained) -> dict[str, Tensor]:
    """Name a sibling's weights as a single file of its family does."""
    kin = family(name)
    tensors = {**ldm_unet(trained.part("net."), kin.unet.shape), **ldm_vae()}
    for i, spec in enumerate(kin.towers):
        prefix, layout = spec.places[0]
        weights = trained.part(f"text.towers.{i}.")
        if layout == "openclip":
            tensors |= openclip_tower(weights, full_config(spec)["num_hidden_layers"], prefix)
        else:
            tensors |= hf_tower(weights, prefix)
    if PREDICTION[name] == "v":
        tensors["v_pred"] = torch.zeros(1)
    return tensors
