"""TRUST Prompts lists what a run uses; Unlearn draws what `stays` says. The model stays."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from fakes.comfy import Clip, Host, InterruptProcessingException, Patcher, fake_model
from fakes.comfy_pack import Part, concept, content, frozen, quick, unlearn

MINE = "  a boat on the sea \n\n a tree, a fence\n"


def prompts(part: Part, model: Patcher, robust: bool = False, **changes: Any) -> Any:
    """Run the Prompts node as the host does: in inference mode."""
    told = {"clip": Clip(), "concept": concept(part), "settings": quick(part, passes=16), **changes}
    with torch.inference_mode():
        return (
            part("nodes.prompts")
            .TrustPrompts()
            .show(model=model, robust=robust, unique_id="5", **told)
        )


def robustly(part: Part, model: Patcher, **changes: Any) -> Any:
    """Unlearn in robust mode, on as few pictures as can be."""
    return unlearn(part, model, robust=True, settings=quick(part, passes=16), **changes)


@pytest.fixture
def drawn(part: Part, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Collect what is handed to the stage that draws pictures."""
    stage, lists = part("trust_engine.unlearn.scrubbing.picture_stage").PictureStage, list[Any]()
    begin = stage.__init__

    def noted(of: Any, model: Any, spec: Any, listed: Any, *more: Any) -> None:
        lists.append(listed)
        begin(of, model, spec, listed, *more)

    monkeypatch.setattr(stage, "__init__", noted)
    return lists


def test_shows_what_is_erased_and_what_stays(part: Part, host: Host, model: Patcher) -> None:
    before = frozen(model)
    answer = prompts(part, model)
    text, stays = answer["result"]
    (shown,) = answer["ui"]["text"]
    assert shown.endswith(text) and stays == ""
    erased, kept = text.split(" prompts must be answered as before:\n")
    assert "13 prompts are erased, each answered as" in erased
    assert "\n  a gun -> (the empty prompt)\n" in erased and "cat" not in erased
    assert "a picture of a cat" in kept and "gun" not in kept and "pictures show" not in text
    assert host.passes > 0 and host.updates > 1, "the model was asked, under the progress bar"
    assert frozen(model) == before and not model.patches


def test_robust_modes_pictures_are_those_of_the_run(
    part: Part, host: Host, model: Patcher, drawn: list[Any]
) -> None:
    """Handed on unedited, they change nothing in the diff."""
    before = frozen(model)
    text, stays = prompts(part, model, robust=True)["result"]
    listed = stays.splitlines()
    assert f"{len(listed)} pictures show what must stay:" in text and "pictures show gun:" in text
    assert all(f"  {prompt}\n" in f"{text}\n" for prompt in listed) and len(listed) > 2
    assert frozen(model) == before and not model.patches
    plain = content_of(robustly(part, model)[1])
    assert drawn[0].rest == tuple(listed)
    assert content_of(robustly(part, model, stays=stays)[1]) == plain
    assert drawn[1].rest == drawn[0].rest


def content_of(diff: Any) -> dict[str, bytes]:
    """Spell a diff of factors out, for comparison to the bit."""
    return {key: offset.dense().numpy().tobytes() for key, offset in diff.offsets.items()}


def test_stays_decides_what_is_drawn_and_is_in_the_diffs_spec(
    part: Part, host: Host, model: Patcher, drawn: list[Any]
) -> None:
    before = frozen(model)
    _, diff, _, report = robustly(part, model, stays=MINE)
    (lists,) = drawn
    wanted = ("a boat on the sea", "a tree, a fence")
    assert lists.rest == wanted and set(wanted) <= set(lists.prompts)
    assert json.loads(diff.provenance["spec"])["stays"] == list(wanted)
    assert "2 of what must stay, such as a boat on the sea, a tree, a fence." in report
    own = robustly(part, model)[1]
    assert "stays" not in json.loads(own.provenance["spec"])
    assert content_of(own) != content_of(diff)
    assert frozen(model) == before


def test_an_empty_list_is_none(part: Part, host: Host, model: Patcher) -> None:
    """What Prompts gives without robust, and a field that was left alone."""
    plain = unlearn(part, model)[1]
    diff = unlearn(part, model, stays=" \n")[1]
    assert content(diff) == content(plain)
    assert diff.provenance["spec"] == plain.provenance["spec"]


REFUSED = [
    ("a boat", False, "`stays` lists pictures, which only robust mode draws; switch `robust` on"),
    ("a boat\n...", True, "`stays` '...' has no word in it"),
    ("a boat\n" * 2001, True, "`stays` lists 2,001 pictures; use at most 2,000"),
]


@pytest.mark.parametrize(("stays", "robust", "text"), REFUSED, ids=["alone", "word", "many"])
def test_what_no_run_would_draw_is_refused_before_anything_is_loaded(
    part: Part, stays: str, robust: bool, text: str
) -> None:
    """When it is queued, or, of what comes over a link, before the model is touched."""
    node = part("nodes.unlearn").TrustUnlearn
    assert node.VALIDATE_INPUTS(stays=stays, robust=robust).startswith(text)
    for linked in ({"stays": None, "robust": robust}, {"stays": stays, "robust": None}):
        assert node.VALIDATE_INPUTS(**linked) is True
    with pytest.raises(part("trust_engine.errors").SpecError) as error:
        unlearn(part, None, stays=stays, robust=robust, clip=None)  # type: ignore[arg-type]
    assert str(error.value).startswith(text)


def test_the_concept_itself_cannot_stay(part: Part, host: Host, model: Patcher) -> None:
    node = part("nodes.unlearn").TrustUnlearn
    stays = "a boat\na gun on a table"
    assert node.VALIDATE_INPUTS(stays=stays, robust=True) is True, "the concept is linked"
    with pytest.raises(part("trust_engine.errors").SpecError) as error:
        robustly(part, model, stays=stays)
    assert str(error.value) == (
        "`stays` shows what is to be forgotten ('a gun on a table'); take it out"
    )
    assert host.passes == 0


@pytest.mark.parametrize("robust", [False, True])
def test_cancel_while_it_asks(part: Part, host: Host, model: Patcher, robust: bool) -> None:
    before = frozen(model)
    prompts(part, model, robust)
    calls, host.passes = host.passes, 0
    assert calls > 2
    for at in (2, calls):
        host.passes, host.press_at = 0, at
        with pytest.raises(InterruptProcessingException):
            prompts(part, model, robust)
        assert host.passes == at and host.late == 0, "it stopped at once"
        assert frozen(model) == before and not model.patches
    host.updates, host.interrupt_at = 0, 1
    with pytest.raises(InterruptProcessingException):
        prompts(part, model, robust)
    host.interrupt_at = None
    assert prompts(part, model, robust)["result"][0], "and the next job runs"


def test_out_of_memory_is_retried_and_said(part: Part, host: Host, model: Patcher) -> None:
    wanted = prompts(part, model)["result"]
    host.out_of_memory = 1
    answer = prompts(part, model)
    assert answer["result"] == wanted
    assert answer["ui"]["text"][0].startswith("out of memory")
    host.out_of_memory = 2
    with pytest.raises(part("trust_engine.errors").ModelError, match="lower `resolution`"):
        prompts(part, model)


def test_what_the_model_does_not_know_is_said_first(
    part: Part, host: Host, model: Patcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    cls = part("trust_engine.unlearn.run").Unlearning
    monkeypatch.setattr(cls, "warnings", property(lambda run: ("nobody knows it",)))
    answer = prompts(part, model)
    text = answer["result"][0]
    assert answer["ui"]["text"] == [f"Nobody knows it.\n{text}"]


def test_a_chain_lists_each_concepts_pictures(part: Part, host: Host) -> None:
    both = concept(part, "beer", and_also=concept(part))
    text, stays = prompts(part, fake_model(host), robust=True, concept=both)["result"]
    assert "pictures show gun:" in text and "pictures show beer:" in text
    assert not any("gun" in line or "beer" in line for line in stays.splitlines())
