"""What is printed survives any encoding, and a reader who leaves stops no work."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from ..errors import OutputError

NEEDED = ("torch", "diffusers", "transformers", "safetensors", "numpy", "PIL", "tqdm", "einops")
# A closed pipe; Windows reports one as an invalid argument.
_LEFT = {errno.EPIPE, errno.ESHUTDOWN, *([errno.EINVAL] if sys.platform == "win32" else [])}


def missing(error: ModuleNotFoundError) -> str | None:
    """Say which package is not installed and how to get it; None if it is none that we need."""
    name = (error.name or "").partition(".")[0]
    if name not in NEEDED:
        return None
    package = {"PIL": "pillow"}.get(name, name)
    return (
        f"{package} is not installed, which the command line needs; "
        'pip install "trust-unlearn[cli]" brings it, in a checkout pip install ".[cli]"'
    )


class Outlet:
    """A text stream that goes on, silently, when nobody reads it any more.

    lost: the error by which something printed did not arrive, a reader who left aside.
    """

    def __init__(self, stream: Any) -> None:
        self.stream, self.gone = stream, False
        self.lost: OSError | None = None

    def write(self, text: str) -> int:
        """Write, unless the reader has left."""
        self._try(self.stream.write, text)
        return len(text)

    def flush(self) -> None:
        """Flush, unless the reader has left."""
        self._try(self.stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def _try(self, do: Callable[..., Any], *text: str) -> None:
        if self.gone:
            return
        try:
            do(*text)
        except OSError as error:
            self.gone, self.lost = True, None if error.errno in _LEFT else error
            self._drop()

    def _drop(self) -> None:
        # What is left in the buffer would fail once more when the interpreter ends.
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.stream.fileno())
            os.close(null)


@contextlib.contextmanager
def console() -> Iterator[None]:
    """Print through outlets, with escapes for what the encoding lacks.

    Raises OutputError at the end if standard output did not arrive, a reader who left aside.
    """
    kept = sys.stdout, sys.stderr
    outlets = [Outlet(stream) if stream is not None else None for stream in kept]
    errors = [getattr(stream, "errors", None) for stream in kept]
    for stream in kept:
        _reconfigure(stream, "backslashreplace")
    sys.stdout, sys.stderr = outlets
    try:
        yield
    finally:
        for outlet in filter(None, outlets):
            outlet.flush()
        sys.stdout, sys.stderr = kept
        for stream, before in zip(kept, errors, strict=True):
            _reconfigure(stream, before)
    if outlets[0] is not None and outlets[0].lost is not None:
        told = outlets[0].lost.strerror
        raise OutputError(f"the work is done, and what was printed did not arrive ({told})")


def _reconfigure(stream: Any, errors: str | None) -> None:
    if errors is not None and hasattr(stream, "reconfigure"):
        with contextlib.suppress(OSError, ValueError):
            stream.reconfigure(errors=errors)
