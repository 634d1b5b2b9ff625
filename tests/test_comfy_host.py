"""A real ComfyUI runs the nodes: pictures, files, errors, interrupts. The model stays as it is.

COMFYUI_PATH names its folder, COMFYUI_PYTHON its interpreter (else this one is used).
"""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from comfy_prompts import DIRECT, PATCHED, Prompt, drawn, hurried, hurry, node, unlearned
from comfy_server import FOLDER, ROOT, ComfyServer, Ended, as_prompt

from trust_engine.demo.clip import CHECKPOINT
from trust_engine.demo.judge import ASSETS
from trust_engine.diff import load_diff

pytestmark = pytest.mark.host("COMFYUI_PATH")
WORKFLOWS = sorted((ROOT / "example_workflows").glob("*.json"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """Start the host once, with a folder of diffs named in extra_model_paths."""
    base = tmp_path_factory.mktemp("comfy") / "base"
    base.mkdir()
    paths = base / "paths.yaml"
    paths.write_text(f"mine:\n  base_path: {base}\n  trust_diffs: shared_diffs\n")
    with ComfyServer(base, ("--extra-model-paths-config", str(paths))) as started:
        yield started


@pytest.fixture(scope="module")
def baseline(server: ComfyServer) -> list[str]:
    """Return the untouched model's pixels."""
    return drawn_anew(server)


def drawn_anew(server: ComfyServer) -> list[str]:
    """Draw with the untouched model; another seed first, or the host answers from its cache."""
    assert server.run(drawn(DIRECT, seed=int(time.time()))).status == "success"
    ended = server.run(drawn(DIRECT))
    assert ended.status == "success" and "5" not in ended.cached
    return server.pixels(ended, "7")


def test_loads_without_complaint(server: ComfyServer) -> None:
    log = server.log.read_text()
    assert "IMPORT FAILED" not in log and f"custom_nodes/{FOLDER}" in log
    told = server.get("/object_info/TrustUnlearn")["TrustUnlearn"]
    assert told["category"] == "TRUST" and told["description"]
    with urllib.request.urlopen(f"{server.url}/extensions/{FOLDER}/trust_unlearn.js") as script:
        assert b"registerExtension" in script.read()
    with urllib.request.urlopen(f"{server.url}/extensions/{FOLDER}/docs/TrustUnlearn.md") as page:
        assert page.read().startswith(b"# TRUST Unlearn")
    assert server.get("/i18n")["de"]["nodeDefs"]["TrustUnlearn"]["display_name"]


def test_unlearns_and_leaves_the_model(server: ComfyServer, baseline: list[str]) -> None:
    ended = server.run({**drawn(PATCHED), **unlearned(vae=["1", 2])})
    assert ended.status == "success", ended.error
    assert server.pixels(ended, "7") != baseline, "the patched model draws something else"
    assert "Forgot: gun" in ended.text("11")
    told = json.loads(ended.outputs["11"]["trust_run"][0])
    assert told["curves"] and told["neurons"]
    assert len(server.pictures(ended, "13")) == 1
    assert drawn_anew(server) == baseline


def test_runs_only_when_something_changed(server: ComfyServer) -> None:
    first = server.run({**drawn(PATCHED), **unlearned()})
    again = server.run({**drawn(PATCHED, seed=8), **unlearned()})
    assert "11" in again.cached and first.outputs["11"] == again.outputs["11"]
    other = server.run({**drawn(PATCHED, seed=8), **unlearned(seed=1)})
    assert "11" not in other.cached and other.outputs["11"] != first.outputs["11"]
    both = {**drawn(PATCHED, seed=8), **unlearned()}
    both["14"] = node("TrustConcept", words="cat", kind="single")
    both["10"]["inputs"]["and_also"] = ["14", 0]
    told = server.run(both)
    assert "11" not in told.cached and "Forgot: cat, gun" in told.text("11"), told.error


def test_two_in_a_row(server: ComfyServer) -> None:
    queued = [server.queue({**drawn(PATCHED), **unlearned(seed=seed)}) for seed in (5, 6)]
    assert [server.wait(one).status for one in queued] == ["success", "success"]


LONG = {"passes": 4000, "trajectory_steps": 50, "stop_effect": 0.0}


@pytest.mark.parametrize(
    ("stage", "changes", "more"),
    [
        ("recording", LONG, {}),
        ("unlearning", {"stop_effect": 0.0}, {}),
        ("unlearning", {"stop_effect": 0.0}, {"robust": True}),
        ("unlearning", {"stop_effect": 0.0}, {"engine": "global"}),
    ],
    ids=["recording", "training", "robust", "global"],
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
        ({"word": ", "}, "there is no concept"),
        ({"settings": hurry(passes=16, trajectory_steps=100)}, "leaves room for 0 prompts"),
    ],
)
def test_mistakes_are_explained(
    server: ComfyServer, baseline: list[str], changes: dict, text: str
) -> None:
    ended = server.run({**drawn(PATCHED), **unlearned(**changes)})
    assert ended.status == "error" and text in ended.error
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
        (2, {"robust": True}, "switch `robust` off"),
    ):
        ended = scarce(rows, **more)
        assert ended.status == "error" and advice in ended.error, ended.error
        assert drawn_anew(server) == baseline
    ended = server.run({**drawn(PATCHED), **unlearned()})
    assert ended.status == "success", "the queue stays usable"


def test_global_engine_leaves_the_model(server: ComfyServer, baseline: list[str]) -> None:
    ended = server.run({**drawn(PATCHED), **unlearned(engine="global")})
    assert ended.status == "success", ended.error
    assert server.pixels(ended, "7") != baseline and drawn_anew(server) == baseline


@pytest.mark.parametrize("robust", [False, True], ids=["local", "robust"])
def test_files_and_stock_loaders_draw_the_same(
    server: ComfyServer, baseline: list[str], robust: bool
) -> None:
    """The diff saved and loaded, exported for the stock LoRA loader, and as a whole checkpoint.

    A robust one changes convolutions and linear layers all over the UNet.
    """
    name = "everywhere" if robust else "gun"
    export = {"diff": ["11", 1], "error": 0.1}
    saved = {
        "20": node("TrustSaveDiff", diff=["11", 1], filename_prefix=name, author="me"),
        "21": node("TrustExportLora", filename_prefix=f"trust/{name}", format="exact", **export),
        "23": node("TrustExportLora", filename_prefix=f"trust/half_{name}", format="dense",
                   **export),
        "22": node("CheckpointSave", model=PATCHED, clip=["1", 1], vae=["1", 2],
                   filename_prefix=f"checkpoints/{name}"),
    }  # fmt: skip
    ended = server.run({**drawn(PATCHED), **unlearned(robust=robust), **saved})
    assert ended.status == "success", ended.error
    wanted, first = server.pixels(ended, "7"), server.pictures(ended, "7")
    assert wanted != baseline
    told = load_diff(server.base / "shared_diffs" / f"{name}_00001_.safetensors")
    assert any(len(shape) == 4 for shape in told.shapes.values()) == robust
    file = f"{name}_00001_.safetensors"
    loaders = {
        "diff": {"30": node("TrustLoadDiff", diff_name=file),
                 "31": node("TrustApplyDiff", model=DIRECT, diff=["30", 0], strength=1.0)},
        "lora": {"31": node("LoraLoaderModelOnly", model=DIRECT, strength_model=1.0,
                            lora_name=f"trust/{file}")},
        "checkpoint": {"31": node("CheckpointLoaderSimple", ckpt_name=file)},
    }  # fmt: skip
    for how, loader in loaders.items():
        ended = server.run({**drawn(["31", 0]), **loader})
        assert ended.status == "success", ended.error
        assert server.pixels(ended, "7") == wanted, how
    half = node("LoraLoaderModelOnly", model=DIRECT, strength_model=1.0,
                lora_name=f"trust/half_{file}")  # fmt: skip
    ended = server.run({**drawn(["31", 0]), "31": half})
    assert server.furthest(ended, "7", first) <= 2, "16 bits round the smallest changes"
    assert drawn_anew(server) == baseline


def test_stock_loader_takes_the_demos_file(server: ComfyServer, baseline: list[str]) -> None:
    folder, file = server.base / "models" / "checkpoints", ASSETS / CHECKPOINT
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file.name).symlink_to(file)
    loader = node("CheckpointLoaderSimple", ckpt_name=file.name)
    ended = server.run({**drawn(DIRECT), "1": loader})
    assert ended.status == "success", ended.error
    assert server.pixels(ended, "7") == baseline


def test_label_is_told(server: ComfyServer) -> None:
    save = node("TrustSaveDiff", diff=["11", 1], filename_prefix="told", author="me")
    assert server.run({**drawn(PATCHED), **unlearned(), "20": save}).status == "success"
    told = server.get("/trust/label?name=told_00001_.safetensors")
    assert told["concepts"] == ["gun"] and "me" in told["label"] and not told["audited"]
    assert "not in the folder" in server.get("/trust/label?name=../paths.yaml")["error"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_example_runs(
    server: ComfyServer, path: Path, request: pytest.FixtureRequest
) -> None:
    """Whole with --run-slow, else with fewer steps."""
    for word in ("gun", "cat"):
        if not (server.base / "shared_diffs" / f"{word}_00001_.safetensors").is_file():
            save = {"20": node("TrustSaveDiff", diff=["11", 1], filename_prefix=word)}
            made = server.run({**drawn(PATCHED), **unlearned(word), **save})
            assert made.status == "success", made.error
    prompt = as_prompt(json.loads(path.read_text("utf-8")), server)
    if not request.config.getoption("--run-slow"):
        prompt = hurried(prompt)
    ended = server.run(prompt)
    assert ended.status == "success", ended.error
    shown = [key for key, told in ended.outputs.items() if told.get("images")]
    assert shown, "it shows pictures"


def test_every_example_has_its_picture() -> None:
    assert len(WORKFLOWS) >= 4
    for path in WORKFLOWS:
        assert 10_000 < path.with_suffix(".jpg").stat().st_size < 200_000
