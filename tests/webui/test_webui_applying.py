"""Diffs at generation on both pretended hosts: exact, beside LoRAs, gone afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fakes.webui import Processing, Runner, installed, process_images
from fakes.webui_a1111 import FakeA1111
from fakes.webui_applied import HOSTS, KEY, draw, expected, gentle, lora, ready, scrub
from toys.small_unet import small_diff
from toys.tiny import some_diff
from trust_engine.diff import WeightDiff, applied, save_diff
from trust_engine.errors import DiffError
from trust_engine.io.safetensors import write_all
from trust_webui.wording import REFUSE_OTHERS


@pytest.fixture(params=HOSTS)
def fake(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """Be in a pretended host that has two diffs."""
    yield from ready(HOSTS[request.param](), tmp_path)


@pytest.mark.parametrize("hires", [False, True])
def test_strengths_change_what_is_drawn_and_nothing_stays(fake: Any, hires: bool) -> None:
    clean = fake.bits()
    (before,), p, _ = draw(fake, hires=hires)
    assert "TRUST diffs" not in p.extra_generation_params
    drawn = {}
    for strength in (1.0, 0.5, -1.0, 1.0):
        (picture,), _, runner = draw(fake, "gun.safetensors", strength, hires=hires)
        assert runner.swallowed == []
        times = 2 if hires else 1
        torch.testing.assert_close(
            picture, times * expected(fake, ("gun", strength)), atol=1e-4, rtol=1e-4
        )
        if strength in drawn:
            assert torch.equal(picture, drawn[strength])
        drawn[strength] = picture
    (after,), _, _ = draw(fake, hires=hires)
    assert torch.equal(after, before), "the picture without a diff is the same to the bit"
    assert all(torch.equal(w, clean[name]) for name, w in fake.bits().items())


def test_several_diffs_and_batches(fake: Any) -> None:
    pictures, _, runner = draw(fake, "gun.safetensors", 1.0, "style.safetensors", 0.5, n_iter=3)
    assert runner.swallowed == []
    wanted = expected(fake, ("gun", 1.0), ("style", 0.5))
    for picture in pictures:
        torch.testing.assert_close(picture, wanted, atol=1e-4, rtol=1e-4)
        assert torch.equal(picture, pictures[0])


@pytest.mark.parametrize("strength", [1.0, -0.5])
def test_low_rank_is_drawn_as_it_is(fake: Any, strength: float) -> None:
    """In linear layers and convolutions, with single entries on top, beside a sparse diff."""
    scrub(fake)
    clean, (before,) = fake.bits(), draw(fake)[0]
    for name in ("scrubbed", "gun"):
        parts = (
            [("scrubbed", strength)]
            if name == "scrubbed"
            else [("scrubbed", strength), (name, 1.0)]
        )
        values = [value for part in parts for value in (f"{part[0]}.safetensors", part[1])]
        (picture,), _, runner = draw(fake, *values)
        assert runner.swallowed == []
        wanted = expected(fake, *parts)
        assert (wanted - before).abs().max() > 0.05
        torch.testing.assert_close(picture, wanted, atol=1e-4, rtol=1e-4)
    (after,), _, _ = draw(fake)
    assert torch.equal(after, before)
    assert all(torch.equal(w, clean[name]) for name, w in fake.bits().items())


def test_beside_a_stock_lora(fake: Any) -> None:
    clean = fake.bits()
    (alone,), _, _ = draw(fake, loras=[lora(fake)])
    (both,), _, runner = draw(fake, "gun.safetensors", 1.0, loras=[lora(fake)])
    (again,), _, _ = draw(fake, loras=[lora(fake)])
    assert runner.swallowed == []
    assert torch.equal(alone, again) and not torch.equal(alone, both)
    own = FakeA1111()
    with applied(own.demo.denoiser, [(fake.diffs["gun"], 1.0)]), torch.no_grad():
        own.unet.get_submodule(KEY).weight += 0.02
        wanted = own._sample(SimpleNamespace(prompt="a gun"))
        own.unet.get_submodule(KEY).weight -= 0.02
    torch.testing.assert_close(both, wanted, atol=1e-4, rtol=1e-4)
    draw(fake)
    assert all(torch.equal(w, clean[name]) for name, w in fake.bits().items())


def test_another_file_of_the_same_name(fake: Any) -> None:
    """Both hosts would keep the old weights: they compare names."""
    (old,), _, _ = draw(fake, "gun.safetensors", 1.0)
    save_diff(fake.diffs["style"], fake.folder / "gun.safetensors")
    (new,), _, _ = draw(fake, "gun.safetensors", 1.0)
    assert not torch.equal(old, new)
    torch.testing.assert_close(new, expected(fake, ("style", 1.0)), atol=1e-4, rtol=1e-4)


def broken(fake: Any, how: str) -> list[Any]:
    """Bring about one reason why a diff cannot go on; returns the accordion's values."""
    if how == "missing":
        return ["nowhere.safetensors", 1.0]
    if how == "outside":
        return ["../../secret.safetensors", 1.0]
    if how == "damaged":
        (fake.folder / "gun.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0 no diff at all")
    if how == "family":
        save_diff(
            WeightDiff(small_diff().offsets, {"family": "sd1"}), fake.folder / "gun.safetensors"
        )
    if how == "strict":
        save_diff(
            WeightDiff(fake.diffs["gun"].offsets, {"base": "0" * 32}),
            fake.folder / "gun.safetensors",
        )
        fake.shared.opts.trust_strict = True
    if how == "strength":
        return ["gun.safetensors", 3.0]
    if how == "twice":
        return ["gun.safetensors", 1.0, "gun.safetensors", 0.5]
    if how == "hash":
        return ["gun.safetensors@0123456789", 1.0]
    return ["gun.safetensors", 1.0]


@pytest.mark.parametrize(
    ("how", "said"),
    [("missing", "no such diff"), ("outside", "no such diff"), ("damaged", "gun.safetensors"),
     ("family", "another kind of model"), ("strict", f"{REFUSE_OTHERS!r} off$"),
     ("strength", "strength"), ("twice", "twice"), ("hash", "another diff of the same name")],
)  # fmt: skip
def test_what_cannot_be_applied_stops_the_generation(fake: Any, how: str, said: str) -> None:
    clean, values = fake.bits(), broken(fake, how)
    with pytest.raises(DiffError, match=said) as caught:
        draw(fake, *values)
    assert "nothing was drawn" in str(caught.value) and "\n" not in str(caught.value)
    draw(fake)
    assert all(torch.equal(w, clean[name]) for name, w in fake.bits().items())


def test_the_refiner_is_refused(fake: Any) -> None:
    from trust_webui.script import TrustScript

    def asked(name: str) -> Any:
        p = Processing(fake, "a gun")
        p.refiner_checkpoint_info, p.refiner_switch_at = object(), 0.8  # type: ignore[assignment]
        return process_images(p, Runner(TrustScript(), name, 1.0))

    with pytest.raises(DiffError, match="refiner"):
        asked("gun.safetensors")
    assert len(asked("None")) == 1


def test_an_error_on_the_way_stops_it(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host swallows what hooks raise; a user would get a picture and believe in it."""
    from trust_webui.host import current

    monkeypatch.setattr(type(current()), "put", lambda *_: 1 / 0)
    with pytest.raises(DiffError, match="ZeroDivisionError"):
        draw(fake, "gun.safetensors", 1.0)


def test_diffs_that_the_host_took_off_stop_it(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from trust_webui.host import current

    monkeypatch.setattr(type(current()), "put", lambda *_: None)
    with pytest.raises(DiffError, match="took them off"):
        draw(fake, "gun.safetensors", 1.0)


def test_a_layer_that_swallows_an_error_stops_it(tmp_path: Path) -> None:
    """A1111's Lora counts a layer's RuntimeError and goes on."""
    made: Any = FakeA1111()
    with installed(tmp_path, made.modules):
        folder = tmp_path / "models" / "trust_diffs"
        made.diffs = {"gun": gentle(some_diff(made.demo.denoiser))}
        save_diff(made.diffs["gun"], folder / "gun.safetensors")
        from trust_webui import a1111

        kind = a1111._offset_module

        def failing(network: Any) -> type:
            def calc(*_: Any) -> Any:
                raise RuntimeError("out of memory")

            return type("Failing", (kind(network),), {"calc_updown": calc})

        a1111._offset_module = failing
        with pytest.raises(DiffError, match="0% of its change"):
            draw(made, "gun.safetensors", 1.0)


def test_infotext_is_read_back(fake: Any) -> None:
    from trust_webui.asked_diffs import Wanted, read, written
    from trust_webui.script import SLOTS, TrustScript

    values = ("gun.safetensors", 1.0, "None", 1.0, "style.safetensors", -0.25)
    _, p, _ = draw(fake, *values)
    text = p.extra_generation_params["TRUST diffs"]
    names = [(one.name, one.strength) for one in read(text)]
    assert names == [("gun.safetensors", 1.0), ("style.safetensors", -0.25)]
    script = TrustScript()
    script.ui(is_img2img=False)
    pasted = [function({"TRUST diffs": text}) for _, function in script.infotext_fields]
    got = [update["value"] for update in pasted]
    assert got == ["gun.safetensors", 1.0, "style.safetensors", -0.25, *["None", 1.0] * (SLOTS - 2)]
    (first,), _, _ = draw(fake, *got)
    (second,), _, _ = draw(fake, *values)
    assert torch.equal(first, second)
    cleared = [function({}) for _, function in script.infotext_fields]
    assert [u["value"] for u in cleared] == ["None", 1.0] * SLOTS
    many = written([Wanted(f"{i}.safetensors", 0.5, "abcd") for i in range(SLOTS + 1)])
    last = script.infotext_fields[-2][1]({"TRUST diffs": many})["value"]
    assert len(read(last)) == 2, "none is dropped without a word"


def test_a_pasted_diff_that_is_not_here_stops_it(fake: Any) -> None:
    from trust_webui.script import TrustScript

    script = TrustScript()
    script.ui(is_img2img=False)
    text = "elsewhere.safetensors@abcdef0123*1"
    value = script.infotext_fields[0][1]({"TRUST diffs": text})["value"]
    with pytest.raises(DiffError, match="elsewhere"):
        draw(fake, value, 1.0)


def test_another_base_is_told(fake: Any) -> None:
    other = WeightDiff(fake.diffs["gun"].offsets, {"base": "0" * 32, "family": "demo"})
    save_diff(other, fake.folder / "gun.safetensors")
    _, p, _ = draw(fake, "gun.safetensors", 1.0)
    (comment,) = p.comments
    assert "another model of the family" in comment


def test_settings_put_diffs_on_every_picture(fake: Any) -> None:
    fake.shared.opts.trust_always = "gun.safetensors*0.5"
    (picture,), p, _ = draw(fake)
    torch.testing.assert_close(picture, expected(fake, ("gun", 0.5)), atol=1e-4, rtol=1e-4)
    assert p.extra_generation_params["TRUST diffs"].endswith("*0.5")
    fake.shared.opts.trust_always = "gun.safetensors*--"
    with pytest.raises(DiffError, match="is no diff"):
        draw(fake)


def test_lora_extension_off_is_said(tmp_path: Path) -> None:
    made: Any = FakeA1111()
    with installed(tmp_path, made.modules):
        import sys

        made.diffs = {"gun": gentle(some_diff(made.demo.denoiser))}
        save_diff(made.diffs["gun"], tmp_path / "models" / "trust_diffs" / "gun.safetensors")
        del sys.modules["networks"]
        with pytest.raises(DiffError, match="Lora is off"):
            draw(made, "gun.safetensors", 1.0)


def test_a_diff_that_is_in_the_checkpoint_is_not_applied_again(fake: Any, tmp_path: Path) -> None:
    from trust_webui import applying
    from trust_webui.host import current

    record = {"base": "", "diffs": [{"sha256": applying.load("gun.safetensors")[1], "strength": 1}]}
    path = tmp_path / "patched.safetensors"
    write_all(path, {"a": torch.ones(1)}, {"trust-applied": json.dumps(record)})
    wanted = [applying.Wanted("gun.safetensors")]
    assert applying.prepare(current(), wanted).parts
    current().model.sd_checkpoint_info.filename = str(path)
    with pytest.raises(DiffError, match="is in the checkpoint already, at strength 1"):
        applying.prepare(current(), wanted)
    back = applying.prepare(current(), [applying.Wanted("gun.safetensors", -1.0)])
    assert back.warnings == []
    assert applying.prepare(current(), [applying.Wanted("style.safetensors")]).parts
    path.write_bytes(b"PK no safetensors file, as .ckpt files are")
    assert applying.prepare(current(), wanted).parts
