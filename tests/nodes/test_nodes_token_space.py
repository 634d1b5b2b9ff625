"""Attacks that learn tokens, on the host's CLIP: as it encodes, and differentiable."""

from __future__ import annotations

import pytest
import torch

from fakes.comfy import Clip
from fakes.comfy_clip import WIDTH, TowerClip, TwoTowerClip
from fakes.comfy_pack import Part

CPU = torch.device("cpu")
FC1 = "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight"


@pytest.mark.parametrize("skip", [None, -1, -2, -3])
def test_encodes_as_the_host_and_differentiably(part: Part, skip: int | None) -> None:
    clip = TowerClip()
    clip.layer_idx = skip
    with torch.inference_mode():  # as the host runs nodes
        space = part("nodes.token_space").tokens_of(clip, CPU)
    ids = space.frame(space.tokens("w7 w9"))
    rows = space.table[ids][None].requires_grad_()
    mine = space.encode(rows).context
    torch.testing.assert_close(mine, clip.by_the_tower(ids[None]).clone(), rtol=1e-5, atol=1e-6)
    assert (torch.autograd.grad(mine.square().sum(), rows)[0].abs().amax(-1) > 0).all()


def test_tokens_are_framed_as_the_host_does(part: Part) -> None:
    space = part("nodes.token_space").tokens_of(TowerClip(), CPU)
    assert space.tokens("w7 w9") == [7, 9] and space.text([7, 9]) == "w7 w9"
    assert space.frame([7, 9]).tolist() == [1, 7, 9, 2, 2, 2, 2, 2]
    assert space.frame(range(3, 30)).tolist() == [1, 3, 4, 5, 6, 7, 8, 2]


def test_a_lora_on_the_text_counts_and_nothing_is_written(part: Part) -> None:
    clip = TowerClip()
    before = {k: w.clone() for k, w in clip.patcher.model.state_dict().items()}
    plain = part("nodes.token_space").tokens_of(clip, CPU)
    with torch.inference_mode():
        clip.patcher.add_patches({FC1: ("diff", (torch.ones_like(before[FC1]),))})
    other = part("nodes.token_space").tokens_of(clip, CPU)
    rows = plain.table[plain.frame([7])][None]
    assert not torch.allclose(plain.encode(rows).context, other.encode(rows).context)
    after = clip.patcher.model.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


@pytest.mark.parametrize("skip", [None, -1, -3])
@pytest.mark.parametrize("text", ["w7 w9", "", "w3 w4 w5 w6 w7 w8"])
def test_two_towers_encode_as_the_host_and_differentiably(
    part: Part, text: str, skip: int | None
) -> None:
    clip = TwoTowerClip()
    clip.layer_idx = skip
    with torch.inference_mode():
        space = part("nodes.token_space").tokens_of(clip, CPU, lambda pooled: pooled)
    ids = space.frame(space.tokens(text))
    rows = space.table[ids][None].requires_grad_()
    mine = space.encode(rows)
    context, pooled = clip.by_the_towers(text)
    torch.testing.assert_close(mine.context, context.clone(), rtol=1e-5, atol=1e-6)
    assert mine.vector is not None
    torch.testing.assert_close(mine.vector, pooled.clone(), rtol=1e-5, atol=1e-6)
    total = mine.context.square().sum() + mine.vector.square().sum()
    slope = torch.autograd.grad(total, rows)[0].abs()
    read = len(space.tokens(text)) + 2
    assert (slope[0, :read, :WIDTH].amax(-1) > 0).all()
    assert (slope[0, :read, WIDTH:].amax(-1) > 0).all(), "a learned token is a row of each tower"


def test_several_prompts_at_once_end_where_each_ends(part: Part) -> None:
    clip = TwoTowerClip()
    space = part("nodes.token_space").tokens_of(clip, CPU, lambda pooled: pooled)
    texts = ["w7", "w3 w4 w5", ""]
    ids = torch.stack([space.frame(space.tokens(text)) for text in texts])
    mine = space.encode(space.table[ids])
    for i, text in enumerate(texts):
        context, pooled = clip.by_the_towers(text)
        torch.testing.assert_close(mine.context[i : i + 1], context.clone(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(mine.vector[i : i + 1], pooled.clone(), rtol=1e-5, atol=1e-6)


def test_other_text_encoders_have_none(part: Part) -> None:
    """None of CLIP's kind, or with another beside it: the audit says what it left out."""
    assert part("nodes.token_space").tokens_of(Clip(), CPU) is None
    clip = TwoTowerClip()
    clip.cond_stage_model.t5xxl = torch.nn.Module()
    clip.cond_stage_model.t5xxl.transformer = torch.nn.Linear(1, 1)
    assert part("nodes.token_space").tokens_of(clip, CPU) is None
