"""The doors load as their hosts load them; elsewhere they do no harm."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from fakes.comfy import Host, installed

ROOT = Path(__file__).resolve().parent.parent
NAME = "/comfy/custom_nodes/my-pack_x_1"  # ComfyUI names a pack after its path, dots replaced
NODES = ("NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY")


@pytest.fixture(autouse=True)
def _fresh_modules() -> Iterator[None]:
    """Hide the repository from imports, and forget afterwards what was loaded meanwhile."""
    path = sys.path.copy()
    sys.path[:] = [entry for entry in path if Path(entry).resolve() != ROOT]
    modules = _take_ours()
    yield
    _take_ours()
    sys.modules.update(modules)
    sys.path[:] = path


def _take_ours() -> dict[str, ModuleType]:
    ours = [name for name in sys.modules if name.split(".")[0] in ("trust_engine", NAME)]
    return {name: sys.modules.pop(name) for name in ours}


@pytest.fixture
def comfy(tmp_path: Path) -> Iterator[None]:
    """Pretend to be ComfyUI."""
    with installed(Host(), tmp_path):
        yield


def load_pack() -> ModuleType:
    """Load the root package as ComfyUI's load_custom_node does."""
    return execute(NAME, ROOT / "__init__.py", sys.modules)


def execute(name: str, path: Path, modules: dict[str, ModuleType]) -> ModuleType:
    """Execute a file as a module called `name`, entered in `modules` first."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.usefixtures("comfy")
def test_comfyui_finds_the_pack() -> None:
    pack = load_pack()
    assert set(pack.NODE_CLASS_MAPPINGS) == set(pack.NODE_DISPLAY_NAME_MAPPINGS)
    assert (ROOT / pack.WEB_DIRECTORY).is_dir()
    assert f"{NAME}.nodes" in sys.modules
    assert "nodes" not in sys.modules, "that name is ComfyUI's own"


@pytest.mark.usefixtures("comfy")
def test_comfyui_hears_of_a_broken_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, f"{NAME}.nodes", None)  # makes its import fail
    with pytest.raises(ImportError):
        load_pack()


def test_without_comfyui_the_pack_is_empty() -> None:
    pack = load_pack()
    assert not any(hasattr(pack, name) for name in NODES)
    assert f"{NAME}.nodes" not in sys.modules


def test_webui_executes_the_script() -> None:
    """A1111 executes the script with our folder on sys.path, and never enters it in sys.modules."""
    (script,) = (ROOT / "scripts").glob("*.py")
    with pytest.raises(ImportError):
        importlib.import_module("trust_engine")
    sys.path.insert(0, str(ROOT))
    door = execute(script.name, script, {})
    sys.path.remove(str(ROOT))
    assert Path(door.trust_engine.__file__).parent == ROOT / "trust_engine"
    assert importlib.import_module("trust_engine.spec"), "submodules load after the path is gone"
    assert not {"modules", "gradio", "comfy"} & set(sys.modules)
