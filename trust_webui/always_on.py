"""The diffs on every picture: kept where the host keeps its settings, changed in one way alone.

The host's own ways to change a setting would take them off unseen: a page that was opened before
sends all its fields, and a program may send any setting, also along with a picture. So the host is
not told of this one: it loads and saves it with all that stands in its file, shows it on no page,
and refuses to set it. The tab TRUST and /trust/v1/apply change it, here.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from modules import shared

from trust_engine.errors import DiffError, OutputError, SpecError, TrustError
from trust_engine.io.files import write_atomically

from .applying import load, prepare
from .asked_diffs import Wanted, read, written
from .host import current
from .one_line import one_line

log = logging.getLogger(__name__)
NAME = "trust_always"


def text() -> str:
    """Return the setting as it is written; raises SpecError for one that is no text."""
    value = getattr(shared.opts, NAME, "")
    if not isinstance(value, str):
        raise SpecError(f"the setting {NAME} is damaged ({value!r}); put the diffs on every "
                        "picture anew, in the tab TRUST")  # fmt: skip
    return value


def always() -> list[Wanted]:
    """Return the diffs that are on every picture; raises SpecError for a damaged setting."""
    wanted = read(text())
    for one in wanted:
        _check_on(one)
    return wanted


def put(wanted: Sequence[Wanted]) -> list[str]:
    """Have these diffs on every picture from now on, and after a restart; returns warnings.

    Raises TrustError, and leaves all as it was, for a diff that is not there or does not go on the
    loaded checkpoint, and where the host's settings cannot be saved.
    """
    for one in wanted:
        _check_on(one)
    exact = [Wanted(one.name, one.strength, load(one.name)[1]) for one in wanted]
    twice = next((one for i, one in enumerate(exact) if one.sha in
                  [other.sha for other in exact[:i]]), None)  # fmt: skip
    if twice is not None:
        raise DiffError(f"{twice.name}: the same diff is on twice; raise its strength instead")
    warnings = prepare(current(), exact).warnings if current().ready else []
    _keep(written(exact))
    log.info("TRUST: on every picture: %s", text() or "nothing")
    return warnings


def put_seen(wanted: Sequence[Wanted], seen: str) -> list[str]:
    """Do as `put`, for a page that shows `seen`; raises OutputError when that is no longer so."""
    if seen != text():
        raise OutputError("meanwhile other diffs were put on every picture or taken off; what is "
                          "shown now is what is on: look at it, and press again")  # fmt: skip
    return put(wanted)


def report() -> None:
    """Say in the log what is on every picture, and what will keep pictures from being drawn."""
    try:
        wanted = always()
        for one in wanted:
            _, sha = load(one.name)
            if not sha.startswith(one.sha):
                raise DiffError(f"{one.name}: another diff of the same name")
    except TrustError as error:
        log.error("TRUST: nothing will be drawn, for a diff that is to be on every picture "
                  "cannot be applied: %s", one_line(error))  # fmt: skip
        return
    if wanted:
        log.warning("TRUST: on every picture: %s", written(wanted))


def _check_on(one: Wanted) -> None:
    if not one.strength:
        raise SpecError(f"the strength of {one.name} is 0, which is off; leave it out of the list")


def _keep(value: str) -> None:
    """Set and save; raises OutputError, with the old value back, unless the file says so too."""
    options, before = shared.opts, getattr(shared.opts, NAME, "")
    try:
        options.data[NAME] = value
        _save()
    except (AssertionError, OSError, RuntimeError, TrustError, ValueError) as error:
        options.data[NAME] = before
        raise OutputError(f"what is on every picture stays as it was: {shared.config_filename} "
                          f"cannot be changed ({one_line(error)})") from error  # fmt: skip


def _save() -> None:
    """Save the host's settings by its own function, whole or not at all, and read them back."""
    path = Path(shared.config_filename)
    handle, draft = tempfile.mkstemp(suffix=".json")
    os.close(handle)
    try:
        shared.opts.save(draft)
        content = Path(draft).read_bytes()
    finally:
        os.unlink(draft)
    try:
        write_atomically(path.resolve(), content)
    except OutputError:  # a single file that is mounted can be written to, but not replaced
        shared.opts.save(str(path))
    if json.loads(path.read_text("utf-8")).get(NAME) != text():
        raise OutputError("another program wrote it in the meantime")
