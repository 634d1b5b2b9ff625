"""Prompts: every kind says what goes, what comes instead and what stays."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from toys.tiny import WORDS, WordEncoder
from trust_engine.errors import SpecError
from trust_engine.models.contract import Conditioning
from trust_engine.phrases import same_name, with_article
from trust_engine.prompts.concept import (
    PromptSet,
    build_prompts,
    nearest,
)
from trust_engine.prompts.kinds import KINDS as WRITTEN
from trust_engine.prompts.kinds import Surroundings, written
from trust_engine.prompts.templates import LOOKS_KEPT, PAIRS, STYLES, TEMPLATES
from trust_engine.spec import ConceptSpec

KINDS = {
    "single": ConceptSpec(("gun", "pistol")),
    "combination": ConceptSpec(("baby",), "combination", companion="beer"),
    "conditional": ConceptSpec(("cat",), "conditional", condition="on a red background"),
    "style": ConceptSpec(("noto",), "style"),
}


def built(*concepts: ConceptSpec, styles: tuple[str, ...] = ("noto", "twemoji")) -> PromptSet:
    """Write prompts with a small vocabulary."""
    words = (*WORDS, "baby", "tree", "gun", "house")
    return build_prompts(concepts, WordEncoder(), words, styles)


@pytest.mark.parametrize("kind", KINDS)
def test_targets_carry_the_concept_and_nothing_else_does(kind: str) -> None:
    concept, prompts = KINDS[kind], built(KINDS[kind])
    assert len(prompts.targets) == len(prompts.anchors) >= 4
    assert all(concept.carried_by(prompt) for prompt in prompts.targets)
    assert not any(concept.carried_by(p) for p in (*prompts.anchors, *prompts.preserve))
    for kept in (prompts.targets, prompts.preserve):
        assert len(set(kept)) == len(kept)


def test_beside_other_things_a_single_concept_is_left_out() -> None:
    words = (*WORDS, "baby", "tree", "gun", "house")
    prompts = build_prompts([KINDS["single"]], WordEncoder(), words, ("noto",), beside=True)
    plain = build_prompts([KINDS["single"]], WordEncoder(), words, ("noto",))
    goal = dict(zip(prompts.targets, prompts.anchors, strict=True))
    assert prompts.targets[: len(plain.targets)] == plain.targets
    pairs = [target for target in prompts.targets if target not in plain.targets]
    assert len(pairs) == 2 * 2 * len(PAIRS)  # each word comes first and second
    for pair in pairs:
        words_left = [w for w in goal[pair].split() if w not in ("a", "an")]
        assert not KINDS["single"].carried_by(goal[pair])
        assert set(words_left) < set(pair.split())
        assert any(word in pair.split() and word in goal[pair].split() for word in words)
    anchored = replace(KINDS["single"], anchor="fork")
    found = build_prompts([anchored], WordEncoder(), words, beside=True)
    told = dict(zip(found.targets, found.anchors, strict=True))
    assert all(told[pair].count("fork") == 1 for pair in found.targets)
    assert any(goal.endswith("and a fork") for goal in told.values())
    for other in ("combination", "conditional"):
        assert build_prompts([KINDS[other]], WordEncoder(), words, beside=True) == build_prompts(
            [KINDS[other]], WordEncoder(), words
        )


def test_what_stays_beside_a_style_can_be_told_styles_alone() -> None:
    concept, styles, words = KINDS["style"], ("noto", "twemoji", "fluent"), (*WORDS, "baby")
    plain = build_prompts([concept], WordEncoder(), words, styles)
    prompts = build_prompts([concept], WordEncoder(), words, styles, named=True)
    assert (prompts.targets, prompts.anchors) == (plain.targets, plain.anchors)
    told = [[style for style in styles if style in prompt] for prompt in prompts.preserve]
    assert all(len(found) == 1 and found != ["noto"] for found in told)
    assert any(not any(style in prompt for style in styles) for prompt in plain.preserve)
    for word in words:
        asked = [found for p, found in zip(prompts.preserve, told, strict=True) if word in p]
        assert sorted(asked) == [["fluent"], ["twemoji"]]


def test_a_combination_keeps_the_member_that_comes_first_with_other_things() -> None:
    prompts = built(KINDS["combination"])
    pairs = dict(zip(prompts.targets, prompts.anchors, strict=True))
    instead = [goal for pair, goal in pairs.items() if pair.startswith("a picture of a beer and a")]
    assert len(instead) == 2
    assert all(p.startswith("a picture of a beer and a") and "baby" not in p for p in instead)
    seconds = {
        anchor.split(" and ")[1].split()[1] for anchor in pairs.values() if " and " in anchor
    }
    assert len(seconds) > 4 and not seconds & {"baby", "beer"}
    anchored = built(replace(KINDS["combination"], anchor="milk"))
    assert "a picture of a milk" in anchored.anchors


def test_a_combination_finds_something_to_draw_instead_without_a_vocabulary() -> None:
    for preserve in ((), ("beer", "a dog")):
        concept = replace(KINDS["combination"], preserve=preserve)
        anchors = build_prompts([concept], WordEncoder()).anchors
        assert anchors and not any(concept.carried_by(anchor) for anchor in anchors)


def test_a_combination_preserves_its_members_alone_and_with_others() -> None:
    preserve = built(KINDS["combination"]).preserve
    assert "a baby" in preserve and "a beer" in preserve
    for member in ("baby", "beer"):
        others = [w for w in (*WORDS, "tree", "house") if w not in ("baby", "beer")]
        with_others = [p for p in preserve if member in p and any(o in p.split() for o in others)]
        assert len(with_others) >= 4


def test_each_pair_that_shares_a_member_is_kept_in_several_sentences() -> None:
    """And the members alone in several looks, or those that are alike are lost."""
    preserve = built(KINDS["combination"]).preserve
    for member in ("baby", "beer"):
        assert {f"a {member}", f"a {member} in noto style"} <= set(preserve)
        for pair in (f"{member} {{}} a tree", f"tree {{}} a {member}"):
            opening = tuple(pair.format(word) for word in ("and", "with", "next to"))
            kept = [p for p in preserve if any(o in p for o in opening)]
            looks = {p.partition(" in ")[2] for p in kept}
            assert len({PAIRS.index(sentence_of(p)) for p in kept}) == 3 and len(looks) > 1


def sentence_of(prompt: str) -> str:
    """Find the sentence that a pair of things was put into."""
    bare = prompt.partition(" in ")[0]
    fits = (re.fullmatch(re.escape(s).replace(r"\{\}", r"an? \w+"), bare) for s in PAIRS)
    return next(s for s, fit in zip(PAIRS, fits, strict=True) if fit)


def test_a_condition_goes_and_the_thing_and_the_condition_stay() -> None:
    prompts = built(KINDS["conditional"])
    pairs = dict(zip(prompts.targets, prompts.anchors, strict=True))
    assert pairs["a cat on a red background"] == "a cat"
    assert pairs["a picture of a cat on a red background"] == "a picture of a cat"
    assert "a cat on a blue background" in prompts.preserve
    assert any("on a red background" in p and "cat" not in p for p in prompts.preserve)
    assert "a cat on a red background in twemoji style" in prompts.targets


def test_a_style_goes_from_things_and_other_styles_stay() -> None:
    prompts = built(KINDS["style"])
    pairs = dict(zip(prompts.targets, prompts.anchors, strict=True))
    assert all(a.rsplit(" in ", 1)[0] == t.rsplit(" in ", 1)[0] for t, a in pairs.items())
    assert all(anchor.endswith(" in twemoji style") for anchor in pairs.values())
    assert any("twemoji style" in prompt for prompt in prompts.preserve)
    alone = build_prompts([KINDS["style"]], WordEncoder())
    cartoon = build_prompts([ConceptSpec(("cartoon",), "style")], WordEncoder())
    assert not any("cartoon" in anchor for anchor in cartoon.anchors)
    assert any("a house in noto style" == prompt for prompt in alone.targets)
    assert any("watercolor" in prompt for prompt in alone.preserve)


def test_a_style_becomes_the_nearest_of_the_others() -> None:
    """Many anchors have a mean that no picture has, and the model ends short of it."""
    styles = ("noto", "watercolor painting", "old photo", "oil painting")
    concept = ConceptSpec(("thick oil painting",), "style")
    prompts = build_prompts([concept], WordEncoder(), WORDS, styles)
    assert all(anchor.endswith(" in oil painting style") for anchor in prompts.anchors)


def test_a_style_needs_another_that_stays() -> None:
    gone = ConceptSpec(STYLES, "style")
    with pytest.raises(SpecError, match="no style is known to draw instead"):
        build_prompts([gone], WordEncoder())
    for named in (False, True):
        prompts = build_prompts([replace(gone, anchor="clay")], WordEncoder(), named=named)
        assert all(anchor.endswith(" in clay style") for anchor in prompts.anchors)
        assert prompts.preserve


def test_concepts_together_do_not_preserve_each_other() -> None:
    prompts = built(KINDS["single"], KINDS["conditional"], ConceptSpec(("tree",)))
    kept = " ".join(prompts.preserve).split()
    assert not {"gun", "pistol", "tree"} & set(kept)
    assert "cat" in kept


@pytest.mark.parametrize("kind", KINDS)
def test_an_anchor_comes_instead(kind: str) -> None:
    concept = KINDS[kind]
    anchored = ConceptSpec(
        concept.words, concept.kind, concept.companion, concept.condition, anchor="twemoji"
    )
    assert all("twemoji" in prompt for prompt in built(anchored, styles=()).anchors)


@pytest.mark.parametrize(
    ("concept", "pair"),
    [
        (ConceptSpec(("gun",), anchor="apple"), ("see a gun now", "see an apple now")),
        (
            ConceptSpec(("cat",), "conditional", condition="at sea"),
            ("see a cat at sea now", "see a cat now"),
        ),
        (ConceptSpec(("noto",), "style"), ("see noto now", "see twemoji now")),
        (ConceptSpec(("noto",), "style", anchor="fluent"), ("see noto now", "see fluent now")),
    ],
)
def test_in_a_users_template_an_anchor_is_said_as_the_concept_is(
    concept: ConceptSpec, pair: tuple[str, str]
) -> None:
    near = Surroundings((), ("twemoji",))
    assert [*written(replace(concept, templates=("see {} now",)), near).targets()] == [pair]


def test_templates_of_the_users_own() -> None:
    prompts = built(ConceptSpec(("gun",), templates=("a photo of the {} at night",)))
    assert prompts.targets == ("a photo of a gun at night",)
    assert prompts.anchors == ("a photo of the something at night",)


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [("gun", "a gun"), ("apple", "an apple"), ("the sea", "the sea"), ("unicorn", "a unicorn")],
)
def test_articles(phrase: str, expected: str) -> None:
    assert with_article(phrase) == expected


def test_kinds_are_overshot_by_as_much_as_each_bears() -> None:
    """Without its condition, chance may draw the very one that is to go; an anchor leaves none."""
    for kind in KINDS:
        prompts = built(KINDS[kind])
        assert set(prompts.push) == {WRITTEN[kind].overshoot}
    assert set(built(replace(KINDS["conditional"], anchor="a tree")).push) == {1.0}


def test_what_carries_the_concept_in_another_number_is_never_proposed() -> None:
    words = ("gun", "baby", "horse", "cat", "man", "knife")
    for plural in ("guns", "Babies", "horses", "men", "knives"):
        prompts = build_prompts([ConceptSpec((plural,))], WordEncoder(), words)
        left = set(words) - set(prompts.kept)
        assert len(left) == 1 and same_name(*left, plural)


def test_what_means_the_concept_is_left_out_by_name() -> None:
    words = ("gun", "cat", "dog")
    found = build_prompts([ConceptSpec(("pistol",))], WordEncoder(), words, left_out=("gun",))
    assert set(found.kept) == {"cat", "dog"}
    assert not any("gun" in prompt for prompt in found.preserve)


@pytest.mark.parametrize("asked", ["openmoji style", "in the style of openmoji", "Openmoji-style"])
def test_a_style_is_one_style_however_it_is_asked_for(asked: str) -> None:
    styles = ("noto", "twemoji", "openmoji")
    plain = build_prompts([ConceptSpec(("openmoji",), "style")], WordEncoder(), WORDS, styles)
    found = build_prompts([ConceptSpec((asked,), "style")], WordEncoder(), WORDS, styles)
    assert [p.lower() for p in found.targets] == list(plain.targets)
    assert not any("openmoji" in text for text in (*found.anchors, *found.preserve, *found.kept))


@pytest.mark.parametrize("word", ["picture", "drawing", "icon", "white background", "image"])
def test_no_anchor_names_the_concept(word: str) -> None:
    concept = ConceptSpec((word,))
    prompts = build_prompts([concept], WordEncoder(), WORDS, ("noto",))
    assert prompts.targets
    assert not any(concept.carried_by(text) for text in (*prompts.anchors, *prompts.preserve))


def test_what_a_user_asks_for_instead_may_name_the_concept() -> None:
    """A toy gun for guns; a sentence of one's own that stays a photo without photos."""
    toy = build_prompts([ConceptSpec(("gun",), anchor="toy gun")], WordEncoder(), WORDS)
    assert all("a toy gun" in anchor for anchor in toy.anchors)
    own = build_prompts([ConceptSpec(("photo",), templates=("a photo of {}",))], WordEncoder())
    assert own.anchors == ("a photo of something",)


def test_a_partner_is_known_again_whatever_its_case() -> None:
    concept = ConceptSpec(("baby",), "combination", companion="Beer")
    prompts = build_prompts([concept], WordEncoder(), ("beer", "cat", "babies", "dog"))
    assert not any(concept.carried_by(anchor) for anchor in prompts.anchors)
    assert prompts.kept[:2] == ("baby", "Beer")
    assert {"beer", "babies"}.isdisjoint(prompts.kept[2:])


def test_what_is_kept_is_said_in_words() -> None:
    single = built(KINDS["single"]).kept
    assert single and all(len(word.split()) == 1 for word in single)
    assert built(KINDS["combination"]).kept[:2] == ("baby", "beer")
    assert "twemoji" in built(KINDS["style"]).kept and "noto" not in built(KINDS["style"]).kept
    assert built(ConceptSpec(("gun",), preserve=("a cat", "dog"))).kept == ("a cat", "dog")


class CountingEncoder(WordEncoder):
    """Counts the prompts that it reads."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts."""
        self.read += prompts
        return super().encode(prompts)


def test_the_vocabulary_is_read_once_however_many_concepts() -> None:
    words = [f"word{i}" for i in range(40)]
    encoder, concepts = CountingEncoder(), [ConceptSpec((f"thing{i}",)) for i in range(30)]
    together = build_prompts(concepts, encoder, words)
    assert len(encoder.read) == len(set(encoder.read)) == 40 + 30
    for concept in concepts[::7]:
        alone = build_prompts([concept], WordEncoder(), words)
        assert set(alone.preserve) <= set(together.preserve), "and each gets its own neighbours"


def test_a_prompt_may_have_as_many_tokens_as_a_tower_reads_and_no_more() -> None:
    """77 of CLIP's, of which two are start and end."""

    def long(words: int) -> ConceptSpec:
        return ConceptSpec(("gun",), preserve=("cat",), templates=("a {}" + " x" * (words - 2),))

    assert build_prompts([long(75)], WordEncoder()).targets
    with pytest.raises(SpecError, match="prompt has 76 tokens, at most 75 fit"):
        build_prompts([long(76)], WordEncoder())


def test_the_nearest_words_come_first_and_no_more_than_asked_for() -> None:
    """Nearest by the last position, which has read the whole phrase; to any of those asked."""
    rows = {"gun": (1.0, 0.0, 0.0), "beer": (0.0, 1.0, 0.0), "rifle": (0.9, 0.1, 0.0),
            "wine": (0.1, 0.8, 0.0), "cloud": (0.0, 0.0, 5.0), "sea": (0.2, 0.0, 1.0)}  # fmt: skip

    class Known(WordEncoder):
        def encode(self, prompts: Sequence[str]) -> Conditioning:
            last = torch.tensor([rows[prompt.split()[-1]] for prompt in prompts])
            first = torch.ones_like(last)  # says nothing
            return Conditioning(torch.stack([first, last], 1))

    words = ("cloud", "sea", "wine", "rifle")
    assert nearest(["a gun"], words, Known()) == ("rifle", "sea", "wine", "cloud")
    assert nearest(["a gun", "a beer"], words, Known(), 2) == ("rifle", "wine")
    assert nearest(["a gun"], (), Known()) == ()
    assert len(nearest(["a gun"], [f"w{i}" for i in range(40)], WordEncoder())) == 32
    found = build_prompts([ConceptSpec(("gun", "beer"))], Known(), words)
    assert found.proposed == (("rifle", "sea", "wine", "cloud"),), "nearest to its first name"


def test_what_is_kept_of_single_concepts_has_every_look_and_turns_through_the_sentences() -> None:
    styles = tuple(f"style{i}" for i in range(LOOKS_KEPT + 2))
    prompts = build_prompts([ConceptSpec(("gun",))], WordEncoder(), WORDS, styles)
    for word in WORDS:
        mine = [p for p in prompts.preserve if word in p.split()]
        looks = {p.partition(" in style")[2] for p in mine}
        assert looks == {"", *(f"{i} style" for i in range(LOOKS_KEPT))}
        assert len(mine) == LOOKS_KEPT + 1
        sentences = {p.partition(" in style")[0].replace(f"a {word}", "{}") for p in mine}
        assert len(sentences) >= LOOKS_KEPT
    carrying = {t.carrying for t in TEMPLATES}
    first = [p for p in prompts.targets if " in style" not in p]
    assert {p.replace("a gun", "{}") for p in first} == carrying
    assert sum(" in style" in p for p in prompts.targets) == LOOKS_KEPT


def test_every_kind_is_pushed_by_its_own_measure() -> None:
    measured = {"single": 1.0, "combination": 2.7, "conditional": 1.6, "style": 0.0}
    assert {kind: set(built(KINDS[kind]).push) for kind in KINDS} == {
        kind: {push} for kind, push in measured.items()
    }


def test_a_style_is_erased_and_kept_on_every_thing() -> None:
    prompts = built(KINDS["style"], styles=("noto", "twemoji", "fluent"))
    words = [w for w in (*WORDS, "baby", "tree", "gun", "house")]
    for word in words:
        assert sum(word in p.split() for p in prompts.targets) == 1
        assert any(word in p.split() and "style" in p for p in prompts.preserve)
        assert any(word in p.split() and "style" not in p for p in prompts.preserve)
    kept = [p for p in prompts.preserve if "style" in p]
    counts = [sum(name in p for p in kept) for name in ("twemoji", "fluent")]
    assert min(counts) > 0 and abs(counts[0] - counts[1]) <= 1, "the other styles take turns"


NEAR = Surroundings(("rifle", "dog", "the sea"), ("flat", "old photo"))
OWN: dict[str, dict[str, Any]] = {
    "anchor": {"anchor": "apple"},
    "preserve": {"preserve": ("a tree", "dog")},
    "templates": {"templates": ("the {} now", "the {} at sea")},
}
SUMS = {
    "single": "9e5bd26be323",
    "single bare": "a27f96e3e5d2",
    "single preserve": "eeeb2ecd2a81",
    "single beside": "c257eadf763d",
    "single beside bare": "de613c8628ee",
    "single beside anchor": "c0a974afc634",
    "single templates": "662c055423f2",
    "single templates anchor": "d4b6b94605a8",
    "combination": "22a09e8e1634",
    "combination bare": "e6f84599fbe5",
    "combination preserve": "22596b824da6",
    "combination anchor": "ae0d518e21ce",
    "combination templates": "2aa9b1acaebe",
    "combination templates anchor": "a3da21bb27ea",
    "conditional": "fda79256b2c4",
    "conditional preserve": "57dfefe5d7a3",
    "conditional anchor": "0619de6def00",
    "conditional templates": "7b0237a22472",
    "conditional templates anchor": "e94ac60215da",
    "style": "cca6868db745",
    "style preserve": "68d538fb370c",
    "style named": "f6b67c10afc4",
    "style named anchor": "47fd207a5e62",
    "style named anchor bare": "9fdc86f900d6",
}


@pytest.mark.parametrize("asked", SUMS)
def test_every_figure_was_measured_with_these_prompts(asked: str) -> None:
    """Another word anywhere gives other diffs: measure first, then enter the new sum."""
    kind, *more = asked.split()
    own = {name: value for word in more for name, value in OWN.get(word, {}).items()}
    near = Surroundings((), ()) if "bare" in more else NEAR
    how = {word: True for word in more if word in ("named", "beside")}
    mine = written(replace(KINDS[kind], **own), near, **how)
    told = [list(mine.targets()), list(mine.retain()), list(mine.words()), mine.push, mine.proposed]
    assert hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12] == SUMS[asked], told
