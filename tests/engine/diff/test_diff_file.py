"""The diff file: exact, small, sealed, and noted in without a change to what it does."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from toys.small_unet import KEY, SHAPES, low_rank, numbers, scrubbed_diff, small_diff
from trust_engine.benchmark.random_models import family_for, schedule_for
from trust_engine.diff import (
    LowRankOffset,
    SparseOffset,
    WeightDiff,
    annotate_diff,
    load_diff,
    payload_sha256,
    save_diff,
)
from trust_engine.diff.file import FORMAT, NOTES
from trust_engine.diff.packing import pack_indices, unpack_indices
from trust_engine.diff.weight_diff import check_offset
from trust_engine.errors import DiffError
from trust_engine.models.diffusers_unet import diffusers_denoiser
from trust_engine.models.load import blank_unet
from trust_engine.unlearn.scrubbing.blocks import picture_layers


def spelled(diff: WeightDiff) -> dict[str, Any]:
    """Spell the offsets out, for comparison to the bit."""
    return {key: numbers(offset) for key, offset in diff.offsets.items()}


@settings(max_examples=100, deadline=None)
@given(st.sets(st.integers(0, 5000), max_size=60))
def test_gaps_there_and_back(places: set[int]) -> None:
    indices = torch.tensor(sorted(places), dtype=torch.int32)
    gaps = pack_indices(indices)
    assert unpack_indices(gaps).tolist() == sorted(places)
    assert len(gaps) <= len(places) + 5001 // 255
    assert not len(gaps) or gaps[-1] != 255


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-(2.0**120), 2.0**120, width=32), max_size=40))
def test_compact_is_close_and_idempotent(values: list[float]) -> None:
    offset = SparseOffset.of(torch.tensor([*values, 0.0]))
    once = offset.compact()
    twice = once.compact()
    assert torch.equal(once.indices, twice.indices)
    assert torch.equal(once.values, twice.values)
    top = max(map(abs, values), default=0.0)
    # 11 significant bits, and nothing below 2 ** -27 of the largest
    torch.testing.assert_close(once.dense(), offset.dense(), rtol=2**-11, atol=top * 2**-27)


@pytest.mark.parametrize("compact", [False, True])
def test_what_is_saved_is_what_is_loaded(compact: bool, tmp_path: Path) -> None:
    diff = small_diff().compact() if compact else small_diff()
    save_diff(diff, tmp_path / "a")
    assert spelled(load_diff(tmp_path / "a")) == spelled(diff)
    with safe_open(str(tmp_path / "a"), "pt") as file:  # others can read it, too
        dtype = file.get_tensor(f"{KEY}.values").dtype
        assert len(list(file.keys())) == 2 * len(SHAPES)
    assert dtype == (torch.float16 if compact else torch.float32)


@pytest.mark.parametrize("compact", [False, True])
def test_factors_are_saved_as_what_they_are(compact: bool, tmp_path: Path) -> None:
    """Bit for bit, in any order, and the same bytes again; others see plain tensors."""
    diff = scrubbed_diff().compact() if compact else scrubbed_diff()
    save_diff(diff, tmp_path / "a")
    again = load_diff(tmp_path / "a")
    assert spelled(again) == spelled(diff)
    assert payload_sha256(again) == payload_sha256(diff)
    save_diff(replace(again, offsets=dict(reversed(again.offsets.items()))), tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with safe_open(str(tmp_path / "a"), "pt") as file:
        label = json.loads(file.metadata()[FORMAT])
        names = set(file.keys())
        up, down = (file.get_tensor(f"out.2.weight.{part}") for part in ("up", "down"))
    assert label["version"] == 2
    assert {f"{KEY}.up", f"{KEY}.down"} <= names
    assert f"{KEY}.gaps" not in names
    assert up.dtype == down.dtype == (torch.float16 if compact else torch.float32)
    assert (up.shape, down.shape) == ((4, 5, 3, 3), (5, 64))
    claim = label["tensors"]["out.2.weight"]
    assert (claim["shape"], claim["rank"]) == ([4, 64, 3, 3], 5)
    written = up.double() * 2.0 ** claim["up"], down.double() * 2.0 ** claim["down"]
    exact = torch.einsum("okhw,kd->odhw", *written)
    torch.testing.assert_close(again.offsets["out.2.weight"].dense().double(), exact)


@pytest.mark.parametrize("name", ["demo_gun", "demo_cat"])
def test_what_needs_no_low_rank_keeps_its_bytes(name: str, tmp_path: Path) -> None:
    """Diffs that are out there are of version 1, and are written so again."""
    there = Path(__file__).parents[3] / "example_diffs" / f"{name}.safetensors"
    save_diff(load_diff(there), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == there.read_bytes()
    save_diff(load_diff(there).compact(), tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == there.read_bytes()


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([(5, 6), (4, 6, 3, 3)]), st.integers(1, 6), st.integers(0, 99), st.data()
)  # fmt: skip
def test_compact_factors_are_close_and_idempotent(
    shape: tuple[int, ...], rank: int, seed: int, data: st.DataObject
) -> None:
    """Whatever sizes its directions have, each keeps 11 digits; up to 2 ** 27 below the largest."""
    drawn = low_rank(shape, rank, seed)
    sizes = torch.tensor([2.0 ** data.draw(st.integers(-60, 60)) for _ in range(rank)])
    taps = [1] * (len(shape) - 2)
    offset = LowRankOffset(drawn.up * sizes.view(1, -1, *taps), drawn.down / sizes.view(-1, 1))
    once = offset.compact()
    assert numbers(once) == numbers(once.compact())
    error = (once.dense() - drawn.dense()).norm() / drawn.dense().norm()
    assert error < rank * 2**-10
    check_offset(KEY, once, "f")


@cache
def scrubbed_sd15(directions: int) -> WeightDiff:
    """Draw that many directions, spread evenly over the layers of SD 1.5 that scrubbing changes."""
    described = family_for("sd15")
    unet = diffusers_denoiser(blank_unet(described), schedule_for("sd15"), described.unet.shape)
    shapes = {key: tuple(layer.weight.shape) for key, layer in picture_layers(unet).items()}
    each, more = divmod(directions, len(shapes))
    offsets = {key: low_rank(s, each + (i < more)) for i, (key, s) in enumerate(shapes.items())}
    return WeightDiff(offsets).compact()


def test_scrubbing_sd15_fits_in_far_under_40_mb(tmp_path: Path) -> None:
    """1,000 directions; whole, the weights that they move take 1.5 GB."""
    diff = scrubbed_sd15(1000)
    assert diff.directions == 1000
    assert sum(offset.numel for offset in diff.offsets.values()) > 7e8
    save_diff(diff, tmp_path / "a")
    assert (tmp_path / "a").stat().st_size < 8.5e6


def test_three_bytes_an_entry(tmp_path: Path) -> None:
    """At the default budget: SD 1.5's 31.56 M q/k/v entries times 3 % would be 2.9 MB."""
    chance = torch.Generator().manual_seed(0)
    shape = (1280, 768)
    kept = torch.rand(shape, generator=chance) < 0.03
    dense = torch.randn(shape, generator=chance) * kept
    diff = WeightDiff({KEY: SparseOffset.of(dense)}).compact()
    save_diff(diff, tmp_path / "a")
    assert (tmp_path / "a").stat().st_size < 3.1 * diff.changed + 2000


def test_notes_change_the_file_and_not_the_diff(tmp_path: Path) -> None:
    diff = small_diff()
    save_diff(diff, tmp_path / "a")
    plain = (tmp_path / "a").read_bytes()
    audit = {"ua": {"value": 1}, "diffs": [{"sha256": payload_sha256(diff), "strength": 1.0}]}
    annotate_diff(tmp_path / "a", {"author": "Ann", "audit": audit}, tmp_path / "b")
    noted = load_diff(tmp_path / "b")
    assert noted.notes == {"author": "Ann", "audit": audit}
    assert payload_sha256(noted) == payload_sha256(diff)
    assert spelled(noted) == spelled(diff)
    assert noted.provenance == diff.provenance
    assert (tmp_path / "a").read_bytes() == plain
    annotate_diff(tmp_path / "b", {"author": None, "audit": None}, tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == plain
    with pytest.raises(DiffError, match="known: author"):
        annotate_diff(tmp_path / "a", {"colour": "red"}, tmp_path / "a")


@pytest.mark.parametrize(
    ("measured", "says"),
    [
        (None, "does not say which diff"),
        ([], "measured 0 diffs together"),
        ([(1, 1.0)], "measured another one"),
        ([(0, 1.0), (1, 1.0)], "measured 2 diffs together"),
        ([(0, 0.0)], "at strength 0"),
        ([(0, math.nan)], "does not say which diff"),
        ("x", "does not say which diff"),
    ],
)
def test_an_audit_of_another_diff_is_refused(measured: Any, says: str, tmp_path: Path) -> None:
    save_diff(small_diff(), tmp_path / "a")
    before = (tmp_path / "a").read_bytes()
    audit: dict[str, Any] = {"ua": {"value": 1}, "diffs": measured}
    if isinstance(measured, list):
        audit["diffs"] = [
            {"sha256": payload_sha256(small_diff(seed)), "strength": strength}
            for seed, strength in measured
        ]
    with pytest.raises(DiffError, match=says):
        annotate_diff(tmp_path / "a", {"audit": audit}, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == before


def test_the_hash_names_the_diff(tmp_path: Path) -> None:
    diff = small_diff()
    assert payload_sha256(diff) == payload_sha256(replace(diff, notes={"author": "Ann"}))
    others = (
        small_diff(1),
        replace(diff, provenance={**diff.provenance, "base": "x"}),
        replace(diff, offsets={**diff.offsets, KEY: small_diff(1).offsets[KEY]}),
    )
    assert len({payload_sha256(other) for other in (diff, *others)}) == 4


def test_an_edited_file_says_so(tmp_path: Path) -> None:
    save_diff(replace(small_diff(), notes={"author": "Ann"}), tmp_path / "a")
    content = (tmp_path / "a").read_bytes()
    for old, new, says in (
        (b"gun", b"cat", "checksum"),
        (b"Ann", b"Bob", "damaged or edited by hand"),
    ):
        assert content.count(old) == 1
        (tmp_path / "b").write_bytes(content.replace(old, new))
        with pytest.raises(DiffError, match=says):
            load_diff(tmp_path / "b")


def test_a_file_cut_short_or_continued_says_so(tmp_path: Path) -> None:
    save_diff(small_diff(), tmp_path / "a")
    content = (tmp_path / "a").read_bytes()
    for data in (content[:-1], content[: len(content) // 2], content[:100], content[:5]):
        (tmp_path / "b").write_bytes(data)
        with pytest.raises(DiffError, match="cut short"):
            load_diff(tmp_path / "b")
    (tmp_path / "b").write_bytes(content + b"x")
    with pytest.raises(DiffError, match="longer than it says"):
        load_diff(tmp_path / "b")


def relabelled(path: Path, old: str, new: str) -> bytes:
    """Replace a text in a file's header, and give the header its new length."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length].decode().replace(old, new).encode()
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


@pytest.mark.parametrize("name", ["../../evil.weight", "/etc/passwd", "c:\\\\x.weight", "a.weight"])
def test_names_that_look_like_paths_are_refused(name: str, tmp_path: Path) -> None:
    save_diff(small_diff(), tmp_path / "a")
    (tmp_path / "b").write_bytes(relabelled(tmp_path / "a", KEY, name))
    with pytest.raises(DiffError, match=r"no name of a UNet's weight|damaged"):
        load_diff(tmp_path / "b")
    with pytest.raises(DiffError, match="no name of a UNet's weight"):
        save_diff(WeightDiff({name: small_diff().offsets[KEY]}), tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_a_header_that_is_too_long_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as file:
        file.write((5 << 20).to_bytes(8, "little") + b"{}")
        file.truncate(6 << 20)
    with pytest.raises(DiffError, match="header takes"):
        load_diff(tmp_path / "a")
    with pytest.raises(DiffError, match="too long for a diff"):
        save_diff(WeightDiff({}, {"spec": "x" * (5 << 20)}), tmp_path / "b")


@pytest.mark.parametrize("provenance", [{"a": float("nan")}, {"a": {1}}, {"a": torch.ones(1)}])
def test_provenance_that_is_no_json_is_refused(provenance: dict, tmp_path: Path) -> None:
    with pytest.raises(DiffError, match="are not JSON"):
        save_diff(WeightDiff({}, provenance), tmp_path / "a")


@pytest.mark.parametrize("key", ["spec", "base", "family", "prediction", "engine"])
def test_provenance_of_another_type_is_refused(key: str, tmp_path: Path) -> None:
    with pytest.raises(DiffError, match=f"its {key} is not a text"):
        save_diff(WeightDiff({}, {key: ["demo"]}), tmp_path / "a")


def test_a_file_from_before_the_first_release(tmp_path: Path) -> None:
    from safetensors.torch import save

    label = {"version": 1, "shapes": {}, "provenance": {}, "sha256": ""}
    (tmp_path / "a").write_bytes(save({"a": torch.zeros(1)}, {"trust-diff": json.dumps(label)}))
    with pytest.raises(DiffError, match="before the first release; make it again"):
        load_diff(tmp_path / "a")


@pytest.mark.parametrize("version", [0, 3, True, "1", 1.0, None])
def test_a_format_of_another_version_is_refused_by_its_number(
    version: object, tmp_path: Path
) -> None:
    """Version 3 may be written some day: its reader is a newer release, and the file is sound."""
    from safetensors.torch import save

    label = {"version": version, "tensors": {}, "provenance": {}, "sha256": ""}
    (tmp_path / "a").write_bytes(save({"a": torch.zeros(1)}, {"trust-diff": json.dumps(label)}))
    with pytest.raises(DiffError, match=r"diff format .+, this release reads 1 to 2"):
        load_diff(tmp_path / "a")


def test_notes_are_sealed_on_their_own(tmp_path: Path) -> None:
    save_diff(replace(small_diff(), notes={"author": "Ann"}), tmp_path / "a")
    with safe_open(str(tmp_path / "a"), "pt") as file:
        sealed = json.loads(file.metadata()[NOTES])
    assert sealed["sha256"] == hashlib.sha256(b'{"author": "Ann"}').hexdigest()
