"""Every example workflow, whole, in the browser of a real ComfyUI.

TRUST_PICTURES names a folder that gets a picture of each, as the template browser shows it.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hosts.comfy_prompts import PATCHED, drawn, hurry, node, unlearned
from hosts.comfy_server import PATIENCE, ROOT, ComfyServer
from hosts.test_comfy_browser import LOAD, PAUSE, queue, wait
from trust_engine.spec import UnlearnSpec

pytestmark = [pytest.mark.host("COMFYUI_PATH"), pytest.mark.slow]
EXAMPLES = sorted((ROOT / "example_workflows").glob("*.json"))
UNHURRIED = {
    field.name: field.default
    for field in dataclasses.fields(UnlearnSpec)
    if field.name in ("trajectory_steps", "passes", "stop_effect", "stop_harm")
} | {"resolution": 0}
ROOM, EDGE = 160, 24  # pixels for the front end's own bars; around a picture
WIDTH, LARGEST = 1440, 200_000  # pixels, bytes
QUIET = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.Graph.CanvasMenu": False,
    "Comfy.Minimap.Visible": False,
    "Comfy.NodeBadge.NodeSourceBadgeMode": "None",
    "Comfy.VueNodes.Enabled": False,
}
BOX = """(room) => {
    const canvas = app.canvas, nodes = app.graph._nodes;
    const left = Math.min(...nodes.map((n) => n.pos[0])), top = Math.min(...nodes.map((n) => n.pos[1])) - 32;
    const width = Math.max(...nodes.map((n) => n.pos[0] + n.size[0])) - left;
    const height = Math.max(...nodes.map((n) => n.pos[1] + n.size[1])) - top;
    canvas.ds.scale = 1;
    canvas.ds.offset = [room - left, room - top];
    canvas.setDirty(true, true);
    const box = canvas.canvas.getBoundingClientRect();
    return [box.left + room, box.top + room, width, height];
}"""  # noqa: E501


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """Start the host, with a front end that shows the graph and little else."""
    with ComfyServer(tmp_path_factory.mktemp("pictures") / "base") as started:
        for name, value in QUIET.items():
            started.post(f"/settings/{name}", value)
        yield started


def graph_of(path: Path) -> dict[str, Any]:
    """Read an example; TRUST_EFFORT=quick shortens it, which its picture then shows."""
    graph = json.loads(path.read_text("utf-8"))
    effort = os.environ.get("TRUST_EFFORT")
    for one in graph["nodes"] if effort else ():
        if one["type"] == "TrustUnlearn":
            one["widgets_values"][2] = effort
        if one["type"] == "TrustAudit":
            one["widgets_values"][2] = 1  # image an object
    return graph


def make_diffs(server: ComfyServer) -> None:
    """Make the two files that the third example chains, as its note asks for."""
    folder = server.base / "models" / "trust_diffs"
    for word in ("gun", "cat"):
        if not (folder / f"{word}_00001_.safetensors").is_file():
            save = {"20": node("TrustSaveDiff", diff=["11", 1], filename_prefix=word)}
            plain = hurry(**UNHURRIED)
            made = server.run({**drawn(PATCHED), **unlearned(word, settings=plain), **save})
            assert made.status == "success", made.error


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs_whole(server: ComfyServer, browser: Any, path: Path, tmp_path: Path) -> None:
    if path.stem.startswith("3"):
        make_diffs(server)
    page = browser.new_page(viewport={"width": 2600, "height": 1600})
    page.set_default_timeout(PATIENCE * 1000)
    page.goto(server.url)
    page.wait_for_function("() => window.app?.graph && window.app.extensionManager")
    assert page.evaluate(LOAD, [graph_of(path), path.stem]) == []
    page.evaluate(PAUSE, True)
    queue(page)
    wait(page)
    page.evaluate(PAUSE, False)
    kept = Path(os.environ.get("TRUST_PICTURES") or tmp_path) / f"{path.stem}.jpg"
    shot(page).save(kept, quality=82, optimize=True)
    assert kept.stat().st_size < LARGEST
    page.close()


def shot(page: Any) -> Image.Image:
    """Photograph the graph alone."""
    x, y, width, height = page.evaluate(BOX, ROOM)
    size = {"width": int(x + width + ROOM), "height": int(y + height + ROOM)}
    page.set_viewport_size(size)
    page.evaluate("() => document.querySelectorAll('.p-toast').forEach((toast) => toast.remove())")
    page.wait_for_timeout(1500)
    x, y, width, height = page.evaluate(BOX, ROOM)
    page.wait_for_timeout(1000)
    clip = {"x": x - EDGE, "y": y - EDGE, "width": width + 2 * EDGE, "height": height + 2 * EDGE}
    picture = Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")
    return picture.resize((WIDTH, round(WIDTH * picture.height / picture.width)), Image.LANCZOS)
