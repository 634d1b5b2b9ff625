"""What the model knows of the words, asked before any training.

A word that the model knows moves its prediction away from the same sentence without the word: far,
and the same way in every sentence. Nonsense moves it little, or this way here and that way there.
Two words that mean one thing move it alike. How far is far is told by words that the model is
expected to know and by nonsense, both asked beside the concept's.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import seeds
from ..errors import SpecError
from ..models.contract import LentModel, device_of
from ..models.sampler import initial_noise
from ..phrases import named_in, quoted, with_article
from ..prompts.concept import PromptSet, nearest
from ..spec import ConceptSpec, UnlearnSpec

# Thresholds fixed on half of the demo's objects and checked on the other half: bench.knowledge.
KNOWN = 0.36  # from here on a word is known; 0: moves the prediction as nonsense, 1: as known words
SAME = 0.33  # up to this share of the distance between two known words, two words are one thing
DIFFERENT = 0.4  # beyond this share they are two
TELLS = 2.0  # times as far as nonsense must known words move the prediction, or nothing is said
AGREEMENT = 8  # power of the cosine between a word's effects in two sentences

TIMESTEP = 781  # little but noise yet: what a picture shows is decided here
NOISES = 2
REFERENCES = 9  # known words that are asked
WEAKER = 0.25  # quantile of their effects that counts as known: some words move little
NONSENSE = ("ynbiqpmzj", "lsgqejeyd", "rwztejdx", "vkprdl", "ktugrpoqi")
CLOSEST = 6  # of the proposed words that are compared with the concept: synonyms are the nearest
NEAR = 3  # words that are named beside an unknown one

THING = (("{}", ""), ("a picture of {}", "a picture"))
STYLE = (
    ("a house in {} style", "a house"),
    ("a picture of a house in {} style", "a picture of a house"),
)


@dataclass(frozen=True)
class Word:
    """A word that is to be forgotten: whether the model knows it, and what is near it.

    score: 0 as nonsense, 1 as the words that the model is expected to know; known: None where the
    model does not tell these two apart.
    """

    text: str
    score: float
    known: bool | None
    near: tuple[str, ...] = ()

    @property
    def warning(self) -> str | None:
        """Say that the model does not know it, if so."""
        if self.known is not False:
            return None
        other = f"; near words: {', '.join(self.near)}" if self.near else ""
        return (
            f"the model does not seem to know {quoted(self.text)} (it moves the prediction "
            f"{max(0.0, self.score):.0%} as much as known words do){other}"
        )


@dataclass(frozen=True)
class Knowledge:
    """What was found out of the concepts' words, and in how many UNet passes.

    same: words that were to be preserved and that the model draws as a concept's.
    """

    words: tuple[Word, ...] = ()
    same: tuple[str, ...] = ()
    passes: int = 0

    @property
    def unknown(self) -> tuple[str, ...]:
        """List the words that the model does not know."""
        return tuple(word.text for word in self.words if word.known is False)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Say what is to be said, a sentence each."""
        return tuple(told for word in self.words if (told := word.warning))

    def to_dict(self) -> dict[str, Any]:
        """Spell it out for JSON."""
        return {**asdict(self), "unknown": self.unknown}

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Knowledge:
        """Read what `to_dict` wrote."""
        words = tuple(
            Word(w["text"], float(w["score"]), w["known"], tuple(w["near"])) for w in told["words"]
        )
        return cls(words, tuple(told["same"]), int(told["passes"]))


class Inquiry:
    """Asks about a spec's words: iterate over it, then read `found`.

    Yields the passes so far after each UNet call. Raises SpecError when it is over for names of one
    concept that the model draws as two things, and for what is to be preserved but is the concept.
    """

    def __init__(
        self,
        model: LentModel,
        spec: UnlearnSpec,
        prompts: PromptSet,
        predicted: dict[str, Tensor] | None = None,
    ) -> None:
        """Take a run's model, spec and prompts, and what the model has answered before, if kept."""
        self.model, self.concepts, self.prompts = model, spec.concepts, prompts
        self.found = Knowledge()
        self._predicted = {} if predicted is None else predicted
        self.texts = tuple(dict.fromkeys(self._texts()))

    @property
    def passes(self) -> int:
        """Count the UNet passes, one sample each, that it takes."""
        return NOISES * len(self.texts)

    def __iter__(self) -> Iterator[int]:
        passes = 0
        for passes in self._predict():
            yield passes
        words: list[Word] = []
        same: list[str] = []
        for concept, proposed in zip(self.concepts, self.prompts.proposed, strict=True):
            scale = self._scale(concept)
            if scale is None:
                continue
            asked = [self._word(word, concept, scale) for word in _words(concept)]
            words += asked
            known = [word.text for word in asked if word.known]
            self._check_one_thing(concept, known, scale)
            self._check_other_things(concept, known, scale)
            same += self._same(concept, proposed, known, scale)
        self.found = Knowledge(tuple(dict.fromkeys(words)), tuple(dict.fromkeys(same)), passes)

    def predict(self) -> None:
        """Ask at once, without judging the answers."""
        for _ in self._predict():
            pass

    def scored(self, word: str) -> float:
        """Return the score of a word of the first concept, once asked."""
        scale = self._scale(self.concepts[0])
        return scale.place(self._effect(word, self.concepts[0])) if scale else 0.0

    def share_apart(self, one: str, other: str) -> float:
        """Return how far apart two of its words are; 1: as far as known words, once asked."""
        scale = self._scale(self.concepts[0])
        return self._apart(one, other, self.concepts[0]) / scale.apart if scale else 0.0

    def _texts(self) -> Iterator[str]:
        for concept, proposed in zip(self.concepts, self.prompts.proposed, strict=True):
            sentences, expected = _sentences(concept), self._expected(concept)
            if not expected:
                continue
            for carrying, without in sentences:
                yield without
                yield from (_put(carrying, w) for w in (*_words(concept), *expected, *NONSENSE))
            others = (*_compared(concept, proposed), *filter(None, [concept.anchor]))
            yield from (_put(sentences[0][0], w) for w in others)

    def _predict(self) -> Iterator[int]:
        """Predict every text's noise at one timestep, from the same few latents."""
        model, passes = self.model, 0
        device, size = device_of(model.denoiser), model.latent_size
        noise = initial_noise([seeds.knowledge(i) for i in range(NOISES)], size).to(device)
        batch = max(1, model.at_once // NOISES)
        fresh = [text for text in self.texts if text not in self._predicted]
        for start in range(0, len(fresh), batch):
            texts = fresh[start : start + batch]
            cond = model.encode([t for t in texts for _ in range(NOISES)])
            x = noise.repeat(len(texts), 1, 1, 1)
            t = torch.full((len(x),), TIMESTEP, device=device, dtype=torch.long)
            with torch.no_grad():
                made = model.denoiser(x, t, cond).float().cpu()
            self._predicted |= dict(zip(texts, made.reshape(len(texts), -1), strict=True))
            passes += len(x)
            yield passes

    def _expected(self, concept: ConceptSpec) -> list[str]:
        """Choose words that the model is expected to know, spread over those that it offers."""
        style = concept.kind == "style"
        offered = self.model.styles if style else self.model.vocabulary
        free = [w for w in offered if not any(c.carried_by(w) for c in self.concepts)]
        stride = -(-len(free) // REFERENCES) if free else 1
        return free[::stride] if len(free) > 1 else []

    def _effect(self, word: str, concept: ConceptSpec) -> float:
        """Measure how far, and how much alike in two sentences, a word moves the prediction."""
        first, second = (
            self._predicted[_put(carrying, word)] - self._predicted[without]
            for carrying, without in _sentences(concept)
        )
        alike = float(F.cosine_similarity(first, second, dim=0).clamp(min=0))
        return float((first.norm() * second.norm()).sqrt()) * alike**AGREEMENT

    def _scale(self, concept: ConceptSpec) -> _Scale | None:
        """Measure known words and nonsense; None where there is nothing to go by."""
        expected = self._expected(concept)
        if not expected:
            return None
        known = _quantile([self._effect(word, concept) for word in expected], WEAKER)
        nonsense = _quantile([self._effect(word, concept) for word in NONSENSE])
        apart = [
            self._apart(one, other, concept)
            for i, one in enumerate(expected)
            for other in expected[:i]
        ]
        return _Scale(known, nonsense, _quantile(apart), known > TELLS * nonsense)

    def _apart(self, one: str, other: str, concept: ConceptSpec) -> float:
        carrying = _sentences(concept)[0][0]
        first, second = (self._predicted[_put(carrying, word)] for word in (one, other))
        return float((first - second).norm())

    def _word(self, word: str, concept: ConceptSpec, scale: _Scale) -> Word:
        score = scale.place(self._effect(word, concept))
        if not scale.tells:
            return Word(word, score, None)
        known = score >= KNOWN
        return Word(word, score, known, () if known else self._near(word, concept))

    def _near(self, word: str, concept: ConceptSpec) -> tuple[str, ...]:
        """Name words that the model knows: spelled alike, then alike to its text encoder."""
        style = concept.kind == "style"
        words = self.model.styles if style else self.model.vocabulary
        offered = [other for other in words if other.lower() != word.lower()]
        spelled = difflib.get_close_matches(word.lower(), offered, NEAR)
        meant = nearest([with_article(word)], offered, self.model.encoder, NEAR)
        return tuple(dict.fromkeys([*spelled, *meant]))[:NEAR]

    def _check_one_thing(self, concept: ConceptSpec, known: Sequence[str], scale: _Scale) -> None:
        names = [word for word in concept.words if word in known]
        for i, other in enumerate(names):
            for name in names[:i]:
                if self._apart(name, other, concept) > DIFFERENT * scale.apart:
                    raise SpecError(
                        f"the model draws {quoted(name)} and {quoted(other)} as two different "
                        "things, and commas part names of one",
                        remedy="give the second as a concept of its own: {also TEXT}",
                    )

    def _check_other_things(
        self, concept: ConceptSpec, known: Sequence[str], scale: _Scale
    ) -> None:
        """Refuse a companion or an anchor that is the concept under another name."""
        names = [word for word in concept.words if word in known]
        for field, why in (
            ("companion", "a combination takes two things"),
            ("anchor", "what is drawn instead must be something else"),
        ):
            other = getattr(concept, field)
            if other is None or (
                field == "anchor" and concept.kind in ("combination", "conditional")
            ):
                continue
            for name in names:
                if self._apart(name, other, concept) < SAME * scale.apart:
                    raise SpecError(
                        f"the model draws {quoted(other)} as it draws {quoted(name)}, and {why}",
                        remedy=f"name another {{{field}}}",
                    )

    def _same(
        self, concept: ConceptSpec, proposed: Sequence[str], known: Sequence[str], scale: _Scale
    ) -> list[str]:
        """List what was proposed and is the concept; raises SpecError where a user asks for it."""
        names = [word for word in _words(concept) if word in known]
        found = [
            other
            for other in _compared(concept, proposed)
            if any(self._apart(n, other, concept) < SAME * scale.apart for n in names)
        ]
        for other in found:
            if other in concept.preserve:
                raise SpecError(
                    f"the model draws {quoted(other)} as it draws {quoted(concept.name)}, which is "
                    "to be forgotten",
                    remedy="take it out of {preserve}",
                )
        return found


@dataclass(frozen=True)
class _Scale:
    """Effects of known words and of nonsense, the distance of known words; tells: one can tell."""

    known: float
    nonsense: float
    apart: float
    tells: bool

    def place(self, effect: float) -> float:
        """Say where between nonsense (0) and known words (1) an effect lies."""
        span = self.known - self.nonsense
        return (effect - self.nonsense) / span if span > 0 else 0.0


def _sentences(concept: ConceptSpec) -> tuple[tuple[str, str], ...]:
    return STYLE if concept.kind == "style" else THING


def _put(sentence: str, word: str) -> str:
    return sentence.replace("{}", with_article(word) if sentence in _OF_THINGS else word)


_OF_THINGS = tuple(carrying for carrying, _ in THING)


def _words(concept: ConceptSpec) -> tuple[str, ...]:
    """List a concept's words, and its companion: a thing, too."""
    return tuple(dict.fromkeys((*concept.words, *filter(None, [concept.companion]))))


def _compared(concept: ConceptSpec, proposed: Sequence[str]) -> tuple[str, ...]:
    """List what may be the concept under another name; a style's things cannot."""
    asked = () if concept.kind == "style" else concept.preserve
    free = [w for w in (*asked, *proposed[:CLOSEST]) if not named_in(w, _words(concept))]
    return tuple(dict.fromkeys(free))


def _quantile(values: Sequence[float], share: float = 0.5) -> float:
    return float(torch.tensor(values, dtype=torch.float64).quantile(share))
