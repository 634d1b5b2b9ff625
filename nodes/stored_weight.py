"""What the host knows of one weight of a MODEL or a CLIP."""

from __future__ import annotations

from typing import Any, NamedTuple

import comfy.model_patcher
from torch import Tensor

PREFIX = "diffusion_model."


class Entry(NamedTuple):
    """What the host knows of one weight: as stored, how it is read, and what is patched onto it."""

    stored: Tensor
    convert: Any
    patches: list[Any]

    @property
    def quantised(self) -> bool:
        """Tell whether a few bits and a scale stand for the numbers."""
        return hasattr(self.stored, "_qdata")

    @property
    def known(self) -> bool:
        """Tell whether it can be read: as it is, or by the host's own way back to numbers."""
        return self.quantised or self.stored.is_floating_point()

    @property
    def bits(self) -> float:
        """Return the bits of one number, scales not counted."""
        held = self.stored._qdata if self.quantised else self.stored
        return 8 * held.numel() * held.dtype.itemsize / max(1, self.stored.numel())

    @property
    def form(self) -> str:
        """Name how it is stored."""
        if self.quantised:
            layout = str(getattr(self.stored, "_layout_cls", "few bits"))
            return layout.removeprefix("TensorCore").removesuffix("Layout")
        return type(self.stored).__name__ if type(self.stored) is not Tensor else "integers"


def entry_of(patcher: Any, name: str) -> Entry | None:
    """Return what get_key_patches(name) tells of one weight, None if there is none.

    That function makes the whole state dict for each name, which takes SDXL a second a time; what
    it looks up is asked for here. A host that keeps it elsewhere is asked for all of it.
    """
    find = getattr(comfy.model_patcher, "get_key_weight", None)
    if find is None or not hasattr(patcher, "backup"):
        found = patcher.get_key_patches(name).get(name)
        if found is None:
            return None
        first, *patches = found
        return Entry(*(first if isinstance(first, tuple) else (first, None)), patches)
    try:
        stored, _, convert = find(patcher.model, name)
    except AttributeError:
        return None
    if stored is None:
        return None
    if (kept := patcher.backup.get(name)) is not None:
        stored = getattr(kept, "weight", kept)
    if (kept := getattr(patcher, "hook_backup", {}).get(name)) is not None:
        stored = kept[0]
    return Entry(stored, convert, list(patcher.patches.get(name, ())))
