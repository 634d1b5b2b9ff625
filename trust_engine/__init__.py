"""TRUST Unlearn: make a text-to-image model forget a concept, and say what is left of it.

from trust_engine import forget, load_model, save_diff

diff = forget(load_model("demo"), "gun")

errors         what can go wrong, with which setting, and what to do
phrases        which words a phrase has, and whether two texts name the same thing
seeds          every stream of chance, by name
strict_json    JSON read with distrust
lazy           names that a package imports when they are asked for
settings       how a setting is declared: bounds and meaning, for checks, flags, nodes and tab
spec           ConceptSpec and UnlearnSpec: what to forget and how; the only defaults
distributed    processes that share one job
io             files: written whole or not at all, read with distrust
demo           Emoji World's words, judge and trained weights
models         any text-to-image denoiser under one contract
prompts        what is written for a concept: targets, anchors, what stays
diff           the product: values, arithmetic, files, labels, LoRA, patched models
unlearn        the method, from a spec to a diff
audit          is it gone, what stayed, what comes back under attack
frontend       what the doors show and share
benchmark      what a run costs at full size (`bench speed`)
cli            the command line
__main__       `python -m trust_engine`
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lazy import handed_on

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

__getattr__ = handed_on(__name__, _HOME)
