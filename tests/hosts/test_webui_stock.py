"""Both web UIs' stock loaders: exports and patched checkpoints, tensors and pictures compared.

Diffs of cross-attention alone, those of robust mode, of low rank where it found something, and one
of low rank in all layers that work on the picture, which moves a bias, too.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hosts.webui_drawing import ROBUST, SHORT, apart, first, give_lora, made, read, scrubbed
from hosts.webui_server import Server
from trust_engine.diff import WeightDiff
from trust_engine.diff.bake import write_checkpoint
from trust_engine.diff.base_model import open_base
from trust_engine.diff.lora import export_dense, export_lora

# Of the low-rank export's error; scrubbed by two pictures, a model draws wildly, and shows more.
BOUNDS = {"gun": 0.02, "robust": 0.002, "scrubbed": 0.02}
SPECS = {"gun": SHORT, "robust": ROBUST}
HALF = 2**-11  # what float16 loses of a number, at most


@pytest.fixture(params=[*SPECS, "low rank"])
def diff(webui: Server, request: pytest.FixtureRequest) -> str:
    """Have a diff of each kind."""
    if request.param == "low rank":
        return scrubbed(webui)
    return made(webui, request.param, spec=SPECS[request.param])


def test_robust_reaches_linear_layers_and_convolutions_by_factors(webui: Server) -> None:
    got = read(webui, made(webui, "robust", spec=ROBUST))
    low_rank = {key for key, offset in got.offsets.items() if offset.factors is not None}
    assert {len(got.offsets[key].shape) for key in low_rank} == {2, 4}
    trained = {key for key, offset in got.offsets.items() if offset.sparse is not None}
    assert trained and all(".attn2.to_" in key for key in trained)
    assert low_rank | trained == set(got.offsets)


@pytest.mark.parametrize("strength", [1.0, -0.5])
def test_diff_against_the_patched_weights(webui: Server, diff: str, strength: float) -> None:
    """On: base + strength * diff in every tensor; off: the same bits and the same picture."""
    made_of = read(webui, diff)
    plain, _ = first(webui)
    base = webui.weights(lambda: first(webui))
    under = webui.weights(lambda: first(webui, diff, strength))
    after = webui.weights(lambda: first(webui))
    assert first(webui)[0] == plain
    assert set(made_of.offsets) <= set(base)
    for key, weight in base.items():
        wanted = (
            weight + strength * made_of.offsets[key].dense() if key in made_of.offsets else weight
        )
        torch.testing.assert_close(under[key], wanted, rtol=1e-6, atol=1e-7)
        assert torch.equal(after[key], weight), key


@pytest.mark.parametrize("way", ["dense", "lora"])
def test_export_in_the_stock_loader(webui: Server, diff: str, way: str) -> None:
    """<lora:name:1> changes the weights as the diff does, and the picture."""
    content, name = read(webui, diff), f"{Path(diff).stem}_{way}"
    out = give_lora(webui) / f"{name}.safetensors"
    bound = BOUNDS[Path(diff).stem]
    report = export_dense(content, out) if way == "dense" else export_lora(content, out, bound)
    webui.ask("/sdapi/v1/refresh-loras", {})
    worn = {"prompt": f"a gun on a table <lora:{name}:1>"}
    plain, _ = first(webui)
    base = webui.weights(lambda: first(webui))
    got = webui.weights(lambda: first(webui, **worn))
    # AUTOMATIC1111 adds in the file's number type, and so rounds the weight itself, too.
    rounding = HALF if webui.variable == "A1111_PATH" else 1e-6
    _same_but_for(content, base, got, max(report.worst, HALF), rounding)
    ours, _ = first(webui, diff, 1.0)
    theirs, _ = first(webui, **worn)
    assert apart(ours, plain) > 1 and apart(theirs, ours) < 0.1 * apart(ours, plain)
    assert first(webui)[0] == plain


def _same_but_for(
    diff: WeightDiff, base: dict[str, Tensor], got: dict[str, Tensor], loss: float, rounding: float
) -> None:
    """Compare with base + diff; loss: share of the change, rounding: of the weight."""
    for key, weight in base.items():
        if key not in diff.offsets or diff.offsets[key].is_zero:
            assert torch.equal(got[key], weight), key
            continue
        offset = diff.offsets[key].dense()
        off = (got[key] - weight - offset).norm()
        assert off <= 1.1 * loss * offset.norm() + rounding * weight.norm(), key
        assert (got[key] - weight).norm() > 0.5 * offset.norm(), key


def test_patched_checkpoint_in_the_stock_loader(webui: Server, diff: str) -> None:
    """The host loads it as any checkpoint: base + diff in the file's float16, and its picture."""
    content = read(webui, diff)
    folder = webui.data / "models" / "Stable-diffusion"
    (source,) = [f for f in folder.glob("*.safetensors") if not f.name.startswith("patched")]
    out = folder / f"patched-{diff}"
    plain, _ = first(webui)
    ours, _ = first(webui, diff, 1.0)
    base = webui.weights(lambda: first(webui))
    with open_base(source.resolve()) as opened:
        write_checkpoint(opened, [(content, 1.0)], out)
    if source.with_suffix(".yaml").exists():  # AUTOMATIC1111 reads the demo model's shapes there
        shutil.copyfile(source.with_suffix(".yaml"), out.with_suffix(".yaml"))
    webui.ask("/sdapi/v1/refresh-checkpoints", {})
    try:
        webui.ask("/sdapi/v1/options", {"sd_model_checkpoint": out.name})
        theirs, text = first(webui)
        got = webui.weights(lambda: first(webui))
    finally:
        webui.ask("/sdapi/v1/options", {"sd_model_checkpoint": source.name})
        out.unlink()
    assert f"Model: {out.stem}" in text
    for key, weight in base.items():
        change = content.offsets[key].dense() if key in content.offsets else 0
        torch.testing.assert_close(got[key], weight + change, rtol=2 * HALF, atol=1e-6)
    assert apart(ours, plain) > 1 and apart(theirs, ours) < 0.1 * apart(ours, plain)
    assert first(webui)[0] == plain
