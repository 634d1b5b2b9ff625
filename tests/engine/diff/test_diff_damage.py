"""Diff files that are damaged, foreign or hostile: a DiffError, and never anything else."""

from __future__ import annotations

import os
import pickle
import random
from pathlib import Path

import pytest
import torch

from toys.tiny import KEY, content, some_diff, tiny_denoiser
from trust_engine.diff import LowRankOffset, SparseOffset, WeightDiff, load_diff, save_diff
from trust_engine.errors import DiffError, OutputError


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_diff(some_diff(tiny_denoiser()), tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


def mutations(original: bytes, count: int) -> list[bytes]:
    """Cut, flip, drop, repeat and overwrite at random."""
    chance, mutated = random.Random(0), []
    for i in range(count):
        data = bytearray(original)
        # Half of the places lie in the header, where a file is most fragile.
        at = chance.randrange(min(3000, len(data)) if i % 2 else len(data))
        size = chance.choice((1, 2, 8, 100))
        kind = i % 6
        if kind == 0:
            data = data[:at]
        elif kind in (1, 2):
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 3:
            del data[at : at + size]
        elif kind == 4:
            data[at:at] = data[at : at + size]
        else:
            data[at : at + size] = chance.randbytes(len(data[at : at + size]))
        mutated.append(bytes(data))
    return mutated


def test_damage_is_a_diff_error_and_nothing_else(saved: Path, tmp_path: Path) -> None:
    """A damaged file is refused, or the damage was harmless: the content is what it was."""
    original, expected, refused = saved.read_bytes(), content(load_diff(saved)), 0
    changed = [data for data in mutations(original, 300) if data != original]
    for data in changed:
        (tmp_path / "b").write_bytes(data)
        try:
            assert content(load_diff(tmp_path / "b")) == expected
        except DiffError as error:
            assert str(tmp_path / "b") in str(error)
            refused += 1
    assert refused >= 0.98 * len(changed) > 250


def other_files() -> dict[str, bytes]:
    """Make files that are no diffs, whatever they are called."""
    from safetensors.torch import save

    return {
        "empty": b"",
        "text": b"not a diff",
        "pickle": pickle.dumps({"a": 1}),
        "old_pickle": pickle.dumps({"a": 1}, protocol=0),
        "zip": b"PK\x03\x04" + bytes(100),
        "huge_header": (2**62).to_bytes(8, "little") + b"{}",
        "foreign": save({"a": torch.zeros(3)}),
        "no_label": save({"a": torch.zeros(3)}, {"trust-diff": "{"}),
        "deep_label": save({"a": torch.zeros(3)}, {"trust-diff": "[" * 100_000}),
        "wrong_label": save({"a": torch.zeros(3)}, {"trust-diff": "[1]"}),
        "half_label": save({"a": torch.zeros(3)}, {"trust-diff": '{"version": 1}'}),
        "list_label": save(
            {"a": torch.zeros(3)},
            {"trust-diff": '{"version": 1, "tensors": [], "provenance": {}, "sha256": ""}'},
        ),
        "newer": save({"a": torch.zeros(3)}, {"trust-diff": '{"version": 3, "tensors": {}}'}),
    }


@pytest.mark.parametrize("name", other_files())
def test_other_files_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.safetensors"
    path.write_bytes(other_files()[name])
    with pytest.raises(DiffError, match=name) as caught:
        load_diff(path)
    if name in ("pickle", "zip"):
        assert "refused; convert it to safetensors" in str(caught.value)


def test_a_torch_checkpoint_is_refused_and_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "sprung"),)

    for legacy in (True, False):
        torch.save(Trap(), tmp_path / "a.safetensors", _use_new_zipfile_serialization=not legacy)
        with pytest.raises(DiffError, match="pickle"):
            load_diff(tmp_path / "a.safetensors")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("indices", "values"),
    [
        ([0, 6], [1.0, 1.0]),
        ([-1, 2], [1.0, 1.0]),
        ([2, 2], [1.0, 1.0]),
        ([3, 2], [1.0, 1.0]),
        ([1, 2], [1.0]),
        ([1, 2], [1.0, float("nan")]),
        ([1, 2], [float("inf"), 1.0]),
    ],
)
def test_entries_out_of_bounds_are_not_even_saved(
    indices: list[int], values: list[float], tmp_path: Path
) -> None:
    offset = SparseOffset((2, 3), torch.tensor(indices).int(), torch.tensor(values))
    with pytest.raises(DiffError, match="out of bounds or not finite"):
        save_diff(WeightDiff({KEY: offset}, {}), tmp_path / "a")
    assert os.listdir(tmp_path) == []


def test_other_number_types_are_not_saved(tmp_path: Path) -> None:
    for indices, values in (
        (torch.tensor([1, 2]), torch.ones(2)),
        (torch.tensor([1, 2]).int(), torch.ones(2).half()),
    ):
        with pytest.raises(DiffError):
            save_diff(WeightDiff({KEY: SparseOffset((2, 3), indices, values)}), tmp_path / "a")


@pytest.mark.parametrize(
    ("up", "down", "says"),
    [
        (torch.ones(3, 2), torch.ones(1, 4), "do not fit"),
        (torch.ones(3, 5), torch.ones(5, 4), "do not fit"),
        (torch.ones(3, 0), torch.ones(0, 4), "do not fit"),
        (torch.ones(3, 2, 3), torch.ones(2, 4), "do not fit"),
        (torch.ones(3, 2).half(), torch.ones(2, 4), "do not fit"),
        (torch.ones(1 << 14, 1), torch.ones(1, 1 << 13), "do not fit"),
        (torch.ones(3, 2), torch.tensor([[1.0, 2, 3, 4], [1, 2, 3, float("nan")]]), "not finite"),
        (torch.full((3, 2), 1e30), torch.full((2, 4), 1e30), "not finite"),
        (torch.full((3, 2), 2e19), torch.full((2, 4), 1e19), "not finite"),
    ],
)
def test_factors_without_a_sound_product_are_not_even_saved(
    up: torch.Tensor, down: torch.Tensor, says: str, tmp_path: Path
) -> None:
    """Each factor finite, and their product not, is no offset either."""
    with pytest.raises(DiffError, match=says):
        save_diff(WeightDiff({KEY: LowRankOffset(up, down)}, {}), tmp_path / "a")
    assert os.listdir(tmp_path) == []


def test_single_entries_of_another_weight_are_not_saved_with_factors(tmp_path: Path) -> None:
    sparse = SparseOffset((3, 3), torch.tensor([1]).int(), torch.ones(1))
    offset = LowRankOffset(torch.ones(3, 2), torch.ones(2, 4), sparse)
    with pytest.raises(DiffError, match="out of bounds"):
        save_diff(WeightDiff({KEY: offset}, {}), tmp_path / "a")


@pytest.mark.parametrize("name", ["missing", "x" * 300, ""])
def test_a_file_that_is_not_there(name: str, tmp_path: Path) -> None:
    with pytest.raises(DiffError, match=r"no such file|cannot be read|is a folder"):
        load_diff(tmp_path / name)


def test_a_folder_that_is_not_there_is_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deeper" / "a.safetensors"
    save_diff(WeightDiff({}), path)
    assert load_diff(path).offsets == {}
    assert [p.name for p in path.parent.iterdir()] == ["a.safetensors"]


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path: Path) -> None:
    """A file stands where the folder would be; it stays, and so does nothing else."""
    (tmp_path / "gone").write_bytes(b"mine")
    for path in (tmp_path / "gone" / "a", tmp_path / "gone" / "deeper" / "a"):
        with pytest.raises(OutputError, match="cannot be written"):
            save_diff(WeightDiff({}), path)
    assert [p.name for p in tmp_path.iterdir()] == ["gone"]
    assert (tmp_path / "gone").read_bytes() == b"mine"
