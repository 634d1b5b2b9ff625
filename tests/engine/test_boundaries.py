"""Who may import whom: packages import downward. Each check is shown to catch a planted fault."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path, PurePath

import pytest

ROOT = Path(__file__).resolve().parents[2]
FORBIDDEN = {"comfy", "folder_paths", "modules", "gradio", "nodes", "bench", "trust_engine"}
LAZY = {"diffusers", "transformers"}  # seconds to import: only when a model is loaded
LAZY_EXEMPT = {"diffusers_unet.py", "load.py", "__main__.py", "demo_clip.py"}
FLOORS = (  # lowest first: a package imports from its own floor's package and from those below
    ("errors", "lazy", "phrases", "seeds", "strict_json"),
    ("settings",),
    ("spec",),
    ("io", "distributed"),
    ("demo",),
    ("models",),
    ("prompts",),
    ("diff",),
    ("unlearn", "audit"),
    ("benchmark", "frontend"),
    ("cli",),
    ("__main__",),
)
FLOOR = {package: floor for floor, packages in enumerate(FLOORS) for package in packages}


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
        exempt = lazy or path.name in LAZY_EXEMPT
        if top in LAZY and not exempt:
            found.append(f"{path}:{line} imports {module} at load")
    return found


def arrows(source: str, path: PurePath) -> Iterator[tuple[int, str]]:
    """List (line, package of trust_engine) for all that a file, `path` within it, imports."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        here = path.parts[: len(path.parts) - node.level]
        module = [*here, *(node.module or "").split(".")]
        names = [module[0]] if module[0] else [alias.name for alias in node.names]
        yield from ((node.lineno, name) for name in names if name in FLOOR)


def upward(source: str, path: PurePath) -> list[str]:
    """List the imports of a file of trust_engine that lead up, or across one floor."""
    own = path.with_suffix("").parts[0]
    return [
        f"{path}:{line} ({own}) imports {package}, which is not below it"
        for line, package in arrows(source, path)
        if package != own and own in FLOOR and FLOOR[package] >= FLOOR[own]
    ]


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
        ("from .spec import ConceptSpec", "phrases.py"),
        ("from ..spec import ConceptSpec", "unlearn/run.py"),
        ("def f():\n    import diffusers", "sampler.py"),
        ("import diffusers", "models/diffusers_unet.py"),
        ("import transformers", "models/demo_clip.py"),
    ],
)
def test_lawful_import_passes(source: str, path: str) -> None:
    assert faults(source, PurePath(path)) == []


def test_packages_import_downward() -> None:
    engine = ROOT / "trust_engine"
    sources = {path.relative_to(engine): path.read_text("utf-8") for path in files("trust_engine")}
    tops = {path.with_suffix("").parts[0] for path in sources} - {"__init__"}
    assert tops == set(FLOOR), "every package and module of the top floor has its place in FLOORS"
    assert [fault for path, source in sources.items() for fault in upward(source, path)] == []


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("from ..unlearn.run import Unlearning", "models/load.py"),
        ("from ..audit import Audit", "unlearn/run.py"),
        ("def f():\n    from ...cli.main import main", "audit/judges/base.py"),
        ("from .. import frontend", "diff/file.py"),
        ("from .io.files import write_atomically", "spec.py"),
    ],
)
def test_planted_arrow_upward_is_caught(source: str, path: str) -> None:
    (found,) = upward(source, PurePath(path))
    assert path in found


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("from ..models.load import load_model", "cli/main.py"),
        ("from .trainer import Trainer", "unlearn/run.py"),
        ("from .. import __version__", "unlearn/run.py"),
        ("from ...diff import WeightDiff", "audit/attacks/base.py"),
    ],
)
def test_arrow_downward_passes(source: str, path: str) -> None:
    assert upward(source, PurePath(path)) == []


def test_one_script() -> None:
    """A1111 executes every file in scripts/, helpers included."""
    assert [path.name for path in files("scripts")] == ["trust_unlearn.py"]
