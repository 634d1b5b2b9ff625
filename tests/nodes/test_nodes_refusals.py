"""Bad input is refused before anything runs, at the node that has it, in one sentence."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fakes.comfy import Clip, Host, Patcher, Vae, fake_model
from fakes.comfy_pack import Part, concept, unlearn

WORKFLOWS = sorted((Path(__file__).resolve().parents[2] / "example_workflows").glob("*.json"))


def refused(node: Any, **inputs: Any) -> str:
    """Ask a node as the host does before it runs; what it says, "" if it has nothing against it."""
    told = node.VALIDATE_INPUTS(**inputs)
    return "" if told is True else told


def validating(part: Part) -> dict[str, Any]:
    """List the nodes that are asked."""
    return {
        key: node
        for key, node in part("").NODE_CLASS_MAPPINGS.items()
        if hasattr(node, "VALIDATE_INPUTS")
    }


def test_only_texts_are_asked_for(part: Part) -> None:
    """The host drops its own checks, of ranges and choices, for each input that is named."""
    found = validating(part)
    assert {"TrustConcept", "TrustAudit", "TrustCompare", "TrustSaveDiff", "TrustExportLora",
            "TrustLoadDiff", "TrustUnlearn"} <= set(found)  # fmt: skip
    for key, node in found.items():
        declared = {**node.INPUT_TYPES()["required"], **node.INPUT_TYPES().get("optional", {})}
        for name, told in inspect.signature(node.VALIDATE_INPUTS).parameters.items():
            kind = declared[name][0]
            assert kind == "STRING" or (key, name) in {
                ("TrustConcept", "kind"), ("TrustLoadDiff", "diff_name"),
                ("TrustUnlearn", "robust")}, (key, name)  # fmt: skip
            assert told.default is None, "what comes over a link is left out, or None"
        assert refused(node) == "", f"{key} with all its inputs linked"


@pytest.mark.parametrize(
    ("told", "text"),
    [
        ({"words": " , "}, "there is no concept: write a word or phrase into `words`"),
        ({"words": ""}, "there is no concept"),
        ({"words": "", "kind": None}, "there is no concept"),
        ({"kind": "combination"}, "a combination concept needs a second part: name in `partner`"),
        ({"kind": "conditional", "partner": " "}, "a conditional concept needs a second part"),
        ({"partner": "beer"}, "`partner` ('beer') belongs to kinds combination and conditional"),
        ({"kind": "combination", "partner": "beer, wine"}, "`partner` names 2 things (beer, wine)"),
        ({"kind": "else"}, "`kind` is 'else'; choose single"),
        ({"kind": "combination", "partner": "gun"}, "equals the concept"),
    ],
)
def test_concepts(part: Part, told: dict, text: str) -> None:
    node = part("nodes.concept").TrustConcept
    asked = {"words": "gun", "kind": "single", "partner": "", **told}
    assert text in refused(node, **asked)
    if None not in asked.values():
        with pytest.raises(part("trust_engine.errors").SpecError) as error:
            node().describe(**asked)
        assert text in str(error.value)


def test_a_good_concept(part: Part) -> None:
    node = part("nodes.concept").TrustConcept
    asked = {"words": "gun", "kind": "conditional", "partner": "on a table, by a window"}
    assert refused(node, **asked) == ""
    assert node().describe(**asked)[0][0].condition == "on a table, by a window"
    assert refused(node, words="gun, pistol", kind="combination", partner="beer,") == ""
    assert refused(node, words="gun", kind="combination", partner=None) == "", "it is linked"


NAMES = [
    ("", "there is no file name"),
    ("  ", "there is no file name"),
    ("folder/", "there is no file name"),
    ("con:<>|", "holds ':', which Windows takes in no name"),
    ("CON", "is a device's name in Windows"),
    ("lpt1.txt", "is a device's name in Windows"),
    ("folder/aux/gun", "is a device's name in Windows"),
    ("a\\b", "which Windows takes in no name"),
    ("gun\0", "which Windows takes in no name"),
    ("gun\n", "which Windows takes in no name"),
    (".gun", "would be hidden"),
    ("../gun", "leads out of the folder"),
    ("/etc/gun", "leads out of the folder"),
    ("a//gun", "is no folder's name"),
    ("gun.", "begins or ends with a blank or a dot"),
    ("a /gun", "begins or ends with a blank or a dot"),
    ("\u200bgun", "holds a character that cannot be seen"),
    ("g" * 300, "is longer than 200 bytes"),
    ("猫" * 70, "is longer than 200 bytes"),
]


@pytest.mark.parametrize(("prefix", "text"), NAMES, ids=[repr(n)[:20] for n, _ in NAMES])
def test_names_that_not_every_system_takes(
    part: Part, models: Path, prefix: str, text: str
) -> None:
    for key in ("TrustSaveDiff", "TrustExportLora", "TrustAudit"):
        said = refused(validating(part)[key], filename_prefix=prefix)
        assert text in said and "`filename_prefix`" in said and len(said) < 200
    diff = part("trust_engine.diff").WeightDiff({}, {"concepts": "gun"})
    before = sorted(models.rglob("*"))
    with pytest.raises(part("trust_engine.errors").OutputError):
        part("nodes.saving").TrustSaveDiff().save(diff, prefix)
    assert sorted(models.rglob("*")) == before, "and no folder is left behind"


@pytest.mark.parametrize("prefix", ["gun", "diffs/gun", "猫", "my gun 2", "%year%-gun", "console"])
def test_names_that_all_take(part: Part, prefix: str) -> None:
    assert refused(validating(part)["TrustSaveDiff"], filename_prefix=prefix) == ""


def test_the_judge_is_looked_for_before_training(part: Part, tmp_path: Path) -> None:
    node = part("nodes.audit").TrustAudit
    assert refused(node, judge="demo", retain="", filename_prefix="page") == ""
    said = refused(node, judge="clip:/nowhere")
    assert said.startswith("`judge` 'clip:/nowhere' is neither demo, nudenet") and "--" not in said
    assert "empty it" in refused(node, judge="demo", retain="cat")
    assert refused(node, judge=f"clip:{tmp_path}", retain="cat") == ""


def test_a_judge_that_is_not_installed(part: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    audit, judges = part("nodes.audit"), part("trust_engine.audit.judges.catalogue")
    monkeypatch.setattr(judges.importlib.util, "find_spec", lambda name: None)
    assert "pip install nudenet" in refused(audit.TrustAudit, judge="nudenet")
    assert judges.explained() in audit.TrustAudit.INPUT_TYPES()["required"]["judge"][1]["tooltip"]


@pytest.mark.parametrize(
    ("told", "text"),
    [
        ({"prompts": " \n"}, "there is no prompt"),
        ({"seeds": "one"}, "are not whole numbers"),
        ({"seeds": ""}, "seeds are missing"),
        ({"prompts": "a\n" * 65, "seeds": "1"}, "more than 64 pictures"),
        ({"prompts": "a\nb", "seeds": "1, 2"}, ""),
        ({"prompts": None, "seeds": "1, x"}, "are not whole numbers"),
    ],
)
def test_pictures_to_compare(part: Part, told: dict, text: str) -> None:
    said = refused(part("nodes.compare").TrustCompare, **told)
    assert text in said and bool(said) == bool(text)


def test_a_diff_that_is_not_there(part: Part) -> None:
    node = part("nodes.diffs").TrustLoadDiff
    assert "press R to list it" in refused(node, diff_name="lost.safetensors")
    said = refused(node, diff_name=part("nodes.folders").NO_FILES)
    assert said.startswith("there is no diff in the folder trust_diffs yet: make one with Unlearn")


class Sdxl(Clip):
    """A CLIP of another family: it writes more numbers a token."""

    def encode_from_tokens(self, tokens: dict, return_pooled: bool = False) -> Any:
        context, pooled = super().encode_from_tokens(tokens, return_pooled)
        return torch.cat([context, context], -1), pooled


def test_the_clip_of_another_family(part: Part, host: Host, model: Patcher) -> None:
    errors, other = part("trust_engine.errors"), Sdxl()
    find, compare = (
        part("nodes.find_neurons").TrustFindNeurons(),
        part("nodes.compare").TrustCompare(),
    )
    audit = part("nodes.audit").TrustAudit()
    after = unlearn(part, model)[0]
    passes = host.passes
    asked = {
        "unlearn": lambda: unlearn(part, model, clip=other),
        "robust": lambda: unlearn(part, model, clip=other, robust=True),
        "find": lambda: find.find(model, other, concept(part), 0.05, 0),
        "compare": lambda: compare.compare(
            model, after, other, Vae(), "a", "1", 1, 1.0, "euler", "normal", 64
        ),
        "audit": lambda: audit.audit(
            model, after, other, Vae(), concept(part), "quick", "demo", 1, 0, "page"
        ),
    }
    for name, ask in asked.items():
        with torch.inference_mode(), pytest.raises(errors.ModelError) as error:
            ask()
        assert str(error.value).startswith("the CLIP does not belong to the model: "), name
        assert "6 numbers a token" in str(error.value) and "(12)" in str(error.value)
    assert host.passes == passes, "before any work"


def test_families_are_named(part: Part, host: Host) -> None:
    class Weights:
        shapes = {"a.attn2.to_k.weight": (640, 2048)}  # noqa: RUF012
        projections = ["a.attn2.to_k.weight"]  # noqa: RUF012

    class Given:
        def tokenize(self, text: str) -> str:
            return text

        def encode_from_tokens(self, _tokens: str, return_pooled: bool) -> Any:
            return torch.zeros(1, 77, 768), None

    with pytest.raises(part("trust_engine.errors").ModelError) as error:
        part("nodes.lending").check_clip(Given(), Weights())
    assert "texts of SDXL (2048 numbers a token), the CLIP writes those of SD 1.x (768)" in str(
        error.value
    )


def test_errors_have_short_names(part: Part) -> None:
    """The host shows a kind of error as its module's name and its own."""
    errors = part("trust_engine.errors")
    for kind in (errors.SpecError, errors.ModelError, errors.DiffError, errors.OutputError):
        assert f"{kind.__module__}.{kind.__qualname__}" == f"TRUST.{kind.__name__}"


@pytest.mark.parametrize(
    ("field", "remedy", "wanted"),
    [
        ("", "say what to draw instead: {anchor TEXT}", "it; say what to draw instead: `anchor`"),
        ("", "use a cat, or give another {judge}", "it; use a cat, or give another `judge`"),
        ("", "lower {trajectory_steps}", "it; lower `trajectory_steps`"),
        ("companion", "", "`partner` it"),
        ("", "take {engine local}", "it; take `engine` local"),
        ("the strength of a", "", "the strength of a it"),
    ],
)
def test_settings_become_inputs(part: Part, field: str, remedy: str, wanted: str) -> None:
    error = part("trust_engine.errors").SpecError("it", field=field, remedy=remedy)
    assert part("nodes.wording").said(error) == wanted


def test_what_a_node_raises_is_in_its_words(part: Part, host: Host, model: Patcher) -> None:
    after = unlearn(part, model)[0]
    node = part("nodes.audit").TrustAudit()
    with torch.inference_mode(), pytest.raises(part("trust_engine.errors").SpecError) as error:
        node.audit(
            model, after, Clip(), Vae(), concept(part, "zxqw"), "quick", "demo", 1, 0, "page"
        )
    assert "or give another `judge`" in str(error.value) and "--" not in str(error.value)
    with pytest.raises(KeyError):  # what is no message of ours passes as it is
        part("nodes.wording").worded(lambda: {}["x"])()


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_templates_are_refused_by_no_node(part: Part, host: Host, workflow: Path) -> None:
    """As shipped, with an empty models folder."""
    nodes = part("").NODE_CLASS_MAPPINGS
    ours = [n for n in json.loads(workflow.read_text("utf-8"))["nodes"] if n["type"] in nodes]
    assert ours
    for told in ours:
        node = nodes[told["type"]]
        inputs = node.INPUT_TYPES()
        declared = {**inputs.get("required", {}), **inputs.get("optional", {})}
        values, mine = list(told.get("widgets_values", [])), {}
        for name, (kind, _) in declared.items():
            if isinstance(kind, list) or kind in ("INT", "FLOAT", "STRING", "BOOLEAN"):
                mine[name] = values.pop(0)
                assert not isinstance(kind, list) or mine[name] in kind, (told["type"], name)
        assert values == [], told["type"]
        if hasattr(node, "VALIDATE_INPUTS"):
            asked = inspect.signature(node.VALIDATE_INPUTS).parameters
            assert refused(node, **{name: mine[name] for name in asked}) == "", told["type"]


def test_example_diffs_are_the_demo_models(part: Part, host: Host) -> None:
    """Each is offered in a new installation, is of today's demo model and says what it does."""
    from trust_engine.diff import fingerprint, load_diff
    from trust_engine.models.load import load_model

    base = fingerprint(load_model("demo").denoiser)
    names = [name for name in part("nodes.folders").listed() if name.startswith("demo_")]
    assert names == ["demo_cat.safetensors", "demo_gun.safetensors"]
    for name in names:
        diff = load_diff(part("nodes.folders").found(name))
        assert diff.provenance["base"] == base and diff.provenance["family"] == "demo"
        told = part("nodes.routes").label_of(name)
        assert told["concepts"] == [name.removeprefix("demo_").removesuffix(".safetensors")]


__all__ = ["fake_model"]


def test_robust_beside_the_global_engine_is_refused(part: Part, host: Host, model: Patcher) -> None:
    """Robust mode would pass over it; no UNet pass is made before that is said."""
    host.passes = 0
    with pytest.raises(
        part("trust_engine.errors").SpecError, match="`robust` trains layer by layer"
    ):
        unlearn(part, model, robust=True, engine="global")
    assert host.passes == 0
