"""Save, load, apply, merge, export, compare, and what Audit says around the audit itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fakes.comfy import Clip, Host, Patcher, Vae, fake_model
from fakes.comfy_pack import Part, concept, content, frozen, unlearn


@pytest.fixture(scope="module")
def diff(part: Part) -> Any:
    """Unlearn once for all."""
    return unlearn(part, fake_model(Host()))[1]


def most_changed(diff: Any) -> str:
    """Return the weight that the diff changes most."""
    return max(diff.offsets, key=lambda key: float(diff.offsets[key].dense().norm()))


def saved(part: Part, diff: Any, name: str, **more: Any) -> Path:
    """Save by the node and return the path."""
    return Path(part("nodes.saving").TrustSaveDiff().save(diff, name, **more)["result"][0])


def test_saved_and_loaded_is_the_same(part: Part, host: Host, diff: Any, models: Path) -> None:
    first, second = (saved(part, diff, "mine", author=" me ", licence="CC0") for _ in range(2))
    assert first != second and first.parent == models / "trust_diffs"
    load = part("nodes.diffs").TrustLoadDiff
    assert first.name in load.INPUT_TYPES()["required"]["diff_name"][0]
    told = load().load(first.name)
    back, label = told["result"]
    assert content(back) == content(diff) and back.notes == {"author": "me", "licence": "CC0"}
    assert "forgets" in label and "gun" in label and told["ui"]["text"] == [label]
    shown = part("nodes.routes").label_of(first.name)
    assert shown["concepts"] == ["gun"] and not shown["audited"] and shown["label"] == label


def test_a_changed_file_is_loaded_again(part: Part, host: Host, diff: Any) -> None:
    path = saved(part, diff, "again")
    load = part("nodes.diffs").TrustLoadDiff
    before = load.IS_CHANGED(path.name)
    assert load.IS_CHANGED(path.name) == before
    path.write_bytes(path.read_bytes() + b" ")
    assert load.IS_CHANGED(path.name) != before


def test_figures_of_an_audit_go_onto_the_label(part: Part, host: Host, diff: Any) -> None:
    figure = {"value": 0.75, "n": 8, "low": 0.4, "high": 0.9}
    sha256 = part("trust_engine.diff").payload_sha256(diff)
    report = {"ua": figure, "synonyms": {**figure, "n": 0}, "level": "quick", "verdict": "gone",
              "judge": {"name": "demo"}, "base": "x",
              "diffs": [{"sha256": sha256, "strength": 1.0}]}  # fmt: skip
    other = {**report, "diffs": [{"sha256": "0" * 64, "strength": 1.0}]}
    with pytest.raises(part("trust_engine.errors").DiffError, match="not of this diff"):
        saved(part, diff, "audited", report=other)
    path = saved(part, diff, "audited", report=report)
    shown = part("nodes.routes").label_of(path.name)
    assert shown["audited"] and shown["gone"] == 0.75
    assert "ua 0.75" in shown["label"] and "synonyms" not in shown["label"]


@pytest.mark.parametrize("name", ["../out", "/etc/x", "a/../../out"])
def test_no_path_leads_out(part: Part, host: Host, diff: Any, name: str, models: Path) -> None:
    before = sorted(models.parent.rglob("*"))
    with pytest.raises(part("trust_engine.errors").OutputError, match="leads out of"):
        saved(part, diff, name)
    assert sorted(models.parent.rglob("*")) == before


@pytest.mark.parametrize("name", ["missing.safetensors", "../loras/x.safetensors"])
def test_unknown_file_is_explained(part: Part, host: Host, name: str) -> None:
    with pytest.raises(part("trust_engine.errors").OutputError, match="not in the folder"):
        part("nodes.diffs").TrustLoadDiff().load(name)
    assert "not in the folder" in part("nodes.routes").label_of(name)["error"]


def test_folder_type_keeps_extra_paths(part: Part, host: Host, models: Path) -> None:
    import folder_paths

    known, kind = folder_paths.folder_names_and_paths, part("nodes.folders").DIFFS
    before = known[kind]
    try:
        known[kind] = (["/extra"], set())  # as extra_model_paths.yaml leaves it: no suffix
        for _ in range(2):
            part("nodes.folders").register()
            paths = ["/extra", str(models / kind), str(part("nodes.folders").EXAMPLES)]
            assert known[kind] == (paths, {".safetensors"})
    finally:
        known[kind] = before


def apply(part: Part, model: Patcher, diff: Any, strength: float = 1.0, **more: Any) -> Any:
    """Apply by the node, in inference mode as the host."""
    with torch.inference_mode():
        return part("nodes.diffs").TrustApplyDiff().apply(model, diff, strength, **more)["result"]


@pytest.mark.parametrize("strength", [1.0, 0.5, -1.0])
def test_strength_scales(
    part: Part, host: Host, model: Patcher, diff: Any, strength: float
) -> None:
    before = frozen(model)
    after, note = apply(part, model, diff, strength)
    read, key = part("nodes.weights").Weights, most_changed(diff)
    moved = read(after).read(key) - read(model).read(key)
    assert moved.any()
    torch.testing.assert_close(moved, strength * diff.offsets[key].dense(), rtol=1e-4, atol=1e-6)
    assert note == "" and frozen(model) == before and not model.patches


def test_on_and_off_again(part: Part, host: Host, model: Patcher, diff: Any) -> None:
    twice = apply(part, apply(part, model, diff)[0], diff, -1.0)[0]
    read, key = part("nodes.weights").Weights, most_changed(diff)
    torch.testing.assert_close(read(twice).read(key), read(model).read(key), rtol=0, atol=1e-6)


def test_another_base_warns_or_is_refused(part: Part, host: Host, diff: Any) -> None:
    other = fake_model(host)
    with torch.inference_mode():
        other.model.diffusion_model.middle_block[1].transformer_blocks[0].attn2.to_k.weight.mul_(2)
    assert "base" in apply(part, other, diff)[1]
    with pytest.raises(part("trust_engine.errors").DiffError, match="strict"):
        apply(part, other, diff, strict=True)


def test_under_a_diff_of_ours_the_base_is_still_known(
    part: Part, host: Host, model: Patcher, diff: Any
) -> None:
    once = apply(part, model, diff, 0.5)[0]
    assert apply(part, once, diff, 0.5, strict=True)[1] == ""


def test_old_hosts_get_dense_patches(
    part: Part, host: Host, model: Patcher, diff: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = most_changed(diff)
    sparse = part("nodes.weights").Weights(apply(part, model, diff)[0]).read(key)
    monkeypatch.setattr(part("nodes.patching"), "_Adapter", None)
    after = apply(part, model, diff)[0]
    (patch,) = after.patches["diffusion_model." + key]
    assert patch[1][0] == "diff" and part("nodes.patching").is_ours(patch)
    assert torch.equal(part("nodes.weights").Weights(after).read(key), sparse)


def test_merge_adds_up(part: Part, host: Host, model: Patcher, diff: Any) -> None:
    told = part("nodes.diffs").TrustMergeDiffs().merge(diff, diff, 1.0, -0.5, "sum")["result"]
    merged, report = told
    key = most_changed(diff)
    half = diff.offsets[key].dense() / 2
    torch.testing.assert_close(merged.offsets[key].dense(), half, rtol=1e-3, atol=1e-4)
    assert "100.0% of the first" in report


@pytest.mark.parametrize("kind", ["dense", "exact", "low rank"])
def test_export_lies_where_the_stock_loader_looks(
    part: Part, host: Host, diff: Any, models: Path, kind: str
) -> None:
    export = part("nodes.saving").TrustExportLora().export
    path, report = export(diff, "trust/gun", kind, 0.1)["result"]
    assert Path(path).parent == models / "loras" / "trust" and "error" in report
    assert Path(path).stat().st_size > 100


def compare(part: Part, before: Any, after: Any, **changes: Any) -> Any:
    """Compare by the node."""
    told = {
        "clip": Clip(), "vae": Vae(), "prompts": "a gun\n\na cat", "seeds": "1, 2", "steps": 2,
        "cfg": 5.0, "sampler_name": "euler", "scheduler": "normal", "resolution": 64, **changes,
    }  # fmt: skip
    with torch.inference_mode():
        return part("nodes.compare").TrustCompare().compare(before, after, **told)


def test_compare_draws_both(part: Part, host: Host, model: Patcher, diff: Any) -> None:
    state = frozen(model)
    sheet, before, after = compare(part, model, apply(part, model, diff)[0])
    assert before.shape == after.shape == (4, 64, 64, 3) and sheet.shape[0] == 1
    assert not torch.equal(before, after) and torch.equal(before, compare(part, model, model)[2])
    assert state.keys() == frozen(model).keys()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"prompts": "\n "}, "no prompt"),
        ({"seeds": "one"}, "not whole numbers"),
        ({"seeds": "-1"}, "negative"),
        ({"seeds": " ".join("1" * 40)}, "more than 64"),
    ],
)
def test_compare_explains_mistakes(
    part: Part, host: Host, model: Patcher, changes: dict, text: str
) -> None:
    with pytest.raises(part("trust_engine.errors").SpecError, match=text):
        compare(part, model, model, **changes)


def test_audit_finds_what_differs(part: Part, host: Host, model: Patcher, diff: Any) -> None:
    between = part("nodes.changes").between_models
    found = between(model, apply(part, model, diff)[0])
    changed = {key for key, offset in diff.offsets.items() if len(offset.indices)}
    assert set(found.offsets) == changed
    assert found.provenance["base"] == diff.provenance["base"]
    for key in changed:
        wanted = diff.offsets[key].dense()
        torch.testing.assert_close(found.offsets[key].dense(), wanted, rtol=1e-4, atol=1e-6)
    with pytest.raises(part("trust_engine.errors").ModelError, match="the same model"):
        between(model, model.clone())


def figure(value: float, low: float, high: float, n: int = 20) -> dict[str, float]:
    """Make a figure of an audit."""
    return {"value": value, "n": n, "low": low, "high": high}


@pytest.mark.parametrize(
    ("ua", "ira", "attack", "standing"),
    [
        (figure(0.97, 0.85, 1.0), figure(0.9, 0.8, 0.95), 0.1, "good"),
        (figure(0.97, 0.85, 1.0), figure(0.9, 0.8, 0.95), 0.6, "mixed"),
        (figure(0.97, 0.85, 1.0), figure(0.4, 0.3, 0.5), 0.1, "mixed"),
        (figure(0.97, 0.85, 1.0), figure(0.9, 0.8, 0.95), None, "mixed"),
        (figure(0.2, 0.08, 0.4), figure(0.9, 0.8, 0.95), 0.1, "bad"),
    ],
)
def test_badge(part: Part, host: Host, ua: dict, ira: dict, attack: Any, standing: str) -> None:
    told = {} if attack is None else {"a": {"title": "a", "asr": {"value": attack}}}
    was = {"ua": figure(0.05, 0.0, 0.2), "ira": figure(0.92, 0.85, 0.96)}
    figures = {"ua": ua, "ira": ira, "untouched": was, "attacks": told, "verdict": "so"}
    assert part("nodes.audit").badge(figures, "page.html")["standing"] == standing


def test_audit_asks_for_the_right_words(part: Part, host: Host) -> None:
    asked, error = part("nodes.audit").request_of, part("trust_engine.errors").SpecError
    (pair,) = concept(part, "baby", kind="combination", partner="beer", preserve="")
    assert asked(pair, "demo", "", "quick", 1, 0).topic.companion == "beer"
    with pytest.raises(error, match="retain goes with"):
        asked(pair, "demo", "cat", "quick", 1, 0)


def test_a_merge_that_would_do_nothing_is_refused(part: Part, host: Host, diff: Any) -> None:
    merge = part("nodes.diffs").TrustMergeDiffs().merge
    with pytest.raises(part("trust_engine.errors").DiffError, match="changes nothing"):
        merge(diff, diff, 1.0, -1.0, "sum")
