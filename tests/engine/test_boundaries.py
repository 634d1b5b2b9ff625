"""Who may import whom, and how long a file may be. Each check is shown to catch a planted fault."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path, PurePath

import pytest

ROOT = Path(__file__).resolve().parent.parent
FORBIDDEN = {"comfy", "folder_paths", "modules", "gradio", "nodes", "bench", "trust_engine"}
LAZY = {"diffusers", "transformers"}  # seconds to import: only when a model is loaded
LAZY_EXEMPT = {"denoiser_diffusers.py", "model.py", "__main__.py"}
LONGEST = 300
OURS = ("trust_engine", "nodes", "scripts", "trust_webui", "bench", "tools", "tests")


def imports(tree: ast.AST, lazy: bool = False) -> Iterator[tuple[int, str, bool]]:
    """List (line, module, inside a function?); a relative module keeps its leading dots."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "." * node.level + (node.module or ""), lazy
        elif isinstance(node, ast.Call) and _imports_by_name(node):
            yield node.lineno, ast.literal_eval(node.args[0]), lazy
        function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from imports(node, lazy or function)


def _imports_by_name(call: ast.Call) -> bool:
    function = getattr(call.func, "attr", getattr(call.func, "id", ""))
    literal = bool(call.args) and isinstance(call.args[0], ast.Constant)
    return function in ("import_module", "__import__") and literal


def faults(source: str, path: PurePath) -> list[str]:
    """List what a file of trust_engine, `path` within it, imports against the rules."""
    found = []
    for line, module, lazy in imports(ast.parse(source)):
        top = module.split(".")[0]
        dots = len(module) - len(module.lstrip("."))
        if top in FORBIDDEN:
            found.append(f"{path}:{line} imports {module}")
        if dots > len(path.parts):
            found.append(f"{path}:{line} climbs out of trust_engine by {module}")
        exempt = lazy or path.name in LAZY_EXEMPT or path.parts[0] == "demo"
        if top in LAZY and not exempt:
            found.append(f"{path}:{line} imports {module} at load")
    return found


def too_long(source: str) -> bool:
    """Tell whether a file is longer than the house allows."""
    return len(source.splitlines()) > LONGEST


def files(*folders: str) -> list[Path]:
    """List the Python files of folders of the repository."""
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def test_engine_imports_neither_host_nor_bench() -> None:
    engine = ROOT / "trust_engine"
    sources = {path.relative_to(engine): path.read_text("utf-8") for path in files("trust_engine")}
    assert sources
    assert [fault for path, source in sources.items() for fault in faults(source, path)] == []


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("import comfy.utils", "imports comfy.utils"),
        ("def f():\n    from modules import shared", "imports modules"),
        ("try:\n    import gradio\nexcept ImportError:\n    pass", "imports gradio"),
        ("import importlib\nimportlib.import_module('folder_paths')", "imports folder_paths"),
        ("from bench.world import scenes", "imports bench.world"),
        ("from trust_engine import spec", "imports trust_engine"),
        ("from ..nodes import concept", "climbs out of trust_engine"),
        ("import diffusers", "imports diffusers at load"),
        ("class A:\n    from transformers import CLIPTokenizer", "imports transformers at load"),
    ],
)
def test_planted_import_is_caught(source: str, fault: str) -> None:
    (found,) = faults(source, PurePath("spec.py"))
    assert fault in found


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("from .spec import ConceptSpec", "mask.py"),
        ("from ..spec import ConceptSpec", "demo/job.py"),
        ("def f():\n    import diffusers", "sampler.py"),
        ("import diffusers", "denoiser_diffusers.py"),
        ("import transformers", "demo/clip.py"),
    ],
)
def test_lawful_import_passes(source: str, path: str) -> None:
    assert faults(source, PurePath(path)) == []


def test_no_file_is_too_long() -> None:
    long = [str(path) for path in files(*OURS) if too_long(path.read_text("utf-8"))]
    assert long == []
    assert too_long("pass\n" * (LONGEST + 1))
    assert not too_long("pass\n" * LONGEST)


def test_one_script() -> None:
    """A1111 executes every file in scripts/, helpers included."""
    assert [path.name for path in files("scripts")] == ["trust_unlearn.py"]
