"""The front end: its unit tests and lint (where node is), and that nothing of it is missing."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WEB = ROOT / "web"
SCRIPTS = sorted(WEB.rglob("*.js"))
NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="node is not installed")
LINT = {
    r"\bvar\s": "var: use const or let",
    r"console\.log": "console.log: console.warn is for mistakes, everything else is silent",
    r"[^=!]==[^=]|!=[^=]": "== : use ===",
    r"https?://(?!www\.w3\.org/2000/svg)": "an address outside of the server",
    r"\beval\(|new Function|document\.write": "code made of text",
}


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    """Copy web/ to where node takes .js files for modules, beside scripts that the host serves."""
    folder = tmp_path / "extensions" / "trust"
    shutil.copytree(WEB, folder)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "scripts").mkdir()
    for name in ("api", "app"):
        script = f"export const {name} = globalThis.frontEnd.{name};"
        (tmp_path / "scripts" / f"{name}.js").write_text(script)
    return folder


@needs_node
@pytest.mark.parametrize("tests", ["test_web.mjs", "test_web_host.mjs"])
def test_front_end_in_node(modules: Path, tests: str) -> None:
    command = [str(NODE), "--test", "--test-reporter=tap", str(ROOT / "tests" / "nodes" / tests)]
    told = {**os.environ, "WEB": str(modules)}
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=told)
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"^# pass (\d+)$", done.stdout, re.MULTILINE)
    assert passed and int(passed[1]) > 0, done.stdout


@needs_node
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_syntax(modules: Path, script: Path) -> None:
    copy = modules / script.relative_to(WEB)
    done = subprocess.run([str(NODE), "--check", str(copy)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def lint(source: str) -> list[str]:
    """List what a script does against the house's rules."""
    found = []
    for number, line in enumerate(source.splitlines(), 1):
        code = re.sub(r"(?<!:)//.*", "", line)
        found += [f"{number}: {said}" for rule, said in LINT.items() if re.search(rule, code)]
        if len(line) > 100 or line != line.rstrip():
            found.append(f"{number}: longer than 100, or blanks at its end")
    return found


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_lint(script: Path) -> None:
    source = script.read_text("utf-8")
    assert lint(source) == [] and len(source.splitlines()) <= 300


@pytest.mark.parametrize(
    "line", ["var a = 1;", "console.log(a);", "a == b", "fetch('https://x.y')", "eval(a)", "a; "]
)
def test_planted_fault_is_caught(line: str) -> None:
    assert lint(line)


def test_every_import_is_there() -> None:
    """Every .js below web/ is loaded by ComfyUI; what it imports must be ours or the host's."""
    for script in SCRIPTS:
        for target in re.findall(r'from "([^"]+)"', script.read_text("utf-8")):
            if target.startswith("../../scripts/"):
                assert script.parent == WEB, "the host's scripts are two folders above web/ only"
            else:
                assert (script.parent / target).is_file(), f"{script}: {target}"


def test_texts_of_all_languages() -> None:
    source = (WEB / "trust" / "texts.js").read_text("utf-8")
    english = dict(re.findall(r'^  (\w+): "(.*)",$', source, re.MULTILINE))
    assert len(english) > 10
    for folder in (ROOT / "locales").iterdir():
        texts = json.loads((folder / "main.json").read_text("utf-8"))["trustUnlearn"]
        assert set(texts) == set(english), folder.name
        for key, said in texts.items():
            places = set(re.findall(r"{\w+}", english[key]))
            assert set(re.findall(r"{\w+}", said)) == places, (folder.name, key)
        assert folder.name != "en" or texts == english
