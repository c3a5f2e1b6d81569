"""What a text is split into, by language."""

import pytest

from rankdistillm.errors import InputError
from rankdistillm.retrieval.analysis import Analyser, languages, stop_words

# The default set of Lucene's EnglishAnalyzer.
LUCENE = (
    "a an and are as at be but by for if in into is it no not of on or such that the their then "
    "there these they this to was will with"
)


def test_english_has_the_stop_words_of_lucene():
    assert stop_words("english") == set(LUCENE.split())
    assert Analyser("english")(LUCENE.upper()) == []


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("The relational Caresses, HOPPING", ["relat", "caress", "hop"]),  # Porter, 1980
        ("the dog's and dogs\u2019 X-ray", ["dog", "dog", "x", "rai"]),
        ("That's o'neill's rock'n'roll", ["o'neil", "rock'n'rol"]),
        (
            "Caf\u00e9 cafe\u0301 \uff27\uff30\uff35",
            ["caf\u00e9", "caf\u00e9", "\uff47\uff50\uff55"],
        ),
        ("a_b 3.5", ["a_b", "3", "5"]),
        ("潮汐 tides", ["潮", "汐", "tide"]),
        (" .,! ", []),
        ("", []),
    ],
)
def test_english(text, terms):
    assert Analyser("english")(text) == terms


@pytest.mark.parametrize(
    ("language", "text", "terms"),
    [
        ("german", "Die Häuser und der Gezeiten", ["haus", "gezeit"]),
        ("french", "l'homme", ["homm"]),
        ("none", "The Dog's houses", ["the", "dog", "s", "houses"]),
        ("hindi", "\u0939\u093f\u0928\u094d\u0926\u0940", ["\u0939\u093f\u0928\u094d\u0926"]),
        ("chinese", "的潮", ["潮"]),
    ],
)
def test_other_languages(language, text, terms):
    assert Analyser(language)(text) == terms


def test_a_word_is_treated_alike_each_time():
    analyse = Analyser("english")
    assert analyse("the houses") == analyse("the houses") == ["hous"]


def test_an_unknown_language_is_rejected():
    assert {"english", "german", "tamil", "korean", "none"} <= set(languages())
    assert "en" not in languages()
    with pytest.raises(InputError, match="language=klingon is not one of arabic, "):
        Analyser("klingon")
