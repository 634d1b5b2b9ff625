"""Does asking tell what the demo knows from what it does not, and synonyms from other things?

    python -m bench.knowledge            # tables
    python -m bench.knowledge --quick    # a third of the words

The demo's 28 objects are parted by the hash of their names. The thresholds in
`trust_engine/unlearn/word_knowledge.py` lie between what is known and what is not in the first
half; the second half was looked at afterwards.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import string
from collections.abc import Iterator, Sequence
from itertools import combinations

from torch import Tensor

from trust_engine.demo.vocabulary import OBJECTS, UNSEEN
from trust_engine.models.common_words import THINGS
from trust_engine.models.contract import LentModel
from trust_engine.models.load import load_model
from trust_engine.prompts.concept import build_prompts
from trust_engine.spec import ConceptSpec, UnlearnSpec
from trust_engine.unlearn.word_knowledge import DIFFERENT, KNOWN, SAME, Inquiry

HALVES = ("fixed on", "proved on")
NONSENSE = 60  # words of random letters
ODD = ("🔫", "😀", "猫", "zxqwvbnm", "guns", "babies")


def half(word: str) -> int:
    """Put a word into the first half or the second, by the hash of its name."""
    return hashlib.sha256(word.encode()).digest()[0] % 2


def known() -> list[str]:
    """List what the demo was trained on, synonyms included."""
    return [word for name, others in OBJECTS.items() for word in (name, *others)]


def unknown() -> list[str]:
    """List nonsense, and everyday words that the demo never saw."""
    chance = random.Random(1)
    letters = [
        "".join(chance.choices(string.ascii_lowercase, k=chance.randint(5, 9)))
        for _ in range(NONSENSE)
    ]
    met = {*known(), "woman"}
    everyday = [word for word in THINGS if word not in met]
    return [*letters, *everyday, *UNSEEN, *ODD]


def owner(word: str) -> str:
    """Name the object that a word means; a word of none is its own."""
    return next((name for name, others in OBJECTS.items() if word in (name, *others)), word)


class Asker:
    """Asks about words; what the model has answered once is kept."""

    def __init__(self, model: LentModel) -> None:
        self.model, self.kept = model, dict[str, Tensor]()
        self.passes = 0

    def ask(self, *words: str) -> Inquiry:
        """Ask about names of one thing."""
        concept = ConceptSpec(words)
        model = self.model
        prompts = build_prompts([concept], model.encoder, model.vocabulary, model.styles)
        inquiry = Inquiry(model, UnlearnSpec((concept,)), prompts, self.kept)
        self.passes = inquiry.passes
        inquiry.predict()
        return inquiry

    def score(self, word: str) -> float:
        """Return a word's score."""
        return self.ask(word).scored(word)

    def apart(self, one: str, other: str) -> float:
        """Return how far apart two words are, as a share of the distance between known words."""
        return self.ask(one, other).share_apart(one, other)


def spread(values: Sequence[float]) -> str:
    """Show least, middle and most."""
    ordered = sorted(values)
    return f"{ordered[0]:.2f} / {ordered[len(ordered) // 2]:.2f} / {ordered[-1]:.2f}"


def rows(asker: Asker, words: Sequence[str], right: bool) -> Iterator[str]:
    """Write how many words of each half are told rightly."""
    for number, name in enumerate(HALVES):
        scores = {word: asker.score(word) for word in words if half(owner(word)) == number}
        wrong = [word for word, score in scores.items() if (score >= KNOWN) != right]
        told = f"{len(scores) - len(wrong)} of {len(scores)}"
        kind = "known" if right else "unknown"
        yield f"| {kind} | {name} | {told} | {spread(list(scores.values()))} | {', '.join(wrong)} |"


def pairs(asker: Asker, quick: bool) -> Iterator[str]:
    """Write how far synonyms, and how far two objects, are apart."""
    step = 3 if quick else 1
    for number, name in enumerate(HALVES):
        own = [word for word in OBJECTS if half(word) == number]
        alike = [asker.apart(word, other) for word in own for other in OBJECTS[word]]
        others = [asker.apart(a, b) for a, b in list(combinations(own, 2))[::step]]
        same = sum(value < SAME for value in alike)
        two = sum(value > DIFFERENT for value in others)
        yield f"| synonyms | {name} | {same} of {len(alike)} the same | {spread(alike)} | |"
        yield f"| two objects | {name} | {two} of {len(others)} two | {spread(others)} | |"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a third of the words")
    quick = parser.parse_args().quick
    asker, step = Asker(load_model("demo").lend()), 3 if quick else 1
    print(f"thresholds: known from {KNOWN}, the same below {SAME}, two things above {DIFFERENT}\n")
    print("| words | half | rightly told | least / middle / most | wrong |\n|---|---|---|---|---|")
    for line in rows(asker, known()[::step], True):
        print(line)
    for line in rows(asker, unknown()[::step], False):
        print(line)
    for line in pairs(asker, quick):
        print(line)
    print(f"\n{asker.passes} UNet passes, one sample each, for one word")


if __name__ == "__main__":
    main()
