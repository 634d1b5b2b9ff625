"""Which words a phrase has, and whether two texts name the same thing: any script, any symbol."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

ARTICLES = frozenset({"a", "an", "the"})
COMMAS = ",\uff0c\u3001\u060c"  # of Latin, Chinese, Japanese and Arabic
JOINERS = "\u200c\u200d"  # hold letters of one word apart, and emoji of one picture together
LONGEST_QUOTE = 60
_VARIANTS = {*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)}  # how a character is to be drawn
_SKIN = range(0x1F3FB, 0x1F400)
_FLAG = range(0x1F1E6, 0x1F200)  # two of them are one flag
_TAGS = range(0xE0020, 0xE0080)
# Scripts that put no space between words: a name stands within a longer run of letters.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
_ESCAPED = re.compile(r"\\([()\[\]])")  # how hosts write a bracket that is no emphasis
_STYLE = re.compile(
    r"^(?:(?:in|of|from)\s+)?(?:the\s+)?style\s+of\s+(?P<of>.+)$"
    r"|^(?:in\s+)?(?:an?\s+|the\s+)?(?P<plain>.+?)(?:\s+|-)styles?$",
    re.IGNORECASE,
)
# Plurals that no rule below undoes. Longer words may end in those of the second table.
IRREGULAR = {
    "dice": "die", "pence": "penny", "oxen": "ox", "staves": "staff", "brethren": "brother",
    "criteria": "criterion", "phenomena": "phenomenon", "automata": "automaton",
    "bacteria": "bacterium", "data": "datum", "media": "medium", "strata": "stratum",
    "memoranda": "memorandum", "curricula": "curriculum", "aquaria": "aquarium",
    "stadia": "stadium", "errata": "erratum", "ova": "ovum", "genera": "genus",
    "corpora": "corpus", "opuses": "opus", "passersby": "passerby", "schemata": "schema",
    "stigmata": "stigma", "seraphim": "seraph", "cherubim": "cherub", "quizzes": "quiz",
    "busses": "bus", "gasses": "gas", "paparazzi": "paparazzo", "graffiti": "graffito",
}  # fmt: skip
ENDINGS = {
    "men": "man", "children": "child", "people": "person", "mice": "mouse", "lice": "louse",
    "geese": "goose", "feet": "foot", "teeth": "tooth", "eaux": "eau", "ae": "a",
}  # fmt: skip
_RULES = (
    (r"ies$", ("y", "ie")),  # babies, movies
    (r"ves$", ("f", "fe", "ve")),  # wolves, knives, waves
    (r"(?<=[aeiou])zzes$", ("z",)),  # quizzes
    (r"ices$", ("ex", "ix", "ice")),  # vertices, matrices, prices
    (r"ses$", ("s", "se", "sis")),  # buses, houses, oases
    (r"(?<=x|z|o)es$", ("", "e")),  # foxes, axes, potatoes, shoes
    (r"(?<=ch|sh|ss)es$", ("", "e")),  # torches, brushes, glasses, caches
    (r"xes$", ("xis",)),  # axes
    (r"(?<=..)i$", ("us",)),  # cacti
    (r"(?<=[^siu])s$", ("",)),
    (r"(?<=..[iu])s$", ("",)),  # taxis, menus
)


def clean(text: str) -> str:
    """Write a text as it is kept: composed (NFC), in one line, without what cannot be seen.

    A bracket that is escaped, as hosts want it, is a bracket.
    """
    text = _ESCAPED.sub(r"\1", unicodedata.normalize("NFC", text))
    kept = []
    for i, char in enumerate(text):
        kind = unicodedata.category(char)
        if kind == "Cc":
            kept.append(" " if char.isspace() else "")
        elif kind == "Cs":
            continue  # half a character: what a terminal or JSON passes on for bytes that are none
        elif kind != "Cf" or _joins(text, i) or ord(char) in _TAGS:
            kept.append(char)
    return unicodedata.normalize("NFC", " ".join("".join(kept).split()))


def _joins(text: str, place: int) -> bool:
    """Tell whether there is a joiner that stands within a word or an emoji."""
    if text[place] not in JOINERS or not 0 < place < len(text) - 1:
        return False
    return not any(char.isspace() or char.isascii() for char in text[place - 1 : place + 2 : 2])


def quoted(text: str) -> str:
    """Quote a text in a message, cut where it is long."""
    return repr(text if len(text) <= LONGEST_QUOTE else text[: LONGEST_QUOTE - 1] + "…")


def by_line(text: str) -> tuple[str, ...]:
    """Split a text at line ends alone, as prompts are written; empty lines are left out."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def names_in(text: str) -> tuple[str, ...]:
    """Split a text at commas and line ends into names, each once."""
    parts = re.split(rf"[{COMMAS}\n\r]", text)
    return tuple(dict.fromkeys(part for part in map(clean, parts) if part))


@lru_cache(maxsize=1 << 16)
def words_of(text: str) -> tuple[str, ...]:
    """List a text's words as they are compared: small letters, NFKC; each symbol is a word.

    Marks belong to the letter before them, and what is joined to an emoji is one word with it.
    """
    words: list[str] = []
    open_word = joined = False  # whether letters, and whether an emoji, may still follow
    text = re.sub(r"(?<=\w)['\u2019]s\b", "s", clean(text))
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    for char in text:
        kind, code = unicodedata.category(char), ord(char)
        if kind[0] == "M" or code in _SKIN or code in _TAGS or char in JOINERS:
            if words and code not in _VARIANTS and (char != JOINERS[0]):
                words[-1] += char if kind[0] != "L" else ""
            joined = char == JOINERS[1]
        elif kind[0] in "LN":
            if open_word:
                words[-1] += char
            else:
                words.append(char)
            open_word, joined = True, False
        elif kind[0] == "S" and char not in "^`\u00b4\u00a8":
            flag = code in _FLAG and words and len(words[-1]) == 1 and ord(words[-1]) in _FLAG
            if (joined and words and not open_word) or flag:
                words[-1] += char
            else:
                words.append(char)
            open_word = joined = False
        else:
            open_word = joined = False
    return tuple(words)


@lru_cache(maxsize=1 << 16)
def lemmas(word: str) -> frozenset[str]:
    """List what a word may be a plural of, itself included; some of it may be no word at all.

    Two forms of one noun have something in common, and two nouns hardly ever do.
    """
    found = {word, IRREGULAR.get(word, word)}
    if len(word) > 2 and word.isalpha():
        ends = ((end, one) for end, one in ENDINGS.items() if word.endswith(end))
        found |= {word.removesuffix(end) + one for end, one in ends}
        for pattern, endings in _RULES:
            if re.search(pattern, word):
                found |= {re.sub(pattern, ending, word) for ending in endings}
    return frozenset(form for form in found if len(form) > 1 or form == word)


def bare(phrase: str) -> tuple[str, ...]:
    """List a phrase's words but for an article at its start."""
    words = words_of(phrase)
    return words[1:] if words[:1] and words[0] in ARTICLES and words[1:] else words


def empty(phrase: str) -> bool:
    """Tell whether a phrase names nothing: punctuation, articles, what cannot be seen."""
    return not set(words_of(phrase)) - ARTICLES


def same_name(one: str, other: str) -> bool:
    """Tell whether two phrases are one name: whatever article, case, plural, spaces or hyphens."""
    first, second = bare(one), bare(other)
    if len(first) == len(second) and all(map(_alike, first, second)):
        return True
    return _alike("".join(first), "".join(second))


def named_in(phrase: str, others: Iterable[str]) -> bool:
    """Tell whether a phrase is one of some names."""
    return any(same_name(phrase, other) for other in others)


def holds(text: str, phrase: str) -> bool:
    """Tell whether a text has a phrase in it, as whole words, in whatever number."""
    name = bare(phrase)
    if not name or empty(phrase):
        return False
    if not lemmas("".join(name)).isdisjoint(_spans(text)):
        return True
    words = words_of(text)
    if len(name) > 1:
        starts = range(len(words) - len(name) + 1)
        return any(all(map(_alike, words[i : i + len(name)], name)) for i in starts)
    return bool(_UNSPACED.search(name[0])) and any(_within(word, name[0]) for word in words)


def _alike(one: str, other: str) -> bool:
    return one == other or not lemmas(one).isdisjoint(lemmas(other))


@lru_cache(maxsize=1 << 16)
def _spans(text: str) -> frozenset[str]:
    """List the lemmas of a text's words, and of two and three that may be written as one."""
    words = words_of(text)
    joined = ("".join(words[i : i + n]) for n in (1, 2, 3) for i in range(len(words) - n + 1))
    return frozenset().union(*map(lemmas, joined))


def _within(run: str, name: str) -> bool:
    """Find a name in a run of letters without spaces; a single sign counts at the end alone.

    What a compound of signs is stands at its end; elsewhere one sign may mean anything.
    """
    return run.endswith(name) if len(name) == 1 else name in run


def style_name(phrase: str) -> str:
    """Read a style's name out of how it is asked for: "in the style of X", "X style", "X"."""
    found = _STYLE.match(phrase)
    name = (found["of"] or found["plain"]) if found else phrase
    return style_name(name) if name != phrase and not empty(name) else name


def with_article(phrase: str) -> str:
    """Put "a" or "an" before a phrase that starts without an article."""
    first = phrase.split()[0].lower()
    if first in ARTICLES:
        return phrase
    vowel = first[0] in "aeio" or (first[:2] in {"ug", "um", "un", "up"} and first[:3] != "uni")
    return f"{'an' if vowel else 'a'} {phrase}"


def plain(text: object, longest: int = 300) -> str:
    """Return one line without control characters: a terminal would obey them."""
    shown = "".join(c if c.isprintable() else "?" for c in str(text)[: longest + 1])
    return shown if len(shown) <= longest else f"{shown[: longest - 3]}..."
