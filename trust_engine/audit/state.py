"""A folder of finished cells, so that an audit that was stopped goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ..diff import fingerprint
from ..errors import OutputError
from ..io.files import write_atomically
from .check import Cell, Outcome
from .context import Picture, Studio

STATE_VERSION = 2


class State:
    """Finished cells by name and by a key of all that decides their answer."""

    def __init__(self, folder: Path, about: str) -> None:
        self.folder, self.about = folder, about
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{folder}: cannot keep finished cells there ({error})") from error

    def read(self, cell: Cell) -> tuple[Outcome, float] | None:
        """Return a finished cell and its seconds; None when it is missing, stale or damaged."""
        try:
            data = json.loads(self._path(cell).read_text("utf-8"))
            if data["key"] != self._key(cell):
                return None
            pictures = {
                row: [Picture(**picture) for picture in listed]
                for row, listed in data["pictures"].items()
            }
            return Outcome(data["figures"], pictures, data["extra"]), float(data["seconds"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def write(self, cell: Cell, outcome: Outcome, seconds: float) -> None:
        """Save a finished cell."""
        data = {
            "key": self._key(cell),
            "cell": cell.name,
            "seconds": round(seconds, 1),
            "figures": outcome.figures,
            "extra": outcome.extra,
            "pictures": {k: [p.to_dict() for p in v] for k, v in outcome.pictures.items()},
        }
        write_atomically(self._path(cell), json.dumps(data).encode())

    def _key(self, cell: Cell) -> str:
        text = json.dumps([STATE_VERSION, self.about, cell.name, cell.budget], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def _path(self, cell: Cell) -> Path:
        return self.folder / f"{cell.name}.json"


def identity(studio: Studio) -> str:
    """Hash what all cells depend on: both models, judge, topic, seed."""
    digest = hashlib.sha256(fingerprint(studio.models["untouched"].denoiser).encode())
    for name, weight in sorted(getattr(studio.models["edited"].denoiser, "overrides", {}).items()):
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        digest.update(weight.float().cpu().contiguous().numpy().tobytes())
    about: list[Any] = [studio.topic.to_dict(), studio.judge.name, studio.seed]
    about += [studio.images, studio.aligner.name if studio.aligner else None, [*studio.eyes]]
    digest.update(json.dumps(about, sort_keys=True).encode())
    return digest.hexdigest()
