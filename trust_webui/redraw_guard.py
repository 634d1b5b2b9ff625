"""Nothing is drawn past the diffs on every picture, not by other extensions either.

Some draw a second time by themselves (face detailers) and run only the scripts they choose. Such a
picture would be drawn without the diffs; while any are on every picture, it is refused.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

from modules import processing

from trust_engine.errors import DiffError, TrustError

from . import always_on
from .host import NOT_APPLIED
from .one_line import one_line

log = logging.getLogger(__name__)
INNER = "process_images_inner"  # what every picture of both hosts goes through
_MARK = "_trust_inner"


def install() -> None:
    """Have every picture of the host looked at before it is drawn."""
    inner = getattr(processing, INNER, None)
    if inner is None:
        log.warning("TRUST: this web UI has no %s: pictures that other extensions draw by "
                    "themselves are drawn without the diffs on every picture", INNER)  # fmt: skip
        return
    if hasattr(inner, _MARK):
        return

    @functools.wraps(inner)
    def guarded(p: Any, *args: Any, **settings: Any) -> Any:
        refuse_unscripted(p)
        return inner(p, *args, **settings)

    setattr(guarded, _MARK, inner)
    setattr(processing, INNER, guarded)


def uninstall() -> None:
    """Undo `install`, unless another extension has put itself before it since."""
    inner = getattr(getattr(processing, INNER, None), _MARK, None)
    if inner is not None:
        setattr(processing, INNER, inner)


def refuse_unscripted(p: Any) -> None:
    """Raise DiffError for a picture without our script while diffs are on every picture."""
    from .script import TrustScript

    scripts = getattr(getattr(p, "scripts", None), "alwayson_scripts", None) or ()
    if any(isinstance(script, TrustScript) for script in scripts):
        return  # which says itself what is wrong with a diff
    try:
        on = bool(always_on.text().strip())
    except TrustError as error:
        raise DiffError(f"{NOT_APPLIED}: {one_line(error)}") from error
    if on:
        raise DiffError(f"{NOT_APPLIED}: an extension draws this picture by itself, without the "
                        "script that applies what is on every picture; add trust_unlearn to the "
                        "scripts that it runs, or switch it off")  # fmt: skip
