"""A cached node's chart is found again by what the node was asked."""

from __future__ import annotations

import copy
import json
from types import SimpleNamespace
from typing import Any

import pytest

from fakes.comfy import Host, Patcher
from fakes.comfy_pack import Part, unlearn

PROMPT = {
    "1": {"class_type": "TrustDemoModel", "inputs": {}},
    "10": {"class_type": "TrustConcept", "inputs": {"words": "gun", "kind": "single"}},
    "11": {"class_type": "TrustUnlearn",
           "inputs": {"model": ["1", 0], "clip": ["1", 1], "concept": ["10", 0], "seed": 0}},
    "12": {"class_type": "PreviewImage", "inputs": {"images": ["11", 2]}},
}  # fmt: skip


def changed(node: str, **inputs: Any) -> dict[str, Any]:
    """Return the prompt with other inputs at a node."""
    other = copy.deepcopy(PROMPT)
    other[node]["inputs"].update(inputs)
    return other


def test_same_question_same_chart(part: Part) -> None:
    recall = part("nodes.run_cache")
    recall.remember(PROMPT, "11", {"steps": 3})
    assert recall.recalled(copy.deepcopy(PROMPT), "11") == {"steps": 3}
    assert recall.recalled(changed("12", images=["11", 1]), "11"), "what comes after does not count"
    assert recall.recalled(changed("10", words="cat"), "11") is None
    assert recall.recalled(changed("11", seed=1), "11") is None
    assert recall.recalled(PROMPT, "99") is recall.recalled(None, "11") is None
    renamed = {"3:" + key: told for key, told in changed("11").items()}
    for told in renamed.values():
        for name, value in told["inputs"].items():
            if isinstance(value, list):
                told["inputs"][name] = ["3:" + value[0], value[1]]
    assert recall.recalled(renamed, "3:11") == {"steps": 3}


def test_old_runs_are_forgotten(part: Part) -> None:
    recall = part("nodes.run_cache")
    for seed in range(recall.KEPT + 1):
        recall.remember(changed("11", seed=seed), "11", {"steps": seed})
    assert recall.recalled(changed("11", seed=0), "11") is None
    assert recall.recalled(changed("11", seed=recall.KEPT), "11") == {"steps": recall.KEPT}
    recall.remember(None, "11", {})
    recall.remember(PROMPT, "99", {})
    assert len(recall._shown) == recall.KEPT


def test_the_node_keeps_what_it_showed(part: Part, host: Host, model: Patcher) -> None:
    prompt = changed("11", seed=77)
    told = unlearn(part, model, unique_id="11", prompt=prompt, whole=True)
    assert part("nodes.run_cache").recalled(prompt, "11") == json.loads(told["ui"]["trust_run"][0])


@pytest.mark.parametrize("where", ["running", "over", "nowhere"])
def test_a_prompt_is_found_by_its_id(part: Part, where: str) -> None:
    item = (1, "the id", PROMPT, {}, [])
    queue = SimpleNamespace(
        get_current_queue=lambda: ([item] if where == "running" else [], []),
        get_history=lambda prompt_id: {prompt_id: {"prompt": item}} if where == "over" else {},
    )
    found = part("nodes.routes").prompt_of(queue, "the id")
    assert found == (None if where == "nowhere" else PROMPT)
