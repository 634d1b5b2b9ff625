"""Streams of chance: one module derives them all; their numbers stay, for diffs hang on them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from trust_engine import seeds

ENGINE = Path(seeds.__file__).parent


def chances(source: str) -> list[int]:
    """List the lines that seed a generator."""
    nodes = ast.walk(ast.parse(source))
    return [n.lineno for n in nodes if isinstance(n, ast.Attribute) and n.attr == "manual_seed"]


def test_nobody_else_seeds_a_generator() -> None:
    makers = {path.name for path in ENGINE.rglob("*.py") if chances(path.read_text("utf-8"))}
    assert makers == {"seeds.py"}


def test_a_seeded_generator_is_seen() -> None:
    assert chances("import torch\ng = torch.Generator().manual_seed(3 + 1000)") == [2]


@pytest.mark.parametrize(
    ("stream", "number"),
    [
        (seeds.recording_noise(3, 4), 300_013),
        (seeds.recorded_positions(3, 8), 29),
        (seeds.sample(3, 5), 3_000_019),
        (seeds.sample(3, 5, seeds.HARM), 3_000_020),
        (seeds.before_training(3, 0), 3_000_008),
        (seeds.fisher(3), 3_000_008),
        (seeds.before_training(0, 0), 2**63 - 1),
        (seeds.random_mask(3), 3),
        (seeds.knowledge(1), 0x7E57_0DD6),
        (seeds.before_after(3), 500_300),
        (seeds.core_pictures(3), 1_030_000),
        (seeds.group_pictures(3, 2, 9), 2**50 + 290_000),
        (seeds.evolved_prompt(3, 2), 302),
        (seeds.ancestral_noise(3), 4),
        (seeds.redrawn_noise(3, 1), 3029),
        (seeds.scrubbed_order(3), 3),
        (seeds.relabelled(3, 5), 3_500_014),
    ],
)
def test_streams_keep_their_numbers(stream: int, number: int) -> None:
    assert stream == number


def test_the_streams_of_the_largest_seed_are_still_seeds() -> None:
    streams = (
        seeds.recording_noise, seeds.recorded_positions, seeds.sample, seeds.relabelled,
    )  # fmt: skip
    for stream in streams:
        assert 0 <= stream(2**63 - 1, 7) < 2**63
