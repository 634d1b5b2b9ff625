"""The script as the hosts execute it: registered once, complete, and undone on Reload UI."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fakes.webui import Script, installed
from fakes.webui_a1111 import FakeA1111
from fakes.webui_forge import FakeForge

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "trust_unlearn.py"


@pytest.fixture(params=["a1111", "forge"])
def fake(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """Be in a pretended host."""
    made: Any = FakeForge() if request.param == "forge" else FakeA1111()
    with installed(tmp_path, made.modules) as shared:
        made.shared = shared
        yield made


def execute() -> ModuleType:
    """Execute the script as script_loading does: it is not entered in sys.modules."""
    spec = importlib.util.spec_from_file_location(SCRIPT.name, SCRIPT)
    assert spec and spec.loader
    door = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(door)
    return door


def test_one_script_and_all_callbacks(fake: Any) -> None:
    door = execute()
    scripts = [v for v in vars(door).values() if isinstance(v, type) and issubclass(v, Script)]
    assert [one.__name__ for one in scripts] == ["TrustScript"]
    callbacks = sys.modules["modules.script_callbacks"].registered
    assert {name: len(calls) for name, calls in callbacks.items()} == {
        "on_ui_settings": 1, "on_ui_tabs": 1, "on_app_started": 1, "on_script_unloaded": 1,
        "on_model_loaded": 1,
    }  # fmt: skip
    callbacks["on_ui_settings"][0]()
    for name in ("trust_diffs_folder", "trust_strict", "trust_effort"):
        assert fake.shared.opts.data_labels[name].section[1] == "TRUST Unlearn"
    assert "trust_always" not in fake.shared.opts.page(), "no page can take it off unseen"
    ((page, title, _),) = callbacks["on_ui_tabs"][0]()
    assert title == "TRUST" and page is not None


def test_reload_undoes_and_begins_anew(fake: Any) -> None:
    from trust_webui.jobs import JOBS, Job

    first = execute()
    running = Job("unlearn", "gun", state="running")
    JOBS._jobs[running.id] = running
    (unload,) = sys.modules["modules.script_callbacks"].registered["on_script_unloaded"]
    unload()
    assert running._stop.is_set()
    if isinstance(fake, FakeForge):
        assert not fake.calculators
    second = execute()
    assert second.TrustScript is first.TrustScript, "packages stay; the class is the same"
    if isinstance(fake, FakeForge):
        assert set(fake.calculators) == {"trust_sparse"}
