"""The prompts of a run, listed before it is started: by the job, on the page and by the API."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fakes.webui import MADE, App, Component, HTTPException, installed
from fakes.webui_a1111 import FakeA1111
from fakes.webui_forge import FakeForge
from fakes.webui_neo import FakeNeo
from hosts.webui_lent import GUN, SHORT, small
from trust_engine.spec import ConceptSpec

STAYS = ("a cat, asleep", "a dog and a car")


@pytest.fixture(params=[FakeA1111, FakeForge, FakeNeo])
def fake(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """Be in a pretended host."""
    made = request.param()
    with installed(tmp_path, made.modules):
        made.folder = tmp_path
        yield made


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Be in a pretended A1111 with its API on and the tab built."""
    made: Any = FakeA1111()
    with installed(tmp_path, made.modules) as shared:
        shared.cmd_opts.api, made.app = True, App()
        MADE.clear()
        from trust_webui import api, job_status, tab

        monkeypatch.setattr(job_status, "EVERY", 0.02)
        tab.build()
        api.add(None, made.app)
        yield made


def listing(order: Any) -> Any:
    """Run the job here and now."""
    from trust_webui.jobs import PROMPTS, Job, run
    from trust_webui.prompts_job import list_prompts

    job = Job(PROMPTS, order.spec.name)
    run(job, list_prompts(order))
    return job


def by_id(name: str) -> Component:
    """Find a component."""
    (found,) = [c for c in MADE if c.settings.get("elem_id") == name]
    return found


def answers(button: str, **values: Any) -> Iterator[dict[str, Any]]:
    """Press a button as a page of a token; yields its answers by elem_id."""
    ((call, inputs, outputs),) = by_id(button).listeners
    names = [str(c.settings.get("elem_id")) for c in outputs]
    given = [
        "mine" if c.settings == {"value": ""} else values.get(c.settings.get("elem_id"), c.value)
        for c in inputs
    ]
    answer = call(*given)
    for listed in [answer] if isinstance(answer, str) else answer:
        whole = listed if isinstance(listed, tuple) else (listed,)
        yield dict(zip(names, whole, strict=True))


def until(condition: Callable[[], Any]) -> Any:
    """Wait for something to become true, and return it."""
    for _ in range(2000):
        if found := condition():
            return found
        time.sleep(0.01)
    raise AssertionError("it does not come about")


def test_lists_what_a_run_erases_and_preserves(fake: Any) -> None:
    clean, files = fake.bits(), sorted(fake.folder.rglob("*"))
    job = listing(small())
    assert (job.state, job.message) == ("done", "")
    told = job.to_dict()["result"]
    assert [target for target, _ in told["erased"]][:1] == ["a picture of a gun"]
    assert set(told) == {"erased", "preserved"} and "a cat" in told["preserved"]
    text = str(job.result)
    assert f"{len(told['erased'])} prompts are erased" in text and "pictures show" not in text
    assert all(f"  {target} -> " in text for target, _ in told["erased"])
    assert 0 < job.done == job.total, "the model has been asked"
    assert all(torch.equal(w, clean[name]) for name, w in fake.bits().items())
    assert sorted(fake.folder.rglob("*")) == files, "nothing is written"


def test_lists_what_robust_mode_draws(fake: Any) -> None:
    own = listing(small(robust=True)).to_dict()["result"]
    assert set(own["shown"]) == {"gun"} and all("gun" in p for p in own["shown"]["gun"])
    assert "a cat" in own["stays"] and not any("gun" in prompt for prompt in own["stays"])
    clean = fake.bits()
    job = listing(small(robust=True, stays=STAYS))
    assert job.to_dict()["result"]["stays"] == list(STAYS)
    assert "2 pictures show what must stay:\n  a cat, asleep\n  a dog and a car" in str(job.result)
    assert all(torch.equal(w, clean[name]) for name, w in fake.bits().items())


def test_what_the_model_says_is_listed(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it draws as the concept is preserved no longer, and a warning stands beside the list."""
    from trust_engine.unlearn.word_knowledge import Knowledge, Word
    from trust_webui import prompts_job

    def ask(run: Any) -> Iterator[Any]:
        yield from ()
        run._learn(Knowledge((Word("gun", 0.0, False),), ("knife",), 1))

    free = small(ConceptSpec(("gun",), templates=GUN.templates))
    monkeypatch.setattr(prompts_job.Unlearning, "ask", lambda run: iter(()))
    assert "a picture of a knife" in listing(free).result.preserved, "proposed, unless asked"
    monkeypatch.setattr(prompts_job.Unlearning, "ask", ask)
    job = listing(free)
    assert not any("knife" in prompt for prompt in job.result.preserved)
    assert any("gun" in line and line.endswith(".") for line in job.said)


def test_the_button_shows_the_list_and_no_pictures(page: Any) -> None:
    typed = {"trust_words": "gun", "trust_robust": True, "trust_templates": "a {}, drawn\n\n{} \n",
             "trust_stays": "\n".join(STAYS), "trust_resolution": 64}  # fmt: skip
    first, *_, last = answers("trust_prompts", **typed)
    assert "appears under <b>Report</b>" in first["trust_refusal"]  # which may be out of sight
    assert "trust_state_done" in last["trust_status"], last["trust_status"]
    assert "Prompts for <b>gun</b>" in last["trust_status"]
    report = last["trust_report"]
    assert "a gun, drawn -> " in report and "  a dog and a car" in report
    assert [last[name] for name in ("trust_gallery", "trust_chart", "trust_neurons")] == [
        [], None, None,
    ]  # fmt: skip
    *_, again = answers("trust_again")
    assert again["trust_report"] == report


def test_stop_while_the_model_is_asked(page: Any) -> None:
    from trust_webui.jobs import JOBS, PROMPTS

    def slow(*_: Any) -> None:
        time.sleep(0.1)

    clean = page.bits()
    page.unet.register_forward_pre_hook(slow)
    shown = answers("trust_prompts", trust_words="gun", trust_resolution=64)
    next(shown)
    job = JOBS.latest(PROMPTS)
    assert job is not None and job.owner == "mine"
    until(lambda: job.stage == "asking what the model knows" or job.over)
    assert job.state == "running", job.message
    (said,) = answers("trust_stop")
    assert "stopping" in said["trust_status"] or "stopped" in said["trust_status"]
    *_, last = shown
    assert job.state == "stopped" and "trust_state_stopped" in last["trust_status"]
    assert last["trust_report"] == "" and job.done < job.total
    assert all(torch.equal(w, clean[name]) for name, w in page.bits().items())


@pytest.mark.parametrize("button", ["trust_prompts", "trust_unlearn"])
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"trust_stays": "a cat"},
            "Pictures of what must stay (robust) lists pictures, which only robust mode draws; "
            "switch Robust on",
        ),
        (
            {"trust_stays": "a dog\na gun, shot", "trust_robust": True},
            "Pictures of what must stay (robust) shows what is to be forgotten",
        ),
        ({"trust_stays": "?!", "trust_robust": True}, "Pictures of what must stay (robust) &#x27;"),
        ({"trust_templates": "a photo"}, "Sentences of your own &#x27;a photo&#x27; needs {} once"),
        ({"trust_templates": "?!"}, "Sentences of your own &#x27;?!&#x27; has no word"),
    ],
)
def test_refusals_name_the_field(page: Any, button: str, fields: dict[str, Any], said: str) -> None:
    from trust_webui.jobs import JOBS

    (answer,) = answers(button, trust_words="gun", **fields)
    assert said in answer["trust_status"]
    assert JOBS.all() == [], "refused before any job"


def asked(page: Any, route: str, body: dict[str, Any]) -> dict[str, Any]:
    """Begin a job by the API, and wait until it is over."""
    started = page.app.call("POST", route, body=body)["job"]

    def over() -> Any:
        told = page.app.call("GET", "/jobs/{identity}", identity=started)
        return told if told["state"] in ("done", "failed", "stopped") else None

    found: dict[str, Any] = until(over)
    return found


def test_the_api_lists_them(page: Any) -> None:
    concept = {"words": ["gun"], "templates": ["a {}, drawn", "{} on a table"]}
    spec = {"robust": True, "stays": list(STAYS)}
    told = asked(page, "/prompts", {"concepts": [concept], "spec": spec, "resolution": 64})
    assert (told["state"], told["kind"], told["owner"]) == ("done", "prompts", "program"), told
    assert told["result"]["stays"] == list(STAYS) and set(told["result"]["shown"]) == {"gun"}
    assert "a gun, drawn" in [target for target, _ in told["result"]["erased"]]


def test_the_api_unlearns_with_them(page: Any) -> None:
    concept = {"words": ["gun"], "preserve": ["a cat"], "templates": list(GUN.templates)}
    spec = {**SHORT, "robust": True, "stays": list(STAYS)}
    body = {"concepts": [concept], "spec": spec, "resolution": 64, "pictures": 0}
    told = asked(page, "/unlearn", body)
    assert told["state"] == "done", told["message"]
    assert "2 of what must stay, such as a cat, asleep, a dog and" in told["result"]["report"]


@pytest.mark.parametrize("route", ["/prompts", "/unlearn", "/expect"])
def test_the_api_refuses_before_any_job(page: Any, route: str) -> None:
    body = {"concepts": [{"words": ["gun"]}], "spec": {"stays": list(STAYS)}}
    with pytest.raises(HTTPException, match="stays lists pictures, which only robust") as caught:
        page.app.call("POST", route, body=body)
    assert caught.value.status_code == 422 and page.app.call("GET", "/jobs") == []
