"""What the model knows of the words: known ones, nonsense, synonyms, two things as one."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from toys.tiny import fake_denoiser, tiny_model, tiny_spec
from trust_engine.errors import SpecError
from trust_engine.models.contract import Conditioning, LentModel, scaled_linear
from trust_engine.prompts.concept import build_prompts
from trust_engine.spec import ConceptSpec, UnlearnSpec
from trust_engine.unlearn.run import Unlearning
from trust_engine.unlearn.word_knowledge import NOISES, Inquiry, Knowledge

THINGS = ("gun", "cat", "dog", "banana", "house", "tree", "key")
STYLES = ("noto", "fluent", "twemoji", "openmoji")
MEANINGS = {word: word for word in (*THINGS, *STYLES)} | {"pistol": "gun", "moji": "openmoji"}
SHAPE = (4, 8, 8)


class Reader:
    """Each known word adds what it means; of all else only a little of the whole sentence stays."""

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts to (b, 1, 256)."""
        return Conditioning(torch.stack([self._read(prompt) for prompt in prompts])[:, None])

    def count_tokens(self, prompt: str) -> int:
        """Count words."""
        return len(prompt.split())

    def _read(self, prompt: str) -> Tensor:
        known = [MEANINGS[word] for word in prompt.lower().split() if word in MEANINGS]
        return sum(map(_direction, known), 0.1 * _direction(prompt))


def _direction(text: str) -> Tensor:
    return torch.randn(256, generator=torch.Generator().manual_seed(zlib.crc32(text.encode())))


def model(things: tuple[str, ...] = THINGS) -> LentModel:
    """Lend a model that knows a few words."""

    def predict(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        return 0.5 * x + cond.context[:, 0].view(-1, *SHAPE)

    denoiser = fake_denoiser(predict, scaled_linear())
    return LentModel(denoiser, Reader(), SHAPE[1:], things, STYLES)


def asked(*concepts: ConceptSpec, lent: LentModel | None = None) -> Knowledge:
    """Ask about concepts."""
    lent = lent or model()
    prompts = build_prompts(concepts, lent.encoder, lent.vocabulary, lent.styles)
    inquiry = Inquiry(lent, UnlearnSpec(concepts), prompts)
    steps = list(inquiry)
    assert steps[-1] == inquiry.passes == inquiry.found.passes == NOISES * len(inquiry.texts)
    return inquiry.found


@pytest.mark.parametrize("word", ["gun", "a Cat", "pistol"])
def test_a_word_that_the_model_knows(word: str) -> None:
    found = asked(ConceptSpec((word,)))
    assert [one.known for one in found.words] == [True] and not found.unknown
    assert found.words[0].score == pytest.approx(1.0, abs=0.3) and not found.warnings


@pytest.mark.parametrize("word", ["zxqwvbnm", "🔫", "gunn", "猫"])
def test_a_word_that_it_does_not_know_is_said(word: str) -> None:
    found = asked(ConceptSpec((word,)))
    assert found.unknown == (word,) and found.words[0].score < 0.2
    assert word in found.warnings[0] and len(found.words[0].near) == 3
    if word == "gunn":
        assert found.words[0].near[0] == "gun"


def test_a_style_and_a_combination() -> None:
    assert asked(ConceptSpec(("openmoji style",), "style")).words[0].known
    assert asked(ConceptSpec(("watercolor",), "style")).unknown == ("watercolor",)
    pair = asked(ConceptSpec(("cat",), "combination", companion="zxqw"))
    assert [word.known for word in pair.words] == [True, False]


def test_what_the_model_draws_as_the_concept_is_not_preserved() -> None:
    assert asked(ConceptSpec(("pistol",))).same == ("gun",)
    assert asked(ConceptSpec(("moji",), "style")).same == ("openmoji",)
    assert asked(ConceptSpec(("gun",))).same == () == asked(ConceptSpec(("zxqw",))).same


def test_asking_to_preserve_it_is_refused() -> None:
    with pytest.raises(SpecError, match="the model draws 'gun' as it draws 'pistol'"):
        asked(ConceptSpec(("pistol",), preserve=("cat", "gun")))
    assert asked(ConceptSpec(("pistol",), preserve=("cat", "zxqw"))).same == ()


def test_a_companion_or_an_anchor_that_is_the_concept_is_refused() -> None:
    with pytest.raises(SpecError, match="as it draws 'gun', and a combination takes two things"):
        asked(ConceptSpec(("gun",), "combination", companion="pistol"))
    with pytest.raises(SpecError, match=r"'pistol' as it draws 'gun'.*name another anchor"):
        asked(ConceptSpec(("gun",), anchor="pistol"))
    with pytest.raises(SpecError, match="name another anchor"):
        asked(ConceptSpec(("openmoji",), "style", anchor="moji"))
    assert asked(ConceptSpec(("gun",), anchor="a cat")).words[0].known


def test_names_of_two_things_are_refused() -> None:
    with pytest.raises(SpecError, match=r"'cat' and 'banana' as two different things.*also"):
        asked(ConceptSpec(("cat, banana",)))
    assert asked(ConceptSpec(("gun, pistol",))).words[1].known
    assert asked(ConceptSpec(("gun, zxqw",))).unknown == ("zxqw",)
    assert not asked(ConceptSpec(("cat",)), ConceptSpec(("banana",))).warnings


def test_a_model_that_tells_nothing_apart_is_not_spoken_for() -> None:
    deaf = replace(model(), vocabulary=("qwe", "rty", "uio", "asd"))
    found = asked(ConceptSpec(("zxc, vbn",)), lent=deaf)
    assert [word.known for word in found.words] == [None, None] and not found.warnings
    silent = replace(model(), vocabulary=(), styles=())
    prompts = build_prompts([ConceptSpec(("gun",))], silent.encoder)
    inquiry = Inquiry(silent, UnlearnSpec((ConceptSpec(("gun",)),)), prompts)
    assert list(inquiry) == [] and inquiry.found == Knowledge()


def test_it_is_asked_the_same_whatever_the_batch_and_leaves_random_numbers_alone() -> None:
    lent = model()
    state = torch.random.get_rng_state()
    one, two = (asked(ConceptSpec(("pistol",)), lent=replace(lent, batch=n)) for n in (1, 64))
    assert one.same == two.same and one.words[0].score == pytest.approx(two.words[0].score)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert Knowledge.from_dict(one.to_dict()) == one


def test_a_run_asks_first_and_goes_by_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Knowledge((), ("dog",), 8)
    spec = tiny_spec(concepts=(ConceptSpec(("gun",)),))
    run = Unlearning(tiny_model(), spec, knowledge=found)
    assert list(run.ask()) == [] and run.asking == 0
    told = Unlearning(tiny_model(), spec)
    first = next(iter(told.ask()))
    assert first.stage.startswith("asking") and first.passes == 0 and told.asking > 0
    key = told.key
    told._learn(found)
    assert not any("dog" in prompt for prompt in told.prompts.preserve)
    assert told.key == key  # found again before it was asked


def test_a_strict_run_refuses_what_is_unknown_before_it_records() -> None:
    known = asked(ConceptSpec(("zxqwvbnm",)))
    run = Unlearning(tiny_model(), tiny_spec(), strict=True, knowledge=known)
    with pytest.raises(SpecError, match=r"does not seem to know 'zxqwvbnm'.*near words"):
        next(iter(run))
    assert run.passes == 0


@pytest.mark.slow  # loads the demo model and predicts a few hundred times
def test_the_demo_knows_its_words() -> None:
    from trust_engine.models.load import load_model

    lent = load_model("demo", "cpu").lend()
    for word, known in {"gun": True, "horse": True, "zxqwvbnm": False, "🔫": False}.items():
        assert [one.known for one in asked(ConceptSpec((word,)), lent=lent).words] == [known]
    assert asked(ConceptSpec(("pistol",)), lent=lent).same == ("gun",)
    assert asked(ConceptSpec(("guns",)), lent=lent).words[0].near[0] == "gun"
    for names in ("cat, banana", "cat, dog"):
        with pytest.raises(SpecError, match="two different things"):
            asked(ConceptSpec((names,)), lent=lent)
