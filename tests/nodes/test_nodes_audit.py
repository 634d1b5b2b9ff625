"""The Audit node from end to end on the pretended host, and Cancel in the midst of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fakes.comfy import Clip, Host, InterruptProcessingException, Patcher, Vae
from fakes.comfy_pack import Part, concept, frozen, unlearn


@pytest.fixture
def audit(part: Part, host: Host, model: Patcher, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the node at work on small pictures."""
    monkeypatch.setattr(part("nodes.lending"), "latent_side", lambda *_: 4)
    monkeypatch.setattr(part("nodes.progress"), "EVERY", 0.0)
    levels = part("trust_engine.audit.levels").LEVELS
    brief = replace(levels["quick"], shots=2, neutral=2, pairs=2)
    monkeypatch.setitem(levels, "quick", brief)
    after, diff = unlearn(part, model)[:2]
    host.passes = host.updates = 0
    host.events.clear()

    def run(**changes: Any) -> dict[str, Any]:
        told = {"clip": Clip(), "vae": Vae(), "concept": concept(part), "level": "quick",
                "judge": "demo", "images": 1, "seed": 0, "filename_prefix": "page",
                "unique_id": "9", **changes}  # fmt: skip
        with torch.inference_mode():
            return part("nodes.audit").TrustAudit().audit(model, after, **told)

    run.diff = diff  # type: ignore[attr-defined]
    return run


def pages(models: Path) -> list[Path]:
    """List the pages that were written."""
    return sorted((models / "output").glob("page*.html"))


def test_audits_and_leaves_the_model(
    part: Part, audit: Any, host: Host, model: Patcher, models: Path
) -> None:
    before = frozen(model)
    told = audit()
    figures, sheet, verdict = told["result"]
    assert verdict == figures["verdict"] and figures["ua"]["n"] > 0
    assert sheet.shape[0] == 1 and sheet.shape[-1] == 3
    assert "Textual inversion" in str(figures["not_covered"]), "what this CLIP does not allow"
    assert pages(models) and frozen(model) == before and not model.patches
    told = [data for _, data in host.events]
    assert told[0]["done"] == 0 and "UNet passes" in told[0]["needs"]
    assert " MB for a private UNet" in told[0]["needs"]
    assert told[1]["left"] is not None
    assert told[-1]["kind"] == "finished"
    saved = part("nodes.saving").TrustSaveDiff().save(audit.diff, "gun", report=figures)
    label = saved["ui"]["text"][0]
    assert f"{100 * figures['ua']['value']:.0f}" in label, "the figures go onto the diff's label"


def test_an_audit_names_the_diffs_that_were_drawn_under(part: Part, model: Patcher) -> None:
    find, patched = part("nodes.changes").diffs_between, part("nodes.patching").patched
    diff = unlearn(part, model)[1]
    assert find(model, patched(model, diff)) == [(diff, 1.0)]
    twice = patched(patched(model, diff, 0.5), diff, -1.0)
    assert find(model, twice) == [(diff, 0.5), (diff, -1.0)]
    assert find(patched(model, diff, 0.5), twice) == [], "other patches, though the first is alike"
    assert find(patched(model, diff), model) == [] and find(model, model.clone()) == []

    key = next(iter(diff.offsets))
    lora = patched(model, diff)
    lora.add_patches({"diffusion_model." + key: ("diff", (torch.ones(diff.offsets[key].shape),))})
    assert find(model, lora) == [], "a LoRA changed the picture, too"
    less = patched(model, diff)
    del less.patches["diffusion_model." + key]
    assert find(model, less) == [], "a part of it is missing"
    half = patched(model, diff)
    strength, value, _, *rest = half.patches["diffusion_model." + key][0]
    half.patches["diffusion_model." + key] = [(strength, value, 0.5, *rest)]
    assert find(model, half) == [], "the host also scales the weight"


def test_cancel_stops_before_the_next_pass(
    audit: Any, host: Host, model: Patcher, models: Path
) -> None:
    before, written = frozen(model), pages(models)
    for at in (1, 5, 60):
        host.passes, host.press_at = 0, at
        with pytest.raises(InterruptProcessingException):
            audit()
        assert host.late == 0 and host.passes == at
    assert frozen(model) == before and pages(models) == written


def test_out_of_memory_is_retried_once_and_said(
    part: Part, audit: Any, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = part("trust_engine.models.sampler").SamplerSettings(2)
    monkeypatch.setattr(part("nodes.audit"), "SamplerSettings", lambda: few)
    host.room = 2
    told = audit()
    verdict = told["result"][2]
    assert "out of memory" in verdict and "2 rows at a time" in verdict
    assert told["ui"]["text"] == [verdict]
    notices = [data["text"] for _, data in host.events if data["kind"] == "notice"]
    assert len(notices) == 1 and notices[0] in verdict
    host.room = 1
    for level, advice in (("quick", "close other programs"), ("full", "set `level` to quick")):
        with pytest.raises(part("trust_engine.errors").ModelError, match=advice):
            audit(level=level)


def test_second_try_lets_attackers_see_less_at_once(part: Part) -> None:
    pick = part("trust_engine.audit").pick_level
    for level in (pick("quick"), pick("full")):
        slim = part("nodes.audit").slim(level)
        assert slim.budgets.inversion_batch == slim.budgets.relearn_batch == 2
        assert slim.attacks == level.attacks


def test_an_interrupted_audit_goes_on_unless_runs_are_not_kept(
    part: Part, audit: Any, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is finished is neither drawn nor judged again, and the verdict says so."""
    shorter = part("trust_engine.audit").pick_level("quick", attacks=(), neutral=1, pairs=1)
    settings = part("trust_engine.models.sampler").SamplerSettings(1, 1.0)
    monkeypatch.setattr(part("trust_engine.audit.request"), "pick_level", lambda _: shorter)
    monkeypatch.setattr(part("nodes.audit"), "SamplerSettings", lambda: settings)
    monkeypatch.setenv("TRUST_RUNS", str(tmp_path / "runs"))
    whole = audit(filename_prefix="page")["result"]
    passes, cells = host.passes, len(list((tmp_path / "runs").glob("*.cell")))
    assert cells > 3 and "stopped" not in whole[2] and "finished before" not in whole[2]
    for path in (tmp_path / "runs").iterdir():
        path.unlink()
    host.passes, host.press_at = 0, passes - 1
    with pytest.raises(InterruptProcessingException):
        audit()
    kept = len(list((tmp_path / "runs").glob("*.cell")))
    assert 0 < kept < cells
    host.passes, host.press_at = 0, 0
    figures, _, verdict = audit()["result"]
    assert "Going on with an audit that was stopped at" in verdict
    assert host.passes < passes
    assert {**figures, "cost": 0} == {**whole[0], "cost": 0}
    assert "This audit was finished before with the same inputs" in audit()["result"][2]
    monkeypatch.setenv("TRUST_RUNS", "off")
    assert "finished before" not in audit()["result"][2]
