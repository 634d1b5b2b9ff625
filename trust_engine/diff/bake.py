"""Patched models on disk: a checkpoint or model folder, a UNet folder, a UNet's state dict.

The base is read and the result written tensor by tensor: memory does not grow with the model.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import DiffError, ModelError, OutputError
from ..io.files import TEMPORARY, atomic_file, make_folder, remove_folders, write_atomically
from ..io.locks import LOCKS, seize
from ..io.outputs import same
from ..io.safetensors import Plan, write_tensors
from ..models.checkpoint import APPLIED, Source, read_json
from ..models.unet_keys import KeyMap
from .apply import LARGEST_LOSS, Rounding
from .base_model import BaseModel, Parts
from .file import payload_sha256

LOCK = ".lock"
# Hashes of the file the base was, which the result is not.
_STALE = ("modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash")
_PAGES = (".json", ".md", ".txt", ".yaml", "")
_PARTS = (
    "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "vae", "scheduler",
    "feature_extractor", "safety_checker", "image_encoder",
)  # fmt: skip


def write_checkpoint(base: BaseModel, diffs: Parts, out: Path) -> Rounding:
    """Write the whole model with the diffs added, a file for a file, a folder for a folder.

    The base is only read. Second copies of the UNet in a file get the same changes; a folder's
    other copies are left out (`left_out`). Raises DiffError where rounding loses too much.
    """
    lost = Rounding()
    if base.path.is_dir():
        with _new_folder(out) as folder:
            _write_folder(base, diffs, folder, lost)
        return lost
    refuse_base(base, out)
    (source,) = base.model.sources
    _write_source(base, source, diffs, out, lost)
    return lost


def left_out(base: BaseModel) -> list[str]:
    """List what `write_checkpoint` leaves out of a model's folder: other copies of the UNet."""
    if not base.path.is_dir():
        return []
    kept = set(_kept(base))
    inside = [entry for folder in _folders(base) for entry in sorted(folder.iterdir())]
    mine = {source.path for source in base.model.sources}
    gone = [e for e in inside if e not in kept | mine and not e.name.startswith(".")]
    return [e.relative_to(base.path).as_posix() for e in gone if e not in _folders(base)]


def write_unet_folder(base: BaseModel, diffs: Parts, folder: Path) -> Rounding:
    """Write the patched UNet as a new diffusers folder: config.json and weights."""
    config = {"_class_name": "UNet2DConditionModel", **_family_config(base)}
    names = _diffusers_names(base)
    lost = Rounding()
    with _new_folder(folder) as temporary:
        _write_unet(base, diffs, names, temporary / "diffusion_pytorch_model.safetensors", lost)
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        write_atomically(temporary / "config.json", text.encode())
    return lost


def write_unet_pt(base: BaseModel, diffs: Parts, out: Path) -> Rounding:
    """Write the patched UNet's state dict under diffusers names, as benchmarks of erasure read it.

    The one format that is a pickle and has to be in memory whole; we write it, and never read one.
    """
    refuse_base(base, out)
    lost, state = Rounding(), {}
    for key, name in sorted(_diffusers_names(base).items()):
        state[name] = base.patch(key, diffs, lost)
    check_loss(base, lost)
    with atomic_file(out) as file:
        torch.save(state, file)
    return lost


def refuse_base(base: BaseModel, out: Path) -> None:
    """Raise OutputError for an output that would replace the model itself."""
    if any(same(out, path) for path in (base.path, *(s.path for s in base.model.sources))):
        raise OutputError(f"{out}: is the model itself; choose another name for the result")


def check_loss(base: BaseModel, lost: Rounding) -> None:
    """Raise DiffError where the model's number type loses more of a change than a few per cent."""
    if lost.lost > LARGEST_LOSS:
        raise DiffError(
            f"{base.path}: its number type is too coarse for the change: {lost}; nothing was "
            "written. Take the float16 or float32 version of the model"
        )


@contextlib.contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """Lend a folder that takes its name when the block ends well, and is gone if not."""
    if os.path.lexists(folder):
        raise OutputError(f"{folder}: is there already; name a new folder")
    temporary, made = folder.parent / f"{TEMPORARY}{secrets.token_hex(8)}", list[Path]()
    try:
        made = make_folder(folder.parent)
        _remove_abandoned(folder.parent)
        temporary.mkdir()  # the system's own mask decides who may read it
        with _in_use(temporary):
            yield temporary
        os.rename(temporary, folder)
        made = []
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        remove_folders(made)


@contextlib.contextmanager
def _in_use(folder: Path) -> Iterator[None]:
    """Hold a lock in a folder, by which others tell it from one whose process was killed."""
    path = folder / LOCK
    unseen = folder / f"{LOCK}ing" if LOCKS else path  # until it is locked
    handle = os.open(unseen, os.O_RDWR | os.O_CREAT)
    try:
        seize(handle)
        if unseen != path:
            os.replace(unseen, path)
        yield
    finally:
        os.close(handle)
        path.unlink(missing_ok=True)


def _remove_abandoned(parent: Path) -> None:
    """Remove what killed exports left: folders of ours whose lock nobody holds."""
    for left in parent.glob(f"{TEMPORARY}*/{LOCK}"):
        with contextlib.suppress(OSError):
            handle = os.open(left, os.O_RDWR)
            try:
                free = seize(handle)
            finally:
                os.close(handle)
            if free:
                shutil.rmtree(left.parent)


def _write_folder(base: BaseModel, diffs: Parts, folder: Path, lost: Rounding) -> None:
    for entry in _kept(base):
        there = folder / entry.relative_to(base.path)
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(entry, there) if entry.is_dir() else shutil.copyfile(entry, there)
    for source in base.model.sources:
        there = folder / source.path.relative_to(base.path)
        _write_source(base, source, diffs, there, lost)
    check_loss(base, lost)


def _folders(base: BaseModel) -> list[Path]:
    """The folders whose content is chosen file by file: the model's, and the UNet's."""
    return list(dict.fromkeys([base.path, base.model.sources[0].path.parent]))


def _kept(base: BaseModel) -> list[Path]:
    """List what of a folder belongs to the model, the UNet's own weights aside."""
    root, unet = base.path, base.model.sources[0].path.parent
    named = set(read_json(root / "model_index.json")) or set(_PARTS)
    kept = [
        entry
        for folder in _folders(base)
        for entry in sorted(folder.iterdir())
        if entry.is_file() and entry.suffix in _PAGES and not entry.name.startswith(".")
        if folder != unet or _describes(entry, base)
    ]
    if root == unet:
        return kept
    parts = [e for e in sorted(root.iterdir()) if e.is_dir() and e.name in named and e != unet]
    return kept + [e for e in parts if not _is_unet(e)]


def _describes(entry: Path, base: BaseModel) -> bool:
    """Tell whether a file beside the UNet's weights is about those that were read."""
    if ".index." not in entry.name:
        return True
    shards = set(read_json(entry).get("weight_map", {}).values())
    return shards == {source.path.name for source in base.model.sources}


def _is_unet(folder: Path) -> bool:
    kind = str(read_json(folder / "config.json").get("_class_name", ""))
    return folder.name.startswith("unet") or kind.startswith("UNet")


def _write_source(base: BaseModel, source: Source, diffs: Parts, out: Path, lost: Rounding) -> None:
    """Write one of the model's files with the diffs added."""
    keys, entries, again = base.keys(source), source.header.entries, Rounding()
    plan: Plan = {name: (e.dtype, e.shape, e.size) for name, e in entries.items()}
    kept = {k: v for k, v in source.header.metadata.items() if k not in _STALE}
    last = list(plan)[-1] if plan else ""

    def produce(name: str) -> Iterator[Any]:
        key, copied = keys.get(name, (None, False))
        yield from base.patched(source, name, key, diffs, again if copied else lost)
        if name == last:  # before the file takes its name
            check_loss(base, lost)
            check_loss(base, again)

    write_tensors(out, plan, produce, {**kept, APPLIED: _applied_text(base, diffs)})


def _write_unet(
    base: BaseModel, diffs: Parts, names: dict[str, str], out: Path, lost: Rounding
) -> None:
    where = {s.path: s for s in base.model.sources}
    found = {name: s for s in where.values() for name in s.header.entries}
    keys = {name: key for key, name in names.items()}
    stored = {name: base.stock[key].name for name, key in keys.items()}
    entries = {name: found[there].header.entries[there] for name, there in stored.items()}
    plan: Plan = {name: (e.dtype, e.shape, e.size) for name, e in entries.items()}
    metadata = {"format": "pt", APPLIED: _applied_text(base, diffs)}

    def produce(name: str) -> Iterator[Any]:
        return base.patched(found[stored[name]], stored[name], keys[name], diffs, lost)

    write_tensors(out, plan, produce, metadata)
    check_loss(base, lost)


def _family_config(base: BaseModel) -> dict[str, Any]:
    if base.family is None:
        raise ModelError(f"{base.path}: of no known family, so its diffusers config is not known")
    return dict(base.family.config)


def _diffusers_names(base: BaseModel) -> dict[str, str]:
    if base.family is None:
        raise ModelError(f"{base.path}: of no known family, so its diffusers names are not known")
    keys = KeyMap(base.family.shape)
    try:
        return {key: keys.to_diffusers(key) for key in base.stock}
    except KeyError as error:
        raise ModelError(f"{base.path}: a UNet of another shape: {error}") from error


def _applied_text(base: BaseModel, diffs: Parts) -> str:
    """Write the record of what is in the weights: what was there before, and these diffs."""
    before, actual = base.model.applied, base.fingerprint()
    kept = ("base", "spec", "parts", "how")
    applied: list[Mapping[str, Any]] = [
        {
            "sha256": payload_sha256(diff),
            "strength": strength,
            **({"onto": actual} if before else {}),
            **{k: diff.provenance[k] for k in kept if k in diff.provenance},
        }
        for diff, strength in diffs
    ]
    record = {"base": before.get("base", actual), "diffs": [*before.get("diffs", []), *applied]}
    return json.dumps(record, sort_keys=True)
