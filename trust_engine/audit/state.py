"""A folder of finished cells, so that an audit that was stopped goes on where it stopped."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from ..errors import OutputError
from ..io.files import write_atomically
from ..models.identity import Digest, engine_identity, modules_of
from .check import Check, CheckResult
from .context import AuditContext, Picture
from .probes import core_probes

STATE_VERSION = 3


class State:
    """Finished cells by name and by a key of all that decides their answer."""

    def __init__(self, folder: Path, about: str) -> None:
        self.folder, self.about = folder, about
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{folder}: cannot keep finished cells there ({error})") from error

    def read(self, cell: Check) -> tuple[CheckResult, float] | None:
        """Return a finished cell and its seconds; None when it is missing, stale or damaged."""
        try:
            data = json.loads(self._path(cell).read_text("utf-8"))
            if data["key"] != self._key(cell) or data.pop("sha256") != _sha256(data):
                return None
            pictures = {
                row: [Picture(**picture) for picture in listed]
                for row, listed in data["pictures"].items()
            }
            return CheckResult(data["figures"], pictures, data["extra"]), float(data["seconds"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def write(self, cell: Check, outcome: CheckResult, seconds: float) -> None:
        """Save a finished cell."""
        data = {
            "key": self._key(cell),
            "cell": cell.name,
            "seconds": round(seconds, 1),
            "figures": outcome.figures,
            "extra": outcome.extra,
            "pictures": {k: [p.to_dict() for p in v] for k, v in outcome.pictures.items()},
        }
        data["sha256"] = _sha256(data)
        write_atomically(self._path(cell), json.dumps(data).encode())

    def _key(self, cell: Check) -> str:
        text = json.dumps([STATE_VERSION, self.about, cell.name, cell.budget], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def _path(self, cell: Check) -> Path:
        # By what it depends on, too: audits that share a folder leave each other's cells alone.
        return self.folder / f"{cell.name}-{self._key(cell)[:12]}.json"


def _sha256(data: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def identity(studio: AuditContext) -> str:
    """Hash what all cells depend on: both models whole, judge, eyes, topic, sampler, seed."""
    plain, edited = studio.models["untouched"], studio.models["edited"]
    about: list[Any] = [studio.topic.to_dict(), studio.judge.name, studio.seed]
    about += [studio.images, studio.aligner.name if studio.aligner else None, [*studio.eyes]]
    about += [dataclasses.asdict(studio.settings), plain.latent_size, engine_identity()]
    digest = Digest().text(json.dumps(about, sort_keys=True)).schedule(plain.denoiser.schedule)
    overrides = getattr(edited.denoiser, "overrides", {})
    for name, weight in sorted(overrides.items()):
        digest.tensor(name, weight)
    named = {"UNet": plain.denoiser.module, "encoder": plain.encoder, "decoder": plain.decoder}
    lookers = {"judge": studio.judge, "aligner": studio.aligner, **studio.eyes}
    for name, thing in {**named, **lookers}.items():
        for part, module in modules_of(thing):
            digest.module(f"{name} {part}", module)
    # An encoder counts by what it makes of the audit's prompts, whatever it is made of.
    listed = core_probes(studio.topic, studio.images, studio.seed)
    prompts = [shot.prompt for shot in (*listed.target, *listed.synonyms, *listed.others)]
    asked = [*dict.fromkeys(prompts), *studio.topic.synonyms, ""]
    return digest.conditioning("prompts", plain.encoder.encode(asked)).hex()
