"""A real ComfyUI runs the nodes: pictures, files, caching, examples. The model stays as it is.

COMFYUI_PATH names its folder, COMFYUI_PYTHON its interpreter (else this one is used).
"""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path

import pytest

from hosts.comfy_hosted import drawn_anew
from hosts.comfy_prompts import DIRECT, PATCHED, drawn, hurried, hurry, node, unlearned
from hosts.comfy_server import FOLDER, ROOT, ComfyServer, as_prompt
from toys.demo import scrubbed_demo
from trust_engine.demo.judge import ASSETS
from trust_engine.diff import load_diff, save_diff
from trust_engine.models.demo_clip import CHECKPOINT

pytestmark = pytest.mark.host("COMFYUI_PATH")
WORKFLOWS = sorted((ROOT / "example_workflows").glob("*.json"))


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
    assert ended.text("11").startswith("gun: ")
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
    assert "11" not in told.cached and told.text("11").startswith("cat: "), told.error


def test_prompts_are_listed_and_drawn(server: ComfyServer, baseline: list[str]) -> None:
    """Prompts runs without anything behind it; its `stays` goes into Unlearn's, or others do."""
    told = {"model": DIRECT, "clip": ["1", 1], "concept": ["10", 0], "settings": ["12", 0]}
    listing = {"15": node("TrustPrompts", robust=True, **told)}
    few = hurry(passes=16)
    asked = {**unlearned(settings=few), **listing}
    first = server.run(
        {"1": node("TrustDemoModel"), **{key: asked[key] for key in ("10", "12", "15")}}
    )
    assert first.status == "success", first.error
    _, stays = first.text("15").split(" pictures show what must stay:\n")
    listed = [line.strip() for line in stays.splitlines()]
    assert len(listed) > 1 and "  a gun -> " in first.text("15")
    linked = unlearned(robust=True, settings=few, stays=["15", 1])
    ended = server.run({**drawn(PATCHED), **linked, **listing})
    assert ended.status == "success", ended.error
    assert "15" in ended.cached and ended.outputs["15"] == first.outputs["15"]
    pixels = server.pixels(ended, "7")
    assert pixels != baseline
    assert f"{len(listed)} of what must stay, such as {listed[0]}, " in ended.text("11")
    own = server.run({**drawn(PATCHED), **unlearned(robust=True, settings=few)})
    assert server.pixels(own, "7") == pixels, "unedited, they are its own"
    mine = unlearned(robust=True, settings=few, stays="a cat\na tree\n")
    ended = server.run({**drawn(PATCHED), **mine})
    assert "2 of what must stay, such as a cat, a tree." in ended.text("11"), ended.error
    assert server.pixels(ended, "7") != pixels
    assert drawn_anew(server) == baseline


def test_expected_time_is_about_right(server: ComfyServer) -> None:
    """Told before the run by what was measured, then by what the last run took."""
    settings = hurry(stop_effect=0.0, passes=128, trajectory_steps=4)
    for seed in (11, 12):
        run = unlearned(seed=seed, effort="normal", settings=settings, vae=["1", 2])
        ended = server.run({"1": node("TrustDemoModel"), **run})
        assert ended.status == "success", ended.error
        text = ended.text("11")
        told = re.search(r"expected to take about ([\d.]+) (s|min|h) ", text)
        took = re.search(r" in (\d+) s: ", text)
        assert told and took, text
        seconds = float(told[1]) * {"s": 1, "min": 60, "h": 3600}[told[2]]
        print(f"expected {told[1]} {told[2]}, took {took[1]} s")  # noqa: T201
        assert int(took[1]) / 4 < seconds + 1 < 4 * (int(took[1]) + 1) + 4


def test_two_in_a_row(server: ComfyServer) -> None:
    queued = [server.queue({**drawn(PATCHED), **unlearned(seed=seed)}) for seed in (5, 6)]
    assert [server.wait(one).status for one in queued] == ["success", "success"]


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
    # 16 bits round each entry, and a robust diff moves all of a weight's.
    most = 16 if robust else 2
    assert server.furthest(ended, "7", first) <= most
    assert drawn_anew(server) == baseline


def test_low_rank_draws_the_same_in_every_way(server: ComfyServer, baseline: list[str]) -> None:
    """A diff of factors in all layers that work on the picture: our node, the stock loader, ours
    baked into a checkpoint by the host; and the engine's own weights, of which it is the change.
    """
    save_diff(scrubbed_demo(), server.base / "shared_diffs" / "low_rank.safetensors")
    loaded = node("TrustLoadDiff", diff_name="low_rank.safetensors")
    export = {
        "40": node("TrustExportLora", diff=["30", 0], filename_prefix="trust/low_rank",
                   format="low rank", error=0.1),
        "22": node("CheckpointSave", model=["31", 0], clip=["1", 1], vae=["1", 2],
                   filename_prefix="checkpoints/low_rank"),
    }  # fmt: skip
    apply = node("TrustApplyDiff", model=DIRECT, diff=["30", 0], strength=1.0)
    ended = server.run({**drawn(["31", 0]), "30": loaded, "31": apply, **export})
    assert ended.status == "success", ended.error
    wanted, first = server.pixels(ended, "7"), server.pictures(ended, "7")
    assert wanted != baseline
    name = "low_rank_00001_.safetensors"
    loaders = {
        "lora": node("LoraLoaderModelOnly", model=DIRECT, strength_model=1.0,
                     lora_name=f"trust/{name}"),
        "checkpoint": node("CheckpointLoaderSimple", ckpt_name=name),
    }  # fmt: skip
    for how, loader in loaders.items():
        ended = server.run({**drawn(["31", 0]), "31": loader})
        assert ended.status == "success", ended.error
        assert server.furthest(ended, "7", first) <= 1, how
    undo = node("TrustApplyDiff", model=["31", 0], diff=["30", 0], strength=-1.0)
    ended = server.run({**drawn(["32", 0]), "30": loaded, "31": apply, "32": undo})
    assert server.furthest(ended, "7", server.pictures(server.run(drawn(DIRECT)), "7")) <= 1
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
