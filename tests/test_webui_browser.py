"""Headless Chromium on a real AUTOMATIC1111 and Forge: the tab is used as a newcomer uses it.

Both draw with the demo model. TRUST_SHOTS names a folder that keeps screenshots.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from webui_demo import lay_out
from webui_server import PATIENCE, Server, running

from trust_engine.diff import load_diff

HOSTS = [pytest.param(v, marks=pytest.mark.host(v)) for v in ("A1111_PATH", "FORGE_PATH")]
OURS = "#script_txt2img_trust_trust"
DRAWN = {"steps": 20, "width": 128, "height": 128, "cfg_scale": 4}


@pytest.fixture(scope="module", params=HOSTS)
def server(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Server]:
    """Have a host with the demo model running."""
    with running(request.param, tmp_path_factory.mktemp("browser") / "data", lay_out) as started:
        # Forge loads its model with the first picture.
        started.ask("/sdapi/v1/txt2img", {"steps": 1, "width": 128, "height": 128})
        yield started


@pytest.fixture(scope="module")
def page(server: Server, browser: Any) -> Iterator[Any]:
    """Open the web UI."""
    opened = browser.new_page(viewport={"width": 1400, "height": 1150})
    opened.set_default_timeout(PATIENCE * 1000)
    opened.goto(server.url)
    opened.wait_for_selector("#txt2img_prompt textarea")
    opened.add_style_tag(content="* { animation: none !important }")  # drawn without a GPU
    yield opened
    opened.close()


def go(page: Any, name: str) -> None:
    """Open one of the host's tabs."""
    page.locator(
        "#tabs > .tab-nav > button", has_text=re.compile(f"^\\s*{name}\\s*$", re.I)
    ).click()
    page.wait_for_timeout(500)


def fill(page: Any, field: str, value: Any) -> None:
    """Type into a field, and leave it."""
    found = page.locator(field).first
    found.fill(str(value))
    found.press("Tab")


def choose(page: Any, box: str, value: str) -> None:
    """Choose from a dropdown."""
    page.locator(f"{box} input").first.click()
    page.locator("ul.options li", has_text=value).first.click()


def shot(page: Any, server: Server, name: str, folder: Path) -> None:
    """Take a screenshot; it must not be one colour."""
    kept = Path(os.environ.get("TRUST_SHOTS") or folder)
    page.evaluate("() => document.querySelector('#tabs').scrollIntoView()")
    page.wait_for_timeout(1500)
    path = kept / f"{server.variable.removesuffix('_PATH').lower()}-{name}.png"
    page.screenshot(path=str(path))
    low, high = Image.open(path).convert("L").getextrema()
    assert high - low > 100


def saved(server: Server) -> list[Path]:
    """List the pictures that the host has saved, the oldest first."""
    files = (server.data / "outputs").rglob("*-images/**/*.png")
    return sorted(files, key=lambda file: file.stat().st_mtime_ns)


def draw(page: Any, server: Server) -> Image.Image:
    """Press Generate, and return the new picture."""
    before = len(saved(server))
    page.locator("#txt2img_generate").click()
    for _ in range(PATIENCE):
        page.wait_for_timeout(1000)
        busy = server.ask("/sdapi/v1/progress?skip_current_image=true")["state"]["job"]
        if len(saved(server)) > before and not busy:
            page.wait_for_timeout(1000)  # for the page to take note
            return Image.open(saved(server)[-1])
    raise AssertionError("no picture comes")


def expected(page: Any) -> str:
    """Wait for the expected time and memory, and return the line."""
    line = page.locator("#trust_expected")
    line.get_by_text(re.compile("Expected: .* of memory beside the model")).wait_for()
    return str(line.inner_text())


def test_one_word_one_button(page: Any, server: Server, tmp_path: Path) -> None:
    go(page, "TRUST")
    unpressed = expected(page)
    shot(page, server, "tab", tmp_path)
    page.locator("#trust_unlearn").click()
    page.wait_for_selector("#trust_problem >> text=/what to forget/")
    fill(page, "#trust_words textarea", "gun")
    page.locator("#trust_effort label", has_text="thorough").click()
    page.wait_for_function(
        "before => document.querySelector('#trust_expected').innerText !== before", arg=unpressed
    )
    assert expected(page) != unpressed
    page.locator("#trust_effort label", has_text="quick").click()
    page.locator("#trust_unlearn").click()
    page.wait_for_selector("#trust_status >> text=/unlearning .* left/")
    page.wait_for_selector("#trust_chart img")
    shot(page, server, "running", tmp_path)
    page.wait_for_selector("#trust_state_done, #trust_state_failed")
    assert page.locator("#trust_state_done").count(), page.locator(
        "#trust_status"
    ).all_inner_texts()
    page.wait_for_selector("#trust_gallery img")
    page.wait_for_selector("#trust_neurons img")
    shot(page, server, "done", tmp_path)
    assert load_diff(server.data / "models" / "trust_diffs" / "gun.safetensors").changed > 100
    assert "Saved as gun.safetensors" in page.locator("#trust_report textarea").input_value()
    assert "forgets" in page.locator("#trust_label textarea").input_value()


def test_stop(page: Any, server: Server) -> None:
    go(page, "TRUST")
    fill(page, "#trust_words textarea", "cat")
    page.locator("#trust_unlearn").click()
    page.wait_for_selector("#trust_status >> text=/recording .* left/")
    page.locator("#trust_stop").click()
    page.wait_for_selector("#trust_state_stopped")
    assert len(list((server.data / "models" / "trust_diffs").glob("*.safetensors"))) == 1


def test_on_off_pasted_and_refused(page: Any, server: Server, tmp_path: Path) -> None:
    go(page, "txt2img")
    fill(page, "#txt2img_prompt textarea", "a gun on a red background")
    for name, value in DRAWN.items():
        fill(page, f"#txt2img_{name} input[type=number]", value)
    fill(page, "#txt2img_seed input", 7)
    plain = draw(page, server)
    page.locator(f"{OURS} .label-wrap").first.click()
    page.locator(f"{OURS}_refresh").click()
    page.wait_for_timeout(1500)
    choose(page, f"{OURS}_diff_1", "gun.safetensors")
    under = draw(page, server)
    assert "TRUST diffs: gun.safetensors@" in under.info["parameters"]
    assert plain.tobytes() != under.tobytes()
    shot(page, server, "applied", tmp_path)
    choose(page, f"{OURS}_diff_1", "None")
    assert draw(page, server).tobytes() == plain.tobytes()
    fill(page, "#txt2img_prompt textarea", under.info["parameters"])
    page.locator("#paste:visible").first.click()
    page.wait_for_timeout(3000)
    assert page.locator(f"{OURS}_diff_1 input").first.input_value() == "gun.safetensors"
    assert draw(page, server).tobytes() == under.tobytes()
    file = server.data / "models" / "trust_diffs" / "gun.safetensors"
    count = len(saved(server))
    file.rename(file.with_suffix(".away"))
    try:
        page.locator("#txt2img_generate").click()
        page.wait_for_selector("text=/nothing was drawn/")
        shot(page, server, "refused", tmp_path)
    finally:
        file.with_suffix(".away").rename(file)
    assert len(saved(server)) == count


def test_reload_ui(page: Any, server: Server) -> None:
    """Everything is undone and done again, once: the tab, the accordion, the routes."""
    page.evaluate("() => { window.old = true }")
    page.get_by_text("Reload UI").last.click()
    page.wait_for_function("() => !window.old && document.querySelector('#trust_words textarea')")
    page.wait_for_timeout(3000)
    go(page, "TRUST")
    page.wait_for_selector("#trust_words textarea:visible")
    assert page.locator("#trust_words textarea").count() == 1
    assert page.locator(f"{OURS} .label-wrap").count() == 1
    assert server.ask("/trust/v1/concepts")["kinds"]
    go(page, "txt2img")
    fill(page, "#txt2img_prompt textarea", "a cat")
    for name, value in DRAWN.items():
        fill(page, f"#txt2img_{name} input[type=number]", value)
    assert draw(page, server).size == (128, 128)
