"""From words to what the UNet reads: CLIP and OpenCLIP towers as each family takes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError
from .checkpoint import Checkpoint, fill
from .contract import Conditioning, TextEncoder
from .demo_clip import load_tokenizer
from .families import END, ModelFamily, Tower
from .tower_keys import LazyTensors, tower_names

LENGTH = 77
TIME_WIDTH = 256  # of each of the six numbers that tell SDXL size and crop


def token_ids(tokenizer: Any, prompts: Sequence[str], pad: int) -> Tensor:
    """Turn prompts into token ids (b, 77): cut at 77, filled up with `pad` after the end token."""
    settings: dict[str, Any] = {"padding": "max_length", "truncation": True, "max_length": LENGTH}
    ids = torch.tensor(tokenizer(list(prompts), **settings).input_ids)
    filled = (ids == END) & ((ids == END).cumsum(1) > 1)
    return ids.masked_fill(filled, pad)


def part_read(encoder: TextEncoder, prompt: str) -> str | None:
    """Return the part of a prompt that is read, in whole words; None if that is all of it."""
    room = LENGTH - 2  # beside the start and end tokens
    if encoder.count_tokens(prompt) <= room:
        return None
    words = prompt.split(" ")
    low, high = 0, len(words) - 1
    while low < high:
        middle = (low + high + 1) // 2
        fits = encoder.count_tokens(" ".join(words[:middle])) <= room
        low, high = (middle, high) if fits else (low, middle - 1)
    return " ".join(words[:low])


class ClipEncoder:
    """A tokenizer and one text tower: its last hidden state, as SD 1.x and 2.x take it."""

    def __init__(self, tower: nn.Module, device: torch.device, pad: int = END) -> None:
        self.tower, self.device, self.tokenizer = tower, device, load_tokenizer()
        self.pad = pad

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts to (b, 77, d)."""
        ids = token_ids(self.tokenizer, prompts, self.pad)
        with torch.no_grad():
            return Conditioning(self.tower(ids.to(self.device)).last_hidden_state.float())

    def count_tokens(self, prompt: str) -> int:
        """Count the prompt's tokens, start and end not counted."""
        return len(self.tokenizer(prompt, verbose=False).input_ids) - 2


class SDXLEncoder:
    """Two towers side by side, and the vector: pooled text, then size and crop."""

    def __init__(
        self,
        modules: Sequence[nn.Module],
        towers: Sequence[Tower],
        device: torch.device,
        latent_size: tuple[int, int],
    ) -> None:
        self.modules, self.towers, self.device = tuple(modules), tuple(towers), device
        self.tokenizer = load_tokenizer()
        self.size = (8 * latent_size[0], 8 * latent_size[1])  # pixels

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts to (b, 77, d1 + d2) and (b, pooled + 6 * 256)."""
        states, pooled = [], []
        for module, tower in zip(self.modules, self.towers, strict=True):
            ids = token_ids(self.tokenizer, prompts, tower.pad).to(self.device)
            with torch.no_grad():
                out = module(ids, output_hidden_states=True)
            states.append(out.hidden_states[-2].float())
            if tower.pooled:
                pooled.append(out.text_embeds.float())
        numbers = size_vector(self.size).to(self.device).expand(len(prompts), -1)
        return Conditioning(torch.cat(states, -1), torch.cat([*pooled, numbers], -1))

    def count_tokens(self, prompt: str) -> int:
        """Count the prompt's tokens, start and end not counted."""
        return len(self.tokenizer(prompt, verbose=False).input_ids) - 2

    def token_space(self) -> None:
        """Hide the towers from attacks on the prompt, which know one tower only."""


def size_vector(size: tuple[int, int]) -> Tensor:
    """Embed original height and width, no crop, and target height and width: (6 * 256,)."""
    numbers = torch.tensor([*size, 0, 0, *size], dtype=torch.float32)
    half = TIME_WIDTH // 2
    rates = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float32) / half)
    angles = numbers[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], -1).flatten()


def tower_stock(model: Checkpoint, tower: Tower) -> LazyTensors:
    """Find a tower's weights under transformers' names; raises ModelError when they are missing."""
    places: Sequence[tuple[str, Any]] = tower.places
    if model.layout == "diffusers":
        places = [(f"{tower.folder}/", "hf")]
    for prefix, layout in places:
        part = model.part(prefix)
        if part:
            return _needed(tower_names(part, layout), tower)
    raise ModelError(
        f"{model.path}: the text encoder is missing ({places[0][0]}...); "
        "give the full checkpoint, not the UNet alone"
    )


def _needed(stock: dict[str, Any], tower: Tower) -> LazyTensors:
    """Leave out layers above those that are read, and a projection that is not."""
    layers = tower.config["num_hidden_layers"]

    def needed(name: str) -> bool:
        head, _, rest = name.partition("encoder.layers.")
        if not head and rest.split(".")[0].isdecimal():
            return int(rest.split(".")[0]) < layers
        return tower.pooled or not name.startswith("text_projection")

    return {name: stored for name, stored in stock.items() if needed(name)}


def load_encoder(
    stocks: Sequence[LazyTensors], family: ModelFamily, device: torch.device, size: tuple[int, int]
) -> ClipEncoder | SDXLEncoder:
    """Build a family's text towers and read their weights."""
    modules = [
        _tower(stock, tower, device, family.whole)
        for stock, tower in zip(stocks, family.towers, strict=True)
    ]
    if family.sized:
        return SDXLEncoder(modules, family.towers, device, size)
    return ClipEncoder(modules[0], device, family.towers[0].pad)


def blank_tower(tower: Tower) -> nn.Module:
    """Build a text tower without memory for its weights."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    kind = CLIPTextModelWithProjection if tower.pooled else CLIPTextModel
    with torch.device("meta"):
        return kind(CLIPTextConfig(**tower.config))


def _tower(stock: LazyTensors, tower: Tower, device: torch.device, whole: bool) -> nn.Module:
    module = blank_tower(tower)
    # transformers 5 dropped the inner prefix of one of the two classes.
    expected = {name.removeprefix("text_model."): name for name in module.state_dict()}
    named = {expected.get(name, name): stored for name, stored in stock.items()}
    fill(module, named, "text encoder", device, whole)
    return module
