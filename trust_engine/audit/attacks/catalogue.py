"""All attacks by name."""

from __future__ import annotations

from collections.abc import Callable

from ...errors import SpecError
from ..levels import Budgets
from .adversarial_prefix import p4d, unlearn_diff_atk
from .base import Attack
from .inversion import textual_inversion
from .relearn import benign_fine_tuning, relearning, stacked_lora
from .ringabell import ring_a_bell
from .storage import storage

MAKERS: dict[str, Callable[[Budgets], Attack]] = {
    "ring_a_bell": ring_a_bell,
    "p4d": p4d,
    "unlearn_diff_atk": unlearn_diff_atk,
    "textual_inversion_1": lambda b: textual_inversion(1, b),
    "textual_inversion_3": lambda b: textual_inversion(3, b),
    "relearning": lambda b: relearning(b, lora=False),
    "relearning_lora": lambda b: relearning(b, lora=True),
    "benign_fine_tuning": benign_fine_tuning,
    "stacked_lora": stacked_lora,
    "storage_fp16": lambda b: storage("fp16", b),
    "storage_bf16": lambda b: storage("bf16", b),
    "storage_fp8": lambda b: storage("fp8", b),
}


def make_attack(name: str, budgets: Budgets) -> Attack:
    """Build an attack; raises SpecError for an unknown name."""
    if name not in MAKERS:
        raise SpecError(f"attack {name!r} is unknown; use one of {', '.join(MAKERS)}")
    return MAKERS[name](budgets)
