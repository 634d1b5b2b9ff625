"""Diffs on every picture: they outlive a restart, no page undoes them unseen, none fails open."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fakes.webui import App, HTTPException, Processing, Runner, installed, process_images
from fakes.webui_a1111 import FakeA1111
from toys.small_unet import small_diff
from toys.tiny import some_diff
from trust_engine.diff import WeightDiff, save_diff
from trust_engine.errors import DiffError, OutputError, SpecError


def made(folder: Path) -> Any:
    """Make a pretended A1111 with two diffs in its folder."""
    host: Any = FakeA1111()
    diffs = folder / "models" / "trust_diffs"
    diffs.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(("gun", "style")):
        if not (diffs / f"{name}.safetensors").exists():
            diff = some_diff(host.demo.denoiser, i)
            offsets = {k: o.with_values(0.05 * o.values) for k, o in diff.offsets.items()}
            whole = WeightDiff(offsets, {**diff.provenance, "family": "demo"}).compact()
            save_diff(whole, diffs / f"{name}.safetensors")
    host.diffs = diffs
    return host


def begun(host: Any, shared: Any) -> Any:
    """Start the extension as the host does, with its API."""
    shared.cmd_opts.api = True
    from trust_webui import api, settings

    settings.add()
    host.shared, host.app = shared, App()
    api.add(None, host.app)
    return host


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Any]:
    """Be in a pretended A1111 with its API on."""
    host = made(tmp_path)
    with installed(tmp_path, host.modules) as shared:
        yield begun(host, shared)


def draw(host: Any, *values: Any) -> tuple[torch.Tensor, str]:
    """Draw a picture; returns it and what its parameters say of diffs."""
    from trust_webui.script import TrustScript

    p = Processing(host, "a gun")
    (picture,) = process_images(p, Runner(TrustScript(), *values))
    return picture, p.extra_generation_params.get("TRUST diffs", "")


def put(server: Any, *entries: Any) -> Any:
    """Ask for diffs on every picture."""
    return server.app.call("POST", "/apply", body={"diffs": list(entries)})


GUN = {"name": "gun.safetensors", "strength": 0.5}


def test_a_restart_keeps_it(server: Any, tmp_path: Path) -> None:
    plain, _ = draw(server)
    put(server, GUN)
    under, text = draw(server)
    assert "gun.safetensors@" in text and not torch.equal(plain, under)
    saved = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert saved["CLIP_stop_at_last_layers"] == 1, "the host's own settings are all still there"
    again = made(tmp_path)
    with installed(tmp_path, again.modules) as shared:
        begun(again, shared)
        assert again.app.call("GET", "/apply") == {"diffs": [GUN]}
        after, told = draw(again)
        assert torch.equal(after, under) and told == text
        put(again)
    last = made(tmp_path)
    with installed(tmp_path, last.modules) as shared:
        assert begun(last, shared).app.call("GET", "/apply") == {"diffs": []}


@pytest.mark.parametrize("how", ["missing", "other content", "damaged", "family"])
def test_after_a_restart_nothing_is_drawn_without_it(
    server: Any, tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    put(server, GUN)
    file = server.diffs / "gun.safetensors"
    if how == "missing":
        file.unlink()
    if how == "other content":
        file.write_bytes((server.diffs / "style.safetensors").read_bytes())
    if how == "damaged":
        file.write_bytes(file.read_bytes()[:-3])
    if how == "family":
        save_diff(WeightDiff(small_diff().offsets, {"family": "sd1"}), file)
    again = made(tmp_path) if how != "missing" else FakeA1111()
    with installed(tmp_path, again.modules) as shared:
        begun(again, shared)
        from trust_webui import always_on

        always_on.report()
        assert "nothing will be drawn" in caplog.text and "gun.safetensors" in caplog.text
        with pytest.raises(DiffError, match=r"nothing was drawn: .*gun\.safetensors"):
            draw(again)


def test_a_page_that_was_opened_before_cannot_undo_it(server: Any, tmp_path: Path) -> None:
    """The button "Apply settings" sends every field of the page as it was when it was opened."""
    page = server.shared.opts.page()
    put(server, GUN)
    server.shared.opts.apply_page(page, str(tmp_path / "config.json"))
    assert server.app.call("GET", "/apply") == {"diffs": [GUN]}
    for is_api in (True, False):  # Forge's own route for settings does not say that it is one
        with pytest.raises(KeyError):
            server.shared.opts.set("trust_always", "", is_api=is_api)
    assert "gun.safetensors@" in draw(server)[1]


def test_a_setting_that_comes_along_with_a_picture_is_refused(server: Any) -> None:
    """The host would set it for this picture, and set it back over what is put on meanwhile."""
    from trust_webui.script import TrustScript

    put(server, GUN)
    p = Processing(server, "a gun")
    p.override_settings = {"trust_always": ""}
    with pytest.raises(DiffError, match="cannot be set along"):
        process_images(p, Runner(TrustScript()))
    assert "gun.safetensors@" in draw(server)[1]


def test_the_tab_of_a_page_that_was_opened_before_undoes_nothing(server: Any) -> None:
    from trust_webui import always_on, tab_always_on

    seen = tab_always_on._now()
    put(server, GUN)
    told, now = tab_always_on._clear(seen)
    assert "meanwhile" in told and "gun.safetensors@" in now == always_on.text()
    told, now = tab_always_on._put(seen, "style.safetensors", 1.0)
    assert "meanwhile" in told and "style" not in now
    told, now = tab_always_on._put(now, "style.safetensors", 1.0)
    assert [one.name for one in always_on.always()] == ["gun.safetensors", "style.safetensors"]
    told, now = tab_always_on._put(now, "gun.safetensors", -1.0)
    assert [one.strength for one in always_on.always()] == [1.0, -1.0]
    told, now = tab_always_on._take(now, "style.safetensors")
    assert "style" not in now and "gun.safetensors@" in told
    assert "not on every picture" in tab_always_on._take(now, "style.safetensors")[0]
    assert "choose a diff" in tab_always_on._put(now, None, 1.0)[0]
    told, now = tab_always_on._clear(now)
    assert now == "" and "nothing" in told


WRONG = [
    ([{"strength": 1}], "names no diff"),
    ([{"name": ""}], "no diff's name"),
    ([{"name": "  "}], "no diff's name"),
    ([{"name": 5}], "names no diff"),
    ([{"name": None, "strength": 1}], "names no diff"),
    (["gun.safetensors"], "names no diff"),
    ([None], "names no diff"),
    ([GUN, GUN], "twice"),
    ([GUN, {"name": "copy.safetensors"}], "twice"),
    ([{"name": "other.safetensors"}], "another kind of model"),
    ([{"name": "gun.safetensors", "strength": 99}], "between -2 and 2"),
    ([{"name": "gun.safetensors", "strength": float("nan")}], "between -2 and 2"),
    ([{"name": "gun.safetensors", "strength": float("inf")}], "between -2 and 2"),
    ([{"name": "gun.safetensors", "strength": "1"}], "must be a number"),
    ([{"name": "gun.safetensors", "strength": True}], "must be a number"),
    ([{"name": "gun.safetensors", "strength": None}], "must be a number"),
    ([{"name": "gun.safetensors", "strength": 0}], "is 0, which is off"),
    ([{"name": "gun.safetensors", "weight": 1}], "weight"),
    ([{"name": "nowhere.safetensors"}], "no such diff"),
    ([{"name": "../secret.safetensors"}], "no such diff"),
    ([{"name": "/etc/passwd"}], "no such diff"),
    ([{"name": "gun.safetensors\0"}], "no diff's name"),
    ([{"name": "gun\n.safetensors"}], "no diff's name"),
    ([{"name": "g" * 300 + ".safetensors"}], "this long"),
    ([{"name": "g/" * 3000}], "too many"),
    ("gun.safetensors", "must be a list"),
    (None, "must be a list"),
    ({}, "must be a list"),
]


def others(server: Any) -> None:
    """Lay a copy of a diff, and one of another family, into the folder."""
    (server.diffs / "copy.safetensors").write_bytes((server.diffs / "gun.safetensors").read_bytes())
    save_diff(
        WeightDiff(small_diff().offsets, {"family": "sd1"}), server.diffs / "other.safetensors"
    )


def test_bad_input_changes_nothing(server: Any) -> None:
    """One sentence each, and what was on before is on after it: never "all diffs off"."""
    others(server)
    put(server, {"name": "style.safetensors", "strength": 0.25})
    before = draw(server)
    for entries, said in WRONG:
        with pytest.raises(HTTPException, match=said) as caught:
            server.app.call("POST", "/apply", body={"diffs": entries})
        detail = caught.value.detail
        assert caught.value.status_code == 422 and "\n" not in detail and len(detail) <= 400
        assert server.app.call("GET", "/apply")["diffs"][0]["name"] == "style.safetensors", entries
    for body in ({}, [], None, "gun", {"diff": [GUN]}, {"diffs": [GUN], "more": 1}):
        with pytest.raises(HTTPException) as caught:
            server.app.call("POST", "/apply", body=body)
        assert caught.value.status_code == 422
    after = draw(server)
    assert torch.equal(before[0], after[0]) and before[1] == after[1]


BY_HAND: list[tuple[Any, str]] = [
    ("gun.safetensors*99", "between -2 and 2"), ("gun.safetensors*nan", "between -2 and 2"),
    ("gun.safetensors*0", "is 0"), ("gun.safetensors*--", "is no diff"), (";", "names no diff"),
    ("gun.safetensors; gun.safetensors", "twice"), ("*1", "is no diff"), ("@abcd*1", "is no diff"),
    ("../gun.safetensors", "no such diff"), (["gun.safetensors"], "damaged"), (5, "damaged"),
]  # fmt: skip


def test_a_setting_that_was_written_by_hand_is_checked_alike(server: Any) -> None:
    for text, said in BY_HAND:
        server.shared.opts.trust_always = text
        with pytest.raises(DiffError, match=said):
            draw(server)
        if said not in ("twice", "no such diff"):  # which only the files can tell
            with pytest.raises(HTTPException, match=said):
                server.app.call("GET", "/apply")
    put(server, GUN)
    assert "gun.safetensors@" in draw(server)[1], "and can be mended by the API"


def test_the_accordion_is_checked_alike(server: Any) -> None:
    for values in (
        (" ", 1.0), (";", 1.0), (5, 1.0), (["gun.safetensors"], 1.0), ("gun.safetensors", "1"),
        ("gun.safetensors", None), ("gun.safetensors*2", 2.0), ("gun.safetensors*99", 0.01),
    ):  # fmt: skip
        with pytest.raises(DiffError, match="nothing was drawn"):
            draw(server, *values)


def test_a_name_without_a_strength_is_not_dropped(server: Any) -> None:
    assert "gun.safetensors@" in draw(server, "gun.safetensors")[1]


def test_settings_that_cannot_be_kept_change_nothing(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trust_webui import always_on
    from trust_webui.asked_diffs import Wanted

    put(server, GUN)
    server.shared.cmd_opts.freeze_settings = True
    with pytest.raises(OutputError, match=r"stays as it was.*disabled"):
        always_on.put([])
    server.shared.cmd_opts.freeze_settings = False

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(server.shared.opts), "save", full)
    with pytest.raises(OutputError, match="No space left"):
        always_on.put([Wanted("style.safetensors")])
    assert always_on.always()[0].name == "gun.safetensors"
    assert json.loads((tmp_path / "config.json").read_text("utf-8"))["trust_always"]


def test_without_a_page_of_settings(tmp_path: Path) -> None:
    """With --nowebui the host never asks for settings, and refuses those that it does not know."""
    host = made(tmp_path)
    with installed(tmp_path, host.modules) as shared:
        shared.cmd_opts.api = True
        host.app = App()
        from trust_webui import api

        api.add(None, host.app)
        assert put(host, GUN) == {"diffs": [GUN]}
    assert "gun" in json.loads((tmp_path / "config.json").read_text("utf-8"))["trust_always"]


def test_a_linked_file_of_settings_stays_a_link(server: Any, tmp_path: Path) -> None:
    real = tmp_path / "elsewhere.json"
    real.write_text("{}", encoding="utf-8")
    (tmp_path / "config.json").symlink_to(real)
    put(server, GUN)
    assert (tmp_path / "config.json").is_symlink()
    assert "gun" in json.loads(real.read_text("utf-8"))["trust_always"]


def test_names_with_the_spellings_own_characters(server: Any) -> None:
    """A file may be called anything: it is listed, applied, written down and pasted."""
    from trust_webui.asked_diffs import Wanted, read, written
    from trust_webui.folders import listed
    from trust_webui.script import TrustScript

    content = (server.diffs / "gun.safetensors").read_bytes()
    names = ["a;b.safetensors", "a@1234.safetensors", "a*2.safetensors", "100%.safetensors",
             "a%3Bb.safetensors", "a, b: \"c\".safetensors", "deep/gun 銃.safetensors"]  # fmt: skip
    for name in names:
        (server.diffs / name).parent.mkdir(exist_ok=True)
        (server.diffs / name).write_bytes(content)
        assert name in listed()
        _, text = draw(server, name, 0.5)
        assert read(text) == [Wanted(name, 0.5, read(text)[0].sha)]
        script = TrustScript()
        script.ui(is_img2img=False)
        update = script.infotext_fields[0][1]({"TRUST diffs": text})
        assert update["value"] == name
        assert draw(server, update["value"], 0.5)[1] == text
        put(server, {"name": name, "strength": 0.5})
        assert draw(server)[1] == text
        put(server)
    everything = [Wanted(name, 0.5, "abcd") for name in names]
    assert read(written(everything)) == everything


def test_an_infotext_without_a_hash(server: Any) -> None:
    from trust_webui.script import TrustScript

    script = TrustScript()
    script.ui(is_img2img=False)
    name, strength = (field for _, field in script.infotext_fields[:2])
    here = {"TRUST diffs": "gun.safetensors*0.5"}
    assert name(here)["value"] == "gun.safetensors" and strength(here)["value"] == 0.5
    gone = {"TRUST diffs": "away.safetensors*0.5"}
    assert name(gone)["value"] == "away.safetensors" and strength(gone)["value"] == 0.5
    with pytest.raises(DiffError, match=r"away\.safetensors: no such diff"):
        draw(server, name(gone)["value"], 0.5)
    broken = {"TRUST diffs": "*x@"}
    with pytest.raises(DiffError, match="is no diff"):
        draw(server, name(broken)["value"], strength(broken)["value"])


def test_links_in_the_folder_are_entered(server: Any, tmp_path: Path) -> None:
    from trust_webui.folders import listed

    away = tmp_path / "away"
    away.mkdir()
    (server.diffs / "style.safetensors").rename(away / "style.safetensors")
    (server.diffs / "linked.safetensors").symlink_to(away / "style.safetensors")
    (server.diffs / "folder").symlink_to(away)
    (away / "back").symlink_to(server.diffs)  # which must not be walked for ever
    assert listed() == ["folder/style.safetensors", "gun.safetensors", "linked.safetensors"]
    for name in listed():
        assert f"{name}@" in draw(server, name, 1.0)[1]


def test_wanted_is_checked_wherever_it_is_made(server: Any) -> None:
    from trust_webui.asked_diffs import Wanted

    for name, strength in (("", 1.0), ("a.safetensors", 2.5), ("a.safetensors", float("nan"))):
        with pytest.raises(SpecError):
            Wanted(name, strength)


def test_what_an_extension_draws_by_itself_is_refused(server: Any) -> None:
    """Face detailers draw a second time, and run only the scripts they choose."""
    from modules import processing

    from trust_webui import redraw_guard

    class Other:
        """A script of another extension, whose hooks do nothing."""

        def __getattr__(self, _: str) -> Any:
            return lambda *_: None

    def by_itself() -> Any:
        return process_images(Processing(server, "a gun"), Runner(Other()))

    bare = processing.process_images_inner
    redraw_guard.install()
    redraw_guard.install()
    assert len(by_itself()) == 1, "as ever, while nothing is on every picture"
    put(server, GUN)
    with pytest.raises(DiffError, match="nothing was drawn: an extension draws"):
        by_itself()
    assert "gun.safetensors@" in draw(server)[1]
    alone = Processing(server, "a gun")
    with pytest.raises(DiffError, match="an extension draws"):
        processing.process_images_inner(alone)
    server.shared.opts.trust_always = 5
    with pytest.raises(DiffError, match="damaged"):
        by_itself()
    redraw_guard.uninstall()
    assert processing.process_images_inner is bare
