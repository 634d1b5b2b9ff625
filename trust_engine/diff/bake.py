"""Patched models on disk: a checkpoint, a diffusers UNet folder, a UNet state dict for benchmarks.

The base is read and the result written tensor by tensor: memory does not grow with the model.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

import torch

from ..errors import ModelError, OutputError
from ..io.files import TEMPORARY, atomic_file, make_folder, remove_folders, write_atomically
from ..io.safetensors import Plan, write_tensors
from ..models.keys import KeyMap
from .apply import Rounding
from .base import BaseModel, Parts
from .file import payload_sha256

APPLIED = "trust-applied"
# Hashes of the file the base was, which the result is not.
_STALE = ("modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash")


def write_checkpoint(base: BaseModel, diffs: Parts, out: Path) -> Rounding:
    """Write the whole model file with the diffs added; the base file is only read."""
    refuse_base(base, out)
    keys = {name: key for key, name in base.names.items()}
    entries = base.header.entries
    plan: Plan = {name: (e.dtype, e.shape, e.size) for name, e in entries.items()}
    kept = {k: v for k, v in base.header.metadata.items() if k not in _STALE}
    metadata = {**kept, APPLIED: _applied_text(base, diffs)}
    lost = Rounding()
    write_tensors(out, plan, lambda n: base.patched(keys.get(n), entries[n], diffs, lost), metadata)
    return lost


def write_unet_folder(base: BaseModel, diffs: Parts, folder: Path) -> Rounding:
    """Write the patched UNet as a new diffusers folder: config.json and weights."""
    if folder.exists():
        raise OutputError(f"{folder}: is there already; name a new folder")
    config = {"_class_name": "UNet2DConditionModel", **_family_config(base)}
    names = _diffusers_names(base)
    lost, made = Rounding(), list[Path]()
    temporary = folder.parent / f"{TEMPORARY}{secrets.token_hex(8)}"
    try:
        made = make_folder(folder.parent)
        temporary.mkdir()  # the system's own mask decides who may read it
        _write_unet(base, diffs, names, temporary / "diffusion_pytorch_model.safetensors", lost)
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        write_atomically(temporary / "config.json", text.encode())
        os.rename(temporary, folder)
        made = []
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        remove_folders(made)
    return lost


def write_unet_pt(base: BaseModel, diffs: Parts, out: Path) -> Rounding:
    """Write the patched UNet's state dict under diffusers names, as benchmarks of erasure read it.

    The one format that is a pickle and has to be in memory whole; we write it, and never read one.
    """
    refuse_base(base, out)
    lost, state = Rounding(), {}
    for key, name in sorted(_diffusers_names(base).items()):
        state[name] = base.patch(key, diffs, lost)
    with atomic_file(out) as file:
        torch.save(state, file)
    return lost


def refuse_base(base: BaseModel, out: Path) -> None:
    """Raise OutputError for an output that would replace the model itself."""
    if out.exists() and os.path.samefile(out, base.path):
        raise OutputError(f"{out}: is the model itself; choose another name for the result")


def _write_unet(
    base: BaseModel, diffs: Parts, names: dict[str, str], out: Path, lost: Rounding
) -> None:
    entries = {name: base.header.entries[base.names[key]] for key, name in names.items()}
    keys = {name: key for key, name in names.items()}
    plan: Plan = {name: (e.dtype, e.shape, e.size) for name, e in entries.items()}
    metadata = {"format": "pt", APPLIED: _applied_text(base, diffs)}
    write_tensors(out, plan, lambda n: base.patched(keys[n], entries[n], diffs, lost), metadata)


def _family_config(base: BaseModel) -> dict[str, Any]:
    if base.family is None:
        raise ModelError(f"{base.path}: of no known family, so its diffusers config is not known")
    return dict(base.family.config)


def _diffusers_names(base: BaseModel) -> dict[str, str]:
    if base.family is None:
        raise ModelError(f"{base.path}: of no known family, so its diffusers names are not known")
    keys = KeyMap(base.family.shape)
    try:
        return {key: keys.to_diffusers(key) for key in base.names}
    except KeyError as error:
        raise ModelError(f"{base.path}: a UNet of another shape: {error}") from error


def _applied_text(base: BaseModel, diffs: Parts) -> str:
    applied = [
        {
            "sha256": payload_sha256(diff),
            "strength": strength,
            **{k: diff.provenance[k] for k in ("base", "spec", "parts") if k in diff.provenance},
        }
        for diff, strength in diffs
    ]
    return json.dumps({"base": base.fingerprint(), "diffs": applied}, sort_keys=True)
