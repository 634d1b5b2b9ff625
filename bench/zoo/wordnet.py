"""Read WordNet's noun files: senses of a word, and what lies above and below a sense."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Synset:
    """A sense: its words, and the offsets of the senses above and below it."""

    words: tuple[str, ...]
    above: tuple[int, ...]
    below: tuple[int, ...]


class Nouns:
    """The nouns of WordNet, by offset (format: `man 5WN wndb`)."""

    def __init__(self, folder: Path) -> None:
        self._data = (folder / "data.noun").read_bytes()
        self._index: dict[str, list[int]] = {}
        for line in (folder / "index.noun").read_text().splitlines():
            if not line.startswith(" "):  # the licence stands above the index
                parts = line.split()
                senses = int(parts[2])
                self._index[parts[0]] = [int(offset) for offset in parts[-senses:]]

    def senses(self, word: str) -> list[int]:
        """List a noun's senses, the most frequent first; none for a word that is not there."""
        return self._index.get(word.lower().replace(" ", "_"), [])

    def at(self, offset: int) -> Synset:
        """Read the sense at an offset."""
        line = self._data[offset : self._data.index(b"\n", offset)].decode()
        parts = line.split(" | ")[0].split()
        count = int(parts[3], 16)
        words = tuple(parts[4 + 2 * i].replace("_", " ") for i in range(count))
        start = 5 + 2 * count
        pointers = [parts[start + 4 * i : start + 4 * i + 3] for i in range(int(parts[start - 1]))]
        nouns = [(kind[0], int(there)) for kind, there, part in pointers if part == "n"]
        above = tuple(there for kind, there in nouns if kind == "@")
        return Synset(words, above, tuple(there for kind, there in nouns if kind == "~"))

    def under(self, offset: int) -> Iterator[str]:
        """Yield the words of a sense and of all senses below it."""
        sense = self.at(offset)
        yield from sense.words
        for there in sense.below:
            yield from self.under(there)
