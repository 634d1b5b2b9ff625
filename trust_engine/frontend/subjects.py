"""The handful of pictures that a report rests on: what they ask for, and how they are drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import seeds
from ..audit.topic import Topic
from ..demo.vocabulary import OBJECTS, UNSEEN
from ..models.contract import Denoiser, TextEncoder
from ..models.sampler import SamplerSettings, initial_noise, sample, sampled
from ..phrases import holds, with_article, words_of
from ..prompts.concept import PromptSet
from ..prompts.templates import TEMPLATES
from ..spec import ConceptSpec, Sampling, UnlearnSpec

COUNT = 8  # pictures without the diff, and as many with it
MOST = 16
SETTINGS = SamplerSettings(12, 4.0)
AT_ONCE = 4  # pictures


@dataclass(frozen=True)
class Subject:
    """One test picture: what it is called, its prompt and seed, and whether it is to be gone.

    concept: the concept's name, empty for what stays; labels: what a judge must see in it.
    """

    name: str
    prompt: str
    seed: int
    labels: tuple[str, ...]
    concept: str = ""


def passes(pictures: int, sampling: Sampling = "guided") -> int:
    """Count UNet passes, one sample each, of drawing so many pictures without and with a diff."""
    return 2 * sampled(SETTINGS, sampling).passes(pictures)


def subjects(
    spec: UnlearnSpec,
    prompts: PromptSet,
    vocabulary: Sequence[str] = (),
    styles: Sequence[str] = (),
    count: int = COUNT,
) -> tuple[Subject, ...]:
    """Choose what to draw: about half of the concepts, of each at least one, half of what stays.

    Of more concepts than `MOST` pictures, some; 0 pictures: none at all.
    """
    if not count:
        return ()
    kept = kept_things(spec, prompts, vocabulary, styles)
    few = min(count // 2, 4 * len(kept))
    erased = [*_erased(spec.concepts, prompts, max(count - few, len(spec.concepts)))]
    asked = [*spread(erased, MOST), *(_asked(kept, few) if kept else ())]
    first = seeds.before_after(spec.seed)
    return tuple(
        Subject(name, prompt, first + i, labels, concept)
        for i, (name, prompt, labels, concept) in enumerate(asked)
    )


Asked = tuple[str, str, tuple[str, ...], str]
"""Name, prompt, labels, and the concept it is of."""


def _erased(concepts: Sequence[ConceptSpec], prompts: PromptSet, count: int) -> Iterator[Asked]:
    """Take some of each concept's target prompts, evenly spread over its words and sentences."""
    for number, concept in enumerate(concepts):
        share = count // len(concepts) + (number < count % len(concepts))
        own = [p for p in prompts.targets if concept.carried_by(p)] or [concept.words[0]]
        for i in range(share):
            prompt = own[i * len(own) // share]
            yield title(concept), prompt, labels_of(concept), title(concept)


def title(concept: ConceptSpec) -> str:
    """Return a concept's name for people: of a style with that word."""
    style = concept.kind == "style" and "style" not in words_of(concept.name)
    return f"{concept.name} style" if style else concept.name


def labels_of(concept: ConceptSpec) -> tuple[str, ...]:
    """Say what a judge must see of a concept, all of it, to call it back."""
    word = known_word(concept.words[0])
    companion = known_word(concept.companion) if concept.companion else None
    return Topic(word, concept.kind, companion, concept.condition).labels


def known_word(word: str) -> str:
    """Return the demo judge's own word for a thing, or the word as it is."""
    plain = " ".join(words_of(word))
    for name, others in {**OBJECTS, **UNSEEN}.items():
        if plain in (name, *others):
            return name
    return word


@dataclass(frozen=True)
class Thing:
    """Something that stays: its name, what follows it in a prompt, and what a judge must see."""

    name: str
    suffix: str = ""
    style: str = ""

    @property
    def title(self) -> str:
        """Return its name for people, without an article."""
        first, _, rest = self.name.partition(" ")
        name = rest if rest and first.lower() in ("a", "an", "the") else self.name
        return f"{name}{self.suffix}"

    @property
    def labels(self) -> tuple[str, ...]:
        """Return what a judge must see."""
        return (known_word(Thing(self.name).title), *([self.style] if self.style else []))


def kept_things(
    spec: UnlearnSpec, prompts: PromptSet, vocabulary: Sequence[str], styles: Sequence[str]
) -> list[Thing]:
    """List what a run preserves, as things, members and the nearest first; of a style in others."""
    if all(concept.kind == "style" for concept in spec.concepts):
        named = list(dict.fromkeys(_styled(prompts, vocabulary, styles)))
    else:
        named = [Thing(word) for word in prompts.kept if word not in styles]
    things = named or [Thing(prompt) for prompt in prompts.preserve]
    return [t for t in things if not any(c.carried_by(t.title) for c in spec.concepts)]


def _styled(
    prompts: PromptSet, vocabulary: Sequence[str], styles: Sequence[str]
) -> Iterator[Thing]:
    """Find the things that are kept in the other styles."""
    for prompt in prompts.preserve:
        text = " ".join(words_of(prompt))
        style = next((s for s in styles if holds(text, s)), "")
        if style:
            yield from (Thing(w, f" in {style} style", style) for w in vocabulary if holds(text, w))


def _asked(kept: Sequence[Thing], count: int) -> Iterator[Asked]:
    """Ask for the nearest of what stays, and for some of the rest; again in other sentences."""
    near = (count + 1) // 2
    chosen = [*kept[:near], *spread(kept[near:], count - near)]
    for i in range(count):
        thing = chosen[i % len(chosen)]
        sentence = TEMPLATES[i // len(chosen) % len(TEMPLATES)].carrying
        prompt = sentence.format(with_article(thing.name)) + thing.suffix
        yield thing.title, prompt, thing.labels, ""


def spread(items: Sequence, count: int) -> list:
    """Take at most `count` of many, evenly."""
    if len(items) <= count:
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]


def draw(
    denoiser: Denoiser,
    encoder: TextEncoder,
    size: tuple[int, int],
    asked: Sequence[Subject],
    on_pass: Callable[[int], None] = lambda passes: None,
    at_once: int = AT_ONCE,
    sampling: Sampling = "guided",
) -> Tensor:
    """Draw test pictures by the engine's sampler; returns latents (n, 4, h, w) on the CPU.

    on_pass: called with the passes just made, and may raise to stop; at_once: pictures in one
    UNet call, which with guidance holds twice as many samples; sampling: the spec's.
    """
    uncond, made, how = encoder.encode([""]), [], sampled(SETTINGS, sampling)
    for start in range(0, len(asked), at_once):
        part = asked[start : start + at_once]
        cond = encoder.encode([subject.prompt for subject in part])
        seeds = [subject.seed for subject in part]
        x = initial_noise(seeds, size)
        for _, step in sample(denoiser, x, cond, uncond, how, seeds):
            x = step
            on_pass(how.passes(len(part)) // how.steps)
        made.append(x.float().cpu())
    return torch.cat(made) if made else torch.empty(0, 4, *size)
