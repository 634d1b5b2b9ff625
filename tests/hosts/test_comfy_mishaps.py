"""Cancel, mistakes, want of memory in a real ComfyUI: it says so, and the model stays as it is."""

from __future__ import annotations

import time
from typing import Any

import pytest

from hosts.comfy_hosted import drawn_anew
from hosts.comfy_prompts import DIRECT, PATCHED, Prompt, drawn, hurry, node, unlearned
from hosts.comfy_server import ComfyServer, Ended

pytestmark = pytest.mark.host("COMFYUI_PATH")
LONG = {"passes": 4000, "trajectory_steps": 50, "stop_effect": 0.0}


@pytest.mark.parametrize(
    ("stage", "changes", "more"),
    [
        ("recording", LONG, {}),
        ("unlearning", {"stop_effect": 0.0}, {}),
        ("scrubbing", {"passes": 400}, {"robust": True}),
        ("relabelling", {}, {"robust": True}),
        ("unlearning", {"stop_effect": 0.0}, {"engine": "global"}),
    ],
    ids=["recording", "training", "scrubbing", "relabelling", "global"],
)
def test_interrupt(
    server: ComfyServer, baseline: list[str], stage: str, changes: dict, more: dict
) -> None:
    """It stops within a step, while it records and while it trains; then the host goes on."""
    told = {"effort": "thorough", "settings": hurry(**changes), **more}
    cancelled(server, {**drawn(PATCHED), **unlearned(**told)}, stage)
    assert drawn_anew(server) == baseline


def audited(before: list, after: list) -> Prompt:
    """Audit what was unlearned."""
    sockets = {"before": before, "after": after, "clip": ["1", 1], "vae": ["1", 2]}
    more = {"level": "full", "judge": "demo", "images": 4, "seed": 0}
    audit = node("TrustAudit", **sockets, concept=["10", 0], filename_prefix="stopped", **more)
    return {"1": node("TrustDemoModel"), **unlearned(), "50": audit}


def test_interrupt_of_an_audit(server: ComfyServer, baseline: list[str]) -> None:
    """While it draws for the judge; then the host goes on."""
    cancelled(server, audited(DIRECT, PATCHED), "core")
    assert not list((server.base / "output").glob("stopped*"))
    assert drawn_anew(server) == baseline


def test_audit_out_of_memory(server: ComfyServer, baseline: list[str]) -> None:
    """It tries once more with fewer rows, and then says what to change."""

    def scarce(rows: int) -> Prompt:
        limit = node("TestScarceMemory", model=DIRECT, rows=rows)
        apply = node("TrustApplyDiff", model=["40", 0], diff=["11", 1], strength=1.0)
        return {**audited(["40", 0], ["41", 0]), "40": limit, "41": apply}

    cancelled(server, scarce(2), "core", ("trying once more", len(server.log.read_text())))
    ended = server.run(scarce(1))
    assert ended.status == "error" and "set `level` to quick" in ended.error, ended.error
    assert drawn_anew(server) == baseline


def cancelled(
    server: ComfyServer, prompt: Prompt, stage: str, after: tuple[str, int] | None = None
) -> None:
    """Queue a prompt, press Cancel in a stage, and see how much is done after that."""
    started = server.queue(prompt)
    if after is not None:
        server.wait_for_log(*after)
    server.wait_for_stage(stage)
    server.post("/interrupt")
    asked = time.monotonic()
    assert server.wait(started).status == "interrupted"
    told = server.get("/test/watch")
    print(f"{stage}: {told}")  # noqa: T201
    # The interrupt may fall between the check and what it guards.
    assert told["stopped"] is not None and told["passes"] <= 1 and told["reports"] <= 1, told
    assert time.monotonic() - asked < 60


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"settings": hurry(xi=99.0, schedule="bounded")}, "no entry stands out"),
        ({"settings": hurry(passes=16, trajectory_steps=100)}, "leaves room for 0 prompts"),
    ],
)
def test_mistakes_are_explained(
    server: ComfyServer, baseline: list[str], changes: dict, text: str
) -> None:
    ended = server.run({**drawn(PATCHED), **unlearned(**changes)})
    assert ended.status == "error" and text in ended.error
    assert drawn_anew(server) == baseline


@pytest.mark.parametrize(
    ("told", "text"),
    [
        ({"word": ", "}, "there is no concept"),
        ({"stays": "a boat"}, "`stays` lists pictures, which only robust mode draws"),
    ],
)
def test_what_is_written_wrongly_is_refused_before_anything_runs(
    server: ComfyServer, baseline: list[str], told: dict, text: str
) -> None:
    prompt = {**drawn(PATCHED), **unlearned(**told)}
    answer = server.post("/prompt", {"prompt": prompt, "client_id": "test"})
    found = [error for one in answer["node_errors"].values() for error in one["errors"]]
    assert any(text in f"{error['message']} {error['details']}" for error in found), answer
    assert drawn_anew(server) == baseline


def test_out_of_memory(server: ComfyServer, baseline: list[str]) -> None:
    """It tries once more with fewer rows and says so; if that fails too, it says what to lower."""

    def scarce(rows: int, **more: Any) -> Ended:
        prompt = unlearned(model=["40", 0], **more)
        limit = node("TestScarceMemory", model=DIRECT, rows=rows)
        return server.run({"1": node("TrustDemoModel"), "40": limit, **prompt})

    ended = scarce(2, vae=["1", 2])
    assert ended.status == "success", ended.error
    assert "out of memory" in ended.text("11") and "2 rows at a time" in ended.text("11")
    assert drawn_anew(server) == baseline
    for rows, more, advice in (
        (1, {}, "lower `resolution`"),
        (2, {"engine": "global"}, "set `engine` to local"),
        (1, {"robust": True}, "switch `robust` off"),
    ):
        ended = scarce(rows, **more)
        assert ended.status == "error" and advice in ended.error, ended.error
        assert drawn_anew(server) == baseline
    ended = server.run({**drawn(PATCHED), **unlearned()})
    assert ended.status == "success", "the queue stays usable"
