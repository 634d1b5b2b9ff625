"""Finished cells on disk, so that an audit that was stopped goes on where it stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch

from .. import seeds
from ..errors import OutputError
from ..io.files import write_atomically
from ..models.contract import Conditioning
from ..models.identity import Digest, engine_identity, modules_of, probe
from .checks.base import Check, CheckResult
from .context import AuditContext, Picture
from .probe_prompts import core_probes

STATE_VERSION = 3
KIND = ".cell"


class CellStore(Protocol):
    """Where a user's runs are kept, of bounded size; `unlearn.run_store.RunStore` is one."""

    def path(self, key: str, kind: str) -> Path:
        """Return the path of what is kept under a key."""
        ...

    def make_room(self, size: int, key: str = "") -> None:
        """Remove what was used longest ago until `size` bytes fit; raises OutputError."""
        ...


class State:
    """Finished cells by name and by a key of all that decides their answer.

    place: a folder that the user named, which must be writable, or the store of their runs, without
    which the audit goes on: what keeps it from being written is told to `say`, once.
    """

    def __init__(
        self, place: Path | CellStore, about: str, say: Callable[[str], None] | None = None
    ) -> None:
        self.about, self._say = about, say
        self._folder = place if isinstance(place, Path) else None
        self._store = None if isinstance(place, Path) else place
        if self._folder is None:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"{self._folder}: cannot keep finished cells there ({error})"
            ) from error

    def read(self, cell: Check) -> tuple[CheckResult, float] | None:
        """Return a finished cell and its seconds; None when it is missing, stale or damaged."""
        try:
            path = self._path(cell)
            data = json.loads(path.read_text("utf-8"))
            if data["key"] != self._key(cell) or data.pop("sha256") != _sha256(data):
                return None
            pictures = {
                row: [Picture(**picture) for picture in listed]
                for row, listed in data["pictures"].items()
            }
            found = CheckResult(data["figures"], pictures, data["extra"]), float(data["seconds"])
            if self._store is not None:  # which removes first what was used longest ago
                with contextlib.suppress(OSError):
                    os.utime(path)
            return found
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
        content = json.dumps(data).encode()
        if self._store is None:
            write_atomically(self._path(cell), content)
            return
        path = self._path(cell)
        try:
            self._store.make_room(len(content), path.stem)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content)
        except (OutputError, OSError) as error:
            if self._say is not None:
                self._say(f"the audit is not kept, for the run store cannot be used: {error}")
            self._say = None

    def _key(self, cell: Check) -> str:
        text = json.dumps([STATE_VERSION, self.about, cell.name, cell.budget], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def _path(self, cell: Check) -> Path:
        # By what it depends on, too: audits that share a folder leave each other's cells alone.
        key = self._key(cell)
        if self._store is not None:
            return self._store.path(key, KIND)
        assert self._folder is not None
        return self._folder / f"{cell.name}-{key[:12]}.json"


def _sha256(data: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def identity(context: AuditContext) -> str:
    """Hash what all cells depend on: both models whole, judge, eyes, topic, sampler, seed."""
    plain, edited = context.models["untouched"], context.models["edited"]
    about: list[Any] = [context.topic.to_dict(), context.judge.name, context.seed]
    about += [context.images, context.aligner.name if context.aligner else None, [*context.eyes]]
    about += [dataclasses.asdict(context.settings), plain.latent_size, engine_identity()]
    digest = Digest().text(json.dumps(about, sort_keys=True)).schedule(plain.denoiser.schedule)
    overrides = getattr(edited.denoiser, "overrides", {})
    for name, weight in sorted(overrides.items()):
        digest.tensor(name, weight)
    named = {"UNet": plain.denoiser.module, "encoder": plain.encoder, "decoder": plain.decoder}
    lookers = {"judge": context.judge, "aligner": context.aligner, **context.eyes}
    for name, thing in {**named, **lookers}.items():
        for part, module in modules_of(thing):
            digest.module(f"{name} {part}", module)
    # An encoder counts by what it makes of the audit's prompts, whatever it is made of.
    listed = core_probes(context.topic, context.images, context.seed)
    prompts = [shot.prompt for shot in (*listed.target, *listed.synonyms, *listed.others)]
    asked = [*dict.fromkeys(prompts), *context.topic.synonyms, ""]
    cond = plain.encoder.encode(asked)
    if not any(True for _ in plain.decoder.parameters()):
        _add_lent(digest, context, cond)
    return digest.conditioning("prompts", cond).hex()


@torch.no_grad()
def _add_lent(digest: Digest, context: AuditContext, cond: Conditioning) -> None:
    """Add what a host's model does: patches and a decoder that do not show in its weights."""
    model = context.models["untouched"]
    x = torch.randn(1, 4, *model.latent_size, generator=seeds.generator(seeds.PROBE))
    digest.text(probe(model.denoiser, cond, model.latent_size))
    digest.tensor("decoded", model.decoder(x.to(model.device)).float())
