"""The check that travels to a GPU: what is packed, and how its parts are done and gone on with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.gpu_check import __main__ as command
from bench.gpu_check import pack as packing
from bench.gpu_check import parts
from trust_engine.errors import OutputError


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Pretend to have a ComfyUI checkout, with what stays behind in it."""
    host = tmp_path / "ComfyUI"
    for name in ("comfy/sd.py", "comfy/__pycache__/sd.pyc", "comfy_execution/graph.py", "main.py",
                 "comfy/sd1_tokenizer/vocab.json", "comfy/text_encoders/t5_tokenizer/big.json",
                 "models/checkpoints/a.safetensors", "folder_paths.py"):  # fmt: skip
        (host / name).parent.mkdir(parents=True, exist_ok=True)
        (host / name).write_text("x")
    (host / "requirements.txt").write_text("torch\ncomfy-aimdo==0.4.13\nscipy\n")
    return host


def wheels(monkeypatch: pytest.MonkeyPatch, size: int = 1) -> list[Any]:
    """Download nothing, but a file of a size."""
    asked: list[Any] = []

    def download(out: Path, python: str, names: Any) -> None:
        asked.extend((python, list(names)))
        out.mkdir(parents=True)
        (out / "a.whl").write_bytes(b"0" * size)

    monkeypatch.setattr(packing, "_download", download)
    return asked


def test_only_what_is_needed_is_packed(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, out = wheels(monkeypatch), tmp_path / "pack"
    size = packing.pack(out, checkout)
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert size == sum((out / name).stat().st_size for name in files) < packing.MOST
    assert {"comfyui/comfy/sd.py", "comfyui/folder_paths.py", "go.sh", "wheels/a.whl",
            "comfyui/comfy/sd1_tokenizer/vocab.json", "trust/__init__.py",
            "trust/trust_engine/demo/assets/emoji-world.safetensors",
            "trust/bench/gpu_check/parts.py"} <= files  # fmt: skip
    for left in ("__pycache__", "models/checkpoints", "t5_tokenizer", "comfyui/main.py",
                 "trust/tests", "trust/docs", "bench/rivals"):  # fmt: skip
        assert not [name for name in files if left in name and "__main__" not in name], left
    assert asked == ["3.12", [n if n != "comfy-aimdo" else "comfy-aimdo==0.4.13"
                              for n in packing.WHEELS]]  # fmt: skip
    with pytest.raises(OutputError, match="is there already"):
        packing.pack(out, checkout)


def test_what_cannot_travel_is_refused(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OutputError, match="is no ComfyUI checkout; name one in COMFYUI_PATH"):
        packing.pack(tmp_path / "a", tmp_path)
    monkeypatch.setattr(packing, "MOST", 1000)
    wheels(monkeypatch, 2000)
    with pytest.raises(OutputError, match="at most 64 travel"):
        packing.pack(tmp_path / "b", checkout)


def run(out: Path, *more: str) -> int:
    """Run the command."""
    return command.main(["run", "--dry", "--out", str(out), *more])


def test_parts_are_done_once_and_a_failed_one_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In processes of their own: one that fails, or takes too long, stops none of the others."""
    out = tmp_path / "found"
    monkeypatch.setattr(command, "PART", ["-c", _STANDS_FOR.format(out=str(out))])
    assert run(out, "--part", "sd15", "robust", "sdxl", "--limit", "3") == 1
    told = capsys.readouterr().out
    assert "sd15: done" in told and "robust: failed (ValueError: no)" in told
    assert "sdxl: ran longer than 3 s" in told
    found = json.loads((out / "results.json").read_text())
    assert found["sd15"]["done"] and not found["robust"].get("done")
    assert run(out, "--part", "sd15") == 0 and "done already" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        command.main(["run", "--colour"])
    assert run(out, "--part", "colour") == 2
    assert len(list(out.iterdir())) <= 8


_STANDS_FOR = """
import sys, time
from pathlib import Path
from bench.gpu_check.__main__ import note
name = sys.argv[1]
if name == "robust":
    raise ValueError("no")
if name == "sdxl":
    time.sleep(60)
note(Path({out!r}), name, {{"done": True}})
"""


def test_figures_are_kept_as_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def halting(dry: bool, out: Path) -> Any:
        yield "first", {"seconds": 1.0}
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setitem(parts.PARTS, "sd15", halting)
    with pytest.raises(RuntimeError):
        command.main(["one", "sd15", "--out", str(tmp_path), "--dry"])
    found = command.known(tmp_path)["sd15"]
    assert found["first"] == {"seconds": 1.0} and found["dry"] and "done" not in found


def test_a_small_card_that_is_too_small_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def small(asked: Any) -> Any:
        yield "machine", {}
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr("trust_engine.benchmark.run.bench", small)
    figures = dict(parts.PARTS["sdxl-8gb"](True, tmp_path))
    assert "out of memory" in figures["refused"]["says"] and "machine" in figures
