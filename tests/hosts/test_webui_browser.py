"""Headless Chromium on a real AUTOMATIC1111 and Forge: the tab is used as a newcomer uses it.

Both draw with the demo model. TRUST_SHOTS names a folder that keeps screenshots, of a run with the
effort that the tab begins with.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hosts.webui_page import (
    DRAWN,
    choose,
    draw,
    fill,
    go,
    opened,
    reload_ui,
    same,
    saved,
    shot,
    shows,
    unfold,
)
from hosts.webui_server import Server
from trust_engine.diff import load_diff

OURS = "#script_txt2img_trust_trust"


@pytest.fixture(scope="module")
def page(webui_page: Server, browser: Any) -> Iterator[Any]:
    """Open the web UI."""
    page = opened(webui_page, browser)
    yield page
    page.close()


def expected(page: Any) -> str:
    """Wait for the expected time and memory, and return the line."""
    line = page.locator("#trust_expected").first  # gradio 3 gives two elements this name
    line.get_by_text(re.compile("Expected: .* of memory beside the model")).wait_for()
    return str(line.inner_text())


def test_which_prompts(page: Any, webui_page: Server, tmp_path: Path) -> None:
    """Listed in the report; what stays is typed a line each, commas and all."""
    go(page, "TRUST")
    unfold(page, "More settings")
    fill(page, "#trust_words textarea", "gun")
    fill(page, "#trust_templates textarea", "a photo of {}, outdoors\n{}")
    fill(page, "#trust_stays textarea", "a cat, asleep\na dog")
    shot(page, webui_page, "more", tmp_path, "#trust_stays")
    page.locator("#trust_prompts").click()
    page.wait_for_selector("#trust_problem >> text=/only robust mode draws; switch Robust on/")
    page.locator("#trust_robust input").check()
    page.locator("#trust_prompts").click()
    page.wait_for_selector("#trust_state_done >> text=/Prompts for gun/")
    box = page.locator("#trust_report textarea").first
    report = box.input_value()
    assert "a photo of a gun, outdoors -> " in report
    assert "2 pictures show what must stay:\n  a cat, asleep\n  a dog" in report
    assert box.evaluate("box => box.scrollTop") == 0, "read from its top"
    shot(page, webui_page, "prompts", tmp_path)
    page.locator("#trust_robust input").uncheck()
    for field in ("words", "templates", "stays"):
        fill(page, f"#trust_{field} textarea", "")
    unfold(page, "More settings")


def test_one_word_one_button(page: Any, webui_page: Server, tmp_path: Path) -> None:
    go(page, "TRUST")
    unpressed = expected(page)
    shot(page, webui_page, "tab", tmp_path)
    page.locator("#trust_unlearn").click()
    page.wait_for_selector("#trust_problem >> text=/what to forget/")
    fill(page, "#trust_words textarea", "gun")
    page.locator("#trust_effort label", has_text="thorough").click()
    page.wait_for_function(
        "before => document.querySelector('#trust_expected').innerText !== before", arg=unpressed
    )
    assert expected(page) != unpressed
    mine = "normal" if "TRUST_SHOTS" in os.environ else "quick"
    page.locator("#trust_effort label", has_text=mine).click()
    page.locator("#trust_unlearn").click()
    page.wait_for_selector("#trust_status >> text=/unlearning .* left/")
    page.wait_for_selector("#trust_chart img")
    shot(page, webui_page, "running", tmp_path)
    page.wait_for_selector("#trust_state_done, #trust_state_failed")
    assert page.locator("#trust_state_done").count(), page.locator(
        "#trust_status"
    ).all_inner_texts()
    page.wait_for_selector("#trust_gallery img")
    page.wait_for_selector("#trust_neurons img")
    page.wait_for_timeout(2000)  # for the expected line, which goes by this run now
    expected(page)
    shot(page, webui_page, "done", tmp_path)
    assert load_diff(webui_page.data / "models" / "trust_diffs" / "gun.safetensors").changed > 100
    assert "Saved as gun.safetensors" in page.locator("#trust_report textarea").input_value()
    assert "forgets" in page.locator("#trust_label textarea").input_value()


def test_stop(page: Any, webui_page: Server) -> None:
    go(page, "TRUST")
    fill(page, "#trust_words textarea", "cat")
    page.locator("#trust_unlearn").click()
    page.wait_for_selector("#trust_status >> text=/recording .* left/")
    page.locator("#trust_stop").click()
    page.wait_for_selector("#trust_state_stopped")
    assert len(list((webui_page.data / "models" / "trust_diffs").glob("*.safetensors"))) == 1


def test_on_off_pasted_and_refused(page: Any, webui_page: Server, tmp_path: Path) -> None:
    """On and off, from a picture's parameters, and without the file.

    The first page that Forge Neo builds in a new folder pastes everything but the prompts, with
    and without this extension: their fields have no value of a type until it has read the
    ui-config.json that it has just written. A user has the second page after Reload UI, or after
    a restart.
    """
    if webui_page.variable == "FORGE_NEO_PATH":
        reload_ui(page)
    go(page, "txt2img")
    fill(page, "#txt2img_prompt textarea", "a gun on a red background")
    for name, value in DRAWN.items():
        fill(page, f"#txt2img_{name} input[type=number]", value)
    fill(page, "#txt2img_seed input", 7)
    plain = draw(page, webui_page)
    page.locator(f"{OURS} .label-wrap").first.click()
    page.wait_for_timeout(500)  # nothing to refresh: the end of the run has done so
    choose(page, f"{OURS}_diff_1", "gun.safetensors")
    under = draw(page, webui_page)
    assert "TRUST diffs: gun.safetensors@" in under.info["parameters"]
    assert not same(webui_page, plain, under)
    shot(page, webui_page, "applied", tmp_path)
    choose(page, f"{OURS}_diff_1", "None")
    assert same(webui_page, draw(page, webui_page), plain)
    fill(page, "#txt2img_prompt textarea", under.info["parameters"])
    page.locator("#paste:visible").first.click()
    shows(page, f"{OURS}_diff_1 input", "gun.safetensors")
    shows(page, "#txt2img_prompt textarea", "a gun on a red background")
    assert same(webui_page, draw(page, webui_page), under)
    file = webui_page.data / "models" / "trust_diffs" / "gun.safetensors"
    count = len(saved(webui_page))
    file.rename(file.with_suffix(".away"))
    try:
        page.locator("#txt2img_generate").click()
        page.wait_for_selector("text=/nothing was drawn/")
        shot(page, webui_page, "refused", tmp_path)
    finally:
        file.with_suffix(".away").rename(file)
    assert len(saved(webui_page)) == count


def test_sent_to_img2img(page: Any, webui_page: Server, tmp_path: Path) -> None:
    """The picture takes its diffs along into the other tab's accordion."""
    go(page, "txt2img")
    under = draw(page, webui_page)
    assert "TRUST diffs: gun.safetensors@" in under.info["parameters"]
    page.locator("#txt2img_send_to_img2img").click()
    theirs = OURS.replace("txt2img", "img2img")
    shows(page, f"{theirs}_diff_1 input", "gun.safetensors")
    page.wait_for_timeout(1000)  # the picture, too
    page.locator(f"{theirs} .label-wrap").first.click()
    with_it = draw(page, webui_page, "img2img")
    assert "TRUST diffs: gun.safetensors@" in with_it.info["parameters"]
    shot(page, webui_page, "img2img", tmp_path)
    choose(page, f"{theirs}_diff_1", "None")
    without = draw(page, webui_page, "img2img")
    assert "TRUST" not in without.info["parameters"]
    assert not same(webui_page, with_it, without)


def test_reload_ui(page: Any, webui_page: Server) -> None:
    """Everything is undone and done again, once: the tab, the accordion, the routes."""
    reload_ui(page)
    go(page, "TRUST")
    page.wait_for_selector("#trust_words textarea:visible")
    assert page.locator("#trust_words textarea").count() == 1
    assert page.locator(f"{OURS} .label-wrap").count() == 1
    assert webui_page.ask("/trust/v1/concepts")["kinds"]
    go(page, "txt2img")
    fill(page, "#txt2img_prompt textarea", "a cat")
    for name, value in DRAWN.items():
        fill(page, f"#txt2img_{name} input[type=number]", value)
    assert draw(page, webui_page).size == (128, 128)
