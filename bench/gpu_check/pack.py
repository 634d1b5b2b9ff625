"""Lay out what travels to a machine without network: our sources, ComfyUI's, and wheels."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from trust_engine.errors import OutputError

ROOT = Path(__file__).resolve().parents[2]
MOST = 64 << 20  # bytes, wheels included
OURS = ("__init__.py", "LICENSE", "NOTICE", "nodes", "trust_engine", "bench/__init__.py",
        "bench/gpu_check")  # fmt: skip
"""Of this repository; docs, tests, pictures, web pages and the rest of bench stay behind."""
HOSTS = ("comfy", "comfy_api", "comfy_config", "comfy_execution", "utils", "folder_paths.py",
         "latent_preview.py", "node_helpers.py", "comfyui_version.py", "LICENSE")  # fmt: skip
"""Of ComfyUI: what loads a checkpoint and samples."""
LEFT = ("__pycache__", ".pyc", "text_encoders/t5_tokenizer", "text_encoders/qwen25_tokenizer",
        "text_encoders/ace_lyrics_tokenizer", "text_encoders/llama_tokenizer")  # fmt: skip
"""Below those: caches, and tokenizers of models that are not drawn here."""
WHEELS = ("diffusers", "importlib_metadata", "torchsde", "trampoline", "comfy-aimdo")
"""What a machine with torch, transformers and scipy lacks; each without its own dependencies."""
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64",
             "manylinux2014_x86_64", "manylinux1_x86_64")  # fmt: skip
GO = """#!/bin/sh
# ./go.sh [--dry] [--out DIR] [--part NAME ...]: installs the wheels beside it, then runs the parts.
set -e
cd "$(dirname "$0")"
pip="python3 -m pip install -q --no-index --no-deps --no-compile --target"
[ -d site ] || $pip site wheels/*.whl
export PYTHONPATH="$PWD/site:$PWD/trust" COMFYUI_PATH="$PWD/comfyui" HF_HUB_OFFLINE=1
exec python3 -m bench.gpu_check run "$@"
"""


def pack(out: Path, comfyui: Path, python: str = "3.12") -> int:
    """Lay everything out in a new folder; returns its bytes, raises OutputError above 64 MiB.

    python: version that the wheels are for.
    """
    if out.exists():
        raise OutputError(f"{out}: is there already; name a new folder")
    if not (comfyui / "comfy" / "sd.py").is_file():
        raise OutputError(f"{comfyui}: is no ComfyUI checkout; name one in COMFYUI_PATH")
    _copy(ROOT, OURS, out / "trust")
    _copy(comfyui, HOSTS, out / "comfyui")
    _download(out / "wheels", python, _pinned(comfyui))
    (out / "go.sh").write_text(GO)
    (out / "go.sh").chmod(0o755)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    if size > MOST:
        raise OutputError(f"{out}: {size / 2**20:.1f} MiB, and at most 64 travel")
    return size


def _copy(source: Path, names: Iterable[str], out: Path) -> None:
    for name in names:
        for path in _files(source / name):
            place = path.relative_to(source).as_posix()
            if any(part in place for part in LEFT):
                continue
            target = out / place
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())


def _pinned(comfyui: Path) -> list[str]:
    """Take the versions that ComfyUI asks for, where it asks for one."""
    path = comfyui / "requirements.txt"
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    asked = {line.split("==")[0].strip(): line.strip() for line in lines if "==" in line}
    return [asked.get(name, name) for name in WHEELS]


def _download(out: Path, python: str, wheels: Sequence[str]) -> None:
    platforms = [part for name in PLATFORMS for part in ("--platform", name)]
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:",
               "--python-version", python, "--implementation", "cp", *platforms, "-d", str(out),
               *wheels]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise OutputError(f"the wheels cannot be had ({last}); is there a network?")
