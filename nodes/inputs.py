"""How inputs are declared: one line each, never without a tooltip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..trust_engine.errors import TrustError
from ..trust_engine.phrases import names_in
from ..trust_engine.spec import SETTINGS as ENGINE
from .wording import in_node_words

Input = tuple[Any, dict[str, Any]]
SEED_LIMIT = 2**48  # the host's browser side counts no further than 2**53


def socket(kind: str, tooltip: str, **more: Any) -> Input:
    """Declare something that is connected."""
    return kind, {"tooltip": tooltip, **more}


def text(default: str, tooltip: str, multiline: bool = False, hint: str = "") -> Input:
    """Declare a text."""
    shown = {"placeholder": hint} if hint else {}
    return "STRING", {"default": default, "multiline": multiline, "tooltip": tooltip, **shown}


def number(default: float, low: float, high: float, step: float, tooltip: str) -> Input:
    """Declare a number; a whole one if its step is."""
    kind = "INT" if isinstance(step, int) else "FLOAT"
    bounds = {"default": default, "min": low, "max": high, "step": step}
    if kind == "FLOAT":
        bounds["round"] = step / 10
    return kind, {**bounds, "tooltip": tooltip}


def choice(options: Sequence[str], default: str, tooltip: str) -> Input:
    """Declare a choice."""
    return list(options), {"default": default, "tooltip": tooltip}


def setting(name: str, *options: str) -> Input:
    """Declare a setting of the engine's as its table says; options: some of a choice's."""
    about = ENGINE[name]
    if about.kind == "switch":
        return switch(about.default, about.help)
    if about.kind == "choice":
        return choice(options or about.options, about.default, about.help)
    return number(about.default, about.low, about.high, about.step, about.help)


def switch(default: bool, tooltip: str) -> Input:
    """Declare a yes or no."""
    return "BOOLEAN", {"default": default, "tooltip": tooltip}


def seed(tooltip: str) -> Input:
    """Declare a seed."""
    return "INT", {
        "default": 0,
        "min": 0,
        "max": SEED_LIMIT,
        "control_after_generate": False,
        "tooltip": tooltip,
    }


def lines(value: str) -> tuple[str, ...]:
    """Split a text at commas and line ends; empty parts are left out."""
    return names_in(value)


def verdict(check: Callable[[], Any]) -> bool | str:
    """Return what the host wants of VALIDATE_INPUTS: True, or the sentence it shows at the node.

    It asks before anything runs, so that what is written wrongly costs no work. What comes over a
    link is None then.
    """
    try:
        check()
    except TrustError as error:
        return error.worded(in_node_words)
    return True
