"""Errors that call settings by the names of the command line's flags."""

from __future__ import annotations

from ..errors import TrustError, plainly
from ..spec import SETTINGS

FLAGS = {
    **{name: name for name, setting in SETTINGS.items() if setting.flag},
    **{"companion": "with", "condition": "when", "concepts": "concept", "templates": "template"},
    **{name: name for name in ("concept", "kind", "preserve", "anchor", "also", "template")},
    **{name: name for name in ("judge", "images", "pictures", "resolution", "keep", "stays")},
    **{name: name for name in ("memory", "device", "strict", "seed", "synonym", "retain", "style")},
}


def in_flags(setting: str, value: str = "") -> str:
    """Call a setting by its flag; one that has none, as the library does."""
    flag = FLAGS.get(setting)
    return f"--{flag} {value}".rstrip() if flag else plainly(setting, value)


def worded(error: Exception) -> str:
    """Say an error in the command line's words."""
    return error.worded(in_flags) if isinstance(error, TrustError) else str(error)
