"""A pretended CLIP with a text tower of the host's shape, whose own forward adds in place."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fakes.comfy import Clip, Patcher
from fakes.comfy_modules import attention

START, END, PAD, LENGTH, WIDTH, WIDE, HEADS, LAYERS, WORDS = 1, 2, 2, 8, 16, 24, 2, 3, 40
ACTIVATIONS = {"quick_gelu": lambda a: a * torch.sigmoid(1.702 * a), "gelu": F.gelu}


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(width, width) for _ in range(4)
        )

    def forward(self, x: Tensor, mask: Any = None, optimized_attention: Any = None) -> Tensor:
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        return self.out_proj(optimized_attention(q, k, v, self.heads, mask))


class _Mlp(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config["hidden_size"], config["intermediate_size"])
        self.activation = ACTIVATIONS[config["hidden_act"]]
        self.fc2 = nn.Linear(config["intermediate_size"], config["hidden_size"])

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class _Layer(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width = config["hidden_size"]
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.self_attn = _Attention(width, config["num_attention_heads"])
        self.mlp = _Mlp(config)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x += self.self_attn(self.layer_norm1(x), mask, attention)
        x += self.mlp(self.layer_norm2(x))
        return x


class CLIPTextModel_(nn.Module):
    """The tower without its projection."""

    def __init__(self, config: dict[str, Any], dtype: Any, device: Any, operations: Any) -> None:
        super().__init__()
        width = config["hidden_size"]
        self.eos_token_id = config["eos_token_id"]
        self.embeddings, self.encoder = nn.Module(), nn.Module()
        self.embeddings.token_embedding = nn.Embedding(WORDS, width)
        self.embeddings.position_embedding = nn.Embedding(config["max_position_embeddings"], width)
        count = config["num_hidden_layers"]
        self.encoder.layers = nn.ModuleList(_Layer(config) for _ in range(count))
        self.final_layer_norm = nn.LayerNorm(width)


class CLIPTextModel(nn.Module):
    """The tower as it is named in checkpoints."""

    def __init__(self, config: dict[str, Any], dtype: Any, device: Any, operations: Any) -> None:
        super().__init__()
        self.text_model = CLIPTextModel_(config, dtype, device, operations)
        self.text_projection = nn.Linear(config["hidden_size"], config["hidden_size"], bias=False)


class _TextPatcher(Patcher):
    def _state(self) -> dict[str, Tensor]:
        return dict(self.model.state_dict())


def _inner(width: int, options: tuple[str, int | None]) -> nn.Module:
    """Make what the host holds a tower in."""
    config = {
        "num_hidden_layers": LAYERS, "hidden_size": width, "num_attention_heads": HEADS,
        "intermediate_size": 2 * width, "hidden_act": "quick_gelu", "eos_token_id": END,
        "max_position_embeddings": LENGTH,
    }  # fmt: skip
    inner = nn.Module()
    inner.transformer = CLIPTextModel(config, None, None, None)
    vars(inner).update(options_default=options, layer_norm_hidden_state=options[0] == "last")
    return inner


class TowerClip(Clip):
    """A CLIP of one tower; layer_idx as the host's node of clip skip sets it."""

    @torch.inference_mode()
    def __init__(self) -> None:
        super().__init__()
        stage = nn.Module()
        stage.clip_l = _inner(WIDTH, ("last", None))
        self.cond_stage_model, self.layer_idx = stage, None
        self.patcher = _TextPatcher(stage)  # type: ignore[arg-type]
        words = {i: f"w{i}</w>" for i in range(WORDS)}
        self.tokenizer = SimpleNamespace(untokenize=lambda ps: [(p, words[p[0]]) for p in ps])

    def tokenize(self, text: str) -> dict[str, list]:
        """Take "w7 w9" for tokens 7 and 9."""
        entries = [(START, 1.0), *((int(word[1:]), 1.0) for word in text.split()), (END, 1.0)]
        return {"l": [entries + [(PAD, 1.0)] * (LENGTH - len(entries))]}

    @torch.inference_mode()
    def by_the_tower(self, ids: Tensor) -> Tensor:
        """Encode ids (b, n) by the host's own forward."""
        tower = self.cond_stage_model.clip_l.transformer.text_model
        x = tower.embeddings.token_embedding(ids) + tower.embeddings.position_embedding.weight
        mask = torch.full((LENGTH, LENGTH), -1e9).triu_(1)
        stop = LAYERS if self.layer_idx is None else LAYERS + 1 + self.layer_idx
        for layer in tower.encoder.layers[:stop]:
            x = layer(x, mask)
        return tower.final_layer_norm(x)


class TwoTowerClip(TowerClip):
    """A CLIP of SDXL's two towers: the second is wider, pads with 0, and is named first."""

    @torch.inference_mode()
    def __init__(self) -> None:
        super().__init__()
        stage = self.cond_stage_model
        for name, width in (("clip_l", WIDTH), ("clip_g", WIDE)):
            setattr(stage, name, _inner(width, ("hidden", -2)))

    def tokenize(self, text: str) -> dict[str, list]:
        """Take "w7 w9" for tokens 7 and 9, and pad for each tower."""
        (entries,) = super().tokenize(text)["l"]
        end = entries.index((END, 1.0))
        return {"g": [entries[: end + 1] + [(0, 1.0)] * (LENGTH - end - 1)], "l": [entries]}

    @torch.inference_mode()
    def by_the_towers(self, text: str) -> tuple[Tensor, Tensor]:
        """Encode by the host's own forward: the context, and the second tower's pooled text."""
        told, parts = self.tokenize(text), []
        for name in ("l", "g"):
            ids = torch.tensor([[token for token, _ in told[name][0]]])
            whole = getattr(self.cond_stage_model, f"clip_{name}").transformer
            tower = whole.text_model
            x = tower.embeddings.token_embedding(ids) + tower.embeddings.position_embedding.weight
            mask = torch.full((LENGTH, LENGTH), -1e9).triu_(1)
            for number, layer in enumerate(tower.encoder.layers):
                x = layer(x, mask)
                if number == (self.layer_idx or -2) % LAYERS:
                    parts.append(x.clone())
        end = (ids == END).int().argmax(1)
        pooled = whole.text_projection(tower.final_layer_norm(x)[torch.arange(len(x)), end])
        return torch.cat(parts, -1), pooled
