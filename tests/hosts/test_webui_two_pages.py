"""Headless Chromium, two pages of one web UI: jobs have owners, and neither undoes the other's.

Both draw with the demo model.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hosts.webui_drawing import first, made
from hosts.webui_page import choose, fill, go, opened, shot, shows, unfold
from hosts.webui_server import PATIENCE, Server

SOON = 15.0  # seconds for a page to show that a Stop was obeyed, while tests share the processor


@pytest.fixture(scope="module")
def pages(webui_page: Server, browser: Any) -> Iterator[tuple[Any, Any]]:
    """Open the tab in two browsers."""
    one = opened(webui_page, browser)
    two = browser.new_context(viewport={"width": 1400, "height": 1150}).new_page()
    two.set_default_timeout(PATIENCE * 1000)
    two.goto(webui_page.url)
    two.wait_for_selector("#txt2img_prompt textarea")
    two.add_style_tag(content="* { animation: none !important }")  # drawn without a GPU
    for page in (one, two):
        go(page, "TRUST")
    yield one, two
    one.close()
    two.close()


def told(page: Any, box: str, said: str) -> str:
    """Wait until a box says something, and return all that it says."""
    page.locator(box).first.get_by_text(re.compile(said)).first.wait_for()
    return str(page.locator(box).first.inner_text())


def test_each_page_stops_its_own(
    pages: tuple[Any, Any], webui_page: Server, tmp_path: Path
) -> None:
    one, two = pages
    for page, words in ((one, "gun"), (two, "cat")):
        fill(page, "#trust_words textarea", words)
    one.locator("#trust_effort label", has_text="thorough").click()
    one.locator("#trust_unlearn").click()
    told(one, "#trust_status", r"recording .* of \d+")
    two.locator("#trust_unlearn").click()
    told(two, "#trust_status", "queued, after 1 other job")
    states = {job["title"]: job["state"] for job in webui_page.ask("/trust/v1/jobs")}
    assert (states["gun"], states["cat"]) == ("running", "queued")
    unfold(two, "Jobs: of this page")
    two.locator("#trust_jobs_refresh").click()
    listed = told(two, "#trust_jobs", "cat: queued")
    assert "cat: queued (this page's" in listed and "(another page's" in listed
    shot(two, webui_page, "queued", tmp_path)
    began = time.monotonic()
    two.locator("#trust_stop").click()
    two.wait_for_selector("#trust_state_stopped")
    assert time.monotonic() - began < SOON, "not when it is its turn"
    two.locator("#trust_stop").click()
    told(two, "#trust_status", "nothing that could be stopped")
    states = {job["title"]: job["state"] for job in webui_page.ask("/trust/v1/jobs")}
    assert (states["gun"], states["cat"]) == ("running", "stopped")
    began = time.monotonic()
    one.locator("#trust_stop").click()
    one.wait_for_selector("#trust_state_stopped")
    assert time.monotonic() - began < SOON


def test_fields_appear_with_the_kind(pages: tuple[Any, Any]) -> None:
    page = pages[0]
    partner = page.locator("#trust_partner textarea").first
    assert not partner.is_visible()
    page.locator("#trust_kind label", has_text="combination").click()
    partner.wait_for(state="visible")
    fill(page, "#trust_partner textarea", "beer")
    page.locator("#trust_kind label", has_text="single").click()
    page.wait_for_timeout(1000)
    page.locator("#trust_unlearn").click()
    assert "does not use" in told(page, "#trust_status", "With, or when says")
    fill(page, "#trust_partner textarea", "")
    partner.wait_for(state="hidden")


def test_a_page_opened_before_takes_nothing_off(
    pages: tuple[Any, Any], webui_page: Server, tmp_path: Path
) -> None:
    one, two = pages
    made(webui_page, "gun")
    plain, _ = first(webui_page)
    for page in pages:
        unfold(page, "On every picture")
    one.locator("#trust_refresh").click()
    one.wait_for_timeout(1500)
    choose(one, "#trust_diff", "gun.safetensors")
    one.wait_for_function(
        "() => document.querySelector('#trust_label textarea').value.includes('forgets')"
    )
    one.locator("#trust_standing_put").click()
    told(one, "#trust_standing_told", "On every picture from now on: gun.safetensors@")
    shot(one, webui_page, "on-every-picture", tmp_path, "#trust_standing_told")
    under, text = first(webui_page)
    assert under != plain and "TRUST diffs: gun.safetensors@" in text
    go(two, "Settings")
    two.locator("#settings_submit").click()
    told(two, "#settings_result", "settings changed")
    assert first(webui_page)[0] == under
    go(two, "TRUST")
    shows(two, "#trust_standing textarea", "gun*")  # opening the tab asks for what is on
    one.locator("#trust_standing_clear").click()
    told(one, "#trust_standing_told", "nothing")
    two.locator("#trust_standing_clear").click()
    told(two, "#trust_standing_told", "meanwhile")
    assert first(webui_page)[0] == plain
