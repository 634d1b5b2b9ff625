"""Web UIs are told by what they are made of; those that are not known say so in a tab, and no more.

What is pretended here is the make of each: which modules there are, not what is in them.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes.webui import MADE, Callbacks, FakeGradio, Script, installed, module
from fakes.webui_a1111 import FakeA1111
from fakes.webui_forge import FakeForge
from fakes.webui_neo import FakeNeo

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "trust_unlearn.py"
WEBUI = ("modules", "modules.sd_models", "modules.sd_unet", "modules.sd_hijack")
MAKES = {
    # Forge of 2024 and its heirs: no `backend`, ComfyUI's old patcher under another name.
    "reForge": (*WEBUI, "modules_forge", "ldm_patched", "ldm_patched.modules.model_patcher"),
    "Forge Classic": (*WEBUI, "modules_forge", "ldm_patched"),
    # Diffusers below; some versions still have all the modules that AUTOMATIC1111 has.
    "SD.Next": (*WEBUI, "modules.sd_checkpoint", "modules.sd_offload", "installer"),
    "this web UI": ("modules", "modules.sd_models"),
    "this Forge": (*WEBUI, "modules_forge"),
}


@pytest.fixture(params=MAKES)
def named(request: pytest.FixtureRequest) -> Iterator[str]:
    """Be in a web UI that is made so; returns its name."""
    names = MAKES[request.param]
    made: dict[str, Any] = {name: module(name) for name in names}
    made["modules.script_callbacks"] = Callbacks()
    made["gradio"] = FakeGradio()
    for name, one in made.items():
        owner, _, last = name.rpartition(".")
        if owner in made:
            setattr(made[owner], last, one)
    ours = [name for name in sys.modules if name.split(".")[0] == "trust_webui"]
    before = {name: sys.modules.pop(name, None) for name in [*made, *ours]}
    sys.modules.update(made)
    yield request.param
    for name in [*made, *(n for n in list(sys.modules) if n.split(".")[0] == "trust_webui")]:
        sys.modules.pop(name, None)
    sys.modules.update({name: old for name, old in before.items() if old is not None})


def executed() -> Any:
    """Execute the script as a host does."""
    spec = importlib.util.spec_from_file_location(SCRIPT.name, SCRIPT)
    assert spec and spec.loader
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_a_tab_with_one_true_sentence(named: str) -> None:
    door = executed()
    registered = sys.modules["modules.script_callbacks"].registered
    assert {name: len(calls) for name, calls in registered.items()} == {"on_ui_tabs": 1}
    scripts = [v for v in vars(door).values() if isinstance(v, type) and issubclass(v, Script)]
    assert scripts == [], "no accordion that could be believed in"
    before = len(MADE)
    ((_, title, _),) = registered["on_ui_tabs"][0]()
    texts = [one.args[0] for one in MADE[before:] if one.args]
    (text,) = texts
    assert title == "TRUST" and named in text and text.count(". ") == 0 and text.endswith(".")
    assert all(host in text for host in ("AUTOMATIC1111", "Forge Neo", "ComfyUI"))


@pytest.mark.parametrize(
    ("make", "name"),
    [(FakeA1111, "AUTOMATIC1111"), (FakeForge, "Forge"), (FakeNeo, "Forge Neo")],
)
def test_those_that_are_known(make: Any, name: str, tmp_path: Path) -> None:
    with installed(tmp_path, make().modules):
        from trust_webui.host import current

        assert current().name == name
        # Another extension's copy of the old patcher does not make a Forge an old one.
        sys.modules["ldm_patched"] = module("ldm_patched")
        current.cache_clear()
        try:
            assert current().name == name
        finally:
            del sys.modules["ldm_patched"]


def test_a_fault_of_the_host_is_no_other_host(tmp_path: Path) -> None:
    """An ImportError inside the host's own module is shown as what it is."""
    with installed(tmp_path, FakeForge().modules):
        from trust_webui import which_ui

        broken = module("backend.patcher.lora")
        broken.__getattr__ = lambda name: 1 / 0  # type: ignore[method-assign]
        sys.modules["backend.patcher.lora"] = broken
        with pytest.raises(ZeroDivisionError):
            which_ui.kind()
