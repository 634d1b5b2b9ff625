"""Real web UIs that draw for others: what is on every picture outlives a restart, and cannot be
undone by the host's own ways to change a setting.

Each test starts the host twice on one data folder.
"""

from __future__ import annotations

import json
import urllib.error
from pathlib import Path
from typing import Any

import pytest

from hosts.webui_demo import choose
from hosts.webui_drawing import first, made
from hosts.webui_server import Server, running


def refused(call: Any) -> str:
    """Return what the host answers to what it refuses."""
    with pytest.raises(urllib.error.HTTPError) as caught:
        call()
    return str(caught.value.code) + caught.value.read().decode()


def bad_input(server: Server) -> None:
    """Send what has no sense; FastAPI is real here, and its own answer would be a list."""
    for diffs, said in (
        ([{"strength": 1}], "names no diff"),
        ([{"name": ""}], "no diff's name"),
        ([{"name": "gun.safetensors", "strength": 99}], "between -2 and 2"),
        ([{"name": "gun.safetensors"}] * 2, "twice"),
        ([{"name": "g" * 300}], "this long"),
        ([{"name": "gun\0"}], "no diff's name"),
        (5, "must be a list"),
    ):
        answer = refused(lambda diffs=diffs: server.ask("/trust/v1/apply", {"diffs": diffs}))
        assert answer.startswith("422") and said in answer
    for body in ([], 5, "gun"):
        answer = refused(lambda body=body: server.ask("/trust/v1/apply", body))
        assert answer.startswith("422") and "an object with diffs is expected" in answer
    audit = {"diff": "gun.safetensors", "judge": "demo"}
    for wrong, said in (
        ({"resolution": "4"}, "whole number"),
        ({"resolution": 10**7}, "between 0 and 2048"),
        ({"seed": -1}, "seed is -1"),
        ({"concept": {"words": ["pizza"]}}, "forgets gun, not pizza"),
    ):
        answer = refused(lambda wrong=wrong: server.ask("/trust/v1/audit", {**audit, **wrong}))
        assert answer.startswith("422") and said in answer


def undone(server: Server) -> None:
    """Try the host's own ways to change a setting."""
    answer = refused(lambda: server.ask("/sdapi/v1/options", {"trust_always": ""}))
    assert answer.startswith("500"), "aloud, not as if it were done"
    answer = refused(lambda: first(server, override_settings={"trust_always": ""}))
    assert "cannot be set along" in answer
    server.ask("/sdapi/v1/options", {"trust_pictures": 2})  # which saves all settings


@pytest.mark.parametrize(
    "variable",
    [pytest.param(v, marks=pytest.mark.host(v))
     for v in ("A1111_PATH", "FORGE_PATH", "FORGE_NEO_PATH")],
)  # fmt: skip
def test_what_is_on_every_picture_outlives_a_restart(variable: str, tmp_path: Path) -> None:
    data, on = tmp_path / "data", {"diffs": [{"name": "gun.safetensors", "strength": 0.5}]}
    with running(variable, data) as server:
        choose(server)
        made(server, "gun")
        plain, _ = first(server)
        assert server.ask("/trust/v1/apply", on) == on
        under, text = first(server)
        assert under != plain and "TRUST diffs: gun.safetensors@" in text
        bad_input(server)
        undone(server)
        assert server.ask("/trust/v1/apply") == on and first(server)[0] == under
    assert "gun" in json.loads((data / "config.json").read_text("utf-8"))["trust_always"]
    with running(variable, data) as server:
        assert server.ask("/trust/v1/apply") == on and first(server)[0] == under
        file = server.diffs / "gun.safetensors"
        file.rename(file.with_suffix(".away"))
        assert "nothing was drawn: gun.safetensors: no such diff" in refused(lambda: first(server))
        file.with_suffix(".away").rename(file)
        assert first(server)[0] == under
        server.ask("/trust/v1/apply", {"diffs": []})
        assert first(server)[0] == plain
