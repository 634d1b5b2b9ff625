"""The tab: every button's answer fits its outputs, and one word with one button makes a diff."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes.webui import MADE, Component, installed
from fakes.webui_a1111 import FakeA1111
from toys.demo import demo_model, narrow_demo
from toys.small_unet import small_diff
from toys.tiny import some_diff
from trust_engine.diff import WeightDiff, load_diff, save_diff
from trust_engine.spec import UnlearnSpec


@pytest.fixture
def page(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """Build the tab in a pretended A1111, with the narrow demo unless told otherwise."""
    made: Any = FakeA1111(demo=getattr(request, "param", narrow_demo)())
    with installed(tmp_path, made.modules) as shared:
        made.shared, made.folder = shared, tmp_path / "models" / "trust_diffs"
        MADE.clear()
        from trust_webui import tab

        ((_, title, name),) = tab.build()
        assert (title, name) == ("TRUST", "trust")
        yield made


def by_id(name: str) -> Component:
    """Find a component."""
    (found,) = [c for c in MADE if c.settings.get("elem_id") == name]
    return found


def press(name: str, **values: Any) -> dict[str, Any]:
    """Press a button, fields filled in by elem_id; returns its last answer by elem_id."""
    ((call, inputs, outputs),) = by_id(name).listeners
    given = [values.get(str(c.settings.get("elem_id")), c.value) for c in inputs]
    answer = call(*given)
    if not isinstance(answer, str | tuple | dict):
        for answer in answer:  # noqa: B020 - a generator's last answer is what stays
            assert len(answer) == len(outputs) if isinstance(answer, tuple) else len(outputs) == 1
    listed = answer if isinstance(answer, tuple) else (answer,)
    assert len(listed) == len(outputs)
    return {str(c.settings.get("elem_id")): a for c, a in zip(outputs, listed, strict=True)}


def test_every_answer_fits_its_outputs(page: Any) -> None:
    """Nothing chosen, nothing typed: each button says what is missing and breaks nothing."""
    count = 0
    for component in list(MADE):
        for call, inputs, outputs in component.listeners + component.followers:
            answer = call(*(c.value for c in inputs))
            if not isinstance(answer, str | tuple | dict):
                (*_, answer) = answer
            listed = answer if isinstance(answer, tuple) else (answer,)
            assert len(listed) == len(outputs), call
            count += 1
    assert count >= 15
    assert "what to forget" in press("trust_unlearn")["trust_status"]
    assert "what to forget" in press("trust_prompts")["trust_status"]
    assert "choose a diff" in press("trust_export")["trust_told"]


@pytest.mark.parametrize(("version", "told"), [("3.41.2", {}), ("4.40.0", {"autoscroll": False})])
def test_a_long_report_is_read_from_its_top(
    page: Any, version: str, told: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """gradio 4 scrolls a box to its end unless told; gradio 3 does not know the word."""
    import gradio

    from trust_webui import tab

    monkeypatch.setattr(gradio, "__version__", version, raising=False)
    MADE.clear()
    tab.build()
    settings = by_id("trust_report").settings
    assert {k: v for k, v in settings.items() if k == "autoscroll"} == told


def test_it_begins_with_the_engines_defaults(page: Any) -> None:
    from trust_webui.form import NAMES, filled

    ((_, (_, *inputs), _),) = by_id("trust_unlearn").listeners
    form = filled({name: c.value for name, c in zip(NAMES, inputs, strict=True)} | {"words": "gun"})
    assert form.order.spec == UnlearnSpec(form.concepts)


@pytest.mark.parametrize("page", [demo_model], indirect=True, ids=["what it draws is judged"])
def test_one_word_one_button_then_files(page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from trust_webui import form, job_status

    monkeypatch.setitem(form.DEFAULTS, "steps", 3)  # of the effort "normal"
    monkeypatch.setattr(job_status, "EVERY", 0.05)
    asked = {"trust_words": "gun", "trust_passes": 48, "trust_pictures": 2}
    assert "Expected:" in press("trust_expect", **asked)["trust_expected"]
    answer = press("trust_unlearn", **asked)
    ((after, inputs, _),) = by_id("trust_unlearn").followers
    line = list(after(*(asked.get(str(c.settings.get("elem_id")), c.value) for c in inputs)))[-1]
    assert "Expected:" in line, "which goes by this run now"
    assert "trust_state_done" in answer["trust_status"], answer["trust_status"]
    assert len(answer["trust_gallery"]) == 4 and answer["trust_chart"].size[0] > 100
    name = answer["trust_diff"]["value"]
    assert name == "gun.safetensors" in answer["trust_diff"]["choices"]
    assert "Saved as gun.safetensors" in answer["trust_report"]
    assert answer["trust_report"].startswith("gun: ")
    assert "test pictures; " in answer["trust_report"].splitlines()[0]
    assert "and 96 more for the test pictures" in answer["trust_report"]
    assert press("trust_again")["trust_report"] == answer["trust_report"]
    chosen = by_id("trust_diff")
    ((show, _, _), _) = chosen.listeners
    assert "forgets" in show(name) and "note:" not in show(name)
    told = press("trust_export", trust_diff=name)["trust_told"]
    assert "lora:gun:1" in told and list(page.folder.parent.rglob("Lora/gun.safetensors"))
    before = load_diff(page.folder / name)
    ((note, _, _),) = by_id("trust_note").listeners
    told, label = note(name, "Ann", "", " handle with care ")
    assert "same" in told and "Ann" in label
    assert load_diff(page.folder / name).notes == {"author": "Ann", "notes": "handle with care"}
    assert load_diff(page.folder / name).provenance == before.provenance
    assert "no such file" in press("trust_checkpoint", trust_diff=name)["trust_told"]


def test_the_expected_line_follows_the_form(page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Timed once, by a job; from then on each field is answered at once.

    A pass takes a second here: a word changes how many passes ask about it, by too few to show.
    """
    from modules import sd_models

    from trust_webui import job_status, speed
    from trust_webui.jobs import ESTIMATE, JOBS

    monkeypatch.setattr(job_status, "EVERY", 0.05)
    monkeypatch.setattr(speed, "_known", {})
    monkeypatch.setattr(speed, "pass_seconds", lambda lent: 1.0)
    monkeypatch.setattr(speed, "step_seconds", lambda lent, objective: 0.1)

    def told(field: str, **values: Any) -> str:
        line, answers = [by_id("trust_expected")], []
        for call, inputs, outputs in by_id(field).listeners:
            if outputs == line:
                given = (values.get(str(c.settings.get("elem_id")), c.value) for c in inputs)
                answers += [list(call(*given))]
        assert answers, field
        return str(answers[0][-1])

    model = sd_models.model_data.sd_model
    sd_models.model_data.sd_model = None
    assert "as soon as a checkpoint is loaded" in told("trust_expect")
    assert JOBS.latest(ESTIMATE) is None, "nobody asked for a checkpoint to be loaded"
    sd_models.model_data.sd_model = model
    first = told("trust_expect")
    job = JOBS.latest(ESTIMATE)
    assert "Expected:" in first and job is not None and job.title == "any concept"
    assert JOBS.latest() is None, "an estimate is nothing to come back to"
    others = {
        told("trust_effort", trust_effort="thorough"),
        told("trust_robust", trust_robust=True),
        told("trust_pictures", trust_pictures=16),
        told("trust_passes", trust_passes=64),
        told("trust_stays", trust_stays="a cat\na dog", trust_robust=True),
    }
    assert len(others | {first}) == 6 and JOBS.latest(ESTIMATE) is job
    assert told("trust_words", trust_words="gun") == first
    assert "Sentences of your own" in told("trust_templates", trust_templates="a photo")
    assert "goes together with" in told("trust_kind", trust_kind="combination", trust_words="gun")


def test_the_expected_line_is_of_the_form_as_it_is_now(
    page: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked again while a checkpoint is timed, the answer to what was asked before comes before."""
    from trust_webui import job_status, speed

    monkeypatch.setattr(job_status, "EVERY", 0.05)
    monkeypatch.setattr(speed, "_known", {})
    both_asked = threading.Event()

    def timed(lent: Any) -> float:
        both_asked.wait(5)  # however quick the machine is
        return 1.0

    monkeypatch.setattr(speed, "pass_seconds", timed)
    monkeypatch.setattr(speed, "step_seconds", lambda lent, objective: 0.1)
    ((ask, inputs, _),) = by_id("trust_expect").listeners
    at = [c.settings.get("elem_id") for c in inputs].index("trust_effort")
    values = [c.value for c in inputs]
    slow = ask(*values[:at], "thorough", *values[at + 1 :])
    assert "Expected:" not in next(slow)
    quick = ask(*values[:at], "quick", *values[at + 1 :])
    assert "Expected:" not in next(quick)
    both_asked.set()
    said: list[str] = []
    threads = [
        threading.Thread(target=lambda: said.append("quick" + list(quick)[-1])),
        threading.Thread(target=lambda: said.append("slow" + list(slow)[-1])),
    ]
    for thread in threads:
        thread.start()
        time.sleep(0.5)  # quick would answer first
    for thread in threads:
        thread.join(30)
    assert [line[:4] for line in said] == ["slow", "quic"] and "Expected:" in said[1]
    assert said[0][4:] != said[1][5:]


def test_a_stranger_is_checked_before_it_is_let_in(page: Any, tmp_path: Path) -> None:
    ((add, _, _),) = by_id("trust_add").listeners
    bad, good = tmp_path / "bad.safetensors", tmp_path / "good.safetensors"
    bad.write_bytes(b"PK\x03\x04 a pickle")
    save_diff(small_diff(), good)
    told, _ = add(str(bad))
    assert "trust_problem" in told and not (page.folder / "bad.safetensors").exists()
    told, update = add(str(good))
    assert update["value"] == "good.safetensors" and (page.folder / "good.safetensors").is_file()
    assert "another kind of model" in by_id("trust_diff").listeners[0][0]("good.safetensors")


def test_what_users_type_is_no_markup(page: Any) -> None:
    from trust_webui import job_status
    from trust_webui.jobs import Job

    job = Job("unlearn", "<img src=x onerror=alert(1)>", state="failed", message="<script>")
    assert "<img" not in job_status.status(job) and "<script>" not in job_status.status(job)
    assert "<b>x" not in job_status.problem(ValueError("<b>x"))


def test_presets_through_the_page(page: Any) -> None:
    ((save, inputs, _),) = by_id("trust_preset_save").listeners
    values = [c.value for c in inputs[1:]]
    values[0] = "gun"
    told, update = save("mine", *values)
    assert "Saved" in told and update["value"] == "mine"
    told, _ = save("mine", *["wrong" for _ in values])
    assert "trust_problem" in told


def test_nothing_old_stands_beside_a_refusal(page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an earlier run has left is gone with the next click, refused, failed or stopped."""
    from modules import call_queue

    from trust_webui import job_status
    from trust_webui.jobs import JOBS

    monkeypatch.setattr(job_status, "EVERY", 0.02)
    old = ("trust_gallery", "trust_chart", "trust_neurons", "trust_report")

    def emptied(answer: dict[str, Any]) -> bool:
        return [answer[name] for name in old] == [[], None, None, ""]

    assert emptied(press("trust_unlearn")), "refused"
    with call_queue.queue_lock:
        call, inputs, outputs = by_id("trust_unlearn").listeners[0]
        given = ["gun" if c.settings.get("elem_id") == "trust_words" else c.value for c in inputs]
        answers = call(*given)
        names = [str(c.settings.get("elem_id")) for c in outputs]
        first = dict(zip(names, next(answers), strict=True))
        assert emptied(first) and "queued" in first["trust_status"]
        JOBS.stop_all()
        last = dict(zip(names, list(answers)[-1], strict=True))
        assert emptied(last) and "trust_state_stopped" in last["trust_status"]
    job = JOBS.start("unlearn", "gun", lambda _: 1 / 0)
    *_, failed = job_status.followed(job)
    assert failed[1:5] == job_status.NOTHING and "trust_state_failed" in failed[0]


def test_pictures_have_the_folder_that_the_host_passes_them_through(
    page: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hosts make it only when the setting is changed; Forge Neo has one from the start."""
    from modules import shared

    from trust_webui import job_status
    from trust_webui.jobs import Job

    monkeypatch.setattr(job_status, "EVERY", 0.01)
    passing = tmp_path / "data" / "tmp"
    job = Job("unlearn", "gun", state="running", curves={"a gun": [(1.0, 0.1), (0.5, 0.1)]})
    for chosen in (None, "", str(passing)):
        shared.opts.temp_dir = chosen
        assert next(job_status.followed(job))[2] is not None
    assert passing.is_dir(), "there before the chart is handed over"
    passing.rmdir()
    passing.write_text("in the way")
    told, *rest, report, _ = next(job_status.followed(job))
    assert "nothing can be written to" in told and rest == [[], None, None] and report == ""


def test_the_partner_appears_with_the_kind(page: Any) -> None:
    """A field of no use to the kind is out of sight, unless it is filled; then it is an error."""
    partner = by_id("trust_partner")
    assert partner.settings["visible"] is False
    (follow,) = [call for call, _, outputs in by_id("trust_kind").listeners if outputs == [partner]]
    assert follow("single", "")["visible"] is False and follow("style", " ")["visible"] is False
    assert follow("combination", "")["visible"] and follow("conditional", "")["visible"]
    assert follow("combination", "")["label"] != follow("conditional", "")["label"]
    filled = follow("single", "beer")
    assert filled["visible"] and "of no use" in filled["label"]
    for kind in ("single", "style"):
        answer = press("trust_unlearn", trust_words="gun", trust_kind=kind, trust_partner="beer")
        assert "does not use" in answer["trust_status"], "not ignored: all guns would go"
    (shown,) = [c for c in MADE if c.settings.get("label") == "Error (low rank)"]
    ((appear, _, _),) = by_id("trust_format").listeners
    assert shown.settings["visible"] is False and appear("low rank")["visible"] is True


def test_a_whole_checkpoint_takes_its_description_along(
    page: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A1111 reads a model's kind from the .yaml beside it."""
    from modules import sd_models

    from trust_engine.models.load import DEMO
    from trust_webui import tab_files

    checkpoints = page.folder.parent / "Stable-diffusion"
    checkpoints.mkdir()
    base = checkpoints / "mine.safetensors"
    base.symlink_to(DEMO)
    page.model.sd_checkpoint_info.filename = str(base)
    assert sd_models.model_data.sd_model is page.model
    diff = some_diff(demo_model().denoiser)
    small = {k: o.with_values(0.01 * o.values) for k, o in diff.offsets.items()}
    save_diff(WeightDiff(small, {"family": "demo"}), page.folder / "gun.safetensors")
    told = tab_files._checkpoint("gun.safetensors", 1.0)
    assert "mine-gun.safetensors" in told and not list(checkpoints.glob("*.yaml"))
    base.with_suffix(".yaml").write_text("model: demo", encoding="utf-8")
    tab_files._checkpoint("gun.safetensors", 1.0)
    written = checkpoints / "mine-gun-2.safetensors"
    assert written.is_file()
    assert written.with_suffix(".yaml").read_text("utf-8") == "model: demo"
