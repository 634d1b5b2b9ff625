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


WHERE = re.compile(r"((?:`[\w.]+`(?:, | and ))*`[\w.]+`) in\s+`([\w./]+\.py)`")
"""`name`, `Class.method` in `path`: where a page says that something is."""


def astray(text: str) -> list[str]:
    """List what a text says to be in a file that does not define it."""
    found = []
    for names, path in WHERE.findall(text):
        there = defined(ROOT / path) if (ROOT / path).exists() else set()
        found += [f"{n} in {path}" for n in re.findall(r"`([^`]+)`", names) if n not in there]
    return found


def defined(path: Path) -> set[str]:
    """List what a module defines: names, functions, classes, and what is in them: Class.method."""
    found = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        found |= set(_names(node))
        for part in node.body if isinstance(node, ast.ClassDef) else ():
            found |= {f"{node.name}.{name}" for name in _names(part)}
    return found


def _names(node: ast.stmt) -> list[str]:
    """List what a statement defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = getattr(node, "targets", [getattr(node, "target", None)])
    return [target.id for target in targets if isinstance(target, ast.Name)]


@pytest.mark.parametrize("page", PAGES, ids=[str(p.relative_to(ROOT)) for p in PAGES])
def test_links_lead_somewhere(page: Path) -> None:
    assert dead(page) == []


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One two\n[a](#one-two) [b](none.md) [c](#three) `tests/none.py` `x/y.py`")
    assert dead(page) == ["none.md", "#three", "tests/none.py"]


def test_each_row_of_where_is_leads_to_what_it_names() -> None:
    text = (ROOT / "docs/developing.md").read_text("utf-8")
    table = text.partition("## Where is ...?")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 20
    told = ("[settings]", "nobody has to", "by Forge")  # what is in no file of ours
    vague = [r for r in rows if not WHERE.search(r) and not any(t in r for t in told)]
    assert vague == [], "a row names a file and what is in it"


@pytest.mark.parametrize("page", PAGES, ids=[str(p.relative_to(ROOT)) for p in PAGES])
def test_what_a_page_says_to_be_in_a_file_is_in_it(page: Path) -> None:
    assert astray(page.read_text("utf-8")) == []


def test_what_is_not_where_a_page_says_is_found() -> None:
    text = "`csr`, `nothing` in `trust_engine/unlearn/objective.py`, `x` in\n`trust_engine/none.py`"
    assert astray(text) == [
        "nothing in trust_engine/unlearn/objective.py", "x in trust_engine/none.py",
    ]  # fmt: skip
    assert astray("`UnlearnSpec.eta`, `SETTINGS` in `trust_engine/spec.py`") == []


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


FOLDERS = ("trust_engine", "nodes", "trust_webui", "bench")
PACKAGES = [p.parent for folder in FOLDERS for p in (ROOT / folder).rglob("__init__.py")]


def unlisted(package: Path) -> set[str]:
    """Compare what a package holds with what its docstring lists, "name  what it is" by line.

    Returns what is missing, and what is listed and gone.
    """
    held = {path.stem for path in package.glob("*.py")} - {"__init__"}
    held |= {path.parent.name for path in package.glob("*/__init__.py")}
    text = ast.get_docstring(ast.parse((package / "__init__.py").read_text("utf-8"))) or ""
    listed = set(re.findall(r"^(\w+) {2,}\S", text, re.M))
    return (held - listed - set(re.findall(r"`(\w+)`", text))) | (listed - held)


@pytest.mark.parametrize("package", PACKAGES, ids=[str(p.relative_to(ROOT)) for p in PACKAGES])
def test_a_package_lists_its_modules(package: Path) -> None:
    assert unlisted(package) == set()


def test_a_module_that_is_not_listed_and_one_that_is_gone_are_found(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text("")
    (tmp_path / "__init__.py").write_text('"""A package.\n\none    what it is\ngone   was\n"""\n')
    assert unlisted(tmp_path) == {"two", "gone"}
