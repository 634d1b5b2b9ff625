"""Files are whole or not there at all, and a bad place is noticed before the work."""

from __future__ import annotations

import io
import json
import os
import stat
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save

from trust_engine.errors import DiffError, ModelError, OutputError
from trust_engine.io import files
from trust_engine.io.files import check_writable, open_safetensors, write_atomically
from trust_engine.io.safetensors import (
    CHUNK,
    Entry,
    Header,
    chunks,
    header_bytes,
    planned,
    read_bytes,
    read_header,
    read_tensor,
    write_all,
    write_tensors,
)

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX file modes and devices")


def test_writes_and_replaces(tmp_path: Path) -> None:
    for content in (b"one", b"two" * 1000, b""):
        write_atomically(tmp_path / "a", content)
        assert (tmp_path / "a").read_bytes() == content
        assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("step", ["fdopen", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    (tmp_path / "a").write_bytes(b"old")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(files.os, step, fail)
    with pytest.raises((OutputError, KeyboardInterrupt)) as caught:
        write_atomically(tmp_path / "a", b"new")
    monkeypatch.undo()
    if isinstance(error, OSError):
        assert str(caught.value) == f"{tmp_path / 'a'}: cannot be written (No space left on device)"
    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("name", ["file/a", "x" * 300])
def test_a_bad_place_is_an_output_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="cannot be written"):
        write_atomically(tmp_path / name, b"new")


@posix
def test_the_umask_decides_who_may_read(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "a", b"")
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


@posix
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, 0o755])
def test_a_file_keeps_its_mode(tmp_path: Path, mode: int) -> None:
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "a").chmod(mode)
    before = os.umask(0o077)
    try:
        write_atomically(tmp_path / "a", b"new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode
    assert (tmp_path / "a").read_bytes() == b"new"


@posix
def test_what_is_written_is_never_open_to_more_than_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "a").chmod(0o600)
    with files.atomic_file(tmp_path / "a"):
        (temporary,) = tmp_path.glob(f"{files.TEMPORARY}*")
        assert stat.S_IMODE(temporary.stat().st_mode) == 0o600


@posix
def test_a_file_system_without_modes_keeps_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "a").chmod(0o755)

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(files.os, "chmod", refuse)
    monkeypatch.setattr(files.os, "chown", refuse)
    write_atomically(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"


@posix
@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_a_link(tmp_path: Path, there: bool) -> None:
    (tmp_path / "store").mkdir()
    if there:
        (tmp_path / "store" / "a").write_bytes(b"old")
    (tmp_path / "link").symlink_to(Path("store") / "a")
    check_writable(tmp_path / "link")
    write_atomically(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "store" / "a").read_bytes() == b"new"
    assert sorted(os.listdir(tmp_path)) == ["link", "store"]
    assert os.listdir(tmp_path / "store") == ["a"]


def test_new_folders_come_with_the_file_and_go_with_a_failure(tmp_path: Path) -> None:
    write_atomically(tmp_path / "new" / "er" / "a", b"x")
    assert (tmp_path / "new" / "er" / "a").read_bytes() == b"x"
    with pytest.raises(KeyboardInterrupt), files.atomic_file(tmp_path / "other" / "er" / "a"):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == ["new"]


def test_a_good_place_passes_and_stays_empty(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"old")
    for name in ("a", "new/folder/a", "old"):
        check_writable(tmp_path / name)
    assert os.listdir(tmp_path) == ["old"]
    assert (tmp_path / "old").read_bytes() == b"old"


@pytest.mark.parametrize("name", [".", "file/a", "file/new/a", "x" * 300])
def test_a_bad_place_is_noticed_before_the_work(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError):
        check_writable(tmp_path / name)


@posix
def test_a_device_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="give a file name"):
        check_writable(tmp_path / "pipe")


def test_a_folder_without_permission_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulated, for root may write anywhere."""

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.os, "open", refuse)
    with pytest.raises(OutputError, match=r"cannot write there \(Permission denied\)"):
        check_writable(tmp_path / "a")


def test_reads_safetensors(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(save({"x": torch.arange(3)}))
    with open_safetensors(tmp_path / "a", ModelError) as file:
        assert file.get_tensor("x").tolist() == [0, 1, 2]


def test_the_callers_own_errors_pass_through(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(save({"x": torch.arange(3)}))
    with pytest.raises(ValueError, match="mine"), open_safetensors(tmp_path / "a", ModelError):
        raise ValueError("mine")


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with (
        pytest.raises(ModelError, match=r"a: cannot be read \(Permission denied\)"),
        open_safetensors(tmp_path / "a", ModelError),
    ):
        pytest.fail("it was opened")


def read(dtype: str, shape: list[int], length: int, **how: bool) -> Header:
    """Read the header of a file that says this of its one tensor, of so many bytes."""
    told = {"w": {"dtype": dtype, "shape": shape, "data_offsets": [0, length]}}
    header = json.dumps(told).encode()
    content = len(header).to_bytes(8, "little") + header + bytes(length)
    return read_header(io.BytesIO(content), "f", DiffError, 1 << 20, **how)


def test_a_header_says_types_and_sizes_that_fit() -> None:
    """Of a type that is not known only the place is checked, unless it has to be known."""
    for how in ({}, {"known": True}):
        read("F32", [2], 8, **how)
        with pytest.raises(DiffError, match="has another size than its shape says"):
            read("F32", [2], 4, **how)
    read("F4_STRANGE", [2], 1)
    with pytest.raises(DiffError, match="is of type"):
        read("F4_STRANGE", [2], 1, known=True)


def test_a_shape_has_eight_sizes_of_31_bits_at_most() -> None:
    for shape in ([2**31 - 1, 0], [0] * 8, []):
        (entry,) = read("U8", shape, 0 if shape else 1).entries.values()
        assert entry.shape == tuple(shape)
    with pytest.raises(DiffError, match="is too large"):
        read("U8", [2**31, 0], 0)
    for wrong in ([0] * 9, [-1], [1.0], [True]):
        with pytest.raises(DiffError, match="no proper shape"):
            read("U8", wrong, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [0, 5, CHUNK, 2 * CHUNK + 3])
def test_a_tensors_bytes_are_read_whole_or_not_at_all(size: int) -> None:
    content = (bytes(range(251)) * (size // 251 + 1))[:size]
    entry = Entry("U8", (size,), 3, 3 + size)
    file, short = io.BytesIO(b"abc" + content + b"after"), io.BytesIO((b"abc" + content)[:-1])
    assert read_bytes(file, entry)[:] == content
    pieces = list(chunks(file, entry))
    assert b"".join(pieces) == content and len(pieces) == -(-size // CHUNK)
    for work in (lambda: read_bytes(short, entry), lambda: list(chunks(short, entry))):
        if size:
            with pytest.raises(OSError, match="became shorter"):
                work()


def test_the_first_tensor_lies_at_a_multiple_of_eight_bytes() -> None:
    """Readers map it into memory, where numbers have to be aligned."""
    for length in range(9):
        header = header_bytes({"w": ("F64", (1,), 8)}, {"a": "x" * length})
        assert len(header) % 8 == 0
        assert int.from_bytes(header[:8], "little") == len(header) - 8


def test_tensors_are_written_as_others_read_them(tmp_path: Path) -> None:
    """Widest first, then by name; also what is empty, has no axis, or is no contiguous block."""
    tensors = {
        "b": torch.arange(6.0).view(2, 3).T, "a": torch.tensor(2.5), "c": torch.empty(0, 4),
        "wide": torch.arange(3), "half": torch.ones(3, dtype=torch.float16),
    }  # fmt: skip
    for metadata in ({}, {"y": "1", "x": "2"}):
        write_all(tmp_path / "a", tensors, metadata)
        with safe_open(str(tmp_path / "a"), "pt") as other:
            assert (other.metadata() or {}) == metadata
            assert all(torch.equal(other.get_tensor(key), tensors[key]) for key in tensors)
        with (tmp_path / "a").open("rb") as file:
            header = read_header(file, "a", DiffError, 1 << 20)
            assert header.metadata == metadata
            assert sorted(header.entries) == sorted(tensors)
            for key, entry in header.entries.items():
                assert torch.equal(read_tensor(file, entry), tensors[key])
    assert list(planned({k: (t.dtype, t.shape) for k, t in tensors.items()})) == [
        "wide", "a", "b", "c", "half",
    ]  # fmt: skip


@pytest.mark.parametrize(("length", "told"), [(7, "-1"), (9, r"\+1")])
def test_a_tensor_of_another_length_than_planned_is_not_saved(
    length: int, told: str, tmp_path: Path
) -> None:
    with pytest.raises(DiffError, match=rf"w came out {told} bytes longer; nothing was saved"):
        write_tensors(tmp_path / "a", {"w": ("F64", (1,), 8)}, lambda _: (bytes(length),), {})
    assert os.listdir(tmp_path) == []


def test_a_file_says_whether_it_is_too_short_or_too_long() -> None:
    content = save({"w": torch.arange(3)})
    for changed, told in ((content[:-1], "cut short"), (content + b"x", "longer than it says")):
        with pytest.raises(DiffError, match=told):
            read_header(io.BytesIO(changed), "f", DiffError, 1 << 20)
