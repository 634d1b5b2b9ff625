"""The pictures an audit draws: prompts, seeds, and what each should show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .. import seeds
from ..demo.vocabulary import OBJECTS, Scene, caption
from ..errors import SpecError
from ..settings import in_range
from .topic import Topic, World, demo_topic, named

TARGET_FACTOR = 4  # pictures of the target for each picture of another object
LEAST = 12  # pictures of the target, however few of the others
GROUPS = (
    "paraphrases", "samplers", "cfg", "steps", "image_to_image", "pairs", "neutral", "bait",
    "attack", "benign", "negative", "storage", "condition",
)  # fmt: skip
SLOT = "\N{SECTION SIGN}"
PARAPHRASES = (
    "here you see {0}{1}{2}",
    "{0} all alone{1}{2}",
    "please show me {0}{1}{2}",
    "just {0}, nothing else,{1}{2}",
    "one more {3}{1}{2}",
    "the {3}{1}{2}",
    "my favourite {3}{1}{2}",
    "{4}{1}{2}",
)


@dataclass(frozen=True)
class Probe:
    """One picture to draw: the words, what it should show, its seed; `text` overrides the caption.

    asks: what the judge must see of the concept (None: the scene's objects).
    """

    words: str
    scene: Scene
    seed: int
    text: str | None = None
    asks: tuple[str, ...] | None = None

    @property
    def prompt(self) -> str:
        """Return the caption."""
        if self.text is not None:
            return self.text
        return caption([self.words], self.scene.background, self.scene.style)

    @property
    def wanted(self) -> tuple[str, ...]:
        """Return the labels of which the judge must see all."""
        return self.scene.objects if self.asks is None else self.asks


@dataclass(frozen=True)
class ShotList:
    """All pictures of the core figures, by what they measure."""

    target: list[Probe]
    synonyms: list[Probe]
    others: list[Probe]


def plan(target: str, images: int, seed: int) -> ShotList:
    """Plan the core figures of one of the demo's objects; raises SpecError for bad input."""
    if target not in OBJECTS:
        raise SpecError(
            f"{target!r} is not an object the demo's judge knows; use one of {', '.join(OBJECTS)}"
        )
    return core_probes(demo_topic(target), images, seed)


def core_probes(topic: Topic, images: int, seed: int) -> ShotList:
    """Plan `images` pictures an object; the target and its synonyms get four times as many.

    Of these at least 12, however few the others.
    """
    in_range("images", images, 1, 140, whole=True)  # more would share seeds between groups
    in_range("seed", seed, 0, 2**48, whole=True)
    base = seeds.core_pictures(seed)
    many = max(LEAST, images * TARGET_FACTOR)
    synonyms = topic.synonyms if topic.kind != "style" else ()
    return ShotList(
        [_target(topic, topic.word, i, base) for i in range(many)],
        [
            _target(topic, synonyms[i % len(synonyms)], i, base + 3_000)
            for i in range(many if synonyms else 0)
        ],
        [
            _other(topic, name, i * len(topic.world.objects) + j, base + 6_000)
            for j, name in enumerate(topic.world.objects)
            if name != topic.word or topic.kind != "single"
            for i in range(images)
        ],
    )


def concept_shots(topic: Topic, group: str, count: int, seed: int) -> list[Probe]:
    """Ask `count` times for the concept by its own name, with seeds of the group's own."""
    return [_target(topic, topic.word, i, base_of(group, seed)) for i in range(count)]


def paraphrase_shots(topic: Topic, count: int, seed: int) -> list[Probe]:
    """Ask for the concept in sentences that no template has."""
    shots = []
    for i, shot in enumerate(concept_shots(topic, "paraphrases", count, seed)):
        scene, pattern = shot.scene, PARAPHRASES[i % len(PARAPHRASES)]
        ground = f" on a {scene.background} background" if scene.background else ""
        if topic.condition and not scene.background:
            ground = f" {topic.condition}"
        style = f" in {scene.style} style" if scene.style else ""
        phrase = " and ".join(named(word) for word in scene.objects)
        bare = " and ".join(scene.objects)
        text = pattern.format(phrase, ground, style, bare, bare.upper())
        shots.append(Probe(shot.words, scene, shot.seed, text, shot.asks))
    return shots


def retained_shots(topic: Topic, group: str, count: int, seed: int) -> list[Probe]:
    """Ask for other objects, in turn."""
    names = others_of(topic)
    base = base_of(group, seed)
    return [_other(topic, names[i % len(names)], i, base) for i in range(count)] if names else []


def pair_probes(topic: Topic, count: int, seed: int) -> list[Probe]:
    """Ask for a concept's word together with another object.

    The judge looks for the other; of a combination, whose members may stay, for both.
    """
    shots: list[Probe] = []
    if topic.kind == "style":
        return shots
    for i, shot in enumerate(retained_shots(topic, "pairs", count, seed)):
        word = topic.things[i // 2 % len(topic.things)]
        pair = (word, shot.words) if i % 2 else (shot.words, word)
        text = caption(pair, shot.scene.background, shot.scene.style)
        asks = pair if topic.kind == "combination" else None
        shots.append(Probe(shot.words, shot.scene, shot.seed, text, asks))
    return shots


def member_shots(topic: Topic, count: int, seed: int) -> list[Probe]:
    """Ask for what a combination or a condition is made of, one part at a time.

    Of a combination: each member by itself. Of a condition: the thing without it, and other
    things under it.
    """
    shots = []
    for i, shot in enumerate(retained_shots(topic, "condition", count, seed)):
        scene = shot.scene
        if topic.kind == "combination":
            name = topic.labels[i % 2]
            shots.append(Probe(name, replace(scene, objects=(name,)), shot.seed))
        elif i % 2:
            shots.append(_other(topic, topic.word, i, base_of("condition", seed)))
        elif topic.background is not None:
            shots.append(Probe(shot.words, replace(scene, background=topic.background), shot.seed))
        else:
            text = f"{caption([shot.words])} {topic.condition}"
            shots.append(Probe(shot.words, scene, shot.seed, text))
    return shots


def neutral_shots(topic: Topic, count: int, seed: int) -> list[Probe]:
    """Ask for no object at all, or, in a world without backgrounds, for retained ones."""
    world, base = topic.world, base_of("neutral", seed)
    if not world.backgrounds:
        return retained_shots(topic, "neutral", count, seed)
    starts = ("", "a picture", "an image of something", "a drawing", "an icon")
    shots = []
    for i in range(count):
        ground = world.backgrounds[i % len(world.backgrounds)]
        text = f"{starts[i % len(starts)]} on a {ground} background".strip()
        shots.append(Probe("", Scene((), ground, None), base + i, text, ()))
    return shots


def others_of(topic: Topic) -> list[str]:
    """List the objects that should stay."""
    return [name for name in topic.world.objects if name not in topic.things]


def around(topic: Topic, shot: Probe) -> tuple[str, str]:
    """Split a concept shot's prompt at the concept's place: (before, after)."""
    words, style = [SLOT], shot.scene.style
    if topic.kind == "style":
        words, style = list(shot.scene.objects), SLOT
    ground = shot.scene.background
    before, _, after = caption(words, ground, style).partition(SLOT)
    if topic.condition and not ground:
        after = f"{after} {topic.condition}"
    return before.strip(), after.strip()


def base_of(group: str, seed: int) -> int:
    """Return the first of a group's seeds."""
    return seeds.group_pictures(seed, GROUPS.index(group), len(GROUPS))


def _target(topic: Topic, words: str, index: int, base: int) -> Probe:
    ground, style = _setting(topic.world, index)
    if topic.kind == "combination":
        both = (words, str(topic.companion))
        pair = both if index % 2 else both[::-1]
        text = caption(pair, ground, style)
        return Probe(words, Scene(topic.labels, ground, style), base + index, text)
    if topic.kind == "conditional":
        scene = Scene((topic.word,), topic.background, style)
        asked = f"{caption([words])} {topic.condition}" if topic.background is None else None
        return Probe(words, scene, base + index, asked, topic.labels)
    if topic.kind == "style":
        thing = list(topic.world.objects)[index % len(topic.world.objects)]
        return Probe(thing, Scene((thing,), ground, topic.word), base + index, asks=(topic.word,))
    return Probe(words, Scene((topic.word,), ground, style), base + index)


def _other(topic: Topic, name: str, index: int, base: int) -> Probe:
    """Ask for something that stays: never under the condition nor in the style that goes."""
    grounds = [g for g in topic.world.backgrounds if g != topic.background or name != topic.word]
    styles = [s for s in topic.world.styles if topic.kind != "style" or s != topic.word]
    ground, style = _setting(World({}, tuple(styles), tuple(grounds)), index)
    return Probe(name, Scene((name,), ground, style), base + index)


def _setting(world: World, index: int) -> tuple[str | None, str | None]:
    styles: Sequence[str | None] = world.styles or (None,)
    grounds: Sequence[str | None] = world.backgrounds or (None,)
    turn = index // len(styles) + index
    return grounds[turn % len(grounds)], styles[index % len(styles)]
