"""Diff files from strangers: more than 10,000 mutated ones never crash, hang, or take memory.

Three kinds of stranger: chance, one who edits the header, and one who knows the format and seals
the edited file with a right checksum.
"""

from __future__ import annotations

import io
import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from engine.diff.test_diff_damage import mutations
from engine.diff.test_diff_file import spelled

from toys.small_unet import OTHERS, SHAPES, low_rank, small_denoiser, small_diff
from trust_engine.diff import WeightDiff, applied, check_fits, save_diff
from trust_engine.diff.file import FORMAT, PARTS, _sha256, read_diff
from trust_engine.diff.weight_diff import Offset, SparseOffset, check_offset
from trust_engine.errors import DiffError, TrustError

LIMIT = 256 << 20  # bytes of address space that reading all of them may take on top
HOSTILE: list[Any] = [
    -1, 0, 1, 254, 255, 256, 65_535, 2**31 - 1, 2**31, 2**62, 2**64, 10**40, 1.5, True, None,
    "", "F32", "F16", "U8", "F8_E4M3", "F99", "x" * 500, "../../etc/passwd", "a.weight", "\x00",
    "\ud800", [], {}, [0], [2**31 - 1, 2**31 - 1], [-5, 3], [[[[]]]], {"a": {"b": [None]}},
]  # fmt: skip


@pytest.fixture(scope="module", params=["sparse", "low rank"])
def original(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> bytes:
    """Save a small diff of two weights, with notes; or of three, in all forms of low rank."""
    path = tmp_path_factory.mktemp("fuzz") / "a"
    offsets: dict[str, Offset] = {}
    for key in list(SHAPES)[:2]:
        offset = small_diff().offsets[key]
        offsets[key] = SparseOffset(offset.shape, offset.indices[:40], offset.values[:40])
    offsets[key] = offsets[key].compact()
    if request.param == "low rank":
        first, last = offsets
        offsets[first] = low_rank(SHAPES[first], 2)
        offsets[last] = replace(low_rank(SHAPES[last], 1).compact(), sparse=offsets[last])
        offsets["out.2.weight"] = low_rank(OTHERS["out.2.weight"], 3).compact()
    save_diff(WeightDiff(offsets, small_diff().provenance, {"author": "Ann"}), path)
    return path.read_bytes()


@pytest.fixture
def _little_memory() -> Iterator[None]:
    """Make an allocation out of proportion fail, instead of passing unnoticed."""
    if sys.platform != "linux":
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    now = pages * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + LIMIT, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def survive(data: bytes) -> WeightDiff | None:
    """Read a file: a sound diff, or None for a DiffError in one short line; nothing else."""
    started = time.process_time()
    try:
        diff = read_diff(io.BytesIO(data), "f")
    except DiffError as error:
        diff = None
        assert str(error).startswith("f: ")
        assert len(str(error)) < 300
        assert str(error).isprintable()
    assert time.process_time() - started < 1.0
    if diff is not None:
        for key, offset in diff.offsets.items():
            check_offset(key, offset, "f")
    return diff


@pytest.mark.usefixtures("_little_memory")
def test_chance(original: bytes) -> None:
    expected, refused = spelled(read_diff(io.BytesIO(original), "f")), 0
    changed = [data for data in mutations(original, 6000) if data != original]
    for data in changed:
        diff = survive(data)
        assert diff is None or (spelled(diff) == expected and diff.notes == {"author": "Ann"})
        refused += diff is None
    assert refused >= 0.97 * len(changed) > 5000


def taken_apart(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Split a file into its header and its tensors' bytes."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def put_together(header: Any, body: bytes) -> bytes:
    """Write a header before tensors' bytes."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def corrupt(value: Any, chance: random.Random) -> Any:
    """Replace, remove, add or rename something somewhere inside a JSON value."""
    if not isinstance(value, dict | list) or not value or chance.random() < 0.15:
        return chance.choice(HOSTILE)
    place = chance.choice(list(value) if isinstance(value, dict) else range(len(value)))
    action = chance.random()
    if action < 0.75:
        value[place] = corrupt(value[place], chance)
    elif action < 0.85:
        del value[place]
    elif isinstance(value, dict):
        value[str(chance.choice(HOSTILE))] = value[place] if action < 0.95 else value.pop(place)
    else:
        value.append(chance.choice(HOSTILE))
    return value


@pytest.mark.usefixtures("_little_memory")
def test_who_edits_the_header(original: bytes) -> None:
    chance, body = random.Random(1), taken_apart(original)[1]
    read = [
        survive(put_together(corrupt(taken_apart(original)[0], chance), body)) for _ in range(3000)
    ]
    assert sum(diff is None for diff in read) > 2500


def sealed(original: bytes, edit: Callable[[dict[str, Any], bytearray], Any]) -> bytes:
    """Edit the label and the tensors, then give the file the checksum that it should have."""
    header, body = taken_apart(original)
    label, content = json.loads(header["__metadata__"][FORMAT]), bytearray(body)
    label = edit(label, content) or label
    parts: dict[str, Any] = {}
    for name, entry in header.items():
        if name != "__metadata__":
            key, part = name.rsplit(".", 1)
            begin, end = entry["data_offsets"]
            parts.setdefault(key, {})[part] = content[begin:end]
    label.pop("sha256", None)
    listed = {key: iter([p[part] for part in PARTS if part in p]) for key, p in parts.items()}
    label["sha256"] = _sha256(label, listed)
    header["__metadata__"][FORMAT] = json.dumps(label)
    return put_together(header, bytes(content))


def test_a_sealed_file_that_was_not_edited_is_read(original: bytes) -> None:
    assert survive(sealed(original, lambda *_: None)) is not None


@pytest.mark.usefixtures("_little_memory")
def test_who_knows_the_format(original: bytes) -> None:
    chance, accepted = random.Random(2), 0
    lent = small_denoiser()
    before = {k: w.clone() for k, w in lent.module.named_parameters()}

    def edit(label: dict[str, Any], content: bytearray) -> Any:
        if chance.random() < 0.5:
            at = chance.randrange(len(content))
            size = chance.choice((1, 2, 30))
            content[at : at + size] = chance.randbytes(len(content[at : at + size]))
            return None
        changed = corrupt(label, chance)
        return changed if isinstance(changed, dict) else {}

    for _ in range(3000):
        diff = survive(sealed(original, edit))
        if diff is None:
            continue
        accepted += 1
        try:
            check_fits(diff, lent)
            with applied(lent, [(diff, 2.0)]):
                pass
        except TrustError:
            pass
        now = dict(lent.module.named_parameters())
        assert all(torch.equal(now[key], before[key]) for key in diff.offsets if key in now)
    assert 100 < accepted < 2900
    assert all(torch.equal(w, before[k]) for k, w in lent.module.named_parameters())


def claims(label: dict[str, Any]) -> dict[str, Any]:
    """Return the claim of the weight that is of low rank alone, and a convolution."""
    return label["tensors"]["out.2.weight"]


def without(label: dict[str, Any], *names: str) -> dict[str, Any]:
    """Leave claims out."""
    for name in names:
        claims(label).pop(name)
    return label


EDITS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "an old version": (lambda label: {**label, "version": 1}, "another version"),
    "a later version": (lambda label: {**label, "version": 3}, "reads 1 to 2"),
    "a lower rank": (lambda label: claims(label).update(rank=2), "of another type"),
    "no rank": (lambda label: claims(label).update(rank=0), "incomplete"),
    "true for one": (lambda label: claims(label).update(rank=True), "incomplete"),
    "more than inputs": (lambda label: claims(label).update(rank=65), "incomplete"),
    "fewer taps": (lambda label: claims(label).update(shape=[4, 64]), "of another type"),
    "three dimensions": (lambda label: claims(label).update(shape=[4, 64, 9]), "incomplete"),
    "a giant": (lambda label: claims(label).update(shape=[2**20, 2**10]), "incomplete"),
    "turned": (lambda label: claims(label).update(shape=[64, 4, 3, 3]), "of another type"),
    "no exponent": (lambda label: without(label, "up"), "incomplete"),
    "an exponent too far": (lambda label: claims(label).update(up=201), "incomplete"),
    "an infinite product": (lambda label: claims(label).update(up=120, down=100), "not finite"),
    "entries that are not there": (lambda label: claims(label).update(exponent=0), "is missing"),
    "one way to write it only": (lambda label: without(label, "up", "down", "rank"), "incomplete"),
}


@pytest.mark.parametrize("original", ["low rank"], indirect=True)
@pytest.mark.parametrize("name", EDITS)
@pytest.mark.usefixtures("_little_memory")
def test_sealed_claims_of_low_rank_that_cannot_be(original: bytes, name: str) -> None:
    edit, says = EDITS[name]

    def edited(label: dict[str, Any], _: bytearray) -> Any:
        changed = edit(label)
        return changed if isinstance(changed, dict) else None

    with pytest.raises(DiffError, match=says):
        read_diff(io.BytesIO(sealed(original, edited)), "f")


@pytest.mark.parametrize("original", ["sparse"], indirect=True)
def test_version_2_without_low_rank_is_refused(original: bytes) -> None:
    """One content has one name: it would be saved as version 1, under another hash."""
    with pytest.raises(DiffError, match="another version"):
        read_diff(io.BytesIO(sealed(original, lambda label, _: {**label, "version": 2})), "f")
