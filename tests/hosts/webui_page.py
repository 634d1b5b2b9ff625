"""What a browser does on a real web UI's page."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops

from hosts.webui_server import PATIENCE, Server

SHOWN = 120  # seconds that a page may take to show what it was told
DRAWN = {"steps": 20, "width": 128, "height": 128, "cfg_scale": 4}


def opened(server: Server, browser: Any) -> Any:
    """Open the web UI, get the demo model by the tab's button; Forge loads it when it draws."""
    page = browser.new_page(viewport={"width": 1400, "height": 1150})
    page.set_default_timeout(PATIENCE * 1000)
    page.goto(server.url)
    page.wait_for_selector("#txt2img_prompt textarea")
    still(page)
    get_demo(page)
    server.ask("/sdapi/v1/txt2img", {"steps": 1, "width": 128, "height": 128})
    return page


def still(page: Any) -> None:
    """Switch off the page's animations, which cost much where they are drawn without a GPU."""
    page.add_style_tag(content="* { animation: none !important }")


def reload_ui(page: Any) -> None:
    """Press the host's button that builds the whole page anew, and wait for the new one."""
    page.evaluate("() => { window.old = true }")
    page.get_by_text("Reload UI").last.click()
    page.wait_for_function("() => !window.old && document.querySelector('#trust_words textarea')")
    still(page)
    page.wait_for_timeout(3000)


def get_demo(page: Any) -> None:
    """Press the button that lays the demo model out, and wait until the host has chosen it."""
    go(page, "TRUST")
    page.locator("#trust_demo").click()
    page.locator("#trust_demo_laid").first.wait_for()
    chosen = "#setting_sd_model_checkpoint input, #quicksettings input"
    page.wait_for_function(
        """chosen => [...document.querySelectorAll(chosen)].some(
            field => field.value.includes("emoji-world"))""",
        arg=chosen,
    )
    page.wait_for_timeout(2000)
    go(page, "txt2img")  # the tab looks at the checkpoint anew when it is opened


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


def shows(page: Any, field: str, value: str) -> None:
    """Wait until a field shows a value; the page of a busy machine takes its time."""
    page.wait_for_function(
        """([field, value]) => [...document.querySelectorAll(field)].some(
            found => found.value === value || value.endsWith("*") &&
                found.value.startsWith(value.slice(0, -1)))""",
        arg=[field, value],
        timeout=SHOWN * 1000,
    )


def unfold(page: Any, title: str) -> None:
    """Open an accordion of the tab TRUST."""
    page.locator("#tab_trust .label-wrap", has_text=title).first.click()
    page.wait_for_timeout(500)


def press(page: Any, button: str, answer: str, said: str) -> str:
    """Press a button of the tab, and wait until its answer says something; returns the answer."""
    page.locator(button).click()
    told = page.locator(answer).first.get_by_text(re.compile(said))
    told.first.wait_for()
    return str(page.locator(answer).first.inner_text())


def shot(page: Any, server: Server, name: str, folder: Path, at: str = "") -> None:
    """Take a screenshot, of the tab's top or with `at` in the middle; it must not be one colour."""
    kept = Path(os.environ.get("TRUST_SHOTS") or folder)
    page.evaluate(
        """at => document.querySelector(at || "#tabs").scrollIntoView(
            {block: at ? "center" : "start"})""",
        at,
    )
    page.wait_for_timeout(1500)
    path = kept / f"{server.variable.removesuffix('_PATH').lower()}-{name}.png"
    page.screenshot(path=str(path))
    low, high = Image.open(path).convert("L").getextrema()
    assert high - low > 100


def saved(server: Server) -> list[Path]:
    """List the pictures that the host has saved, the oldest first."""
    files = server.outputs.rglob("*-images/**/*.png")
    return sorted(files, key=lambda file: file.stat().st_mtime_ns)


def draw(page: Any, server: Server, tab: str = "txt2img") -> Image.Image:
    """Press Generate, and return the new picture."""
    before = len(saved(server))
    page.locator(f"#{tab}_generate").click()
    for _ in range(PATIENCE):
        page.wait_for_timeout(1000)
        busy = server.ask("/sdapi/v1/progress?skip_current_image=true")["state"]["job"]
        if len(saved(server)) > before and not busy:
            page.wait_for_timeout(1000)  # for the page to take note
            return Image.open(saved(server)[-1])
    raise AssertionError("no picture comes")


def same(server: Server, one: Image.Image, other: Image.Image) -> bool:
    """Tell whether two pictures are the same.

    Forge's page draws without any diff the same picture twice with other last bits: of 40 no two
    were equal to the bit, each differed in 1 to 7 of 49152 values. By its API all 40 were equal.
    """
    if server.variable == "A1111_PATH":
        return one.tobytes() == other.tobytes()
    apart = ImageChops.difference(one.convert("RGB"), other.convert("RGB"))
    values = list(apart.tobytes())
    return max(values) <= 1 and sum(values) < len(values) / 1000
