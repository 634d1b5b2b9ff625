"""Routes under /trust/v1: jobs, diffs for every picture, errors in one line, the password."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fakes.webui import App, HTTPException, installed
from fakes.webui_a1111 import FakeA1111
from toys.tiny import some_diff
from trust_engine.diff import load_diff, save_diff

SHORT = {"steps": 2, "trajectory_steps": 2, "passes": 12}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Any]:
    """Be in a pretended A1111 with its API on."""
    made: Any = FakeA1111()
    with installed(tmp_path, made.modules) as shared:
        shared.cmd_opts.api = True
        made.shared, made.folder = shared, tmp_path / "models" / "trust_diffs"
        made.app = App()
        from trust_webui import api

        api.add(None, made.app)
        yield made


def wait(server: Any, started: dict[str, Any]) -> dict[str, Any]:
    """Ask for a job until it is over."""
    for _ in range(6000):
        told = server.app.call("GET", "/jobs/{identity}", identity=started["job"])
        if told["state"] in ("done", "failed", "stopped"):
            return told
        time.sleep(0.05)
    raise AssertionError("the job does not end")


def test_unlearn_apply_list_and_take_off(server: Any) -> None:
    body = {"concepts": [{"words": ["gun"], "preserve": ["a cat"]}], "spec": SHORT, "pictures": 0,
            "name": "no gun"}  # fmt: skip
    expected = wait(server, server.app.call("POST", "/expect", body=body))
    assert expected["state"] == "done" and "Expected" in expected["result"]["text"]
    told = wait(server, server.app.call("POST", "/unlearn", body=body))
    assert told["state"] == "done" and told["progress"] == 1.0, told
    assert told["result"]["diff"] == "no-gun.safetensors"
    diff = load_diff(server.folder / "no-gun.safetensors")
    assert diff.changed == told["result"]["entries_changed"] > 0
    (listed,) = server.app.call("GET", "/diffs")
    assert listed["name"] == "no-gun.safetensors" and listed["concepts"] == ["gun"]
    assert "gun" in server.app.call("GET", "/concepts")["forgotten"]
    wanted = {"diffs": [{"name": "no-gun.safetensors", "strength": 0.5}]}
    assert server.app.call("POST", "/apply", body=wanted) == wanted
    assert server.app.call("GET", "/apply") == wanted
    assert listed["sha256"][:10] in server.shared.opts.trust_always
    assert server.app.call("POST", "/apply", body={"diffs": []}) == {"diffs": []}
    assert len(server.app.call("GET", "/jobs")) == 2


def test_cancel(server: Any) -> None:
    from modules import call_queue

    before = server.bits()
    with call_queue.queue_lock:  # a generation is under way: the job waits for it
        body = {"concepts": [{"words": ["gun"], "preserve": ["a cat"]}]}
        started = server.app.call("POST", "/unlearn", body=body)
        time.sleep(0.2)
        (told,) = server.app.call("GET", "/jobs")
        assert told["state"] == "queued" and told["progress"] == 0.0
        server.app.call("POST", "/jobs/{identity}/cancel", identity=started["job"])
    assert wait(server, started)["state"] == "stopped"
    assert all((before[name] == weight).all() for name, weight in server.bits().items())
    assert not list(server.folder.glob("*.safetensors"))


def save_small(server: Any) -> None:
    """Put a.safetensors into the folder: a diff that changes little."""
    diff = some_diff(server.demo.denoiser)
    small = {k: o.with_values(0.01 * o.values) for k, o in diff.offsets.items()}
    whole = type(diff)(small, {**diff.provenance, "family": "demo"})
    save_diff(whole, server.folder / "a.safetensors")


def test_audit(server: Any) -> None:
    diff = some_diff(server.demo.denoiser)
    small = {k: o.with_values(0.01 * o.values) for k, o in diff.offsets.items()}
    save_diff(
        type(diff)(small, {**diff.provenance, "family": "demo"}), server.folder / "a.safetensors"
    )
    body = {"diff": "a.safetensors", "concept": {"words": ["gun"]}, "judge": "nobody"}
    with pytest.raises(HTTPException, match="judge"):
        server.app.call("POST", "/audit", body=body)
    wrongs = (
        ({"level": "deep"}, "level"),
        ({"images": 0}, "images"),
        ({"diff": "b.safetensors"}, "no such diff"),
        ({"eyes": 3}, "eyes"),
    )
    for wrong, said in wrongs:
        with pytest.raises(HTTPException, match=said):
            server.app.call("POST", "/audit", body={**body, "judge": "demo", **wrong})


def asked_of_the_demo(server: Any) -> dict[str, Any]:
    """Save a diff of the demo model, and ask whether it forgets."""
    diff = some_diff(server.demo.denoiser)
    small = {k: o.with_values(0.01 * o.values) for k, o in diff.offsets.items()}
    save_diff(
        type(diff)(small, {**diff.provenance, "family": "demo"}), server.folder / "a.safetensors"
    )
    return {"diff": "a.safetensors", "concept": {"words": ["gun"]}, "judge": "demo", "images": 1}


@pytest.mark.parametrize("level", ["pictures only", "quick", "full"])
def test_audit_of_each_level_begins_and_is_stopped(server: Any, level: str) -> None:
    body = {**asked_of_the_demo(server), "level": level, "resolution": 64}
    started = server.app.call("POST", "/audit", body=body)["job"]
    while not server.app.call("GET", "/jobs/{identity}", identity=started)["progress"]:
        told = server.app.call("GET", "/jobs/{identity}", identity=started)
        assert told["state"] in ("queued", "running"), told
        time.sleep(0.05)
    server.app.call("POST", "/jobs/{identity}/cancel", identity=started)
    assert wait(server, {"job": started})["state"] == "stopped"


@pytest.mark.slow
def test_audit_to_the_end(server: Any) -> None:
    body = asked_of_the_demo(server)
    told = wait(server, server.app.call("POST", "/audit", body=body))
    assert told["state"] == "done", told
    assert told["result"]["figures"]["ua"]["n"] > 0 and "gun" in told["result"]["verdict"]
    assert list(server.folder.parent.parent.rglob("a-audit.html"))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "concepts must be a list"),
        ({"concepts": []}, "no concept"),
        ({"concepts": [{"words": []}]}, "empty"),
        ({"concepts": [{"words": ["gun"], "colour": "red"}]}, "colour"),
        ({"concepts": [{"words": ["gun"]}], "effort": "heroic"}, "heroic"),
        ({"concepts": [{"words": ["gun"]}], "spec": {"steps": 0}}, "steps"),
        ({"concepts": [{"words": ["gun"]}], "resolution": "big"}, "whole numbers"),
        ({"concepts": [{"words": ["gun"]}], "resolution": 7}, "resolution"),
        ({"concepts": [{"words": ["gun"]}], "path": "/etc/passwd"}, "path"),
        ({"preset": "../../etc/passwd"}, "cannot be read"),
    ],
)
def test_wrong_orders_are_answered_in_one_line(server: Any, body: Any, said: str) -> None:
    with pytest.raises(HTTPException, match=said) as caught:
        server.app.call("POST", "/unlearn", body=body)
    assert caught.value.status_code == 422 and "\n" not in caught.value.detail
    assert server.app.call("GET", "/jobs") == []


WRONG: list[tuple[Any, str]] = [
    ({"preset": "nu\0l"}, "cannot be read"),
    ({"preset": "n" * 300}, "cannot be read"),
    ({"preset": 5}, "preset must be a text"),
    ({"preset": "mine", "concepts": [{"words": ["gun"]}]}, "says concepts"),
    ({"concepts": [{"words": ["gun"]}], "effort": "quick", "spec": {"steps": 5}}, "effort and"),
    ({"concepts": [{"words": ["gun"]}], "effort": 5}, "effort must be a text"),
    ({"concepts": [{"words": ["gun"]}], "spec": {"concept": {}}}, "concepts not among"),
    ({"concepts": [{"words": ["gun"]}], "resolution": 100}, "multiple of 64"),
    ({"concepts": [{"words": ["gun"]}], "resolution": 10**7}, "resolution"),
    ({"concepts": [{"words": ["gun"]}], "pictures": -2}, "pictures"),
    ({"concepts": [{"words": ["gun"]}], "pictures": True}, "whole numbers"),
    ({"concepts": [{"words": ["gun"]}], "spec": {"seed": -1}}, "seed"),
    ({"concepts": [{"words": ["gun"]}], "name": "nu\0l"}, "no name for a file"),
    ({"concepts": [{"words": ["gun"]}], "name": "n" * 300}, "300 characters"),
    ({"concepts": [{"words": ["gun"]}], "name": 5}, "no name for a file"),
    ([], "an object with"),
    (None, "an object with"),
    ("gun", "an object with"),
]


def test_more_wrong_orders(server: Any) -> None:
    for body, said in WRONG:
        with pytest.raises(HTTPException, match=said) as caught:
            server.app.call("POST", "/unlearn", body=body)
        detail = caught.value.detail
        assert caught.value.status_code == 422 and "\n" not in detail and len(detail) <= 400
    assert server.app.call("GET", "/jobs") == []


def test_a_preset_brings_all_that_it_says(server: Any) -> None:
    from trust_webui import form
    from trust_webui.api import read_order

    form.save_preset("mine", form.Form(words="gun", pictures=8, resolution=128, seed=3))
    order = read_order({"preset": "mine"})
    assert (order.pictures, order.resolution, order.spec.seed) == (8, 128, 3)
    order = read_order({"preset": "mine", "pictures": 0, "name": "other"})
    assert (order.pictures, order.resolution, order.name) == (0, 128, "other")


def test_nothing_leaves_the_folder(server: Any) -> None:
    for name in ("../secret.safetensors", "/etc/passwd", ""):
        with pytest.raises(HTTPException) as caught:
            server.app.call("POST", "/apply", body={"diffs": [{"name": name}]})
        assert caught.value.status_code == 422
    with pytest.raises(HTTPException) as caught:
        server.app.call("GET", "/jobs/{identity}", identity="nowhere")
    assert caught.value.status_code == 404


def test_no_api_no_routes_and_the_hosts_password(server: Any) -> None:
    from trust_webui import api

    assert not any(server.app.guards.values())
    server.shared.cmd_opts.api_auth = "anna:secret, ben:other"
    guarded = App()
    api.add(None, guarded)
    assert all(guards == [api._authorised] for guards in guarded.guards.values())
    api._authorised(SimpleNamespace(username="ben", password="other"))  # type: ignore[arg-type]
    for name, password in (("ben", "secret"), ("", ""), ("anna", "other")):
        with pytest.raises(HTTPException) as caught:
            api._authorised(SimpleNamespace(username=name, password=password))  # type: ignore[arg-type]
        assert caught.value.status_code == 401
    server.shared.cmd_opts.api = False
    bare = App()
    api.add(None, bare)
    assert bare.routes == {}
