"""No output may be an input: what a command reads and what it writes, compared before the work."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from ..errors import OutputError
from .files import check_writable

DEMO = Path(__file__).parents[1] / "demo" / "assets"
MOST = 20_000  # files of a model's folder that are looked at
# Endings by which programs choose how to read a file.
ENDINGS = {
    *(".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".svg"),
    *(".json", ".html", ".htm", ".txt", ".md", ".csv", ".pdf", ".zip", ".yaml", ".yml"),
    *(".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf", ".onnx"),
}
_MODEL = ("unet", "model_index.json", "config.json")
_WEIGHTS = "diffusion_pytorch_model"


def check_outputs(outputs: Iterable[Path | None], inputs: Mapping[str, str | Path | None]) -> None:
    """Refuse outputs that cannot be written, are an input or in an input's folder, or are alike.

    inputs: by what they are to the user, such as "the model"; "demo" is the model that we bring.
    Links, hard links and other spellings of a path are the file that they lead to.
    """
    wanted = [path for path in outputs if path is not None]
    for path in wanted:
        for what, source in inputs.items():
            if source is not None and str(source) and _touches(path, source):
                raise OutputError(f"{path}: is {what} itself, or in it; choose another name")
        check_writable(path)
    for one, other in itertools.combinations(wanted, 2):
        if same(one, other):
            raise OutputError(f"{one}: is named for two results; give each its own name")


def check_suffix(path: Path | None, *own: str) -> None:
    """Refuse a name whose ending says another format than the file would hold; own: its endings."""
    if path is None or path.suffix.lower() not in ENDINGS or path.suffix.lower() in own:
        return
    raise OutputError(
        f"{path}: would hold no {path.suffix[1:].lower()}; let its name end in {' or '.join(own)}"
    )


def check_folder(folder: Path, inputs: Mapping[str, str | Path | None]) -> None:
    """Refuse a folder to be made that is there already, or for what `check_outputs` refuses."""
    if os.path.lexists(folder):
        raise OutputError(f"{folder}: is there already; name a new folder")
    if folder.suffix.lower() in ENDINGS:
        raise OutputError(f"{folder}: will be a folder; choose a name that is no file's")
    check_outputs([folder], inputs)


def same(one: Path, other: Path) -> bool:
    """Tell whether two paths lead to one file."""
    if _real(one) == _real(other):
        return True
    try:
        first, second = os.stat(one), os.stat(other)
    except (OSError, ValueError):
        return False
    # Some network file systems number all their files 0.
    return bool(first.st_ino) and os.path.samestat(first, second)


def _touches(path: Path, source: str | Path) -> bool:
    place = DEMO if source == "demo" else Path(source)
    if same(path, place):
        return True
    if not os.path.isdir(place) or not _is_model(place):
        return False
    above = (Path(_real(path)), *Path(_real(path)).parents)
    return any(same(folder, place) for folder in above) or _linked(path, place)


def _is_model(folder: Path) -> bool:
    if folder == DEMO or any((folder / name).exists() for name in _MODEL):
        return True
    return any(entry.name.startswith(_WEIGHTS) for entry in folder.iterdir())


def _linked(path: Path, folder: Path) -> bool:
    """Tell whether a file elsewhere is what a file of the folder links to, as in shared caches."""
    return path.is_file() and any(
        same(path, file) for file in itertools.islice(_files(folder), MOST)
    )


def _files(folder: Path) -> Iterator[Path]:
    for root, _, names in os.walk(folder):
        yield from (Path(root) / name for name in names)


def _real(path: Path) -> str:
    return os.path.normcase(os.path.realpath(path))
