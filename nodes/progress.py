"""What a long node shows while it works, how it is interrupted, and what it does out of memory."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

import comfy.model_management as mm
import comfy.utils
import torch

from ..trust_engine.errors import ModelError

log = logging.getLogger(__name__)
Result = TypeVar("Result")
EVERY = 0.25  # seconds between two messages to the browser
SETTLED = 2.0  # seconds after which the pace itself tells how long it will take
PREVIEW = 512  # pixels


class Bar:
    """One node's progress: the host's bar and preview, and messages for our own extension.

    Every update raises the host's interrupt when the user has asked for it.
    """

    def __init__(self, node: str | None, total: int) -> None:
        self.node, self.bar = node, comfy.utils.ProgressBar(max(1, total))
        self.started, self._told = time.monotonic(), 0.0
        self._first: tuple[float, int] | None = None  # when the first report came, and of what

    def update(self, done: int, total: int, preview: Any = None) -> None:
        """Show `done` of `total`, and a PIL image."""
        mm.throw_exception_if_processing_interrupted()
        shown = None if preview is None else ("JPEG", preview, PREVIEW)
        self.bar.update_absolute(done, max(1, total), shown)

    @property
    def due(self) -> bool:
        """Tell whether it is time for another message."""
        return time.monotonic() - self._told >= EVERY

    def tell(self, **data: Any) -> None:
        """Send a message to the browser that queued this prompt, if there is one."""
        self._told = time.monotonic()
        tell(self.node, **data)

    def remaining(self, done: int, total: int, expected: float) -> float:
        """Estimate the seconds that are left: by what was `expected`, then by the pace itself.

        Before the first report the host loads the model, which says nothing of the pace.
        """
        now = time.monotonic()
        if self._first is None:
            self._first = (now, done)
        began, before = self._first
        if now - began < SETTLED or done <= before:
            return max(0.0, expected - (now - began))
        return (now - began) / (done - before) * max(0, total - done)


def tell(node: str | None, **data: Any) -> None:
    """Send `trust.progress` to the browser that queued this prompt; without one to nobody.

    The host sends to everybody what has no receiver: others would read another's concept.
    """
    try:
        from server import PromptServer
    except ImportError:
        return
    server = getattr(PromptServer, "instance", None)
    client = getattr(server, "client_id", None)
    if client is not None:
        server.send_sync("trust.progress", {"node": node, **data}, client)


def sparing(
    node: str | None, work: Callable[[bool], Result], smaller: str, advice: str
) -> tuple[Result, list[str]]:
    """Do `work(False)`; out of memory, free it and do `work(True)` once; also returns what it said.

    smaller: what the second try does differently; advice: what the user can change after it.
    """
    try:
        return work(False), []
    except Exception as error:
        if not out_of_memory(error):
            raise
        told = str(error).splitlines()[0]
    # Here the exception, and with it the tensors of its frames, is gone.
    said = f"out of memory ({told}); trying once more, {smaller}"
    log.warning("%s", said)
    tell(node, kind="notice", text=said)
    release()
    try:
        return work(True), [said]
    except Exception as error:
        if not out_of_memory(error):
            raise
        told = str(error).splitlines()[0]
    release()
    raise ModelError(f"out of memory, also {smaller} ({told}): {advice}")


def out_of_memory(error: BaseException) -> bool:
    """Tell an exception of the allocator from others."""
    kinds = [MemoryError]
    for owner in (torch, torch.cuda):
        kind = getattr(owner, "OutOfMemoryError", None)
        if kind is not None:
            kinds.append(kind)
    if isinstance(error, tuple(kinds)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in text or "can't allocate memory" in text
    )


def release() -> None:
    """Give back what can be given back."""
    gc.collect()
    with torch.inference_mode():
        mm.unload_all_models()
    mm.soft_empty_cache()
