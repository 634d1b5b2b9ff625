"""Where diffs, exports, audits and presets lie; names that come from outside never leave them."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

from modules import paths_internal, shared

from trust_engine.errors import OutputError, SpecError

from .one_line import one_line

SUFFIX = ".safetensors"
DIFFS = "trust_diffs"
LONGEST_NAME = 1000  # characters, of all folders and the file
LONGEST_PART = 255  # bytes, of one of them: what file systems take
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


def passing_ready() -> None:
    """Have the folder that the host passes pictures to its page through; raises OutputError.

    It is a setting, and Forge Neo's from the start; the hosts make it only when it is changed, and
    without it every picture that is shown is an error.
    """
    chosen = str(getattr(shared.opts, "temp_dir", "") or "").strip()
    if chosen:
        ready(Path(chosen))


def presets() -> Path:
    """Return the folder of presets."""
    return diffs() / "presets"


def listed() -> list[str]:
    """List the diff files, folder/name, in alphabetical order; the folder need not exist.

    Links to files and folders are followed, each folder once.
    """
    root, seen, found = diffs(), set[str](), list[str]()
    for place, inner, files in os.walk(root, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link that leads back
            inner.clear()
            continue
        seen.add(real)
        here = Path(place).relative_to(root)
        found += [(here / name).as_posix() for name in files if _shown(name)]
    return sorted(found, key=str.lower)


def _shown(name: str) -> bool:
    """Tell whether a file is a diff's that can be named: no text holds every file's name."""
    return name.endswith(SUFFIX) and name.isprintable()


def check_name(name: object) -> None:
    """Raise SpecError unless it is a name that a diff in the folder may have."""
    if not isinstance(name, str) or not name.strip():
        raise SpecError(f"{one_line(repr(name), 60)} is no diff's name; write such as "
                        f"gun{SUFFIX}")  # fmt: skip
    if not name.isprintable() or len(name) > LONGEST_NAME:
        raise SpecError(f"{one_line(repr(name), 60)} is no diff's name: it has characters that "
                        "cannot be written, or too many")  # fmt: skip
    parts = name.replace("\\", "/").split("/")
    if any(len(part.encode()) > LONGEST_PART for part in parts):
        raise SpecError(f"{one_line(name, 60)}: no file has a name this long")


def has(name: str) -> bool:
    """Tell whether a diff of this name lies in the folder."""
    try:
        found(name)
    except (OutputError, SpecError):
        return False
    return True


def found(name: str) -> Path:
    """Return a diff's path by its name; raises OutputError unless it lies in the folder.

    A link that lies there counts: whoever keeps the folder has put it there.
    """
    check_name(name)
    root, path = diffs(), diffs() / name
    outside = Path(name).is_absolute() or ".." in name.replace("\\", "/").split("/")
    if outside or not name.endswith(SUFFIX) or not _is_file(path):
        raise OutputError(f"{one_line(name, 100)}: no such diff in {root}; put the file there and "
                          "refresh")  # fmt: skip
    return path


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


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
