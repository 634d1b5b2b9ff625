"""What the nodes say of themselves: ids, tooltips, defaults, both languages, help pages."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
from pathlib import Path
from typing import Any

import pytest

from fakes.comfy_pack import Part
from hosts.comfy_prompts import hurry
from trust_engine.spec import UnlearnSpec

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = ("en", "de")
IDS = {
    "TrustDemoModel", "TrustConcept", "TrustFindNeurons", "TrustPrompts", "TrustUnlearn",
    "TrustUnlearnSettings", "TrustSaveDiff", "TrustLoadDiff", "TrustApplyDiff", "TrustMergeDiffs",
    "TrustExportLora", "TrustCompare", "TrustAudit",
}  # fmt: skip


@pytest.fixture
def nodes(part: Part) -> dict[str, Any]:
    """Return the node classes by id."""
    return part("").NODE_CLASS_MAPPINGS


def declared(node: Any) -> dict[str, Any]:
    """Return a node's visible inputs."""
    told = node.INPUT_TYPES()
    return {**told.get("required", {}), **told.get("optional", {})}


def escaped(text: str) -> str:
    """Write a text for the browser's catalogue, in which braces and some signs have a meaning."""
    for sign in ("{}", "@", "|"):
        text = text.replace(sign, "{'" + sign + "'}")
    return text


def english(part: Part) -> dict[str, Any]:
    """Collect what the nodes say, in the shape of nodeDefs.json."""
    pack, catalogue = part(""), {}
    for key, node in pack.NODE_CLASS_MAPPINGS.items():
        names = getattr(node, "RETURN_NAMES", node.RETURN_TYPES)
        outputs = zip(names, node.OUTPUT_TOOLTIPS, strict=True)
        catalogue[key] = {
            "display_name": pack.NODE_DISPLAY_NAME_MAPPINGS[key],
            "description": escaped(node.DESCRIPTION),
            "inputs": {
                name: {"name": name, "tooltip": escaped(told[1]["tooltip"])}
                for name, told in declared(node).items()
            },
            "outputs": {
                str(i): {"name": name, "tooltip": escaped(tooltip)}
                for i, (name, tooltip) in enumerate(outputs)
            },
        }
    return catalogue


def test_ids_stay(part: Part, nodes: dict[str, Any]) -> None:
    assert set(nodes) == IDS, "ids are in users' workflows"
    assert all(node.CATEGORY == "TRUST" for node in nodes.values())


def test_the_hosts_tests_fill_all_settings(nodes: dict[str, Any]) -> None:
    assert list(hurry()["inputs"]) == list(declared(nodes["TrustUnlearnSettings"]))


def test_every_input_is_explained_and_taken(part: Part, nodes: dict[str, Any]) -> None:
    for key, node in nodes.items():
        taken = inspect.signature(getattr(node, node.FUNCTION)).parameters
        loose = any(one.kind is one.VAR_KEYWORD for one in taken.values())
        for name, (kind, options) in declared(node).items():
            assert options["tooltip"].endswith("."), (key, name)
            assert loose or name in taken, (key, name)
            if isinstance(kind, list):
                assert options["default"] in kind, (key, name)
        assert len(node.OUTPUT_TOOLTIPS) == len(node.RETURN_TYPES), key
        for name in node.INPUT_TYPES().get("optional", {}):
            assert loose or taken[name].default is not inspect.Parameter.empty, (key, name)


def test_defaults_are_the_engines(part: Part, nodes: dict[str, Any]) -> None:
    spec = {field.name: field.default for field in dataclasses.fields(UnlearnSpec)}
    seen = set()
    for key in ("TrustUnlearn", "TrustUnlearnSettings", "TrustFindNeurons", "TrustPrompts"):
        for name, (_, options) in declared(nodes[key]).items():
            if name in spec and name not in ("seed", "stays"):
                assert options["default"] == spec[name], (key, name)
                seen.add(name)
    # Words, steps, seed and pictures of what must stay have inputs of their own.
    assert set(spec) - seen == {"concepts", "steps", "seed", "stays", "ablation"}


def test_unlearns_values_keep_their_places(nodes: dict[str, Any]) -> None:
    """A saved workflow has a list of values; what is added comes last."""
    kinds = {name: told[0] for name, told in declared(nodes["TrustUnlearn"]).items()}
    values = ("INT", "FLOAT", "STRING", "BOOLEAN")
    assert [name for name, kind in kinds.items() if isinstance(kind, list) or kind in values] == [
        "objective", "engine", "effort", "budget", "robust", "seed", "pictures", "stays"
    ]  # fmt: skip


def test_untouched_settings_change_nothing(part: Part, nodes: dict[str, Any]) -> None:
    values = {name: told[1]["default"] for name, told in
              declared(nodes["TrustUnlearnSettings"]).items()}  # fmt: skip
    with_node = nodes["TrustUnlearnSettings"]().collect(**values)[0]
    compose, concept = part("nodes.settings").compose, nodes["TrustConcept"]().describe
    (one,) = concept("gun", "single")
    assert compose(one, with_node, "normal") == compose(one, None, "normal")
    own = part("trust_engine.spec").UnlearnSpec(one)
    assert compose(one, None, "normal") == own


@pytest.mark.parametrize("language", LANGUAGES)
def test_catalogue_is_whole(part: Part, language: str) -> None:
    """TRUST_WRITE_LOCALES=1 writes the English one anew from the nodes."""
    path, wanted = ROOT / "locales" / language / "nodeDefs.json", english(part)
    if language == "en" and os.environ.get("TRUST_WRITE_LOCALES"):
        path.write_text(json.dumps(wanted, indent=2, ensure_ascii=False) + "\n", "utf-8")
    found = json.loads(path.read_text("utf-8"))
    assert set(found) == set(wanted)
    for key, node in wanted.items():
        for part_of in ("inputs", "outputs"):
            assert list(found[key][part_of]) == list(node[part_of]), (language, key)
            assert all(said["name"] and said["tooltip"] for said in found[key][part_of].values())
        assert found[key]["display_name"] and found[key]["description"]
    assert language != "en" or found == wanted, "run with TRUST_WRITE_LOCALES=1"


def test_every_node_has_a_help_page(part: Part, nodes: dict[str, Any]) -> None:
    for key, node in nodes.items():
        text = (ROOT / "web" / "docs" / f"{key}.md").read_text("utf-8")
        assert text.startswith("# TRUST "), key
        for name in declared(node):
            assert f"`{name}`" in text, f"{key}.md does not explain {name}"
