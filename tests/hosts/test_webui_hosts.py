"""Real AUTOMATIC1111 and Forge on the CPU: unlearn, apply, and the same picture again without.

A1111_PATH, FORGE_PATH: the host's folder, set up to start offline; A1111_PYTHON, FORGE_PYTHON: the
Python of each; WEBUI_CHECKPOINT: an SD 1.x checkpoint to use instead of the demo model, of random
weights if need be.
"""

from __future__ import annotations

import base64
import io
import time
import urllib.error
from typing import Any

import pytest
import torch
from PIL import Image

from hosts.webui_drawing import ROBUST, SHORT, apart, drawn, first, give_lora, made, read
from hosts.webui_server import FULL_SIZE, Server
from trust_engine.diff import WeightDiff, save_diff
from trust_engine.diff.lora import export_dense
from trust_webui.wording import REFUSE_OTHERS


@pytest.fixture
def diff(webui: Server) -> str:
    """Have a diff."""
    return made(webui, "gun")


def test_unlearned_on_the_loaded_model(webui: Server, diff: str) -> None:
    got = read(webui, diff)
    assert got.changed > 1000 and got.provenance["family"] == ("sd1" if FULL_SIZE else "demo")
    (listed,) = (told for told in webui.ask("/trust/v1/diffs") if told["name"] == diff)
    assert listed["name"] == diff and listed["attention_layers"] == (16 if FULL_SIZE else 7)


def test_prompts_are_listed(webui: Server, diff: str) -> None:
    before, _ = first(webui)
    stays = ["a cat, asleep", "a dog on a table"]
    spec = {**ROBUST, "stays": stays}
    body = {"concepts": [{"words": ["gun"]}], "spec": spec, "resolution": 64}
    told = webui.finish(webui.ask("/trust/v1/prompts", body))
    assert told["state"] == "done", told["message"]
    assert told["result"]["stays"] == stays and "gun" in told["result"]["shown"]
    assert all("gun" in target for target, _ in told["result"]["erased"])
    assert first(webui)[0] == before
    with pytest.raises(urllib.error.HTTPError) as caught:
        webui.ask("/trust/v1/prompts", {**body, "spec": {**SHORT, "stays": stays}})
    with caught.value as refused:
        assert refused.code == 422 and b"only robust mode draws" in refused.read()


def test_on_off_and_strength(webui: Server, diff: str) -> None:
    before, plain = first(webui)
    full, text = first(webui, diff, 1.0)
    half, _ = first(webui, diff, 0.5)
    again, _ = first(webui, diff, 1.0)
    zero, _ = first(webui, diff, 0.0)
    after, _ = first(webui)
    assert len({before, full, half}) == 3
    assert full == again and before == zero == after, "gone to the last pixel"
    assert "TRUST diffs" in text and diff in text and "TRUST diffs" not in plain


def test_hires_fix(webui: Server, diff: str) -> None:
    lists = ("latent-upscale-modes", "upscalers")  # Neo has no modes, and of the others only "None"
    upscaler = next(told["name"] for kind in lists for told in webui.ask(f"/sdapi/v1/{kind}"))
    hires: dict[str, Any] = {"enable_hr": True, "hr_scale": 2, "hr_upscaler": upscaler}
    hires["denoising_strength"] = 0.7
    if webui.variable != "A1111_PATH":  # whose own default is refused by its own check
        hires["hr_additional_modules"] = ["Use same choices"]
    before, _ = first(webui, **hires)
    full, _ = first(webui, diff, 1.0, **hires)
    after, _ = first(webui, **hires)
    assert before != full and before == after


def test_beside_a_stock_lora(webui: Server, diff: str) -> None:
    export_dense(read(webui, diff), give_lora(webui) / "same.safetensors")
    webui.ask("/sdapi/v1/refresh-loras", {})
    worn = {"prompt": "a gun on a table <lora:same:1>"}
    bare, _ = first(webui)
    lora, _ = first(webui, **worn)
    both, _ = first(webui, diff, -1.0, **worn)
    assert lora != bare and both != lora
    assert apart(both, bare) < 0.25 * apart(lora, bare), (
        "the diff at -1 takes back what the same weights as LoRA have done"
    )
    assert first(webui)[0] == bare


def test_batches(webui: Server, diff: str) -> None:
    """Every picture of every batch is drawn under the diff, and none after it."""
    plain = [first(webui, seed=7 + i)[0] for i in range(4)]
    alone = [first(webui, diff, 1.0, seed=7 + i)[0] for i in range(4)]
    counted, texts = drawn(webui, diff, 1.0, n_iter=4)
    assert counted == alone and all("TRUST diffs" in text for text in texts)
    together, _ = drawn(webui, diff, 1.0, n_iter=2, batch_size=2)
    for one, two, bare in zip(together, alone, plain, strict=True):
        assert apart(one, two) < 0.02 * apart(bare, two), "rounding alone, of larger batches"
    assert drawn(webui, n_iter=4)[0] == plain


def test_img2img(webui: Server, diff: str) -> None:
    start = io.BytesIO()
    Image.frombytes("RGB", (64, 64), first(webui)[0]).save(start, "PNG")
    begun = {"init_images": [base64.b64encode(start.getvalue()).decode()], "steps": 4}
    before, _ = first(webui, **begun)
    full, text = first(webui, diff, 1.0, **begun)
    assert full != before and diff in text
    assert first(webui, **begun)[0] == before


def test_several_diffs(webui: Server, diff: str) -> None:
    """The weights are the base's and both diffs' sum, and afterwards the base's to the bit."""
    other = made(webui, "robust", spec=ROBUST)
    base = webui.weights(lambda: first(webui))
    both = webui.weights(lambda: first(webui, diff, 0.5, other, -1.0))
    parts = ((read(webui, diff), 0.5), (read(webui, other), -1.0))
    for key, weight in base.items():
        wanted = weight.clone()
        for part, strength in parts:
            if key in part.offsets:
                wanted += strength * part.offsets[key].dense()
        torch.testing.assert_close(both[key], wanted, rtol=1e-5, atol=1e-6)
        assert torch.equal(both[key], weight) is torch.equal(wanted, weight), key
    after = webui.weights(lambda: first(webui))
    assert all(torch.equal(after[key], weight) for key, weight in base.items())


def test_a_lora_in_use_is_left_out_of_the_training(webui: Server, diff: str) -> None:
    """Unlearning right after a picture with a LoRA begins at the checkpoint itself, and says so."""
    export_dense(read(webui, diff), give_lora(webui) / "worn.safetensors")
    webui.ask("/sdapi/v1/refresh-loras", {})
    plain, _ = first(webui)
    first(webui, prompt="a gun on a table <lora:worn:1>")
    made(webui, "worn")
    told = webui.ask("/trust/v1/jobs")[-1]
    assert "LoRAs in use (worn" in told["result"]["report"]
    ours, same = read(webui, "worn.safetensors"), read(webui, diff)
    assert ours.provenance["base"] == same.provenance["base"]
    assert all(torch.equal(ours.offsets[k].dense(), o.dense()) for k, o in same.offsets.items())
    assert first(webui)[0] == plain


def test_what_cannot_be_applied_draws_nothing(webui: Server, diff: str) -> None:
    before, _ = first(webui)
    with pytest.raises(urllib.error.HTTPError) as caught:
        first(webui, "nowhere.safetensors", 1.0)
    assert caught.value.code == 500 and "nothing was drawn" in caught.value.read().decode()
    assert first(webui)[0] == before


def test_on_every_picture_through_the_api(webui: Server, diff: str) -> None:
    full, _ = first(webui, diff, 1.0)
    webui.ask("/trust/v1/apply", {"diffs": [{"name": diff}]})
    try:
        assert first(webui)[0] == full
    finally:
        webui.ask("/trust/v1/apply", {"diffs": []})
    assert first(webui)[0] != full


@pytest.mark.parametrize("way", ["/trust/v1/jobs/{job}/cancel", "/sdapi/v1/interrupt"])
def test_cancel_leaves_the_model(webui: Server, diff: str, way: str) -> None:
    before, _ = first(webui)
    body = {"concepts": [{"words": ["dog"], "preserve": ["a cat"]}], "resolution": 64}
    started = webui.ask("/trust/v1/unlearn", body)
    while webui.ask(f"/trust/v1/jobs/{started['job']}")["state"] == "queued":
        time.sleep(0.2)
    webui.ask(way.format(**started), {})
    assert webui.finish(started)["state"] == "stopped"
    assert first(webui)[0] == before


def test_generate_waits_for_a_training(webui: Server, diff: str) -> None:
    before, _ = first(webui)
    body = {"concepts": [{"words": ["dog"], "preserve": ["a cat"]}], "spec": SHORT,
            "resolution": 64, "pictures": 0, "name": "dog"}  # fmt: skip
    started = webui.ask("/trust/v1/unlearn", body)
    while webui.ask(f"/trust/v1/jobs/{started['job']}")["state"] == "queued":
        time.sleep(0.2)
    assert first(webui)[0] == before
    assert webui.ask(f"/trust/v1/jobs/{started['job']}")["state"] == "done"


def test_a_failure_leaves_the_model(webui: Server, diff: str) -> None:
    """It comes at the worst time, when all is computed and nothing can be written."""
    before, _ = first(webui)
    base = webui.weights(lambda: first(webui))
    body = {"concepts": [{"words": ["dog"], "preserve": ["a cat"]}], "spec": SHORT,
            "resolution": 64, "pictures": 0, "name": "failed"}  # fmt: skip
    started, away = webui.ask("/trust/v1/unlearn", body), webui.diffs.with_suffix(".away")
    while webui.ask(f"/trust/v1/jobs/{started['job']}")["progress"] == 0:
        time.sleep(0.1)
    webui.diffs.rename(away)
    webui.diffs.touch()
    try:
        told = webui.finish(started)
        again = webui.finish(webui.ask("/trust/v1/unlearn", body))
    finally:
        webui.diffs.unlink()
        away.rename(webui.diffs)
    for job in (told, again):
        assert job["state"] == "failed" and "nothing can be written to" in job["message"], job
    assert told["progress"] > 0.5 and again["progress"] == 0, "the second is not even begun"
    after = webui.weights(lambda: first(webui))
    assert all(torch.equal(after[key], weight) for key, weight in base.items())
    assert first(webui)[0] == before


def test_a_refiner_is_refused(webui: Server, diff: str) -> None:
    models = [told["title"] for told in webui.ask("/sdapi/v1/sd-models")]
    before, _ = first(webui)
    with pytest.raises(urllib.error.HTTPError) as caught:
        first(webui, diff, 1.0, refiner_checkpoint=models[0], refiner_switch_at=0.5)
    assert "refiner takes over" in caught.value.read().decode()
    assert first(webui)[0] == before


def test_settings(webui: Server, diff: str) -> None:
    """They act at once: here, on a diff that was made from another checkpoint."""
    known = read(webui, diff)
    strange = WeightDiff(known.offsets, {**known.provenance, "base": "0" * 64})
    save_diff(strange, webui.diffs / "strange.safetensors")
    assert first(webui, "strange.safetensors", 1.0)[0] == first(webui, diff, 1.0)[0]
    # Forge's answer to GET leaves settings of extensions out, so that they cannot be read back.
    webui.ask("/sdapi/v1/options", {"trust_strict": True})
    try:
        with pytest.raises(urllib.error.HTTPError) as caught:
            first(webui, "strange.safetensors", 1.0)
        assert f"{REFUSE_OTHERS!r} off" in caught.value.read().decode()
        first(webui, diff, 1.0)
    finally:
        webui.ask("/sdapi/v1/options", {"trust_strict": False})
    assert first(webui, "strange.safetensors", 1.0)[0] == first(webui, diff, 1.0)[0]


@pytest.mark.skipif(FULL_SIZE, reason="the judge is the demo model's")
def test_audit(webui: Server, diff: str) -> None:
    body = {"diff": diff, "concept": {"words": ["gun"]}, "judge": "demo", "images": 1,
            "level": "pictures only", "resolution": 64}  # fmt: skip
    before, _ = first(webui)
    told = webui.finish(webui.ask("/trust/v1/audit", body))
    assert told["state"] == "done" and told["result"]["verdict"], told
    assert told["result"]["figures"]["ua"]["n"] > 0
    assert first(webui)[0] == before
