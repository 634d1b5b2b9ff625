"""TRUST Unlearn: make a text-to-image model forget a concept, and say what is left of it.

from trust_engine import forget, load_model, save_diff

diff = forget(load_model("demo"), "gun")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "Audit",
    "ConceptSpec",
    "StepReport",
    "TrustError",
    "UnlearnSpec",
    "Unlearning",
    "WeightDiff",
    "applied",
    "forget",
    "load_diff",
    "load_model",
    "save_diff",
]

if TYPE_CHECKING:
    from .audit import Audit
    from .diff import WeightDiff, applied, load_diff, save_diff
    from .errors import TrustError
    from .models.load import load_model
    from .spec import ConceptSpec, UnlearnSpec
    from .unlearn.forget import forget
    from .unlearn.run import StepReport, Unlearning

_HOME = {
    "Audit": "audit",
    "ConceptSpec": "spec",
    "StepReport": "unlearn.run",
    "TrustError": "errors",
    "UnlearnSpec": "spec",
    "Unlearning": "unlearn.run",
    "WeightDiff": "diff",
    "applied": "diff",
    "forget": "unlearn.forget",
    "load_diff": "diff",
    "load_model": "models.load",
    "save_diff": "diff",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: torch alone takes seconds."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
