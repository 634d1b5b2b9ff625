"""The Unlearn and Find Neurons nodes: what they give; the shared model is never written."""

from __future__ import annotations

import json
import re

import pytest
import torch

from fakes.comfy import Clip, Host, InterruptProcessingException, Patcher, Vae, fake_model
from fakes.comfy_pack import Part, concept, content, frozen, quick, unlearn


def test_gives_a_patched_clone_and_leaves_the_model(part: Part, host: Host, model: Patcher) -> None:
    before = frozen(model)
    after, diff, image, report = unlearn(part, model)
    assert after is not model and after.model is model.model and not model.patches
    changed = {key for key, offset in diff.offsets.items() if len(offset.indices)}
    assert changed and set(after.patches) == {f"diffusion_model.{key}" for key in changed}
    weights = part("nodes.weights").Weights
    for key, offset in diff.offsets.items():
        moved = weights(after).read(key) - weights(model).read(key)
        torch.testing.assert_close(moved, offset.dense(), rtol=1e-5, atol=1e-6)
    assert diff.provenance["base"] == weights(model).fingerprint()
    assert diff.provenance["prediction"] == "eps" and 0 < diff.share <= 0.05
    assert image.shape[0] == 1 and image.shape[-1] == 3 and 0 <= image.min() <= image.max() <= 1
    assert "no test pictures were drawn" in report and "Preserved: cat." in report
    assert frozen(model) == before


def test_same_seed_same_diff_and_another_another(part: Part, host: Host, model: Patcher) -> None:
    first, second = (content(unlearn(part, model)[1]) for _ in range(2))
    assert first == second
    assert content(unlearn(part, model, seed=1)[1]) != first


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_storage_in_few_bits(part: Part, host: Host, dtype: torch.dtype) -> None:
    model = fake_model(host, dtype=dtype)
    before = frozen(model)
    assert unlearn(part, model)[1].changed and frozen(model) == before


def test_a_lora_counts(part: Part, host: Host, model: Patcher) -> None:
    shapes = part("nodes.weights").Weights(model).shapes
    changes = {f"diffusion_model.{key}": ("diff", (torch.randn(shape) / 8,))
               for key, shape in shapes.items() if ".attn2.to_v" in key}  # fmt: skip
    lora = model.clone()
    assert set(lora.add_patches(changes)) == set(changes)
    after, diff, *_ = unlearn(part, lora)
    weights = part("nodes.weights").Weights
    assert diff.provenance["base"] == weights(lora).fingerprint() != weights(model).fingerprint()
    both = [key for key in changes if len(after.patches[key]) == 2]
    assert both, "our patch lies on top of the LoRA's"


@pytest.mark.parametrize("at", [1, 3, 14])
def test_interrupt_leaves_nothing_behind(part: Part, host: Host, model: Patcher, at: int) -> None:
    before = frozen(model)
    host.interrupt_at = at
    with pytest.raises(InterruptProcessingException):
        unlearn(part, model)
    assert host.updates == at, "it stopped at once"
    assert frozen(model) == before and not model.patches
    assert unlearn(part, model)[1].changed, "and the next job runs"


PRIVATE = [
    {"engine": "global"},
    {"settings": {"saliency": "noise"}},
    {"robust": True, "settings": {"passes": 16}},
]


def with_settings(part: Part, changes: dict) -> dict:
    """Turn settings' fields into settings."""
    return {**changes, "settings": quick(part, **changes.get("settings", {}))}


@pytest.mark.parametrize("changes", [{}, PRIVATE[0], PRIVATE[2]], ids=["local", "global", "robust"])
def test_cancel_stops_before_the_next_pass(
    part: Part, host: Host, model: Patcher, changes: dict
) -> None:
    """A step of the engines that go through the UNet takes several passes."""
    before, changes = frozen(model), with_settings(part, changes)

    def pressed_in(at: int) -> None:
        host.passes, host.press_at = 0, at
        with pytest.raises(InterruptProcessingException):
            unlearn(part, model, **changes)
        assert host.late == 0 and host.passes == at
        assert frozen(model) == before and not model.patches

    pressed_in(2)  # while its speed is measured, for the expected time
    unlearn(part, model, **changes)
    host.passes = 0
    unlearn(part, model, **changes)
    for at in (host.passes // 2, host.passes):
        pressed_in(at)


def test_exception_leaves_nothing_behind(part: Part, host: Host, model: Patcher) -> None:
    before = frozen(model)
    with pytest.raises(part("trust_engine.errors").SpecError, match="no entry stands out"):
        unlearn(part, model, settings=quick(part, xi=99.0, schedule="bounded"))
    assert frozen(model) == before


def test_out_of_memory_is_retried_once_and_said(part: Part, host: Host, model: Patcher) -> None:
    wanted = content(unlearn(part, model)[1])
    host.out_of_memory, host.most_rows = 1, 0
    _, diff, _, report = unlearn(part, model)
    assert "out of memory" in report and "2 rows at a time" in report
    assert diff.changed and set(content(diff)) == set(wanted)
    host.out_of_memory = 2
    with pytest.raises(part("trust_engine.errors").ModelError, match="lower `resolution`"):
        unlearn(part, model)


def test_a_private_copy_out_of_memory(part: Part, host: Host, model: Patcher) -> None:
    """What watches its layers sees whole passes, of few rows; gradients take more rows."""
    robust = with_settings(part, PRIVATE[2])
    wanted = unlearn(part, model, **robust)[1]
    host.room = 2
    _, diff, _, report = unlearn(part, model, **robust)
    assert "out of memory" in report and "2 rows at a time" in report
    assert diff.directions == wanted.directions > 0 and set(diff.offsets) == set(wanted.offsets)
    for key, offset in diff.offsets.items():
        torch.testing.assert_close(offset.dense(), wanted.offsets[key].dense(), rtol=0, atol=1e-3)
    with pytest.raises(part("trust_engine.errors").ModelError, match="set `engine` to local"):
        unlearn(part, model, **with_settings(part, PRIVATE[0]))


@pytest.mark.parametrize("changes", PRIVATE)
def test_private_copy_for_gradients(part: Part, host: Host, model: Patcher, changes: dict) -> None:
    before = frozen(model)
    _, diff, _, report = unlearn(part, model, **with_settings(part, changes))
    assert diff.changed and frozen(model) == before
    robust = changes.get("robust", False)
    assert ("directions in all" in report) == robust == (diff.directions > 0)


def test_vae_adds_before_and_after(part: Part, host: Host, model: Patcher) -> None:
    plain, shown = unlearn(part, model)[2], unlearn(part, model, vae=Vae(), pictures=2)[2]
    assert shown.shape[1] > plain.shape[1]


def test_the_report_begins_with_what_was_seen(part: Part, host: Host, model: Patcher) -> None:
    """With a VAE and without one; the passes it costs are counted apart, and made."""
    before = frozen(model)
    for vae, drawn in ((None, 2), (Vae(), 2)):
        host.passes = 0
        unlearn(part, model, vae=vae)
        alone, host.passes = host.passes, 0
        told = unlearn(part, model, True, vae=vae, pictures=drawn)
        report = told["result"][3]
        assert re.match(r"gun: changed in [01] of 1 test pictures; cat ", report)
        assert told["ui"]["trust_headline"] == [report.splitlines()[0]]
        assert "and 96 more for the test pictures" in report and host.passes > alone
    assert not model.patches
    with torch.inference_mode():  # the host takes patches off when it loads another MODEL
        import comfy.model_management as mm

        mm.load_models_gpu([model])
    assert frozen(model) == before


def test_pictures_that_cannot_be_drawn_lose_no_run(
    part: Part, host: Host, model: Patcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **_named: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(part("nodes.before_after"), "draw", full)
    _, diff, _, report = unlearn(part, model, pictures=2)
    assert diff.changed and "No test pictures: out of memory (CUDA out of memory)." in report


def test_several_concepts(part: Part, host: Host, model: Patcher) -> None:
    both = concept(part, "beer", and_also=concept(part))
    assert [one.name for one in both] == ["gun", "beer"]
    assert "gun, beer" in unlearn(part, model, concept=both)[3]


def test_found_neurons_save_the_recording(part: Part, host: Host, model: Patcher) -> None:
    part("nodes.settings").EFFORTS["tiny"] = 4 / part("nodes.settings").DEFAULTS["steps"]
    told = {"clip": Clip(), "concept": concept(part), "budget": 0.05, "settings": quick(part)}
    before = frozen(model)
    with torch.inference_mode():
        neurons, image = (
            part("nodes.find_neurons")
            .TrustFindNeurons()
            .find(model=model, seed=0, **told, unique_id="5")["result"]
        )
    assert frozen(model) == before and image.shape[-1] == 3
    assert len(neurons.found) == 9 and all(n["first"] == n["last"] for n in neurons.found.values())
    wanted, calls = content(unlearn(part, model)[1]), host.updates
    assert content(unlearn(part, model, neurons=neurons)[1]) == wanted
    assert host.updates - calls < calls, "nothing was recorded again"
    with pytest.raises(part("trust_engine.errors").SpecError, match="other seed"):
        unlearn(part, model, neurons=neurons, seed=1)


def test_browser_hears_of_it(part: Part, host: Host, model: Patcher, monkeypatch) -> None:
    monkeypatch.setattr(part("nodes.progress"), "EVERY", 0.0)
    unlearn(part, model)
    kinds = [data["kind"] for event, data in host.events]
    assert {event for event, _ in host.events} == {"trust.progress"}
    assert kinds[-1] == "finished" and all(data["node"] == "7" for _, data in host.events)
    points = [point for _, data in host.events for point in data.get("points", [])]
    assert len(points) == 3 * 4 and points[0][0].startswith("input_blocks.1")
    first, second = host.events[0][1], host.events[1][1]
    assert first["done"] == 0 and "units of work" in first["needs"] and "MB" in first["needs"]
    assert first["left"] is None and second["left"] >= 0 == second["done"]
    json.dumps(host.events)


@pytest.mark.parametrize(
    ("told", "text"),
    [
        ({"words": " , "}, "there is no concept"),
        ({"kind": "combination"}, "needs a second part"),
        ({"partner": "beer"}, "`partner`"),
        ({"preserve": "a gun"}, "preserve. names the concept"),
        ({"templates": "a photo"}, "needs {} once"),
    ],
)
def test_mistakes_are_explained(part: Part, host: Host, told: dict, text: str) -> None:
    with pytest.raises(part("trust_engine.errors").SpecError, match=text):
        concept(part, **told)
