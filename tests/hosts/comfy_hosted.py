"""Fixtures: a real ComfyUI that runs for a file of tests, and what its untouched model draws."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from hosts.comfy_prompts import DIRECT, drawn
from hosts.comfy_server import ComfyServer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """Start the host once, with a folder of diffs named in extra_model_paths."""
    base = tmp_path_factory.mktemp("comfy") / "base"
    base.mkdir()
    paths = base / "paths.yaml"
    paths.write_text(f"mine:\n  base_path: {base}\n  trust_diffs: shared_diffs\n")
    with ComfyServer(base, ("--extra-model-paths-config", str(paths))) as started:
        yield started


@pytest.fixture(scope="module")
def baseline(server: ComfyServer) -> list[str]:
    """Return the untouched model's pixels."""
    return drawn_anew(server)


def drawn_anew(server: ComfyServer) -> list[str]:
    """Draw with the untouched model; another seed first, or the host answers from its cache."""
    assert server.run(drawn(DIRECT, seed=int(time.time()))).status == "success"
    ended = server.run(drawn(DIRECT))
    assert ended.status == "success" and "5" not in ended.cached
    return server.pixels(ended, "7")
