"""Loaded by a real ComfyUI beside our pack, in tests: how much is done after Cancel is pressed."""

from __future__ import annotations

import time
from typing import Any

import comfy.model_management as mm
import comfy.utils
from aiohttp import web
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from server import PromptServer

NODE_CLASS_MAPPINGS: dict[str, Any] = {}


class Watch:
    """What has happened since Cancel was pressed, and what our node told last."""

    def __init__(self) -> None:
        self.pressed: float | None = None
        self.stopped: float | None = None  # seconds after it
        self.passes = self.reports = 0  # of UNets and of progress, begun after it
        self.stage = ""

    def told(self) -> dict[str, Any]:
        """Spell it out."""
        return {**vars(self), "pressed": self.pressed is not None}

    def press(self) -> None:
        """Begin to count."""
        self.__init__()  # type: ignore[misc]
        self.pressed = time.monotonic()

    @property
    def waiting(self) -> bool:
        """Tell whether Cancel was pressed and nothing has stopped yet."""
        return self.pressed is not None and self.stopped is None

    def stop(self) -> None:
        """Take down that the node has stopped."""
        if self.waiting:
            self.stopped = time.monotonic() - self.pressed  # type: ignore[operator]


watch = Watch()


def before(owner: Any, name: str, see: Any) -> None:
    """Let a function of the host tell us when it is called."""
    own = getattr(owner, name)

    def told(*args: Any, **kwargs: Any) -> Any:
        see(*args)
        return own(*args, **kwargs)

    setattr(owner, name, told)


def _pass(*_: Any) -> None:
    watch.passes += watch.waiting


def _report(*_: Any) -> None:
    watch.reports += watch.waiting


def _press(value: bool = True, *_: Any) -> None:
    if value:
        watch.press()


def _sent(_server: Any, event: str, data: Any, *_: Any) -> None:
    if event == "trust.progress":
        watch.stage = data.get("stage", "")


def _interrupting() -> None:
    own = mm.throw_exception_if_processing_interrupted

    def told() -> None:
        try:
            own()
        except mm.InterruptProcessingException:
            watch.stop()
            raise

    mm.throw_exception_if_processing_interrupted = told


before(UNetModel, "forward", _pass)
before(comfy.utils.ProgressBar, "update_absolute", _report)
before(mm, "interrupt_current_processing", _press)
before(PromptServer, "send_sync", _sent)
_interrupting()


@PromptServer.instance.routes.get("/test/watch")
async def answer(_request: Any) -> Any:
    """Tell what was seen."""
    return web.json_response(watch.told())
