"""Where diffs, exports, audits and presets lie; names that come from outside never leave them."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

from modules import paths_internal, shared

from trust_engine.errors import OutputError

SUFFIX = ".safetensors"
DIFFS = "trust_diffs"
_UNUSUAL = re.compile(r"[^\w.-]+")


def diffs() -> Path:
    """Return the folder of diffs: the one in Settings, or models/trust_diffs."""
    chosen = str(getattr(shared.opts, "trust_diffs_folder", "") or "").strip()
    return Path(chosen) if chosen else Path(paths_internal.models_path) / DIFFS


def loras() -> Path:
    """Return the folder that the host's own Lora looks in."""
    chosen = getattr(shared.cmd_opts, "lora_dir", None)
    return Path(chosen) if chosen else Path(paths_internal.models_path) / "Lora"


def checkpoints() -> Path:
    """Return the folder that the host lists checkpoints from."""
    chosen = getattr(shared.cmd_opts, "ckpt_dir", None)
    return Path(chosen) if chosen else Path(paths_internal.models_path) / "Stable-diffusion"


def audits() -> Path:
    """Return the folder of audit pages, among the host's pictures."""
    return Path(paths_internal.default_output_dir) / "trust-audits"


def presets() -> Path:
    """Return the folder of presets."""
    return diffs() / "presets"


def listed() -> list[str]:
    """List the diff files, folder/name, in alphabetical order; the folder need not exist."""
    root = diffs()
    found = (path.relative_to(root).as_posix() for path in root.rglob(f"*{SUFFIX}"))
    return sorted(found, key=str.lower)


def found(name: str) -> Path:
    """Return a diff's path by its name; raises OutputError unless it lies in the folder."""
    root = diffs()
    path = root / name
    if not path.resolve().is_relative_to(root.resolve()) or not path.is_file():
        raise OutputError(f"{name}: no such diff in {root}; put the file there and refresh")
    return path


def ready(folder: Path) -> None:
    """Have a folder that can be written to; raises OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        told = f"nothing can be written to {folder} ({error.strerror}); free it, or choose another"
        raise OutputError(told) from error


def fresh(folder: Path, name: str, suffix: str = SUFFIX) -> Path:
    """Choose a path for a new file: the name made harmless, with a number while it is taken."""
    stem = harmless(name.removesuffix(suffix))
    ready(folder)
    path, number = folder / f"{stem}{suffix}", 2
    while path.exists():
        path, number = folder / f"{stem}-{number}{suffix}", number + 1
    return path


def harmless(name: str) -> str:
    """Make a file name of anything."""
    return _UNUSUAL.sub("-", name).strip("-._")[:80] or "trust"
