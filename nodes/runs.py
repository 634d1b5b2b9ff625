"""Where runs are kept in ComfyUI, and the switch and button for it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import folder_paths

from ..trust_engine.errors import TrustError
from ..trust_engine.unlearn.run_store import RunStore, user_store
from .wording import said

FOLDER, OFF = "trust_runs", "off"


def folder() -> Path:
    """Return the folder of runs: among the user's files, or, in older hosts, the outputs."""
    place = getattr(folder_paths, "get_user_directory", folder_paths.get_output_directory)
    return Path(os.path.abspath(place())) / FOLDER


def store() -> RunStore | None:
    """Open the store of runs; None when it is switched off."""
    found = user_store(folder())
    return None if found is None or (found.folder / OFF).exists() else found


def change(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Answer the front end: {"keep": bool} switches, {"clear": true} clears; then what there is."""
    try:
        found = user_store(folder())
        if found is None:
            return {"keep": False, "text": "switched off by the environment"}
        mark = found.folder / OFF
        if asked.get("keep") is False:
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
        elif asked.get("keep") is True:
            mark.unlink(missing_ok=True)
        told = found.clear() if asked.get("clear") is True else found.contents
        return {"keep": not mark.exists(), "text": str(told), "folder": str(found.folder)}
    except (OSError, TrustError) as error:
        return {"error": said(error)}
