"""Names of new files, as the user writes them: refused where not every system takes them."""

from __future__ import annotations

import re

from ..trust_engine.errors import OutputError

LONGEST = 200  # bytes of a folder's or a file's name, before its number and its ending
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)
_SIGNS = re.compile(r'[<>:"|?*\\\x00-\x1f\x7f]')


def check_prefix(prefix: str) -> None:
    """Raise OutputError unless "name" or "folder/name" can be written on every system.

    A file that only one system can hold is lost when the folder is synchronised or moved.
    """
    parts = prefix.split("/")
    if not parts[-1].strip():
        raise OutputError("there is no file name: write one into `filename_prefix`, such as gun")
    for part in parts if parts[0] else ["/", *parts[1:]]:
        if reason := _wrong(part):
            shown = part if len(part) <= 40 else part[:40] + "..."
            raise OutputError(
                f"{shown!r} in `filename_prefix` {reason}; write a name, or folder/name, such as "
                "diffs/gun"
            )


def _wrong(part: str) -> str | None:
    """Say what is wrong with one folder's or file's name; None if nothing is."""
    if found := _SIGNS.search(part):
        return f"holds {found.group()!r}, which Windows takes in no name"
    if _DEVICES.match(part.strip()):
        return "is a device's name in Windows"
    if part in ("/", ".."):
        return "leads out of the folder"
    if part in ("", "."):
        return "is no folder's name"
    if part.startswith("."):
        return "would be hidden"
    if part != part.strip() or part.endswith("."):
        return "begins or ends with a blank or a dot"
    if not part.isprintable() or any("\ud800" <= sign <= "\udfff" for sign in part):
        return "holds a character that cannot be seen"
    if len(part.encode("utf-8")) > LONGEST:
        return f"is longer than {LONGEST} bytes"
    return None
