"""What the docs point to is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "bench").rglob("*.md")]
LINK = re.compile(r"\]\(([^)\s]+)\)")
PATH = re.compile(r"`((?:tests|trust_engine|bench|nodes|trust_webui|docs|tools)/[\w./+-]+\.\w+)`")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """List a page's headings as GitHub writes their anchors."""
    found = HEADING.findall(page.read_text("utf-8"))
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in found}


def dead(page: Path) -> list[str]:
    """List the links and the paths in backticks that lead nowhere."""
    text, found = page.read_text("utf-8"), []
    for link in LINK.findall(text):
        target, _, anchor = link.partition("#")
        if "://" in link:
            continue
        place = page.parent / target if target else page
        if not place.exists() or (anchor and anchor not in anchors(place)):
            found.append(link)
    found += [path for path in PATH.findall(text) if not (ROOT / path).exists()]
    return found


def defined(path: Path) -> set[str]:
    """List what a module defines: functions, classes, methods and fields, as "Class.method"."""
    found = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        found.add(node.name)
        for part in node.body if isinstance(node, ast.ClassDef) else ():
            name = part.target if isinstance(part, ast.AnnAssign) else part
            found.add(f"{node.name}.{getattr(name, 'name', getattr(name, 'id', ''))}")
    return found


@pytest.mark.parametrize("page", PAGES, ids=[str(p.relative_to(ROOT)) for p in PAGES])
def test_links_lead_somewhere(page: Path) -> None:
    assert dead(page) == []


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One two\n[a](#one-two) [b](none.md) [c](#three) `tests/none.py` `x/y.py`")
    assert dead(page) == ["none.md", "#three", "tests/none.py"]


def test_each_equation_of_the_method_leads_to_its_function() -> None:
    text = (ROOT / "docs/concepts/method.md").read_text("utf-8")
    named = set(re.findall(r"`((?:[a-z_]+\.)+(?:[A-Z]\w+(?:\.\w+)?|[a-z_]\w*))(?:\(\))?`", text))
    modules: dict[str, set[str]] = {}
    for path in (ROOT / "trust_engine").rglob("*.py"):
        modules.setdefault(path.stem, set()).update(defined(path))
    ours = {name for name in named if name.split(".")[0] in modules}
    assert len(ours) > 20
    assert {n for n in ours if n.partition(".")[2] not in modules[n.split(".")[0]]} == set()


def test_every_page_of_the_docs_is_in_the_site() -> None:
    listed = set(
        re.findall(r"^((?:\w+/)?[\w-]+)$", (ROOT / "docs/index.md").read_text("utf-8"), re.M)
    )
    pages = {
        p.relative_to(ROOT / "docs").with_suffix("").as_posix()
        for p in (ROOT / "docs").rglob("*.md")
    }
    assert listed == pages - {"index"}
