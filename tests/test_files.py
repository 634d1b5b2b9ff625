"""Files are whole or not there at all, and a bad place is noticed before the work."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from trust_engine import files
from trust_engine.errors import ModelError, OutputError
from trust_engine.files import check_writable, open_safetensors, write_atomically

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX file modes and devices")


def test_writes_and_replaces(tmp_path: Path) -> None:
    for content in (b"one", b"two" * 1000, b""):
        write_atomically(tmp_path / "a", content)
        assert (tmp_path / "a").read_bytes() == content
        assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("step", ["fdopen", "chmod", "replace"])
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


@pytest.mark.parametrize("name", ["gone/a", "file/a", "x" * 300])
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


def test_a_good_place_passes_and_stays_empty(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"old")
    for name in ("a", "new/folder/a", "old"):
        check_writable(tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == ["new", "old"]
    assert not os.listdir(tmp_path / "new" / "folder")
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

    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.tempfile, "TemporaryFile", refuse)
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
