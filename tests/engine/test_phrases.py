# ruff: noqa: RUF001 - letters that look alike are what is tested
"""Words of every script, symbols as words, plurals, and names that are one name."""

from __future__ import annotations

import unicodedata

import pytest

from trust_engine.phrases import (
    bare,
    clean,
    empty,
    holds,
    names_in,
    quoted,
    same_name,
    style_name,
    words_of,
)

PLURALS = """
gun guns|baby babies|horse horses|man men|woman women|mouse mice|knife knives|wolf wolves|leaf
leaves|cactus cacti|cactus cactuses|octopus octopi|box boxes|bus buses|glass glasses|axe axes|axis
axes|potato potatoes|shoe shoes|child children|person people|person persons|goose geese|foot
feet|tooth teeth|quiz quizzes|house houses|oasis oases|fireman firemen|policewoman
policewomen|dormouse dormice|vertex vertices|matrix matrices|larva larvae|nebula nebulae|chateau
chateaux|movie movies|torch torches|brush brushes|dish dishes|elf elves|photo photos|tomato
tomatoes|ox oxen|sheep sheep|church churches|key keys|day days|hero heroes|volcano volcanoes|thief
thieves|calf calves|shelf shelves|wife wives|loaf loaves|scarf scarves|half halves|louse
lice|grandchild grandchildren|salesperson salespeople|criterion criteria|bacterium bacteria|die
dice|fungus fungi|nucleus nuclei|crisis crises|lens lenses|bush bushes|fox foxes|witch
witches|fairy fairies|lady ladies|monkey monkeys|hoof hooves|dwarf dwarves|genus genera|seraph
seraphim|passerby passersby|bureau bureaux|alga algae|radius radii|index indices|kiss kisses|blouse
blouses|rose roses|cake cakes|bomb bombs|nude nudes|cigarette cigarettes|cherry cherries|berry
berries|cup cups|stimulus stimuli|thesis theses|zombie zombies|cookie cookies|echo echoes|mango
mangoes|taxi taxis|ski skis|bikini bikinis|kiwi kiwis|safari safaris|menu menus|emu emus|gnu
gnus|guru gurus|buffalo buffaloes|tax taxes|waltz waltzes|ash ashes|match matches|stomach stomachs
""".replace("\n", " ").split("|")
NOUNS = [pair.split()[0] for pair in PLURALS]
OTHERS = """
cat car|gun gum|beer bear|princess prince|class clay|bus bun|horse house|ghost goat|cat dog|baby
bay|news knew|dress press|pass paste|taxi tax|skis skin|menus men|man
mane|bass bat|boss boa|moss moth|cap cape|glass glue
""".replace("\n", " ").split("|")


@pytest.mark.parametrize("pair", PLURALS)
def test_a_plural_is_the_same_name(pair: str) -> None:
    one, many = pair.split()
    assert same_name(one, many) and same_name(many.upper(), f"a {one}")
    assert holds(f"a picture of two {many} on red", one)
    assert holds(f"a picture of a {one} on red", many)


@pytest.mark.parametrize("pair", OTHERS)
def test_other_words_are_other_names(pair: str) -> None:
    one, other = pair.split()
    assert not same_name(one, other) and not holds(f"a picture of a {other} on red", one)


def test_no_two_nouns_of_the_list_are_one() -> None:
    clash = [(a, b) for a in NOUNS for b in NOUNS if a < b and same_name(a, b)]
    assert clash == [("axe", "axis")] or not clash  # "axes" may be either; the two are apart
    assert not same_name("axe", "axis")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A Picture of guns", ("a", "picture", "of", "guns")),
        ("कुत्ता और बिल्ली", ("कुत्ता", "और", "बिल्ली")),
        ("สุนัขของฉัน", ("สุนัขของฉัน",)),
        ("C++", ("c", "+", "+")),
        ("🔫🐱", ("🔫", "🐱")),
        ("👨‍👩‍👧 and 🇩🇪🇫🇷", ("👨‍👩‍👧", "and", "🇩🇪", "🇫🇷")),
        ("ice_cream, ice-cream", ("ice", "cream", "ice", "cream")),
        ("ｇｕｎ", ("gun",)),
        ("gu\u200bn\u00ad", ("gun",)),
        ("cat's", ("cats",)),
        ("❤️ ❤", ("❤", "❤")),
    ],
)
def test_words_of_every_script(text: str, words: tuple[str, ...]) -> None:
    assert words_of(text) == words


@pytest.mark.parametrize("word", ["café", "कुत्ता", "강아지", "がっこう", "Ångström", "λύκος"])
def test_composed_and_decomposed_are_one(word: str) -> None:
    apart = unicodedata.normalize("NFD", word)
    assert clean(apart) == unicodedata.normalize("NFC", word)
    assert words_of(apart) == words_of(word) and len(words_of(word)) == 1


@pytest.mark.parametrize(
    "text",
    ["", " ", "a", "The", "an the", "\udcff", "...", "!?", "-", "\u200b", "\ufeff", "\x00\x1b",
     "\u200d\ufe0f",
     "\u202e", "( )", "、。"],
)  # fmt: skip
def test_what_names_nothing(text: str) -> None:
    assert empty(text)


@pytest.mark.parametrize("text", ["猫", "🔫", "❤️", "+", "€", "X", "7", "a cat", "й", "كلب"])
def test_what_names_something(text: str) -> None:
    assert not empty(text)


@pytest.mark.parametrize(
    ("text", "phrase", "held"),
    [
        ("一只黑猫", "猫", True),
        ("猫头鹰", "猫", False),
        ("黑色的手枪", "手枪", True),
        ("สุนัขสีดำ", "สุนัข", True),
        ("two cups of coffee", "cup of coffee", True),
        ("an icecream", "ice cream", True),
        ("an ice-cream", "icecream", True),
        ("a cathedral", "cat", False),
        ("the cat's toy", "a cat", True),
        ("👨‍👩‍👧", "👨", False),
        ("🐱 on red", "🐱", True),
        ("C++ code", "C++", True),
        ("C code", "C++", False),
        ("straße", "STRASSE", True),
        ("anything", "...", False),
    ],
)
def test_a_phrase_is_found_as_whole_words(text: str, phrase: str, held: bool) -> None:
    assert holds(text, phrase) is held


def test_emoji_are_told_apart() -> None:
    assert not same_name("🔫", "🐱") and not same_name("🇩🇪", "🇫🇷") and same_name("❤️", "❤")


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("openmoji", "openmoji"),
        ("openmoji style", "openmoji"),
        ("in the style of openmoji", "openmoji"),
        ("style of Van Gogh", "Van Gogh"),
        ("in an oil painting style", "oil painting"),
        ("the noto style", "noto"),
        ("Pixar-style", "Pixar"),
        ("in the style of the noto style", "noto"),
        ("art nouveau", "art nouveau"),
        ("lifestyle", "lifestyle"),
        ("style", "style"),
        ("freestyle painting", "freestyle painting"),
    ],
)
def test_a_style_is_read_out_of_how_it_is_asked_for(asked: str, name: str) -> None:
    assert style_name(asked) == name


def test_names_are_parted_at_commas_of_any_script() -> None:
    assert names_in(" cat,dog ,\n cat，猫、犬،كلب,, ") == ("cat", "dog", "猫", "犬", "كلب")


def test_a_name_is_kept_as_it_is_seen() -> None:
    assert clean(" tracer\t\\(overwatch\\)\n") == "tracer (overwatch)"
    assert clean("a\\b") == "a\\b" and clean("🏴󠁧󠁢󠁥󠁮󠁧󠁿") == "🏴󠁧󠁢󠁥󠁮󠁧󠁿"
    assert clean("می\u200cخواهم") == "می\u200cخواهم" and clean("g\u200cu\u202en") == "gun"
    assert bare("The Cat") == ("cat",) and bare("the") == ("the",)


def test_a_long_text_is_quoted_short() -> None:
    assert len(quoted("x" * 6000)) < 70 and quoted("gun") == "'gun'"
