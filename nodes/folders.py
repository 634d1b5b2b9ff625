"""Where diffs and exports lie: a model folder type of our own, and the stock one of LoRAs."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths

from ..trust_engine.errors import OutputError
from .file_names import check_prefix

EXAMPLES = Path(__file__).resolve().parent.parent / "example_diffs"
DIFFS = "trust_diffs"
NO_FILES = f"(put diffs into models/{DIFFS})"  # what Load Diff offers while there is none
SUFFIX = ".safetensors"


def register() -> None:
    """Add our folder type after those of extra_model_paths.yaml, which come first.

    Last come the examples that ship with the pack, to which nothing is written.
    """
    known = folder_paths.folder_names_and_paths
    paths = list(known[DIFFS][0]) if DIFFS in known else []
    for ours in (os.path.join(folder_paths.models_dir, DIFFS), str(EXAMPLES)):
        if ours not in paths:
            paths.append(ours)
    # Set anew: a type that is only added to has no suffixes, which lists every file there is.
    known[DIFFS] = (paths, {SUFFIX})


def listed() -> list[str]:
    """List the diff files; the folder need not exist."""
    return list(folder_paths.get_filename_list(DIFFS))


def found(name: str) -> Path:
    """Return a listed file's path; raises OutputError for one that is not in the folder."""
    path = folder_paths.get_full_path(DIFFS, name)
    if path is None and name == NO_FILES:
        raise OutputError(
            f"there is no diff in the folder {DIFFS} yet: make one with Unlearn and Save Diff, "
            "then choose it here"
        )
    if path is None:
        raise OutputError(
            f"{name}: not in the folder {DIFFS}; put the file there and press R to list it"
        )
    return Path(path)


def new_file(kind: str, prefix: str) -> Path:
    """Choose the path of a new file in the first folder of a type: prefix, counter, suffix."""
    check_prefix(prefix)
    root = os.path.abspath(folder_paths.get_folder_paths(kind)[0])
    os.makedirs(root, exist_ok=True)
    try:
        folder, name, counter, _, _ = folder_paths.get_save_image_path(prefix, root)
    except Exception as error:  # the host raises no kind of its own
        raise OutputError(f"{prefix!r} leads out of {root}; use a name, or folder/name") from error
    return Path(folder) / f"{name}_{counter:05}_{SUFFIX}"


def report_file(prefix: str, suffix: str) -> Path:
    """Choose the path of a new report in the output folder."""
    check_prefix(prefix)
    root = os.path.abspath(folder_paths.get_output_directory())
    try:
        folder, name, counter, _, _ = folder_paths.get_save_image_path(prefix, root)
    except Exception as error:
        raise OutputError(f"{prefix!r} leads out of {root}; use a name, or folder/name") from error
    return Path(folder) / f"{name}_{counter:05}_{suffix}"
