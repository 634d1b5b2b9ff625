"""The demo's tiny CLIP: a transformers text tower and a small convolutional image tower."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..demo.judge import ASSETS, Backbone
from .parameters import fill

CHECKPOINT = "emoji-world.safetensors"
TEXT_PREFIX = "cond_stage_model.transformer."
TEXT_CONFIG: dict[str, Any] = {
    "vocab_size": 49_408,
    "hidden_size": 96,
    "intermediate_size": 384,
    "projection_dim": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "bos_token_id": 49_406,
    "eos_token_id": 49_407,
    "pad_token_id": 49_407,
}


class ImageTower(nn.Module):
    """Embed pictures where captions that are true of them lie."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.projection = nn.Linear(Backbone.width, TEXT_CONFIG["projection_dim"], bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels (b, 3, 128, 128) in -1..1 to unit vectors (b, 96)."""
        return F.normalize(self.projection(self.backbone(F.avg_pool2d(pixels, 2))), dim=-1)


class TinyClip(nn.Module):
    """Both towers and the affine map from their cosine to a log-odds of "caption is true"."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import CLIPTextConfig, CLIPTextModelWithProjection

        config = CLIPTextConfig(**TEXT_CONFIG, attn_implementation="eager")
        self.text = CLIPTextModelWithProjection(config)
        self.image = ImageTower()
        self.scale = nn.Parameter(torch.tensor(2.3))  # logarithm
        self.bias = nn.Parameter(torch.tensor(-5.0))

    def embed_text(self, token_ids: Tensor) -> Tensor:
        """Map token ids (b, 77) to unit vectors (b, 96)."""
        return F.normalize(self.text(token_ids).text_embeds, dim=-1)

    def log_odds(self, token_ids: Tensor, pixels: Tensor) -> Tensor:
        """Score each caption against each picture, (captions, pictures); above 0 is a match."""
        return self.compare(self.embed_text(token_ids), self.image(pixels))

    def compare(self, words: Tensor, views: Tensor) -> Tensor:
        """Turn the cosines of unit vectors (captions, 96) and (pictures, 96) into log-odds."""
        return words @ views.T * self.scale.exp() + self.bias


@cache
def load_clip() -> TinyClip:
    """Load both towers as they ship."""
    from safetensors import safe_open
    from safetensors.torch import load_file

    clip, weights = TinyClip(), load_file(ASSETS / "clip.safetensors")
    with safe_open(str(ASSETS / CHECKPOINT), "pt") as file:
        for key in file.keys():  # noqa: SIM118 - not a mapping
            if key.startswith(TEXT_PREFIX):
                weights["text." + key.removeprefix(TEXT_PREFIX)] = file.get_tensor(key)
    fill(clip, {key: weight.float() for key, weight in weights.items()})
    return clip.eval().requires_grad_(False)


@cache
def load_tokenizer() -> Any:
    """Load CLIP's byte-pair tokenizer (49,408 entries, 77 tokens) from the shipped files."""
    from transformers import CLIPTokenizer

    folder = ASSETS / "tokenizer"
    return CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77
    )


def tokenize(captions: list[str]) -> Tensor:
    """Turn captions into token ids (b, 77), padded with the end token as SD 1.x does."""
    tokenizer = load_tokenizer()
    ids = tokenizer(captions, padding="max_length", truncation=True, max_length=77).input_ids
    return torch.tensor(ids)
