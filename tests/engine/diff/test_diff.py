"""Diffs: exact on disk, stable bytes, applied and taken back to the bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from toys.tiny import KEY, content, frozen_bits, some_diff, tiny_denoiser
from trust_engine.diff import (
    SparseOffset,
    WeightDiff,
    applied,
    check_fits,
    fingerprint,
    load_diff,
    save_diff,
)
from trust_engine.errors import DiffError
from trust_engine.models.contract import ModuleDenoiser, projections


def small_offsets(keys: list[str]) -> dict[str, SparseOffset]:
    """Make the same two entries for every key."""
    return {key: SparseOffset.of(torch.tensor([0.0, 1.0, 2.0])) for key in keys}


@pytest.fixture(scope="module")
def denoiser() -> ModuleDenoiser:
    return tiny_denoiser()


@pytest.fixture
def saved(tmp_path: Path, denoiser: ModuleDenoiser) -> Path:
    save_diff(some_diff(denoiser), tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


def test_sparse_there_and_back() -> None:
    dense = torch.tensor([[0.0, 1.5, 0.0], [-2e-38, 0.0, 3.0]])
    sparse = SparseOffset.of(dense)
    assert sparse.indices.tolist() == [1, 3, 5]
    assert torch.equal(sparse.dense(), dense)
    assert torch.equal(SparseOffset.of(torch.zeros(2, 2)).dense(), torch.zeros(2, 2))


def test_file_there_and_back(saved: Path, denoiser: ModuleDenoiser) -> None:
    diff = load_diff(saved)
    assert content(diff) == content(some_diff(denoiser))
    assert diff.changed == sum(int(o.dense().count_nonzero()) for o in diff.offsets.values())
    assert diff.share == pytest.approx(0.1, abs=0.02)


def test_an_empty_diff_there_and_back(tmp_path: Path) -> None:
    keys = (KEY, f"another.{KEY}")
    empty = WeightDiff({key: SparseOffset.of(torch.zeros(3, 3)) for key in keys}, {})
    save_diff(empty, tmp_path / "a")
    assert content(load_diff(tmp_path / "a")) == content(empty)
    assert empty.share == WeightDiff({}).share == 0


def test_same_content_same_bytes_in_any_process_and_order(tmp_path: Path) -> None:
    keys = [f"block.{i}.to_q.weight" for i in range(9)]
    provenance = {str(i): {"x": i, "y": [i]} for i in range(9)}
    save_diff(WeightDiff(small_offsets(keys), provenance), tmp_path / "a")
    turned = dict(reversed(provenance.items()))
    save_diff(WeightDiff(small_offsets(keys[::-1]), turned), tmp_path / "b")
    script = (
        "import pathlib\nfrom engine.diff.test_diff import *\n"
        f"save_diff(WeightDiff(small_offsets({keys}), {provenance}), pathlib.Path('c'))"
    )
    here = Path(__file__).parent
    path = os.pathsep.join(map(str, (here.parents[1], here.parents[2])))
    environment = {**os.environ, "PYTHONHASHSEED": "4321", "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path, env=environment)
    one, two, three = ((tmp_path / name).read_bytes() for name in "abc")
    assert one == two == three
    save_diff(WeightDiff(small_offsets(keys), {**provenance, "0": 0}), tmp_path / "d")
    assert (tmp_path / "d").read_bytes() != one


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_applied_gives_every_bit_back(
    dtype: torch.dtype, error: type[BaseException] | None
) -> None:
    lent = tiny_denoiser()
    lent.module.to(dtype)
    diff, before = some_diff(lent), {k: w.clone() for k, w in lent.module.named_parameters()}
    try:
        with applied(lent, [(diff, 1.0), (some_diff(lent, 1), -0.7)]):
            assert not torch.equal(projections(lent)[KEY], before[lent.parameter_name(KEY)])
            if error:
                raise error
    except (ValueError, KeyboardInterrupt):
        pass
    for name, weight in lent.module.named_parameters():
        assert torch.equal(weight.view(torch.uint8), before[name].view(torch.uint8)), name
        assert weight.dtype == dtype


def test_applied_adds_strength_times_offset(denoiser: ModuleDenoiser) -> None:
    before = {key: w.clone() for key, w in projections(denoiser).items()}
    diff = some_diff(denoiser)
    for strength in (1.0, 0.5, -2.0, 0.0):
        with applied(denoiser, [(diff, strength)]):
            for key, weight in projections(denoiser).items():
                expected = before[key] + strength * diff.offsets[key].dense()
                torch.testing.assert_close(weight, expected)


def test_a_diff_and_its_opposite_cancel(denoiser: ModuleDenoiser) -> None:
    before = {key: w.clone() for key, w in projections(denoiser).items()}
    diff = some_diff(denoiser)
    with applied(denoiser, [(diff, 1.0), (diff, -1.0)]):
        for key, weight in projections(denoiser).items():
            torch.testing.assert_close(weight, before[key], rtol=0, atol=1e-6)  # float32 rounding


def test_diffs_are_applied_in_order() -> None:
    """In float16, 1 + 1 + 0.0014 rounds to another number than 1 + 0.0014 + 1."""
    lent = tiny_denoiser()
    lent.module.half()
    weight = dict(lent.module.named_parameters())[lent.parameter_name(KEY)]
    weight.data.fill_(1.0)
    large, small = (
        WeightDiff({KEY: SparseOffset.of(torch.full(weight.shape, v))}) for v in (1.0, 0.0014)
    )
    with applied(lent, [(large, 1.0), (small, 1.0)]):
        first = float(weight.data[0, 0])
    with applied(lent, [(small, 1.0), (large, 1.0)]):
        second = float(weight.data[0, 0])
    assert (first, second) == (2.001953125, 2.0)


@pytest.mark.parametrize("inside", [False, True])
def test_applied_takes_inference_tensors_of_a_host(inside: bool) -> None:
    with torch.inference_mode():
        lent = tiny_denoiser()
    assert projections(lent)[KEY].is_inference()
    diff, before = some_diff(lent), frozen_bits(lent.module)
    with torch.inference_mode(inside), applied(lent, [(diff, 1.0)]):
        assert frozen_bits(lent.module) != before
    assert frozen_bits(lent.module) == before


def test_a_diff_that_does_not_fit_leaves_nothing_behind() -> None:
    lent = tiny_denoiser()
    before, good = frozen_bits(lent.module), some_diff(lent)
    bad = WeightDiff({KEY: SparseOffset.of(torch.ones(2, 2))})
    with pytest.raises(DiffError, match="the diff has"), applied(lent, [(good, 1.0), (bad, 1.0)]):
        pytest.fail("it was applied")
    assert frozen_bits(lent.module) == before


def test_the_same_base_fits_under_both_conventions(denoiser: ModuleDenoiser) -> None:
    diff = some_diff(denoiser)
    assert check_fits(diff, denoiser) is None
    assert check_fits(diff, tiny_denoiser("ldm")) is None
    assert "made for another model" in (check_fits(diff, tiny_denoiser(seed=1), "x") or "")
    with pytest.raises(DiffError, match="x: made for another model"):
        check_fits(diff, tiny_denoiser(seed=1), "x", strict=True)
    for offsets in ({KEY: SparseOffset.of(torch.zeros(2, 2))}, {"no.such": diff.offsets[KEY]}):
        with pytest.raises(DiffError, match="another kind of model"):
            check_fits(WeightDiff(offsets, diff.provenance), denoiser)


def test_fingerprint_is_the_weights_not_their_dtype_or_names() -> None:
    single, half, other = tiny_denoiser(), tiny_denoiser("ldm"), tiny_denoiser(seed=1)
    half.module.half()
    assert fingerprint(single) == fingerprint(half) != fingerprint(other)
    projections(half)[KEY][0, 0] += 1
    assert fingerprint(single) != fingerprint(half)
