"""Real AUTOMATIC1111 and Forge on the CPU: unlearn, apply, and the same picture again without.

A1111_PATH, FORGE_PATH: the host's folder, set up to start offline; A1111_PYTHON, FORGE_PYTHON: the
Python of each; WEBUI_CHECKPOINT: an SD 1.x checkpoint to use instead of the demo model, of random
weights if need be.
"""

from __future__ import annotations

import base64
import json
import os
import time
import urllib.error
from collections.abc import Iterator
from typing import Any

import pytest
from webui_demo import lay_out
from webui_server import Server, running

from trust_engine.diff import load_diff

SHORT = {"steps": 3, "trajectory_steps": 2, "passes": 16, "rate": 1.0, "budget": 0.3}
FULL_SIZE = "WEBUI_CHECKPOINT" in os.environ
HOSTS = [pytest.param(v, marks=pytest.mark.host(v)) for v in ("A1111_PATH", "FORGE_PATH")]


@pytest.fixture(scope="module", params=HOSTS)
def server(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Server]:
    """Have a host running."""
    data = tmp_path_factory.mktemp("webui") / "data"
    with running(request.param, data, None if FULL_SIZE else lay_out) as started:
        yield started


@pytest.fixture(scope="module")
def diff(server: Server) -> str:
    """Unlearn something within seconds; returns the diff's name."""
    first(server)  # Forge loads its model with the first picture
    body = {"concepts": [{"words": ["gun"], "preserve": ["a cat", "a dog"]}], "spec": SHORT,
            "resolution": 64, "pictures": 0, "name": "gun"}  # fmt: skip
    told = server.finish(server.ask("/trust/v1/unlearn", body))
    assert told["state"] == "done", told["message"]
    return str(told["result"]["diff"])


def first(server: Server, *args: Any, **more: Any) -> tuple[bytes, str]:
    """Draw; returns the picture's bytes and its infotext."""
    body = {"prompt": "a gun on a table", "seed": 7, "steps": 2, "width": 64, "height": 64,
            "cfg_scale": 5, "sampler_name": "Euler", **more}  # fmt: skip
    if args:
        body["alwayson_scripts"] = {"TRUST": {"args": list(args)}}
    told = server.ask("/sdapi/v1/txt2img", body)
    (text,) = json.loads(told["info"])["infotexts"]
    return pixels(told["images"][0]), text


def pixels(picture: str) -> bytes:
    """Decode a picture to its pixels."""
    import io

    from PIL import Image

    return Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB").tobytes()


def test_unlearned_on_the_loaded_model(server: Server, diff: str) -> None:
    made = load_diff(server.data / "models" / "trust_diffs" / diff)
    assert made.changed > 1000 and made.provenance["family"] == ("sd1" if FULL_SIZE else "demo")
    (listed,) = server.ask("/trust/v1/diffs")
    assert listed["name"] == diff and listed["attention_layers"] == (16 if FULL_SIZE else 7)


def test_on_off_and_strength(server: Server, diff: str) -> None:
    before, plain = first(server)
    full, text = first(server, diff, 1.0)
    half, _ = first(server, diff, 0.5)
    again, _ = first(server, diff, 1.0)
    zero, _ = first(server, diff, 0.0)
    after, _ = first(server)
    assert len({before, full, half}) == 3
    assert full == again and before == zero == after, "gone to the last pixel"
    assert "TRUST diffs" in text and diff in text and "TRUST diffs" not in plain


def test_hires_fix(server: Server, diff: str) -> None:
    hires: dict[str, Any] = {"enable_hr": True, "hr_scale": 2, "hr_upscaler": "Latent"}
    hires["denoising_strength"] = 0.7
    if server.variable == "FORGE_PATH":  # whose own default is refused by its own check
        hires["hr_additional_modules"] = ["Use same choices"]
    before, _ = first(server, **hires)
    full, _ = first(server, diff, 1.0, **hires)
    after, _ = first(server, **hires)
    assert before != full and before == after


def test_beside_a_stock_lora(server: Server, diff: str) -> None:
    from trust_engine.diff_export import export_dense

    made = load_diff(server.data / "models" / "trust_diffs" / diff)
    folder = server.data / "models" / "Lora"
    folder.mkdir(exist_ok=True)
    export_dense(made, folder / "same.safetensors")
    server.ask("/sdapi/v1/refresh-loras", {})
    worn = {"prompt": "a gun on a table <lora:same:1>"}
    bare, _ = first(server)
    lora, _ = first(server, **worn)
    both, _ = first(server, diff, -1.0, **worn)
    assert lora != bare and both != lora
    near = sum(abs(a - b) for a, b in zip(both, bare, strict=True)) / len(bare)
    far = sum(abs(a - b) for a, b in zip(lora, bare, strict=True)) / len(bare)
    assert near < 0.25 * far, "the diff at -1 takes back what the same weights as LoRA have done"
    assert first(server)[0] == bare


def test_what_cannot_be_applied_draws_nothing(server: Server, diff: str) -> None:
    before, _ = first(server)
    with pytest.raises(urllib.error.HTTPError) as caught:
        first(server, "nowhere.safetensors", 1.0)
    assert caught.value.code == 500 and "nothing was drawn" in caught.value.read().decode()
    assert first(server)[0] == before


def test_on_every_picture_through_the_api(server: Server, diff: str) -> None:
    full, _ = first(server, diff, 1.0)
    server.ask("/trust/v1/apply", {"diffs": [{"name": diff}]})
    try:
        assert first(server)[0] == full
    finally:
        server.ask("/trust/v1/apply", {"diffs": []})
    assert first(server)[0] != full


@pytest.mark.parametrize("way", ["/trust/v1/jobs/{job}/cancel", "/sdapi/v1/interrupt"])
def test_cancel_leaves_the_model(server: Server, diff: str, way: str) -> None:
    before, _ = first(server)
    body = {"concepts": [{"words": ["dog"], "preserve": ["a cat"]}], "resolution": 64}
    started = server.ask("/trust/v1/unlearn", body)
    while server.ask(f"/trust/v1/jobs/{started['job']}")["state"] == "queued":
        time.sleep(0.2)
    server.ask(way.format(**started), {})
    assert server.finish(started)["state"] == "stopped"
    assert first(server)[0] == before


def test_generate_waits_for_a_training(server: Server, diff: str) -> None:
    before, _ = first(server)
    body = {"concepts": [{"words": ["dog"], "preserve": ["a cat"]}], "spec": SHORT,
            "resolution": 64, "pictures": 0, "name": "dog"}  # fmt: skip
    started = server.ask("/trust/v1/unlearn", body)
    while server.ask(f"/trust/v1/jobs/{started['job']}")["state"] == "queued":
        time.sleep(0.2)
    assert first(server)[0] == before
    assert server.ask(f"/trust/v1/jobs/{started['job']}")["state"] == "done"
