"""The host's CLIP below its words, for attacks that learn tokens: a copy that gradients pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.clip_model
import comfy.ops
import torch
from torch import Tensor, nn

from ..trust_engine.conditioning import Conditioning
from .weights import Weights


class HostTokens:
    """The engine's TokenSpace on a CLIP of one text tower, clip skip and LoRAs as in the host."""

    @torch.inference_mode(False)  # what is made in it can never be differentiated
    def __init__(self, clip: Any, device: torch.device) -> None:
        """Copy the tower in float32, of ordinary tensors, frozen."""
        self.clip, stage = clip, clip.cond_stage_model
        self.inner = getattr(stage, stage.clip)
        weights = Weights(clip.patcher, prefix=f"{stage.clip}.transformer.text_model.")
        tower = _like(self.inner.transformer, device)
        tower.load_state_dict({key: weights.read(key) for key in weights.shapes})
        self.tower = tower.to(device).eval().requires_grad_(False)
        self.empty = [token for token, _ in next(iter(clip.tokenize("").values()))[0]]

    @property
    def table(self) -> Tensor:
        """Return the embedding table (vocabulary, d)."""
        return self.tower.embeddings.token_embedding.weight

    def tokens(self, text: str) -> list[int]:
        """Turn text into token ids, start and end not among them."""
        chunks = next(iter(self.clip.tokenize(text).values()))
        return [t for chunk in chunks for t, _ in chunk if t not in self.empty]

    def frame(self, tokens: Sequence[int]) -> Tensor:
        """Put start, end and padding around token ids: (77,)."""
        start, end, *padding = self.empty
        kept = list(tokens)[: len(padding)]
        ids = [start, *kept, end, *padding[len(kept) :]]
        return torch.tensor(ids, device=self.table.device)

    def text(self, tokens: Sequence[int]) -> str:
        """Turn token ids into text."""
        named = self.clip.tokenizer.untokenize([(int(token), 1.0) for token in tokens])
        return "".join(word for _, word in named).replace("</w>", " ").strip()

    def encode(self, rows: Tensor) -> Conditioning:
        """Encode embedded prompts (b, 77, d), differentiably."""
        from comfy.ldm.modules.attention import attention_pytorch

        layers = self.tower.encoder.layers
        last = self._last(len(layers))
        x = rows.float() + self.tower.embeddings.position_embedding.weight
        side = x.shape[1]
        mask = torch.full((side, side), -torch.finfo(x.dtype).max, device=x.device).triu_(1)
        for layer in layers[: len(layers) if last is None else last + 1]:
            # The host's own forward adds in place, which a backward pass does not survive.
            x = x + layer.self_attn(layer.layer_norm1(x), mask, attention_pytorch)
            x = x + layer.mlp(layer.layer_norm2(x))
        if last is None or self.inner.layer_norm_hidden_state:
            x = self.tower.final_layer_norm(x)
        return Conditioning(x)

    def _last(self, count: int) -> int | None:
        """Number the layer whose output the host takes; None: the last, as the model ends."""
        kind, index, *_ = self.inner.options_default
        if (skip := self.clip.layer_idx) is not None:
            kind, index = ("hidden", skip) if abs(skip) <= count else ("last", None)
        return None if kind == "last" or index is None else index % count


def tokens_of(clip: Any, device: torch.device) -> HostTokens | None:
    """Return a CLIP's tokens, None unless it is one tower of CLIP's kind."""
    stage = getattr(clip, "cond_stage_model", None)
    inner = getattr(stage, getattr(stage, "clip", ""), None)
    tower = getattr(inner, "transformer", None)
    return HostTokens(clip, device) if isinstance(tower, comfy.clip_model.CLIPTextModel) else None


def _like(tower: Any, device: torch.device) -> nn.Module:
    """Build an empty tower of the same shape."""
    inner = tower.text_model
    layers, words = inner.encoder.layers, inner.embeddings
    activation = layers[0].mlp.activation
    config = {
        "num_hidden_layers": len(layers),
        "hidden_size": words.token_embedding.weight.shape[1],
        "num_attention_heads": layers[0].self_attn.heads,
        "intermediate_size": layers[0].mlp.fc1.weight.shape[0],
        "hidden_act": next(k for k, v in comfy.clip_model.ACTIVATIONS.items() if v is activation),
        "max_position_embeddings": words.position_embedding.weight.shape[0],
        "eos_token_id": inner.eos_token_id,
    }
    operations = comfy.ops.disable_weight_init
    return comfy.clip_model.CLIPTextModel_(config, torch.float32, device, operations)
