"""TRUST Demo Model: the small model that comes with the extension, as the host's own objects."""

from __future__ import annotations

import logging
from typing import Any, ClassVar

import comfy.latent_formats
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import folder_paths

from ..trust_engine.demo.judge import ASSETS
from ..trust_engine.models.demo_architecture import UNET_CONFIG
from ..trust_engine.models.demo_clip import CHECKPOINT, TEXT_CONFIG
from .declaring import Output, node

log = logging.getLogger(__name__)
NAME = "TrustEmojiWorld"
_CLIP = (
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "max_position_embeddings",
    "eos_token_id",
)


class _Latents(comfy.latent_formats.SD15):
    """Latents in SD 1.x's scale, which the file's vae_scale takes back; with colours of its own.

    The colours are a least-squares fit of latents to what the decoder makes of them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.latent_rgb_factors = [
            [-0.40, -0.04, 0.36],
            [0.27, 0.31, 0.33],
            [0.08, -0.03, -0.20],
            [-0.22, -0.13, -0.08],
        ]
        self.latent_rgb_factors_bias = [0.25, 0.16, -0.06]
        self.taesd_decoder_name = None  # that one decodes the latents of other models


class _ClipL(comfy.sd1_clip.SDClipModel):
    def __init__(self, device: str = "cpu", dtype: Any = None, model_options: Any = None) -> None:
        super().__init__(
            device=device,
            dtype=dtype,
            textmodel_json_config={key: TEXT_CONFIG[key] for key in _CLIP},
            return_projected_pooled=False,
            model_options=model_options or {},
        )


class _Clip(comfy.sd1_clip.SD1ClipModel):
    def __init__(
        self, device: str = "cpu", dtype: Any = None, model_options: Any = None, **more: Any
    ) -> None:
        super().__init__(
            device=device, dtype=dtype, model_options=model_options or {}, clip_model=_ClipL, **more
        )


class TrustEmojiWorld(comfy.supported_models.SD15):
    """The shape of the demo model, for the host's own checkpoint loader."""

    unet_config = {  # noqa: RUF012 - the host's convention
        "context_dim": UNET_CONFIG["cross_attention_dim"],
        "model_channels": UNET_CONFIG["block_out_channels"][0],
        "use_linear_in_transformer": False,
        "adm_in_channels": None,
        "use_temporal_attention": False,
    }
    unet_extra_config = {  # noqa: RUF012
        "num_heads": UNET_CONFIG["attention_head_dim"],
        "num_head_channels": -1,
    }
    latent_format = _Latents

    def clip_target(self, state_dict: Any = None) -> Any:
        """Name the tokenizer and the text tower."""
        return comfy.supported_models_base.ClipTarget(comfy.sd1_clip.SD1Tokenizer, _Clip)


def register() -> None:
    """Let the stock checkpoint loader know the demo's shape, once."""
    models = comfy.supported_models.models
    if not any(model.__name__ == NAME for model in models):
        models.append(TrustEmojiWorld)


@node("load")
class TrustDemoModel:
    """Load the demo model: SD 1.x in small, in seconds, on a CPU."""

    DESCRIPTION = (
        "The small model that comes with TRUST Unlearn: an SD 1.x in small that draws emoji, for "
        "trying everything out on a CPU. Pictures of 128 x 128; try 'a gun on a red background'."
    )

    REQUIRED: ClassVar[dict[str, Any]] = {}
    GIVES: ClassVar = (
        Output("MODEL", "MODEL", "For KSampler and Unlearn."),
        Output("CLIP", "CLIP", "For CLIPTextEncode."),
        Output("VAE", "VAE", "For VAEDecode."),
    )

    def load(self) -> tuple[Any, Any, Any]:
        """Return the host's own MODEL, CLIP and VAE."""
        register()
        model, clip, vae, *_ = comfy.sd.load_checkpoint_guess_config(
            str(ASSETS / CHECKPOINT),
            output_vae=True,
            output_clip=True,
            embedding_directory=folder_paths.get_folder_paths("embeddings"),
        )
        return model, clip, vae
