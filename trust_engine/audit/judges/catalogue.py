"""All judges by name: one table, from which they are checked, loaded and explained at every door.

A judge is added by an entry of `JUDGES`, and nowhere else. Nothing here imports torch before a
judge is loaded, so that a command line can explain its flags at once.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ModelError, SpecError

if TYPE_CHECKING:
    from ..topic import Topic
    from .base import Aligner, Judge

Groups = Mapping[str, Iterable[str]]
"""The labels that a judge may have to choose among, by their kind: object, style, background."""
Load = Callable[[str, Groups, Any], "Judge"]
"""Make a judge of what follows the colon of its name, the labels, and a device."""


@dataclass(frozen=True)
class Entry:
    """A judge as it is asked for.

    name: what is written; takes: what follows it after a colon, if anything, "PATH"; says: what it
    is for or needs, in a few words, for every help text; what: what must lie at that path; package:
    what has to be installed.
    """

    name: str
    says: str
    load: Load
    takes: str = ""
    what: str = ""
    package: str = ""

    @property
    def form(self) -> str:
        """Return how it is written: demo, clip:PATH."""
        return f"{self.name}:{self.takes}" if self.takes else self.name


def _demo(_: str, groups: Groups, device: Any) -> Judge:
    from ...demo.judge import load_judge as load_net
    from .base import DemoJudge

    return DemoJudge(load_net().to(device))


def _nudenet(_: str, groups: Groups, device: Any) -> Judge:
    from .nudenet import NudeNetJudge

    return NudeNetJudge()


def _clip(path: str, groups: Groups, device: Any) -> Judge:
    from .clip import ClipJudge

    return ClipJudge(Path(path), groups, str(device))


_ENTRIES = (
    Entry("demo", "for the demo model", _demo),
    Entry("nudenet", "for nudity, if it is installed", _nudenet, package="nudenet"),
    Entry(
        "clip",
        "a CLIP model's folder or file, for any words",
        _clip,
        takes="PATH",
        what="a folder with a CLIP model or its safetensors file",
    ),
)
JUDGES = {entry.name: entry for entry in _ENTRIES}
PATH_ALONE = "clip"  # whose name may be left out before its path


def forms() -> str:
    """List how judges are written, as a command line shows options: demo|clip:PATH."""
    return "|".join(entry.form for entry in JUDGES.values())


def explained() -> str:
    """Say what each judge is for: the text of every door's help."""
    return "; ".join(f"{entry.form}: {entry.says}" for entry in JUDGES.values())


def _found(text: str) -> tuple[Entry, str]:
    """Split "clip:PATH" into the table's entry and what follows; a path alone is CLIP's."""
    name, _, rest = text.partition(":")
    entry = JUDGES.get(name)
    if entry is None or bool(entry.takes) != (":" in text):
        return JUDGES[PATH_ALONE], text
    return entry, rest


def check_judge(text: str) -> None:
    """Raise SpecError or ModelError for a judge that is not there; loads nothing."""
    entry, rest = _found(text)
    if entry.package and importlib.util.find_spec(entry.package) is None:
        raise ModelError(
            f"{entry.name} needs the package {entry.package}, which is not installed",
            field="judge",
            remedy=f"run `python -m pip install {entry.package}` with the Python that runs this, "
            "or give {judge clip:PATH}",
        )
    path = Path(rest)
    there = path.is_dir() or (path.is_file() and path.suffix == ".safetensors")
    if entry.takes and not (rest and there):
        words = [*(e.name for e in JUDGES.values() if not e.takes)]
        words += [e.what for e in JUDGES.values() if e.takes]
        raise SpecError(
            f"{text!r} is neither {', '.join(words[:-1])} nor {words[-1]}",
            field="judge",
            remedy="give {judge clip:PATH}",
        )


def judge_of(text: str, groups: Groups, device: Any = "cpu") -> Judge:
    """Load a judge by its name; groups: the labels that a CLIP chooses among, by their kind."""
    entry, rest = _found(text)
    return entry.load(rest, groups, device)


def load_judge(text: str, topic: Topic, device: Any = "cpu") -> Judge:
    """Load a judge by its name, for the words of a topic."""
    world = topic.world
    groups: Groups = {
        "object": (
            *world.objects,
            *world.control,
            *(topic.labels if topic.kind != "style" else ()),
        ),
        "style": world.styles,
        "background": world.backgrounds,
    }
    return judge_of(text, groups, device)


def load_aligner(text: str, judge: Judge) -> Aligner | None:
    """Return who measures prompt alignment beside a judge: tiny CLIP for the demo, CLIP itself."""
    from .base import TinyAligner
    from .clip import ClipJudge

    if text == "demo":
        return TinyAligner()
    return judge if isinstance(judge, ClipJudge) else None
