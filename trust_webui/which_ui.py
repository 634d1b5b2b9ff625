"""Which web UI this is, told by what it is made of; what is said in others."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

WORKS = "AUTOMATIC1111 (1.9 or newer), Forge, Forge Neo and ComfyUI"


def kind() -> str:
    """Return a1111, forge or neo; "" for a web UI that TRUST Unlearn does not work in."""
    if _has("modules_forge"):
        return _forge_kind() if _has("backend.patcher.lora") else ""
    known = _has("modules.sd_hijack") and _has("modules.sd_unet") and not _is_sdnext()
    return "a1111" if known else ""


def sentence() -> str:
    """Say in one sentence where TRUST Unlearn does work."""
    return f"TRUST Unlearn does not work in {_name()}; it works in {WORKS}."


def _name() -> str:
    if _has("modules_forge"):
        old = _has("ldm_patched")
        return "reForge, Forge Classic and others of Forge's old build" if old else "this Forge"
    return "SD.Next" if _is_sdnext() else "this web UI"


def _is_sdnext() -> bool:
    return _has("modules.sd_checkpoint")


def _forge_kind() -> str:
    """Tell Forge, whose loader of LoRAs merges, from Neo, whose patchers do it themselves."""
    lora: Any = import_module("backend.patcher.lora")
    base: Any = import_module("backend.patcher.base")
    if hasattr(lora, "LoraLoader"):
        return "forge"
    merges = hasattr(getattr(base, "ModelPatcher", None), "patch_weight_to_device")
    return "neo" if merges else ""


def _has(name: str) -> bool:
    """Tell whether there is a module, whether or not it can be executed."""
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):
        return False
