"""What a scrubbing is shown: lists of prompts, pictures, and their noised samples."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from toys.tiny import WordEncoder, tiny_denoiser
from trust_engine.models.contract import Conditioning
from trust_engine.prompts.concept import build_prompts
from trust_engine.spec import ConceptSpec, UnlearnSpec
from trust_engine.unlearn.scrubbing.noised import EARLIEST, LATEST, Drawn, chance, on_the_way
from trust_engine.unlearn.scrubbing.picture_lists import Counts, PictureLists, picture_lists
from trust_engine.unlearn.scrubbing.pictures import Recipe, draw, noised, recipe_of
from trust_engine.unlearn.trajectory import Recording

WORDS = ("cat", "dog", "car", "beer", "tree")
GUN = ConceptSpec(("gun", "pistol"))


def lists(concept: ConceptSpec = GUN, counts: Counts | None = None) -> PictureLists:
    """Write a concept's lists."""
    styled = concept.kind == "style"
    prompts = build_prompts([concept], WordEncoder(), WORDS, ("photo", "cartoon"), styled)
    return picture_lists([concept], prompts, counts)


def test_the_concept_is_alone_and_what_stays_is_alone_and_in_pairs() -> None:
    found = lists(counts=Counts(6, 5, 20, 2))
    assert [len(part) for part in (*found.concepts, found.alone, found.pairs, found.near)] == [
        6, 5, 20, 2,
    ]  # fmt: skip
    assert all("gun" in prompt or "pistol" in prompt for prompt in found.concepts[0])
    assert not any(word in prompt for prompt in found.rest for word in ("gun", "pistol"))
    assert not any(word in prompt for prompt in found.concepts[0] for word in WORDS)
    named = [[word for word in WORDS if word in prompt.split()] for prompt in found.pairs]
    assert all(len(pair) == 2 for pair in named)
    each = Counter(word for pair in named for word in pair)
    assert set(each) == set(WORDS) and set(each.values()) == {8}  # each as often as any other
    assert len({tuple(pair) for pair in named}) == 10  # and with every other
    (own,), (anchors,) = found.concepts, found.anchors
    assert found.prompts == (*own, *anchors, *found.rest) and found.counts == [6, 27]
    assert len(anchors) == 6 and not any("gun" in prompt for prompt in anchors)
    # An anchor's picture is drawn from the noise of the concept's; all others from their own.
    assert found.noises == [*range(6), *range(6), *range(6, 33)]
    assert found.places == (range(6), range(12, 39), range(6, 12))
    without = replace(found, anchors=())
    assert without.prompts == (*own, *found.rest) and without.noises == list(range(33))


def test_a_users_list_is_what_is_near() -> None:
    found = lists(ConceptSpec(("gun",), preserve=("soldier", "holster")), Counts(2, 4, 4, 4))
    assert set(found.near) == {"a soldier", "a holster"}
    assert replace(found, near=("a sheriff",)).rest[-1] == "a sheriff"


def test_a_style_has_no_pairs_but_as_many_pictures() -> None:
    found = lists(ConceptSpec(("sketch",), "style"), Counts(4, 3, 5, 2))
    assert not found.pairs and not found.near and len(found.alone) == 8
    assert all("sketch style" in prompt for prompt in found.concepts[0])
    assert all("style" in prompt and "sketch" not in prompt for prompt in found.alone)


@pytest.mark.parametrize("count", [0, 1])
def test_one_thing_or_none_makes_no_pair(count: int) -> None:
    concept = ConceptSpec(("gun",), preserve=("cat",) * count)
    prompts = replace(build_prompts([concept], WordEncoder(), ("dog",)), kept=("cat",) * count)
    assert picture_lists([concept], prompts, Counts(2, 2, 2)).pairs == ()


def test_pictures_are_the_samplers_and_their_way_leads_to_them() -> None:
    denoiser, encoder = tiny_denoiser(), WordEncoder()
    asked, how = replace(lists(counts=Counts(2, 1, 2)), anchors=()), Recipe(steps=4).sampler
    cond, uncond = encoder.encode(asked.prompts), encoder.encode([""])

    def drawn(batch: int) -> Recording:
        *_, whole = draw(denoiser, cond, uncond, how, (8, 8), 0, batch)
        assert whole.over and whole.passes == how.passes(5)
        return whole

    found = Drawn.of(drawn(2), cond)
    assert found.latents.shape == (5, 4, 8, 8) and found.way.shape == (5, 3, 4, 8, 8)
    assert found.timesteps.tolist() == how.grid(denoiser)[1:]
    torch.testing.assert_close(drawn(5).latents[:, -1], found.latents, rtol=1e-4, atol=1e-4)
    # The last step of the way, denoised once more, is the picture.
    last = int(found.timesteps[-1])
    x, t = found.way[:, -1], torch.full((5,), last)
    with torch.no_grad():
        told = denoiser(x, t, found.prompts)
        free = denoiser(x, t, Conditioning(encoder.encode([""]).context.expand(5, -1, -1)))
    x0, eps = denoiser.schedule.split(x, t, free + how.cfg * (told - free))
    a = denoiser.schedule.alphas[0]
    made = a.sqrt() * x0 + (1 - a).sqrt() * eps
    torch.testing.assert_close(found.latents, made, rtol=1e-4, atol=1e-4)


def test_an_anchors_picture_begins_with_the_concepts_noise() -> None:
    denoiser, encoder = tiny_denoiser(), WordEncoder()
    cond = encoder.encode(["a gun"] * 4)
    *_, found = draw(
        denoiser, cond, encoder.encode([""]), Recipe(steps=4).sampler, (8, 8), 0, 4,
        numbers=[0, 1, 0, 1],
    )  # fmt: skip
    one, two, again, _ = found.latents[:, -1]
    torch.testing.assert_close(one, again)
    assert not torch.allclose(one, two)


def some(n: int) -> Drawn:
    """Return pictures that tell their number, and on the way their step."""
    numbers = torch.arange(n, dtype=torch.float32).view(n, 1, 1, 1).expand(n, 4, 2, 2)
    way = torch.stack([numbers + 0.1 * step for step in range(4)], 1)
    cond = WordEncoder().encode(["a gun"] * n)
    return Drawn(numbers, cond, way, torch.tensor([900, 600, 300, 1]))


def test_the_way_is_taken_where_there_is_something_to_see() -> None:
    found = on_the_way(some(3), WordEncoder().encode([""]), 6, 0.0, chance(0, 0))
    steps = [(int(x[0, 0, 0] + 0.01), round(float(x[0, 0, 0] % 1), 1)) for x in found.x]
    assert len(set(steps)) == 6 and {number for number, _ in steps} == {0, 1, 2}
    assert set(found.t.tolist()) == {600, 300}
    assert all((t == 600) == (step == 0.1) for t, (_, step) in zip(found.t, steps, strict=True))


@pytest.mark.parametrize("source", ["renoised", "on the way", "both"])
def test_samples_are_as_many_as_asked_and_halves_are_of_different_pictures(source: str) -> None:
    denoiser, encoder = tiny_denoiser(), WordEncoder()
    uncond = encoder.encode([""])
    recipe = Recipe(source=source, concept=8, rest=6, untold=0.5)  # type: ignore[arg-type]
    pictures = replace(some(8), latents=some(8).latents)
    (concept,), rest = noised(denoiser, uncond, pictures, [4, 4], recipe, 0)
    assert (len(concept), len(rest)) == (8, 6)
    for kind in (concept, rest):
        assert bool(((kind.t >= EARLIEST) & (kind.t < LATEST)).all())
        blank = (kind.cond.context == encoder.encode([""]).context).flatten(1).all(1)
        assert 0 < int(blank.sum()) < len(kind)
    if source == "on the way":
        halves = [{int(x[0, 0, 0] + 0.01) for x in half} for half in concept.x.split(4)]
        assert halves == [{0, 2}, {1, 3}]
        assert {int(x[0, 0, 0] + 0.01) for x in rest.x} <= {4, 5, 6, 7}
    again = noised(denoiser, uncond, pictures, [4, 4], recipe, 0)[1]
    other = noised(denoiser, uncond, pictures, [4, 4], recipe, 1)[1]
    assert torch.equal(again.x, rest.x) and not (
        torch.equal(other.x, rest.x) and torch.equal(other.cond.context, rest.cond.context)
    )


def test_a_sampler_of_one_step_leaves_nothing_on_the_way() -> None:
    pictures = replace(some(4), timesteps=torch.tensor([900, 800, 800, 1]))
    recipe = Recipe(source="on the way", concept=2, rest=2)
    uncond = WordEncoder().encode([""])
    (concept,), _ = noised(tiny_denoiser(), uncond, pictures, [2, 2], recipe, 0)
    assert len(concept) == 2


def test_a_run_draws_every_concept_alone_and_more_of_the_rest_for_several() -> None:
    gun, bomb = ConceptSpec(("gun",)), ConceptSpec(("bomb",))
    one, two = (recipe_of(UnlearnSpec(some)) for some in ((gun,), (gun, bomb)))
    assert (one.counts, one.concept, one.rest) == (Counts(), 144, 288)
    assert two.counts.concept == 24 and two.concept == 144 and 288 < two.rest < 576
    assert two.samples(2) == 288 + two.rest
    prompts = build_prompts([gun, bomb], WordEncoder(), WORDS)
    found = picture_lists([gun, bomb], prompts, Counts(4, 2, 2))
    for own, word in zip(found.concepts, ("gun", "bomb"), strict=True):
        assert len(own) == 4 and all(word in prompt for prompt in own)
    assert not any("gun" in prompt or "bomb" in prompt for prompt in found.rest)
    few = recipe_of(UnlearnSpec((gun,), passes=16, sampling="lightning"))
    assert few.counts == Counts(2, 2, 2) and few.sampler.steps == 4 and few.sampler.cfg == 1.0
