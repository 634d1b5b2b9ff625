"""Prompts in the real hosts: what is unlearned is what the host would draw them as.

Two ways to write one thing must give equal diffs, and what means something else another diff.
"""

from __future__ import annotations

import zlib

import pytest
import torch

from hosts.webui_demo import EMBEDDING, MEANS
from hosts.webui_drawing import SHORT, made, read
from hosts.webui_server import FULL_SIZE, Server

HOST = {**SHORT, "syntax": "host"}
LONG = "a small red table and a big blue tree in the sun and " * 7  # over 75 tokens
ALIKE = {
    "emphasis": ("(gun:1.1)", "(gun)"),
    "embedding": (f"gun {EMBEDDING}", f"gun {MEANS}"),
}
UNLIKE = {
    "emphasis": ("(gun:1.6)", "gun"),
    "break": ("gun BREAK tree", "gun tree"),
    "long": (f"{LONG} gun", f"{LONG} dog"),
    "longer": (f"{LONG * 2} gun BREAK dog", f"{LONG * 2} dog BREAK gun"),
}


def differ(webui: Server, pair: tuple[str, str]) -> bool:
    """Unlearn two ways to say something, and tell whether the diffs differ."""
    names = [f"said-{zlib.crc32(one.encode())}" for one in pair]
    diffs = []
    for name, words in zip(names, pair, strict=True):
        concept = {"words": [words], "preserve": ["a dog", "a tree BREAK a table"]}
        diffs.append(read(webui, made(webui, name, concepts=[concept], spec=HOST)).offsets)
    one, other = diffs
    return set(one) != set(other) or any(
        not torch.equal(one[key].dense(), other[key].dense()) for key in one
    )


@pytest.mark.parametrize("way", ALIKE)
def test_written_otherwise_but_meant_alike(webui: Server, way: str) -> None:
    if way == "embedding" and FULL_SIZE:
        pytest.skip("the embedding is the demo model's")
    assert not differ(webui, ALIKE[way])


@pytest.mark.parametrize("way", UNLIKE)
def test_what_the_host_tells_apart(webui: Server, way: str) -> None:
    """Emphasis, BREAK, and what stands behind the 75th token, all reach the training."""
    assert differ(webui, UNLIKE[way])


def test_clip_skip(webui: Server) -> None:
    """As it is set for pictures."""
    first = read(webui, made(webui, "gun")).offsets
    usual = int(webui.ask("/sdapi/v1/options")["CLIP_stop_at_last_layers"])  # 2 in Forge Neo
    webui.ask("/sdapi/v1/options", {"CLIP_stop_at_last_layers": 3 - usual})
    try:
        other = read(webui, made(webui, "gun-skipped")).offsets
    finally:
        webui.ask("/sdapi/v1/options", {"CLIP_stop_at_last_layers": usual})
    again = read(webui, made(webui, "gun-again")).offsets
    assert all(torch.equal(first[key].dense(), again[key].dense()) for key in first)
    assert any(not torch.equal(first[key].dense(), other[key].dense()) for key in first)


def test_pictures_of_long_prompts(webui: Server) -> None:
    """Before and after, of one chunk, of two and of three."""
    concept = {"words": ["gun", "a gun BREAK a table"], "preserve": [LONG.strip()]}
    name = made(webui, "pictured", concepts=[concept], pictures=4)
    assert read(webui, name).changed > 100
