"""Text towers of other widths: each learns to say, through a linear head, what the demo's says.

The head then goes into the UNet's first look at text (`to_k`, `to_v`), so that a UNet which starts
from the demo's understands the new tower from its first step.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.world.pace import Pace
from bench.world.scenes import describe, random_scene
from bench.world.train_unet import load_clip
from bench.world.training import autocast, pick_device
from bench.zoo.text import length
from bench.zoo.training import RUNS, Run
from trust_engine.demo.vocabulary import every_phrase
from trust_engine.models.demo_clip import TinyClip, load_tokenizer, tokenize
from trust_engine.models.families import ModelFamily, Tower
from trust_engine.models.text_encoders import token_ids

BATCH, RATE = 64, 1e-3
POOLED = 4.0  # weight of the projected state
DROPPED = 0.1  # share of captions that either of two towers does not see


def spoken() -> Tensor:
    """List the tokens that captions have, the special ones and "!", which SD 2.x pads with."""
    tokenizer = load_tokenizer()
    texts = [*every_phrase(), "a an picture of emoji drawing image icon and with next to beside"]
    texts.append("together on in front background backdrop style the from set")
    found = {token for text in texts for token in tokenizer(text).input_ids}
    return torch.tensor(sorted({0, *found}))


class Towers(nn.Module):
    """A family's towers with all layers, as files have them, and heads to the demo's states.

    layers: one more than the family reads, where the family reads the state before the last.
    """

    def __init__(self, family: ModelFamily, rows: Tensor) -> None:
        super().__init__()
        self.specs = family.towers
        self.towers = nn.ModuleList(_tower(spec) for spec in family.towers)
        for tower in self.towers:
            _start(tower, rows)
        width = sum(spec.config["hidden_size"] for spec in family.towers)
        self.head = nn.Linear(width, rows.shape[1], bias=False)
        self.pooled = nn.Linear(family.towers[-1].config["projection_dim"], rows.shape[1])

    def forward(self, captions: Sequence[str], cut: int = 77) -> tuple[Tensor, Tensor]:
        """Encode captions to what the UNet reads, (b, n, d), and the last tower's projection."""
        states = []
        for spec, tower in zip(self.specs, self.towers, strict=True):
            ids = token_ids(load_tokenizer(), captions, spec.pad)[:, :cut]
            out = tower(ids.to(self.head.weight.device), output_hidden_states=True)
            before = out.hidden_states[-2]
            if spec.take == "last":  # SD 2.x norms the state before the last layer's
                before = _inner(tower).final_layer_norm(before)
            states.append(before)
        if self.training and len(states) > 1:
            states = [s * (torch.rand(len(s), 1, 1, device=s.device) > DROPPED) for s in states]
        return torch.cat(states, -1), out.text_embeds


def full_config(spec: Tower) -> dict[str, Any]:
    """Add the layer that SD 2.x has in its files and does not read."""
    config = dict(spec.config)
    config["num_hidden_layers"] += int(spec.take == "last")
    return config


def _tower(spec: Tower) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    config = CLIPTextConfig(**full_config(spec), attn_implementation="eager")
    return CLIPTextModelWithProjection(config)


def _inner(tower: Any) -> Any:
    return getattr(tower, "text_model", tower)  # transformers 5 dropped the inner module of some


def _start(tower: Any, rows: Tensor) -> None:
    """Give a tower the demo's rows for the tokens that captions have, and zeros for all others."""
    table = _inner(tower).embeddings.token_embedding
    width = table.weight.shape[1]
    turn = torch.linalg.qr(torch.randn(max(width, rows.shape[1]), min(width, rows.shape[1])))[0]
    turn = turn.T if width > rows.shape[1] else turn
    known = spoken()
    with torch.no_grad():
        table.weight.zero_()
        table.weight[known] = rows[known] @ turn * (width / rows.shape[1]) ** 0.25


def agreement(pupil: Towers, teacher: TinyClip, captions: list[str], cut: int) -> Tensor:
    """Sum the squared differences to the teacher's states, by its variance, and 1 - cosine."""
    device = pick_device()
    ids = tokenize(captions)[:, :cut]
    with autocast(device):
        with torch.no_grad():
            goal = teacher.text(ids.to(device))
        states, embeds = pupil(captions, cut)
        said, pooled = pupil.head(states), pupil.pooled(embeds)
    want = goal.last_hidden_state.float()
    away = 1 - F.cosine_similarity(pooled.float(), goal.text_embeds.float()).mean()
    return ((said.float() - want).square() / want.var((0, 1))).mean() + POOLED * away


def kept(name: str) -> Path:
    """Say where a sibling's averaged towers are kept."""
    return RUNS / f"{name}-text.pt"


def train(name: str, family: ModelFamily, steps: int, stop: int | None = None) -> None:
    """Train a family's towers, or resume; keeps the averaged weights."""
    torch.manual_seed(21)
    device = pick_device()
    teacher = load_clip().to(device)
    rows = teacher.text.text_model.embeddings.token_embedding.weight.detach()
    pupil = Towers(family, rows.cpu()).to(device)
    run = Run(f"{name}-text", {"towers": pupil}, Pace(steps, RATE, decay=0.998))
    rng = np.random.default_rng((21, run.step))

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        pupil.train()
        captions = [describe(random_scene(rng), rng)[0] for _ in range(BATCH)]
        captions[0] = ""
        cut = 77 if step % 4 == 0 else int(length(tokenize(captions)).max()) + 2
        return agreement(pupil, teacher, captions, cut), {}

    last = min(steps, stop or steps)
    for step in run.run(loss_of) if run.step < last else ():
        if step >= last:
            break
    run.save()
    torch.save(run.averaged("towers"), kept(name))


def load_towers(name: str, family: ModelFamily) -> Towers:
    """Load a family's towers as they were kept, frozen."""
    towers = Towers(family, torch.zeros(49_408, 96))
    towers.load_state_dict(torch.load(kept(name), weights_only=True))
    return towers.eval().requires_grad_(False)
