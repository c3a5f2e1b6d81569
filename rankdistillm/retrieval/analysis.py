"""Split texts into the terms that BM25 counts: words, without stop words, stemmed."""

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache

from rankdistillm.errors import InputError

# Scripts without spaces: each character is a word, as in Lucene's StandardTokenizer.
IDEOGRAPHS = "\u3040-\u309f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
IDEOGRAPH = re.compile(f"[{IDEOGRAPHS}]")
APOSTROPHES = "'\u2019\uff07"


class Analyser:
    """Turns a text into its terms, by the rules of a language.

    ``english`` follows Lucene's EnglishAnalyzer: a possessive 's is removed, 33 stop words are
    dropped, and Porter's stemmer is applied. Words are runs of letters, digits and underscores, so
    that, unlike in Lucene, points and commas always separate. Other languages have PyStemmer's
    stemmers and the stop words of bm25s, where there are any. ``none`` keeps all words as they
    are, in lower case.

    Raises `InputError` for an unknown language.
    """

    def __init__(self, language: str) -> None:
        is_english = language == "english"
        join = f"[{APOSTROPHES}]" if is_english else None  # l'homme, dell'arte are two words
        self._ascii, self._unicode = (_words(character, join) for character in ("\\w", _letter()))
        self._terms = _Terms(_stemmer(language), stop_words(language), is_english)

    def __call__(self, text: str) -> list[str]:
        """The terms of a text, in their order and with repeats."""
        text = text.lower()
        if text.isascii():
            words = self._ascii.findall(text)
        else:
            text = IDEOGRAPH.sub(r" \g<0> ", unicodedata.normalize("NFC", text))
            words = self._unicode.findall(text)
        terms = self._terms
        return [term for word in words if (term := terms[word])]


class _Terms(dict[str, str]):
    """Word -> term; the empty text for a stop word. Each distinct word is stemmed once."""

    def __init__(
        self, stem: Callable[[str], str], stopped: frozenset[str], has_possessive: bool
    ) -> None:
        super().__init__()
        self._stem = stem
        self._stopped = stopped
        self._has_possessive = has_possessive

    def __missing__(self, word: str) -> str:
        base = word
        if self._has_possessive and word[-1] == "s" and word[-2:-1] in tuple(APOSTROPHES):
            base = word[:-2]
        term = self[word] = "" if base in self._stopped else self._stem(base)
        return term


def languages() -> list[str]:
    """The names of the languages that have a stemmer or stop words, and ``none``."""
    import Stemmer
    from bm25s import stopwords

    stopped = {n.removeprefix("STOPWORDS_").lower() for n in dir(stopwords) if n[:5] == "STOPW"}
    return sorted({*Stemmer.algorithms(), *stopped, "none"} - {"en", "en_plus"})


def stop_words(language: str) -> frozenset[str]:
    """The words that the language leaves out; none for a language without a list."""
    from bm25s import stopwords

    name = "EN" if language == "english" else language.upper()  # EN: Lucene's
    return frozenset(getattr(stopwords, f"STOPWORDS_{name}", ()))


def _stemmer(language: str) -> Callable[[str], str]:
    import Stemmer

    if language not in (known := languages()):
        raise InputError(f"language={language} is not one of {', '.join(known)}")
    name = "porter" if language == "english" else language
    if name not in Stemmer.algorithms():
        return str
    stemmer = Stemmer.Stemmer(name)
    stemmer.maxCacheSize = 0  # `_Terms` remembers the stems
    return stemmer.stemWord


def _words(character: str, join: str | None) -> re.Pattern[str]:
    flags = re.ASCII if character == "\\w" else re.UNICODE
    word = f"[{character}]+"
    return re.compile(f"{word}(?:{join}{word})*" if join else word, flags)


@lru_cache
def _letter() -> str:
    """``\\w`` and the marks that it leaves out: the vowel signs of Hindi, the accents of Arabic."""
    characters = map(chr, range(0x300, 0x20000))
    return "\\w" + "".join(c for c in characters if unicodedata.category(c)[0] == "M")
