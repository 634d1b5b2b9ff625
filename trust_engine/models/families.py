"""Families of models: what each is made of, and how it is recognised by names and shapes alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import ModelError
from .demo_architecture import XL_POOLED
from .demo_clip import TEXT_CONFIG
from .unet_families import FAMILIES, Family

Layout = Literal["hf", "openclip"]
SUPPORTED = "SD 1.x, SD 2.x and SDXL"


@dataclass(frozen=True)
class Tower:
    """A text tower: transformers config, where files keep it, and what the UNet takes of it.

    places: (prefix in a single file, layout) in order of likelihood; folder: in a diffusers
    folder; pad: token that fills up to 77; take: the last layer's normed state, or the state
    before the last layer; pooled: the projected state of the end token goes into the vector.
    """

    config: Mapping[str, Any]
    places: tuple[tuple[str, Layout], ...]
    folder: str
    pad: int
    take: Literal["last", "penultimate"] = "last"
    pooled: bool = False


@dataclass(frozen=True)
class ModelFamily:
    """A family: its UNet, text towers, decoder and usual latent size (h, w).

    sizes: for a UNet that predicts eps, and for one that predicts v; sized: the vector holds
    size and crop; whole: held in float32, being small.
    """

    title: str
    unet: Family
    towers: tuple[Tower, ...]
    decoder: Mapping[str, Any] | None
    scaling: float
    sizes: tuple[tuple[int, int], tuple[int, int]]
    sized: bool = False
    whole: bool = False

    @property
    def emoji(self) -> bool:
        """Tell whether it draws Emoji World."""
        return self.unet.name.startswith("demo")

    @property
    def signature(self) -> Signature:
        """What a file's UNet must measure to be of this family."""
        config = self.unet.config
        return Signature(
            config["block_out_channels"][0],
            config["in_channels"],
            config["cross_attention_dim"],
            bool(config.get("use_linear_projection")),
            config.get("projection_class_embeddings_input_dim"),
        )


@dataclass(frozen=True)
class Signature:
    """A UNet's width, input channels, text width, linear projections and width of the vector."""

    width: int
    inputs: int
    context: int
    linear: bool
    vector: int | None


def _clip(width: int, layers: int, heads: int, activation: str, pad: int) -> dict[str, Any]:
    return {
        "vocab_size": 49_408,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "projection_dim": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 77,
        "hidden_act": activation,
        "bos_token_id": 49_406,
        "eos_token_id": 49_407,
        "pad_token_id": pad,
    }


END = 49_407
KL: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "norm_num_groups": 32,
}
_SD1_TEXT: tuple[tuple[str, Layout], ...] = (("cond_stage_model.transformer.", "hf"),)
_SD2_TEXT: tuple[tuple[str, Layout], ...] = (
    ("cond_stage_model.model.", "openclip"),
    ("cond_stage_model.transformer.", "hf"),
    ("conditioner.embedders.0.model.", "openclip"),
)
_CLIP_L = _clip(768, 12, 12, "quick_gelu", END)
# SD 2.x reads the state before OpenCLIP's last of 24 layers, normed: 23 layers do.
_VIT_H = _clip(1024, 23, 16, "gelu", 0)
_BIG_G = _clip(1280, 32, 20, "gelu", 0)


def _xl_towers(one: Mapping[str, Any], two: Mapping[str, Any]) -> tuple[Tower, Tower]:
    """SDXL's pair: both read before the last layer, the second pooled too."""
    there = "conditioner.embedders."
    return (
        Tower(one, ((there + "0.transformer.", "hf"),), "text_encoder", END, "penultimate"),
        Tower(two, ((there + "1.model.", "openclip"),), "text_encoder_2", 0, "penultimate", True),
    )


def _emoji(title: str, name: str, *towers: Tower, sized: bool = False) -> ModelFamily:
    """Build a family that draws Emoji World: 128 pixels, TAESD's decoder, held in float32."""
    size = ((16, 16), (16, 16))
    return ModelFamily(title, FAMILIES[name], towers, None, 1.0, size, sized, True)


MODELS: tuple[ModelFamily, ...] = (
    ModelFamily(
        "SD 1.x",
        FAMILIES["sd1"],
        (Tower(_CLIP_L, _SD1_TEXT, "text_encoder", END),),
        KL,
        0.18215,
        ((64, 64), (64, 64)),
    ),
    ModelFamily(
        "SD 2.x",
        FAMILIES["sd2"],
        (Tower(_VIT_H, _SD2_TEXT, "text_encoder", 0),),
        KL,
        0.18215,
        ((64, 64), (96, 96)),
    ),
    ModelFamily(
        "SDXL",
        FAMILIES["sdxl"],
        _xl_towers(_CLIP_L, _BIG_G),
        KL,
        0.13025,
        ((128, 128), (128, 128)),
        sized=True,
    ),
    _emoji("Emoji World", "demo", Tower(TEXT_CONFIG, _SD1_TEXT, "text_encoder", END)),
    _emoji(
        "Emoji World V", "demo-v", Tower(_clip(128, 4, 4, "gelu", 0), _SD2_TEXT, "text_encoder", 0)
    ),
    _emoji(
        "Emoji World XL",
        "demo-xl",
        *_xl_towers(_clip(96, 4, 4, "quick_gelu", END), _clip(XL_POOLED, 4, 4, "gelu", 0)),
        sized=True,
    ),
)


def measure(shapes: Mapping[str, tuple[int, ...]]) -> Signature:
    """Measure a UNet by its shapes under ldm or diffusers names; 0 for what is not there."""
    first = _first(shapes, "input_blocks.0.0.weight", "conv_in.weight")
    projection = next((s for k, s in shapes.items() if k.endswith(".proj_in.weight")), None)
    context = next((s for k, s in shapes.items() if k.endswith(".attn2.to_k.weight")), None)
    vector = _first(
        shapes,
        "label_emb.0.0.weight",
        "add_embedding.linear_1.weight",
        "class_embedding.linear_1.weight",
    )
    return Signature(
        first[0] if first else 0,
        first[1] if first and len(first) == 4 else 0,
        context[1] if context and len(context) == 2 else 0,
        projection is not None and len(projection) == 2,
        vector[-1] if vector else None,
    )


def _first(shapes: Mapping[str, tuple[int, ...]], *names: str) -> tuple[int, ...] | None:
    return next((shapes[name] for name in names if name in shapes), None)


def detect(where: str, shapes: Mapping[str, tuple[int, ...]]) -> ModelFamily:
    """Recognise the family of a UNet by its tensors; raises ModelError, naming what it is."""
    if any(name.endswith("cond_proj.weight") for name in shapes):
        raise ModelError(
            f"{where}: an LCM, whose UNet takes the guidance as an input (cond_proj), not "
            f"supported; this release reads {SUPPORTED}"
        )
    found = measure(shapes)
    for family in MODELS:
        if family.signature == found:
            return family
    raise ModelError(f"{where}: {_variant(found)}; this release reads {SUPPORTED}")


_INPUTS = {
    9: "an inpainting model (its UNet takes 9 channels); give the plain model it was made from",
    8: "an image-editing model (InstructPix2Pix: its UNet takes 8 channels), not supported",
    7: "an upscaler (its UNet takes 7 channels), not supported",
    5: "a depth-to-image model (its UNet takes 5 channels), not supported",
}


def _variant(found: Signature) -> str:
    if found.inputs in _INPUTS:
        return _INPUTS[found.inputs]
    if not found.inputs or not found.context:
        return (
            f"a UNet of {found.width} channels; the checkpoint's UNet lacks weights that every "
            "Stable Diffusion has (its first convolution, or attn2.to_k): get the file anew"
        )
    if found.context == 1280 and found.vector == 2560:
        return "the SDXL refiner, not supported; give the SDXL base model"
    if found.context == 1024 and found.vector:
        return "an SD 2.x unCLIP model (it is conditioned on pictures), not supported"
    return (
        f"a UNet of {found.width} channels for text of width {found.context}, of a family that is "
        "not supported"
    )


# A word that a tensor's name contains, and what a file with such a name is.
_OTHERS: tuple[tuple[str, str], ...] = (
    ("lora_", "a LoRA, not a model; give the checkpoint that it was made for"),
    (".lora", "a LoRA, not a model; give the checkpoint that it was made for"),
    ("hada_w1", "a LoRA (LoHa), not a model; give the checkpoint that it was made for"),
    ("lokr_w1", "a LoRA (LoKr), not a model; give the checkpoint that it was made for"),
    ("control_model.", "a ControlNet, not a model"),
    ("controlnet_cond_embedding.", "a ControlNet, not a model"),
    ("double_blocks.0.img_attn", "a Flux model, which is not supported yet"),
    ("single_transformer_blocks.", "a Flux model, which is not supported yet"),
    ("joint_blocks.", "an SD 3 model, which is not supported yet"),
    ("transformer_blocks.0.attn.add_k_proj", "an SD 3 or Flux model, which is not supported yet"),
    ("clip_txt_pooled_mapper.", "a Stable Cascade model, which is not supported yet"),
    ("effnet_mapper.", "a Stable Cascade model, which is not supported yet"),
    ("adaln_single.", "a PixArt model, which is not supported yet"),
    ("double_layers.", "an AuraFlow model, which is not supported yet"),
    ("string_to_param", "a textual inversion, not a model"),
    ("emb_params", "a textual inversion, not a model"),
)


def other_kind(names: Collection[str]) -> str | None:
    """Say what a file is that is no Stable Diffusion model; None when its names tell nothing."""
    found = (said for part, said in _OTHERS if any(part in name for name in names))
    return next(found, None)
