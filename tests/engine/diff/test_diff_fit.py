"""Merging by least squares: each concept meets its own diff, and what must stay meets none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from toys.tiny import KEY, WIDTH, HostEncoder, WordEncoder
from trust_engine.diff import (
    LowRankOffset,
    SparseOffset,
    WeightDiff,
    combine,
    fitted,
    load_diff,
    save_diff,
)
from trust_engine.diff import least_squares as diff_fit
from trust_engine.errors import DiffError, SpecError
from trust_engine.prompts.concept import build_prompts
from trust_engine.spec import ConceptSpec

KEYS, VALUES = KEY.replace("to_v", "to_k"), KEY
QUERIES = KEY.replace("to_v", "to_q")
NAMES = ("gun", "bomb", "pizza")
THINGS = ("cat", "dog", "car", "tree", "house", "boat")
ENCODER = WordEncoder()


def part(name: str, seed: int, *keys: str, wide: int = WIDTH) -> WeightDiff:
    """Move weights of shape (8, wide) at random to erase a concept."""
    chance = torch.Generator().manual_seed(seed)
    offsets = {key: SparseOffset.of(torch.randn(8, wide, generator=chance)) for key in keys}
    spec = json.dumps({"concept": {"words": [name], "kind": "single"}, "seed": 0})
    return WeightDiff(offsets, {"spec": spec, "family": "demo", "base": "b"})


PARTS = [(part(name, i, KEYS, VALUES), 1.0) for i, name in enumerate(NAMES)]


def moved(diff: WeightDiff, prompts: list[str], key: str = VALUES) -> Tensor:
    """Return what a weight's change makes of the prompts' words, the start token left out."""
    states = ENCODER.encode(prompts).context[:, 1:].double()
    count = max(ENCODER.count_tokens(prompt) for prompt in prompts)
    return states[:, : count + 1] @ diff.offsets[key].dense().double().T


def test_each_concept_meets_its_own_diff_and_the_rest_less_than_under_the_sum() -> None:
    fit, total = fitted(PARTS, ENCODER, THINGS), combine(PARTS)
    for (own, _), name in zip(PARTS, NAMES, strict=True):
        meant = moved(own, [f"a {name}"])
        missed = [
            float((moved(d, [f"a {name}"]) - meant).norm() / meant.norm()) for d in (fit, total)
        ]
        assert missed[0] < 0.8 * missed[1]
    rest = [f"a {thing}" for thing in THINGS]
    assert moved(fit, rest).norm() < 0.35 * moved(total, rest).norm()


def test_it_is_the_minimum_of_what_it_says() -> None:
    concepts = [ConceptSpec((name,)) for name in NAMES]
    own = [
        diff_fit.gram(build_prompts([c], ENCODER, THINGS).targets, ENCODER, 0.0) for c in concepts
    ]
    stay = ("", *build_prompts(concepts, ENCODER, THINGS).preserve)
    assert not any(name in prompt for prompt in stay for name in NAMES)
    rest = diff_fit.gram(stay, ENCODER)
    changes = [diff.offsets[KEYS].dense().double() for diff, _ in PARTS]

    def objective(d: Tensor) -> Tensor:
        ridge = diff_fit.RIDGE * rest.diagonal().mean()
        told = sum((((d - c) @ g) * (d - c)).sum() for c, g in zip(changes, own, strict=True))
        return told / len(own) + diff_fit.BETA * ((d @ rest) * d).sum() + ridge * d.square().sum()

    found = fitted(PARTS, ENCODER, THINGS).offsets[KEYS].dense().double().requires_grad_()
    start = torch.zeros_like(found, requires_grad=True)
    (steep,) = torch.autograd.grad(objective(start), start)
    (flat,) = torch.autograd.grad(objective(found), found)
    assert flat.norm() < 1e-2 * steep.norm()  # the values are rounded as in a file


def test_parts_of_low_rank_are_fitted_as_what_they_are() -> None:
    chance = torch.Generator().manual_seed(5)
    up, down = torch.randn(8, 2, generator=chance), torch.randn(2, WIDTH, generator=chance)
    low = LowRankOffset(up, down, PARTS[0][0].offsets[KEYS].entries())
    for mine, theirs in ((low, low.entries()), (low.times(0.5), low.times(0.5).entries())):
        one, other = (
            fitted([(replace(PARTS[0][0], offsets={KEYS: offset}), 1.0), *PARTS[1:]], ENCODER)
            for offset in (mine, theirs)
        )
        for key in one.offsets:
            assert torch.equal(one.offsets[key].dense(), other.offsets[key].dense())


def test_strengths_scale_and_order_does_not_matter() -> None:
    fit = fitted(PARTS, ENCODER, THINGS)
    doubled = fitted([(diff, 2.0) for diff, _ in PARTS], ENCODER, THINGS)
    turned = fitted(PARTS[::-1], ENCODER, THINGS)
    for key in (KEYS, VALUES):
        one = fit.offsets[key].dense()
        torch.testing.assert_close(doubled.offsets[key].dense(), 2 * one, rtol=2e-3, atol=1e-3)
        torch.testing.assert_close(turned.offsets[key].dense(), one, rtol=2e-3, atol=1e-3)


def test_queries_are_left_and_the_lineage_is_told() -> None:
    parts = [(part(name, i, QUERIES, VALUES), 1.0) for i, name in enumerate(NAMES)]
    fit = fitted(parts, ENCODER, THINGS)
    assert list(fit.offsets) == [VALUES]
    assert fit.provenance["how"] == "fit"
    assert [p["strength"] for p in fit.provenance["parts"]] == [1.0] * 3
    assert (fit.provenance["base"], fit.provenance["family"]) == ("b", "demo")


def test_a_merged_diff_can_be_a_part_and_a_host_may_be_in_inference_mode() -> None:
    inner = combine(PARTS[:2])
    with torch.inference_mode():
        fit = fitted([(inner, 1.0), PARTS[2]], HostEncoder(), THINGS)
    own = diff_fit.concepts_of(fit.provenance)
    assert [concept.words[0] for concept in own] == list(NAMES)


def test_a_file_gives_back_every_bit(tmp_path: Path) -> None:
    path = tmp_path / "fit.safetensors"
    fit = fitted(PARTS, ENCODER, THINGS)
    save_diff(fit, path)
    read = load_diff(path).offsets
    assert all(torch.equal(read[key].dense(), fit.offsets[key].dense()) for key in read)


WIDE = [(part("gun", 0, VALUES, wide=24), 1.0), (part("bomb", 1, VALUES, wide=24), 1.0)]
UNTOLD = WeightDiff(PARTS[0][0].offsets, {"family": "demo"})
BEYOND = part("gun", 0, VALUES, "middle_block.1.proj_in.weight")


@pytest.mark.parametrize(
    ("parts", "error", "says"),
    [
        (PARTS[:1], SpecError, "two diffs or more"),
        ([(PARTS[0][0], 3.0), PARTS[1]], SpecError, "strength"),
        ([(UNTOLD, 1.0), PARTS[1]], DiffError, "does not say which concept"),
        ([(BEYOND, 1.0), PARTS[1]], DiffError, "more than cross-attention"),
        ([(part(n, 0, QUERIES), 1.0) for n in NAMES], DiffError, "queries alone"),
        (WIDE, DiffError, "24 numbers a token and this model writes 16"),
    ],
)
def test_what_it_refuses(
    parts: list[tuple[WeightDiff, float]], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        fitted(parts, ENCODER, THINGS)
