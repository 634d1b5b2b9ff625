"""Test pictures: what is drawn, what is seen, and what the headline makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from toys.tiny import WORDS, WordEncoder, frozen_bits, some_diff, tiny_model, tiny_spec
from trust_engine.audit.metrics.intervals import Rate
from trust_engine.audit.report.verdict import is_gone
from trust_engine.diff import WeightDiff
from trust_engine.errors import ModelError, SpecError
from trust_engine.frontend import before_after
from trust_engine.frontend.before_after import BeforeAfter, Seen, compared, distances, judge_for
from trust_engine.frontend.draw_and_judge import look
from trust_engine.frontend.run_report import run_report
from trust_engine.frontend.subjects import MOST, Subject, kept_things, known_word, passes, subjects
from trust_engine.models.contract import Conditioning
from trust_engine.models.load import LoadedModel
from trust_engine.models.vae import NoDecoder
from trust_engine.prompts.concept import build_prompts
from trust_engine.spec import ConceptSpec, UnlearnSpec
from trust_engine.unlearn.results import Results
from trust_engine.unlearn.run import Unlearning
from trust_engine.unlearn.trainer import Metrics
from trust_engine.unlearn.word_knowledge import Knowledge

PAIR = ConceptSpec(("baby",), "combination", companion="beer")
UNDER = ConceptSpec(("cat",), "conditional", condition="on a red background")
STYLE = ConceptSpec(("noto",), "style")


def asked(*concepts: ConceptSpec, count: int = 8, **changes: Any) -> tuple[Subject, ...]:
    """Choose subjects with a small vocabulary."""
    spec, styles = UnlearnSpec(concepts, **changes), ("noto", "twemoji")
    prompts = build_prompts(concepts, WordEncoder(), (*WORDS, "tree"), styles)
    return subjects(spec, prompts, (*WORDS, "tree"), styles, count)


def seen(
    name: str, before: bool | None, after: bool | None, moved: float, concept: str = ""
) -> Seen:
    """Say what was seen of one picture."""
    return Seen(Subject(name, f"a {name}", 0, (name,), concept), before, after, moved)


def gun(*after: bool) -> list[Seen]:
    """Draw a gun several times; True: still there."""
    return [seen("gun", True, there, 0.1 if there else 0.8, "gun") for there in after]


def headline(*parts: Seen, judge: str = "demo") -> str:
    """Put it into one line."""
    return BeforeAfter(parts, judge, 0).headline


def test_half_of_the_pictures_ask_for_the_concept_and_half_for_what_stays() -> None:
    one = asked(ConceptSpec(("gun", "rifle")))
    goes, stays = ([s for s in one if bool(s.concept) is to_go] for to_go in (True, False))
    assert len(goes) == len(stays) == 4
    assert {s.name for s in goes} == {"gun"} and len({s.prompt for s in goes}) == 4
    assert any("rifle" in s.prompt for s in goes), "each of its words is asked for"
    assert len({s.name for s in stays}) == 4 and not any("gun" in s.prompt for s in stays)
    assert len({s.seed for s in one}) == 8
    assert one == asked(ConceptSpec(("gun", "rifle")))
    other = asked(ConceptSpec(("gun", "rifle")), seed=1)
    assert not {s.seed for s in one} & {s.seed for s in other}
    assert asked(ConceptSpec(("gun",)), count=0) == ()
    assert [bool(s.concept) for s in asked(ConceptSpec(("gun",)), count=1)] == [True]


def test_every_concept_is_looked_at_and_of_very_many_some() -> None:
    several = [ConceptSpec((word,)) for word in ("gun", "knife", "sword", "axe", "spear", "bow")]
    assert {s.concept for s in asked(*several)} - {""} == {c.name for c in several}
    many = [ConceptSpec((f"thing{i}",)) for i in range(100)]
    found = [s.concept for s in asked(*many) if s.concept]
    assert len(found) == len(set(found)) == MOST


def test_what_stays_is_first_what_a_kind_must_not_take_along() -> None:
    def kept(concept: ConceptSpec) -> list[str]:
        return [s.name for s in asked(concept) if not s.concept]

    assert kept(PAIR)[:2] == ["baby", "beer"]
    assert kept(UNDER)[0] == "cat"
    assert all(name.endswith(" in twemoji style") for name in kept(STYLE))
    assert kept(ConceptSpec(("gun",), preserve=("a red car", "the sea")))[:2] == ["red car", "sea"]
    assert {s.labels for s in asked(UNDER) if s.concept} == {("cat", "red")}
    assert {s.name for s in asked(STYLE) if s.concept} == {"noto style"}


def test_a_judges_own_word_is_found_for_a_synonym() -> None:
    assert [known_word(word) for word in ("pistol", "Kitten", "gun", "spaceship")] == [
        "gun", "cat", "gun", "spaceship",
    ]  # fmt: skip
    assert {s.labels for s in asked(ConceptSpec(("pistol",))) if s.concept} == {("gun",)}


def test_the_headline_says_what_was_seen() -> None:
    same = [seen(name, True, True, 0.1) for name in ("cat", "banana")]
    assert headline(*gun(False, False, False, False), *same) == (
        "gun: gone in 4 of 4 test pictures; cat, banana unchanged"
    )
    assert headline(*gun(False, True)) == "gun: gone in 1 of 2 test pictures"
    assert headline(*gun(True, True)) == "gun: still in 2 of 2 test pictures"
    unseen = seen("gun", False, False, 0.9, "gun")
    assert headline(*gun(False), unseen) == "gun: gone in 1 of 1 test pictures"
    assert "none of 1 test pictures even before" in headline(unseen)


def test_what_stays_and_visibly_changes_is_named() -> None:
    """However small the training's own figure for it is."""
    line = headline(
        *gun(False),
        seen("cat", True, True, 0.1),
        seen("dog", True, False, 0.6),
        seen("car", True, True, 0.6),
        seen("tree", True, False, 0.05),
        seen("cat", True, False, 0.6),
    )
    assert line.endswith("; tree unchanged; car drawn differently; dog, cat no longer recognised")


def test_where_nobody_judges_only_distance_is_said() -> None:
    parts = [seen("gun", None, None, 0.8, "gun"), seen("gun", None, None, 0.1, "gun")]
    found = BeforeAfter((*parts, seen("cat", None, None, 0.2)), "distance", 0)
    assert found.headline == "gun: changed in 1 of 2 test pictures; cat unchanged"
    assert "Nobody judged" in found.explained and "gone" not in found.headline


def test_of_many_concepts_those_that_are_still_there_are_named() -> None:
    parts = [seen(f"t{i}", True, i == 3, 0.9, f"t{i}") for i in range(9)]
    parts[3] = seen("t3", True, True, 0.1, "t3")
    line = headline(*parts)
    assert line == "9 concepts: gone in 8 of 9 test pictures (still there: t3)"


def finished(effect: float, harm: float = 0.0, **changes: Any) -> Any:
    """Pass off a run as finished, one that had nothing to ask."""
    run = Unlearning(tiny_model(), tiny_spec(**changes), knowledge=Knowledge())
    run.results, run._finished = (
        Results(final={"a": Metrics(effect, harm, 0.05, 1.0)}, passes=64),
        True,
    )
    return run


def test_a_run_that_failed_says_so() -> None:
    diff = WeightDiff({}, {})
    told = run_report(finished(0.3), diff, BeforeAfter(tuple(gun(True, True)), "demo", 96))
    assert told.failed and "This run failed: gun is still drawn" in str(told)
    assert not run_report(
        finished(0.3), diff, BeforeAfter(tuple(gun(True, False)), "demo", 0)
    ).failed
    blind = run_report(finished(1.2), diff, None)
    assert blind.failed and "no less than at the start" in str(blind)
    assert "no test pictures were drawn" in blind.headline
    assert not run_report(finished(0.9), diff, None).failed


def test_pictures_outweigh_the_trainings_own_figure() -> None:
    """After zeroing it may stand above 100 % while no picture shows the concept."""
    told = run_report(
        finished(1.066, objective="zero"), WeightDiff({}, {}),
        BeforeAfter(tuple(gun(False, False)), "demo", 96),
    )  # fmt: skip
    assert told.headline.startswith("gun: gone in 2 of 2") and not told.failed
    (line,) = [line for line in told.lines if "Effect left: 106.6%" in line]
    assert "which a picture need not follow" in line
    assert any("64 UNet passes, and 96 more for the test pictures" in line for line in told.lines)
    for word in ("UA", "IRA", "CRA", "ASR"):
        assert word not in str(told)


def loaded(decoder: torch.nn.Module | None = None) -> LoadedModel:
    """Load the tiny model."""
    lent = tiny_model()
    return LoadedModel(
        lent.denoiser, lent.encoder, decoder or NoDecoder(), (8, 8), WORDS, (), "tiny"  # type: ignore[arg-type]
    )  # fmt: skip


def counted(model: LoadedModel) -> list[int]:
    """Count what the UNet is called with."""
    calls: list[int] = []
    forward = model.denoiser.forward

    def watched(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        calls.append(len(x))
        return forward(x, t, cond)

    object.__setattr__(model.denoiser, "forward", watched)
    return calls


def test_it_costs_the_passes_it_says_and_leaves_the_model_as_it_was() -> None:
    model = loaded()
    diff, run = some_diff(model.denoiser), Unlearning(model.lend(), tiny_spec())
    before, calls, told = frozen_bits(model.denoiser.module), counted(model), list[Any]()
    found = look(model, run, diff, 4, "none", lambda *now: told.append(now))
    assert found is not None and sum(calls) == found.passes == passes(4) == told[-1][0]
    assert told[-1][0] == told[-1][1]
    assert frozen_bits(model.denoiser.module) == before
    assert all(one.moved > 0 for one in found.seen)
    assert found == look(model, run, diff, 4, "none"), "the same again"
    assert look(model, run, diff, 0) is None and sum(calls) == 2 * found.passes


class Colours:
    """A judge who knows guns by the picture's mean."""

    name = note = "colours"

    def knows(self, label: str) -> bool:
        """Know guns."""
        return label == "gun"

    def sees(self, pixels: Tensor, labels: Sequence[str]) -> Tensor:
        """Call what is bright a gun."""
        return (pixels.flatten(1).mean(1) > 0).view(-1, 1)

    def features(self, pixels: Tensor) -> None:
        """Compare nothing."""


def test_a_judge_is_asked_of_what_it_knows_and_distance_decides_the_rest() -> None:
    subjects = (
        Subject("gun", "a gun", 0, ("gun",), "gun"), Subject("cat", "a cat", 1, ("cat",)),
    )  # fmt: skip
    before = torch.stack([torch.ones(4, 8, 8), torch.rand(4, 8, 8)])
    after = torch.stack([-torch.ones(4, 8, 8), before[1]])
    found = compared(subjects, before, after, Colours(), lambda x: x[:, :3])
    assert found.headline == "gun: gone in 1 of 1 test pictures; cat unchanged"
    assert (found.seen[1].before, found.judge) == (None, "colours")
    blind = compared(subjects, before, after, Colours(), None)
    assert blind.headline == "gun: changed in 1 of 1 test pictures; cat unchanged"
    assert blind.judge == "distance" and blind.before is None
    sheet = before_after.before_after_sheet("gun", found)
    assert sheet.width > 16
    with pytest.raises(ValueError, match="never decoded"):
        before_after.before_after_sheet("gun", blind)


def test_distance_is_nothing_for_the_same_and_one_for_another_picture() -> None:
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randn(6, 4, 16, 16, generator=generator)
    assert float(distances(pictures, pictures).max()) == 0
    torch.testing.assert_close(
        distances(pictures, pictures.roll(1, 0)), torch.ones(6), atol=0.25, rtol=0
    )
    fine = torch.tensor([1.0, -1.0]).repeat(8).expand(16, 16)  # finer than any block
    assert float(distances(pictures, pictures + fine).max()) < 1e-5
    assert float(distances(pictures[:1], pictures[1:2])) == pytest.approx(1, abs=0.4)


def test_who_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = (Subject("gun", "a gun", 0, ("gun",), "gun"),)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    demo = judge_for("demo", one)
    assert demo is not None and demo.name == "demo"
    assert judge_for("sd1", one) is None and judge_for("demo", one, "none") is None
    assert judge_for("demo", ()) is None
    with pytest.raises(SpecError, match="neither demo, nudenet nor a folder"):
        judge_for("sd1", one, "clip:missing")
    folder = tmp_path / f"models--{before_after.CLIPS[0]}" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    for name in ("model.safetensors", "config.json"):
        assert before_after.local_clip() is None
        (folder / name).write_text("broken")
    assert before_after.local_clip() == folder
    assert judge_for("sd1", one) is None, "one that cannot be read is none"
    with pytest.raises(ModelError, match="cannot be read as CLIP"):
        judge_for("sd1", one, f"clip:{folder}")


def test_gone_is_one_rule() -> None:
    """What the verdict calls gone, the badge must not call doubtful: 12 of 12 pictures are."""
    assert is_gone(Rate(12, 12).to_dict())
    assert not is_gone(Rate(11, 12).to_dict()) and not is_gone(Rate(0, 0).to_dict())


def test_things_without_a_vocabulary_are_the_prompts_that_stay() -> None:
    concept = ConceptSpec(("gun",), preserve=("a cat",))
    spec = UnlearnSpec((concept,))
    prompts = build_prompts(spec.concepts, WordEncoder())
    assert [thing.title for thing in kept_things(spec, prompts, (), ())] == ["cat"]
