"""The host's CLIP below its words, for attacks that learn tokens: a copy that gradients pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import comfy.clip_model
import comfy.ops
import torch
from torch import Tensor, nn

from ..trust_engine.models.contract import Conditioning
from .syntax import literal
from .weights import Weights

Compose = Callable[[Tensor], Tensor | None]
WORDS, PROJECTION = "text_model.", "text_projection.weight"


class Tower:
    """One text tower, copied in float32, of ordinary tensors, frozen; clip skip as in the host."""

    @torch.inference_mode(False)  # what is made in it can never be differentiated
    def __init__(self, clip: Any, name: str, device: torch.device) -> None:
        self.clip, self.inner = clip, getattr(clip.cond_stage_model, name)
        weights = Weights(clip.patcher, prefix=f"{name}.transformer.")
        words = {k.removeprefix(WORDS): weights.read(k) for k in weights.shapes if WORDS in k}
        net = _like(self.inner.transformer, device)
        net.load_state_dict(words)
        self.net = net.to(device).eval().requires_grad_(False)
        projected = PROJECTION in weights.shapes
        self.projection = weights.read(PROJECTION).to(device) if projected else None
        self.empty = [token for token, _ in clip.tokenize("")[name.removeprefix("clip_")][0]]

    @property
    def table(self) -> Tensor:
        """Return the embedding table (vocabulary, d)."""
        return self.net.embeddings.token_embedding.weight

    def states(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Encode rows (b, n, d): what the host takes of it, and the end of the tower."""
        from comfy.ldm.modules.attention import attention_pytorch

        layers = self.net.encoder.layers
        last = self._last(len(layers))
        x = taken = rows + self.net.embeddings.position_embedding.weight
        side = x.shape[1]
        mask = torch.full((side, side), -torch.finfo(x.dtype).max, device=x.device).triu_(1)
        for number, layer in enumerate(layers):
            # The host's own forward adds in place, which a backward pass does not survive.
            x = x + layer.self_attn(layer.layer_norm1(x), mask, attention_pytorch)
            x = x + layer.mlp(layer.layer_norm2(x))
            if number == last:
                taken = x
        end = self.net.final_layer_norm(x)
        if last is None:
            return end, end
        if self.inner.layer_norm_hidden_state:
            taken = self.net.final_layer_norm(taken)
        return taken, end

    def _last(self, count: int) -> int | None:
        """Number the layer whose output the host takes; None: the last, as the model ends."""
        kind, index, *_ = self.inner.options_default
        if (skip := self.clip.layer_idx) is not None:
            kind, index = ("hidden", skip) if abs(skip) <= count else ("last", None)
        return None if kind == "last" or index is None else index % count


class HostTokens:
    """The engine's TokenSpace on a CLIP of one tower, or of SDXL's two.

    Two towers read the same tokens: a token's row is both of its rows, side by side. compose: what
    the UNet is told beside the text, of the pooled text (1, d) of the second tower.
    """

    def __init__(self, clip: Any, towers: Sequence[Tower], compose: Compose | None) -> None:
        self.clip, self.towers, self.compose = clip, list(towers), compose
        self.empty = towers[0].empty
        tables = [tower.table for tower in towers]
        self._table = tables[0] if len(tables) == 1 else torch.cat(tables, 1)

    @property
    def table(self) -> Tensor:
        """Return the embedding table (vocabulary, d)."""
        return self._table

    def tokens(self, text: str) -> list[int]:
        """Turn text into token ids, start and end not among them."""
        told = self.clip.tokenize(literal(text))
        chunks = told.get("l") or next(iter(told.values()))
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
        parts = rows.float().split([tower.table.shape[1] for tower in self.towers], -1)
        if len(self.towers) == 1:
            return Conditioning(self.towers[0].states(parts[0])[0])
        (first, second), padding = self.towers, self._padding(parts[0])
        # Each tower pads in its own way; what is framed is padded in the first one's.
        other = torch.where(padding[..., None], second.table[second.empty[-1]], parts[1])
        states, (others, end) = first.states(parts[0])[0], second.states(other)
        context = torch.cat([states, others], -1)
        if self.compose is None or second.projection is None:
            return Conditioning(context)
        ended = (parts[0] == first.table[first.empty[1]]).all(-1).int().argmax(1)
        pooled = end[torch.arange(len(end)), ended] @ second.projection.T
        told = [self.compose(one[None]) for one in pooled]
        return Conditioning(context, None if told[0] is None else torch.cat(told))  # type: ignore[arg-type]

    def _padding(self, rows: Tensor) -> Tensor:
        """Find the padding after a prompt's end in the first tower's rows: (b, n) bool."""
        _start, end, *_, pad = self.towers[0].empty
        run = (rows == self.towers[0].table[pad]).all(-1).flip(1).int().cumprod(1).flip(1).bool()
        if pad == end:  # the first of the run is the end itself
            run = torch.cat([torch.zeros_like(run[:, :1]), run[:, 1:] & run[:, :-1]], 1)
        return run


def tokens_of(clip: Any, device: torch.device, compose: Compose | None = None) -> HostTokens | None:
    """Return a CLIP's tokens, None unless it is one tower of CLIP's kind, or SDXL's two."""
    stage = getattr(clip, "cond_stage_model", None)
    children = stage.named_children() if isinstance(stage, nn.Module) else ()
    inner = {name: child.transformer for name, child in children if hasattr(child, "transformer")}
    kind = comfy.clip_model.CLIPTextModel
    if not inner or not all(isinstance(tower, kind) for tower in inner.values()):
        return None
    if len(inner) > 1 and set(inner) != {"clip_l", "clip_g"}:
        return None
    names = ("clip_l", "clip_g") if len(inner) > 1 else tuple(inner)
    return HostTokens(clip, [Tower(clip, name, device) for name in names], compose)


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
