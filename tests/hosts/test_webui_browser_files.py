"""Headless Chromium on both web UIs: the tab's lower half, and presets. Pressed, then looked at."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hosts.webui_drawing import apart, first, give_lora, made
from hosts.webui_page import choose, fill, go, opened, press, shot, unfold
from hosts.webui_server import Server
from trust_engine.diff import load_diff


@pytest.fixture(scope="module")
def page(webui_page: Server, browser: Any) -> Iterator[Any]:
    """Open the tab, a diff chosen in it."""
    page = opened(webui_page, browser)
    made(webui_page, "gun")
    go(page, "TRUST")
    page.locator("#trust_refresh").click()
    page.wait_for_timeout(1500)
    choose(page, "#trust_diff", "gun.safetensors")
    page.wait_for_function(
        "() => document.querySelector('#trust_label textarea').value.includes('forgets')"
    )
    yield page
    page.close()


def test_notes(page: Any, webui_page: Server) -> None:
    unfold(page, "Notes on the label")
    for name, value in (("author", "Ann"), ("licence", "CC0"), ("notes", "a first try")):
        fill(page, f"#trust_{name} textarea", value)
    press(page, "#trust_note", "#trust_told", "gun.safetensors")
    page.wait_for_function(
        "() => document.querySelector('#trust_label textarea').value.includes('Ann')"
    )
    notes = load_diff(webui_page.diffs / "gun.safetensors").notes
    assert (notes["author"], notes["licence"], notes["notes"]) == ("Ann", "CC0", "a first try")


def test_exports_worn_as_loras(page: Any, webui_page: Server) -> None:
    """What the button writes, the built-in Lora draws with: nearly the diff's own picture."""
    unfold(page, "Export for those without")
    folder = give_lora(webui_page)
    page.locator("#trust_format label", has_text="dense").click()
    press(page, "#trust_export", "#trust_told", "lora:gun:1")
    page.locator("#trust_format label", has_text="low rank").click()
    press(page, "#trust_export", "#trust_told", "lora:gun-2:1.*|.*ranks")
    assert (folder / "gun-2.safetensors").stat().st_size < (
        folder / "gun.safetensors"
    ).stat().st_size
    webui_page.ask("/sdapi/v1/refresh-loras", {})
    plain, ours = first(webui_page)[0], first(webui_page, "gun.safetensors", 1.0)[0]
    for name, share in (("gun", 0.1), ("gun-2", 0.5)):
        theirs, _ = first(webui_page, prompt=f"a gun on a table <lora:{name}:1>")
        assert apart(theirs, ours) < share * apart(plain, ours), name
    assert first(webui_page)[0] == plain


def test_whole_checkpoint(page: Any, webui_page: Server) -> None:
    press(page, "#trust_checkpoint", "#trust_told", "emoji-world-gun")
    folder = webui_page.data / "models" / "Stable-diffusion"
    out, source = folder / "emoji-world-gun.safetensors", folder / "emoji-world.safetensors"
    assert out.stat().st_size > 0.99 * source.stat().st_size
    plain, ours = first(webui_page)[0], first(webui_page, "gun.safetensors", 1.0)[0]
    described = source.with_suffix(".yaml")  # where the host needs one, the copy has it, too
    assert out.with_suffix(".yaml").is_file() == described.is_file()
    webui_page.ask("/sdapi/v1/refresh-checkpoints", {})
    try:
        webui_page.ask("/sdapi/v1/options", {"sd_model_checkpoint": out.name})
        theirs, text = first(webui_page)
    finally:
        webui_page.ask("/sdapi/v1/options", {"sd_model_checkpoint": source.name})
    assert "Model: emoji-world-gun" in text
    assert apart(theirs, ours) < 0.1 * apart(plain, ours)


def test_audit_and_its_verdict(page: Any, webui_page: Server, tmp_path: Path) -> None:
    unfold(page, "Audit: is it gone")
    fill(page, "#trust_words textarea", "gun")
    press(page, "#trust_audit", "#trust_verdict", "name a judge")
    fill(page, "#trust_judge textarea", "demo")
    for name, value in (("images", 1), ("audit_resolution", 64)):
        fill(page, f"#trust_{name} input[type=number]", value)
    told = press(page, "#trust_audit", "#trust_verdict", "Page: .*gun-audit|failed")
    assert "failed" not in told and "gun" in told
    shot(page, webui_page, "audit", tmp_path, "#trust_verdict")
    (written,) = (webui_page.outputs / "trust-audits").glob("gun-audit*.html")
    assert "pictures only" in written.read_text("utf-8")
    press(page, "#trust_audit_note", "#trust_verdict", "figures are on its label")
    assert (
        load_diff(webui_page.diffs / "gun.safetensors").notes["audit"]["level"] == "pictures only"
    )


def test_add(page: Any, webui_page: Server, tmp_path: Path) -> None:
    given = tmp_path / "given.safetensors"
    shutil.copyfile(webui_page.diffs / "gun.safetensors", given)
    page.locator("#trust_add input[type=file]").set_input_files(str(given))
    page.wait_for_selector("#trust_told >> text=/given.safetensors is in the folder/")
    assert (webui_page.diffs / "given.safetensors").read_bytes() == given.read_bytes()


def test_presets(page: Any, webui_page: Server) -> None:
    """What was saved comes back, and the expected time with it."""
    go(page, "TRUST")
    unfold(page, "Presets")
    fill(page, "#trust_words textarea", "cat, kitten")
    page.locator("#trust_robust input").check()
    line = page.locator("#trust_expected").first
    page.wait_for_timeout(3000)
    robust = line.inner_text()
    fill(page, "#trust_preset_name textarea", "cats")
    page.locator("#trust_preset_save").click()
    page.wait_for_selector("#trust_preset_told >> text=/Saved as cats/")
    page.locator("#trust_robust input").uncheck()
    fill(page, "#trust_words textarea", "dog")
    page.wait_for_timeout(3000)
    assert line.inner_text() != robust and "Expected:" in robust
    page.locator("#trust_preset_load").click()
    page.wait_for_selector("#trust_preset_told >> text=/cats is loaded/")
    page.wait_for_timeout(3000)
    assert page.locator("#trust_words textarea").input_value() == "cat, kitten"
    assert page.locator("#trust_robust input").is_checked()
    assert line.inner_text() == robust
    assert "cats" in webui_page.ask("/trust/v1/concepts")["presets"]
