"""Headless Chromium on a real ComfyUI: the graph loads, runs, and shows chart, badge and label.

TRUST_SHOTS names a folder that keeps the screenshots; COMFYUI_FRONTEND another front end's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hosts.comfy_prompts import PATCHED, drawn, hurry, node, unlearned
from hosts.comfy_server import PATIENCE, ROOT, ComfyServer

pytestmark = pytest.mark.host("COMFYUI_PATH")
RENDERERS = ("litegraph", "vue")
FIRST_VUE = (1, 28)  # 1.27 draws neither texts nor DOM widgets in it
# Without a GPU drawing takes the time that the nodes need.
PAUSE = "(paused) => { app.canvas.pause_rendering = paused; }"
LOAD = """async ([graph, name]) => {
    await app.loadGraphData(graph, true, true, name);
    const lost = app.graph._nodes.filter((node) => node.has_errors || !node.type);
    return lost.map((node) => node.type);
}"""
FIT = """() => {
    const canvas = app.canvas, nodes = app.graph._nodes;
    const left = Math.min(...nodes.map((n) => n.pos[0])), top = Math.min(...nodes.map((n) => n.pos[1])) - 40;
    const right = Math.max(...nodes.map((n) => n.pos[0] + n.size[0]));
    const bottom = Math.max(...nodes.map((n) => n.pos[1] + n.size[1]));
    const box = canvas.canvas.getBoundingClientRect(), room = 70;
    canvas.ds.scale = Math.min((box.width - 2 * room) / (right - left), (box.height - 2 * room) / (bottom - top));
    canvas.ds.offset = [room / canvas.ds.scale - left, room / canvas.ds.scale - top];
    canvas.setDirty(true, true);
}"""  # noqa: E501
LIST = """() => {
    app.graph.clear();
    const add = (type, ...at) => {
        const node = LiteGraph.createNode(type);
        node.pos = at;
        app.graph.add(node);
        return node;
    };
    const join = (from, slot, to, name) => from.connect(slot, to, to.findInputSlot(name));
    const [demo, concept] = [add("TrustDemoModel", 0, 60), add("TrustConcept", 0, 250)];
    const [listed, unlearn] = [add("TrustPrompts", 400, 60), add("TrustUnlearn", 950, 60)];
    for (const to of [listed, unlearn]) {
        join(demo, 0, to, "model");
        join(demo, 1, to, "clip");
        join(concept, 0, to, "concept");
    }
    join(listed, 1, unlearn, "stays");
    for (const one of [listed, unlearn])
        one.widgets.find(({name}) => name === "robust").value = true;
}"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """Start the host with two diffs in its folder."""
    other = os.environ.get("COMFYUI_FRONTEND")
    options = ("--front-end-root", other) if other else ()
    with ComfyServer(tmp_path_factory.mktemp("browser") / "base", options) as started:
        for word in ("gun", "cat"):
            save = {"20": node("TrustSaveDiff", diff=["11", 1], filename_prefix=word)}
            ended = started.run({**drawn(PATCHED), **unlearned(word), **save})
            assert ended.status == "success", ended.error
        yield started


@pytest.fixture(params=RENDERERS)
def page(request: pytest.FixtureRequest, server: ComfyServer, browser: Any) -> Iterator[Any]:
    """Open the front end with one of its two renderers; mistakes of ours fail the test."""
    for name, value in (
        ("Comfy.TutorialCompleted", True),
        ("Comfy.Workflow.ShowMissingNodesWarning", True),
        ("Comfy.VueNodes.Enabled", request.param == "vue"),
    ):
        server.post(f"/settings/{name}", value)
    opened = browser.new_page(viewport={"width": 2400, "height": 1500})
    opened.set_default_timeout(PATIENCE * 1000)
    said: list[str] = []
    opened.on("console", lambda told: said.append(told.text))
    opened.on("pageerror", lambda error: said.append(f"{error}"))
    opened.goto(server.url)
    opened.wait_for_function("() => window.app?.graph && window.app.extensionManager")
    opened.wait_for_function("() => app.extensions.some(({name}) => name === 'trust.unlearn')")
    version = opened.evaluate("() => window.__COMFYUI_FRONTEND_VERSION__ ?? '0.0'")
    if request.param == "vue" and tuple(map(int, version.split(".")[:2])) < FIRST_VUE:
        opened.close()
        pytest.skip(f"the Vue renderer of front end {version} is a draft without text widgets")
    opened.renderer = request.param
    yield opened
    opened.close()
    assert [line for line in said if "TRUST" in line or "trust_unlearn" in line] == []


def hurried(name: str) -> dict[str, Any]:
    """Read an example workflow and give its Unlearn a Settings node that hurries it."""
    graph = json.loads((ROOT / "example_workflows" / f"{name}.json").read_text("utf-8"))
    number, link = graph["last_node_id"] + 1, graph["last_link_id"] + 1
    for one in graph["nodes"]:
        if one["type"] in ("TrustUnlearn", "TrustFindNeurons"):
            slot = next(i for i, told in enumerate(one["inputs"]) if told["name"] == "settings")
            one["inputs"][slot]["link"] = link
            graph["links"].append([link, number, 0, one["id"], slot, "TRUST_SETTINGS"])
            link += 1
        if one["type"] == "TrustAudit":
            one["widgets_values"][2] = 1  # image
    values = list(hurry()["inputs"].values())
    settings = {
        "id": number, "type": "TrustUnlearnSettings", "pos": [20, 1200], "size": [320, 560],
        "flags": {}, "order": 0, "mode": 0, "inputs": [], "properties": {},
        "outputs": [{"name": "settings", "type": "TRUST_SETTINGS", "slot_index": 0,
                     "links": list(range(graph["last_link_id"] + 1, link))}],
        "widgets_values": values,
    }  # fmt: skip
    graph["nodes"].append(settings)
    graph["last_node_id"], graph["last_link_id"] = number, link - 1
    return graph


def run(page: Any, graph: dict[str, Any], name: str) -> None:
    """Load a graph and queue it."""
    assert page.evaluate(LOAD, [graph, name]) == []
    page.evaluate(FIT)
    queue(page)


def queue(page: Any) -> None:
    """Queue the graph that is shown."""
    page.evaluate("""() => {
        [window.ended, window.previews, window.progress] = [null, 0, 0];
        app.api.addEventListener("b_preview", () => { window.previews += 1; });
        app.api.addEventListener("progress", () => { window.progress += 1; });
        for (const kind of ["execution_success", "execution_error", "execution_interrupted"])
            app.api.addEventListener(kind, ({detail}) => { window.ended = [kind, detail]; });
    }""")
    page.evaluate("() => app.queuePrompt(0)")


def wait(page: Any) -> None:
    """Wait for the end of what was queued."""
    page.wait_for_function("() => window.ended")
    kind, told = page.evaluate("() => window.ended")
    assert kind == "execution_success", told


def shot(page: Any, name: str, folder: Path) -> None:
    """Take a screenshot; it must not be one colour."""
    kept = Path(os.environ.get("TRUST_SHOTS") or folder)
    page.wait_for_timeout(800)
    path = kept / f"{name}-{page.renderer}.png"
    page.screenshot(path=str(path))
    low, high = Image.open(path).convert("L").getextrema()
    assert high - low > 100


def test_chart_is_live(page: Any, tmp_path: Path) -> None:
    graph = hurried("1_demo")
    for one in graph["nodes"]:
        if one["type"] == "TrustUnlearn":  # else the second renderer is answered from the cache
            one["widgets_values"][5] = RENDERERS.index(page.renderer)
    run(page, graph, "demo")
    page.wait_for_function("() => document.querySelectorAll('polyline').length > 2")
    page.wait_for_function("() => window.previews > 0 && window.progress > 0")
    assert page.evaluate("() => window.ended") is None, "it is drawn while the node works"
    page.wait_for_selector("text=/gun: done in/")  # a toast, gone a little later
    wait(page)
    assert page.locator("svg rect title").count() >= 9, "the neuron map"
    shot(page, "demo", tmp_path)


def test_chart_is_there_again_after_a_reload(page: Any, tmp_path: Path) -> None:
    """The host answers from its cache, and some then do not say what the nodes showed."""
    graph = hurried("2_unlearn_and_compare")
    run(page, graph, "compare")
    wait(page)
    page.reload()
    page.wait_for_function("() => window.app?.graph && window.app.extensionManager")
    page.wait_for_function("() => app.extensions.some(({name}) => name === 'trust.unlearn')")
    assert page.evaluate(LOAD, [graph, "compare"]) == []
    page.evaluate(FIT)
    assert page.locator("polyline").count() == 0
    page.evaluate("""() => app.api.addEventListener(
        "execution_cached", ({detail}) => { window.cached = detail.nodes; })""")
    queue(page)
    wait(page)
    page.wait_for_function("() => document.querySelectorAll('polyline').length > 2")
    kinds = {str(one["id"]): one["type"] for one in graph["nodes"]}
    cached = {kinds.get(key) for key in page.evaluate("() => window.cached")}
    assert {"TrustUnlearn", "TrustFindNeurons"} <= cached, "nothing was trained again"
    assert page.locator("svg rect title").count() >= 2 * 9, "both maps"
    shot(page, "reloaded", tmp_path)


def test_badge_and_label(page: Any, tmp_path: Path) -> None:
    run(page, hurried("4_audit"), "audit")
    page.evaluate(PAUSE, True)
    wait(page)
    page.evaluate(PAUSE, False)
    page.wait_for_selector("text=/gone in \\d+ % of pictures .* brought back in \\d+ %/")
    shot(page, "audit", tmp_path)
    graph = json.loads((ROOT / "example_workflows/3_chain_two_diffs.json").read_text("utf-8"))
    assert page.evaluate(LOAD, [graph, "chain"]) == []
    page.evaluate(FIT)
    line = page.wait_for_selector("text=/forgets gun · demo · not audited/")
    assert "TRUST diff demo_gun.safetensors" in line.get_attribute("title")
    shot(page, "chain", tmp_path)


def test_prompts_are_listed(page: Any, tmp_path: Path) -> None:
    """The list is scrolled in, the graph is not zoomed; its output goes into Unlearn's field."""
    page.evaluate(LIST)
    page.evaluate(FIT)
    queue(page)
    wait(page)
    listed = page.locator("textarea[readonly]").first
    page.wait_for_function("() => document.querySelector('textarea[readonly]')?.value")
    assert " pictures show what must stay:" in listed.input_value()
    scale = page.evaluate("() => app.canvas.ds.scale")
    listed.click()
    page.mouse.wheel(0, 300)
    page.wait_for_function("() => document.querySelector('textarea[readonly]').scrollTop > 0")
    assert page.evaluate("() => app.canvas.ds.scale") == scale
    shot(page, "prompts", tmp_path)
    saved = page.evaluate("() => app.graph.serialize()")
    unlearn = next(one for one in saved["nodes"] if one["type"] == "TrustUnlearn")
    link = next(one["link"] for one in unlearn["inputs"] if one["name"] == "stays")
    assert link is not None


def test_workflow_keeps_its_values(page: Any) -> None:
    """Our pictures are no values: saving and loading a graph gives the same graph."""
    for path in sorted((ROOT / "example_workflows").glob("*.json")):
        graph = json.loads(path.read_text("utf-8"))
        assert page.evaluate(LOAD, [graph, path.stem]) == []
        saved = page.evaluate("() => app.graph.serialize()")
        wanted = {one["id"]: one.get("widgets_values", []) for one in graph["nodes"]}
        for one in saved["nodes"]:
            values = [v for v in one.get("widgets_values", []) if v is not None]
            assert values == wanted[one["id"]], (path.stem, one["type"])
