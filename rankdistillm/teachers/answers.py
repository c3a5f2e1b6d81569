"""A model's answer -> an order, a choice or a score; what had to be repaired is named.

Every text gives an answer, so that a ranking never fails on one. The *repairs* say what the text
lacked; none means that it was as asked for:

| repair | the answer |
|---|---|
| `empty` | is empty |
| `thinking_cut` | ends inside a thought; what it says there does not count |
| `cut_off` | ends at the longest length before it is complete |
| `refusal` | names no passage at all |
| `wrong_format` | is more, or something else, than the format asks for |
| `repetition` | names a passage twice; the first mention counts |
| `missing` | leaves passages out; they follow the others in their present order |
| `out_of_range` | names passages that do not exist |
| `tie` | calls passages equal; they are taken in the order they are named in |

The rule for orders is that of RankGPT and rank_llm: behind the last thought, every run of digits is
the number of a passage.

An answer that the model could not finish (``cut_off``) may end inside a thought without a mark:
many chat templates write ``<think>`` themselves. It counts only if it stands behind a thought, in
``<answer>``, or begins as the format asks for; else it is `thinking_cut` as well.
"""

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import NamedTuple

REPAIRS = (
    "empty", "thinking_cut", "cut_off", "refusal", "wrong_format", "repetition", "missing",
    "out_of_range", "tie",
)  # fmt: skip
# Repairs that leave the passages in their old order: the answer names none of them.
UNREADABLE = frozenset({"empty", "thinking_cut", "refusal"})
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LONGEST_QUERY = 40  # words

_LABEL = re.compile(r"^[\W\d]*(search )?query\W*:", re.IGNORECASE)
_AROUND = " \t*`\"'\u201c\u201d\u2018\u2019\u00ab\u00bb"
_CHAIN = re.compile(r"\[[0-9]+\](?:\s*[>=]\s*\[[0-9]+\])*")
_NUMBER = re.compile(r"[0-9]+")
_LAST_NUMBER = re.compile(r"\[?[0-9]+\Z")
# At the beginning of a text, or, less freely, of a line.
_ORDER_BEGINS = re.compile(r"\A\[?[0-9]+\]?\s*([>=,\[]|\Z)|[\n:]\s*\[?[0-9]+\]?\s*[>=]\s*\[?[0-9]")
_ANSWER = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.IGNORECASE | re.DOTALL)
_THOUGHT_ENDS = re.compile(r"</think(?:ing)?>", re.IGNORECASE)
_THOUGHT_BEGINS = re.compile(r"<think(?:ing)?>", re.IGNORECASE)
_CHOICE = re.compile(r"(?:passage\s*)?[\[(\"'*]*([A-Z]|[0-9]+)[\])\"'*.:]*", re.I | re.ASCII)
# From the most explicit to the least. "A" is an article before most words, "I" a pronoun.
_MARKED_CHOICES = (
    re.compile(r"\[([A-Z])\]|\(([A-Z])\)|\*\*([A-Z])\*\*"),
    re.compile(r"[Pp]assage:?\s+\W{0,2}([A-Z])\b"),
    re.compile(
        r"(?<![\w'])([B-HJ-Z]\b|[AI]\b(?!\s+[a-z]|')|A(?=\s(?:is|has|answers|gives|as|because)\b))"
    ),
    re.compile(r"(?<![\w.])([0-9]+)\b"),
)


class Answer(NamedTuple):
    """``order``: all indices from 0 below the number of passages, best first; see the module."""

    order: tuple[int, ...]
    repairs: frozenset[str]


class Choice(NamedTuple):
    """``best``: the index of the best passage."""

    best: int
    repairs: frozenset[str]


class Score(NamedTuple):
    """``value``: higher is better."""

    value: float
    repairs: frozenset[str]


def read_order(text: str, size: int, *, cut_off: bool = False) -> Answer:
    """Read the order of ``size`` passages, numbered from 1: ``[2] > [3] > [1]``.

    ``cut_off``: the answer has reached the longest length; its last number may lack digits.

    Only what stands behind the last ``</think>`` counts, and inside ``<answer>`` if there is one.
    Every run of digits in any script names a passage; the first mention counts, unknown numbers are
    dropped, and passages that are not named follow in their present order. One exception: an order
    of all passages that stands whole inside prose is read without the prose, whose digits ("the 20
    passages") would count otherwise.

    >>> read_order("[2] > [3] > [1]", 3)
    Answer(order=(1, 2, 0), repairs=frozenset())
    >>> read_order("Passage 3 is the best.", 3).order
    (2, 0, 1)
    """
    text, repairs, is_final = _final_answer(text)
    if cut_off:
        text = _LAST_NUMBER.sub("", text).rstrip()
        repairs |= set() if text or repairs else {"empty"}
        if text and not is_final and not _ORDER_BEGINS.search(text):
            return Answer(tuple(range(size)), frozenset({"cut_off", "thinking_cut"}))
    if text and not _CHAIN.fullmatch(text):
        repairs.add("wrong_format")
        chains = [chain.group() for chain in _CHAIN.finditer(text)]
        whole = [chain for chain in chains if set(_indices(chain)) == set(range(size))]
        text = whole[-1] if whole else text
    mentioned = _indices(text)
    if text and not mentioned:
        repairs = repairs - {"wrong_format"} | {"refusal"}
    known = [index for index in mentioned if 0 <= index < size]
    order = tuple(dict.fromkeys(known))
    if len(known) < len(mentioned):
        repairs.add("out_of_range")
    if len(order) < len(known):
        repairs.add("repetition")
    if mentioned and len(order) < size:
        repairs.add("missing")
    if "=" in text and _CHAIN.fullmatch(text):
        repairs.add("tie")
    if cut_off and (len(order) < size or "thinking_cut" in repairs):
        repairs.add("cut_off")
    return Answer(_with_missing(order, size), frozenset(repairs))


def read_choice(text: str, size: int, *, cut_off: bool = False) -> Choice:
    """Read which of ``size`` passages is the best, named by its letter (or number, from 1).

    Inside prose, the first letter in brackets or bold counts, else the first after "Passage", else
    the first letter by itself, else the first number. Letters and numbers that name no passage are
    dropped. An answer without one that does chooses the first passage, as does prose that was
    ``cut_off`` and does not stand behind a thought or in ``<answer>``.

    >>> read_choice("Passage C", 3)
    Choice(best=2, repairs=frozenset())
    """
    text, repairs, is_final = _final_answer(text)
    if alone := _CHOICE.fullmatch(text):
        named = [alone.group(1).upper()]
    elif cut_off and not (text and is_final):
        return Choice(0, frozenset({"cut_off"} | (repairs or {"thinking_cut"})))
    else:
        matches = (list(pattern.finditer(text)) for pattern in _MARKED_CHOICES)
        named = [match.group(match.lastindex or 0) for match in next(filter(None, matches), [])]
        if text:
            repairs.add("wrong_format" if named else "refusal")
    indices = [LETTERS.index(name) if name in LETTERS else _indices(name)[0] for name in named]
    known = [index for index in indices if 0 <= index < size]
    if named and not known:
        repairs.add("out_of_range")
    return Choice(known[0] if known else 0, frozenset(repairs))


def order_from_logprobs(logprobs: Mapping[str, float], size: int) -> Answer:
    """Order ``size`` passages, A, B, C, …, by the log-probabilities of their letters.

    ``logprobs`` are those of the most probable tokens at the place of the answer, token -> natural
    logarithm. Tokens that spell the same letter, such as ``A``, ``" A"`` and ``[A``, are added up.
    Passages without one are `missing`; no letter at all, as where a model begins to think, is a
    `refusal`. Raises ValueError for more passages than letters.

    Source: Gangi Reddy et al., *FIRST*, EMNLP 2024.

    >>> order_from_logprobs({"B": -0.2, " A": -2.0, "The": -3.0}, 2).order
    (1, 0)
    """
    if size > len(LETTERS):
        raise ValueError(f"{size} passages, but only {len(LETTERS)} letters")
    totals = _by_word(logprobs, {letter: letter for letter in LETTERS[:size]})
    order = sorted(map(LETTERS.index, totals), key=lambda index: (-totals[LETTERS[index]], index))
    repairs = {"missing"} if len(order) < size else set()
    if size and not order:
        repairs = {"refusal"}
    return Answer(_with_missing(tuple(order), size), frozenset(repairs))


def score_from_logprobs(logprobs: Mapping[str, float]) -> Score:
    """Score a passage by the log-odds of "yes" against "no", natural logarithms.

    These are the scores of `rankdistillm.teachers.local_scorers.YesNo`, too; here, the spellings
    ``Yes`` and ``YES`` are added up. ``logprobs`` as in `order_from_logprobs`. If only one of the
    words is among them, the other one is `missing` and counts as probable as the least probable of
    them, or as all that they leave over, if that is less. If neither is, that is a `refusal` with
    the score -inf.

    >>> round(score_from_logprobs({"Yes": -0.1, " no": -2.4}).value, 3)
    2.3
    """
    spellings = {s: word for word in ("yes", "no") for s in (word, word.title(), word.upper())}
    logprobs = {token: value for token, value in logprobs.items() if math.isfinite(value)}
    totals = _by_word(logprobs, spellings)
    if not totals:
        return Score(-math.inf, frozenset({"refusal"}))
    listed = logprobs.values()
    unlisted = 1 - math.fsum(map(math.exp, listed))
    bound = min(*totals.values(), *listed, math.log(max(unlisted, 1e-9)))
    value = totals.get("yes", bound) - totals.get("no", bound)
    return Score(value, frozenset({"missing"} if len(totals) < 2 else ()))


def read_query(text: str, *, cut_off: bool = False) -> tuple[str, frozenset[str]]:
    """Read a search query: the first line of the answer, without label and quotes.

    Empty if there is none, for a text of more than `LONGEST_QUERY` words, which is no query but
    prose (`wrong_format`), and if the answer was ``cut_off`` within its first line.

    >>> read_query('Query: "do swifts sleep"')
    ('do swifts sleep', frozenset())
    """
    text, repairs, _ = _final_answer(text)
    line = next(filter(None, map(str.strip, text.splitlines())), "")
    query = " ".join(_LABEL.sub("", line).strip(_AROUND).split())
    if text and not query:
        repairs.add("refusal")
    if len(text.splitlines()) > 1 or len(query.split()) > LONGEST_QUERY:
        repairs.add("wrong_format")
    if cut_off and ("thinking_cut" in repairs or len(text.splitlines()) < 2):
        repairs.add("cut_off")
    if len(query.split()) > LONGEST_QUERY or not repairs.isdisjoint({"thinking_cut", "cut_off"}):
        query = ""
    return query, frozenset(repairs)


def sum_by_text(logprobs: Iterable[tuple[str, float | None]]) -> dict[str, float]:
    """Token -> log-probability; tokens that read alike are added up.

    Decoded by themselves, a word at the beginning of a text and one behind a space often do. NaN
    and None are dropped.
    """
    found: dict[str, list[float]] = {}
    for text, value in logprobs:
        if value is not None and not math.isnan(value):
            found.setdefault(text, []).append(value)
    return {text: _log_of_sum(values) for text, values in found.items()}


def _final_answer(text: str) -> tuple[str, set[str], bool]:
    """The answer without thoughts, its digits in ASCII; and what is wrong with it so far.

    The last value says whether a mark tells it apart from thoughts: ``</think>`` or ``<answer>``.
    """
    *thoughts, text = _THOUGHT_ENDS.split(text)
    before, *thought = _THOUGHT_BEGINS.split(text, maxsplit=1)
    marked = _ANSWER.findall(before)
    text = _with_ascii_digits(marked[-1] if marked else before).strip()
    repairs = {"thinking_cut"} if thought else set() if text else {"empty"}
    return text, repairs, bool(thoughts or marked)


def _with_ascii_digits(text: str) -> str:
    """Digits of all scripts, superscripts and circled numbers as 0 to 9."""
    return text if text.isascii() else "".join(map(_ascii_digits, text))


def _ascii_digits(character: str) -> str:
    if character.isascii():
        return character
    if (digit := unicodedata.digit(character, None)) is not None:
        return str(digit)
    # Circled numbers from 10 on. Other characters with a value are words, such as 一, or fractions.
    value = unicodedata.numeric(character, 0.5)
    if unicodedata.category(character) == "No" and value == int(value):
        return f" {int(value)} "
    return character


def _indices(text: str) -> list[int]:
    """The numbers in a text, minus 1; -1 for those with too many digits to name a passage."""
    numbers = (number.lstrip("0") or "0" for number in _NUMBER.findall(text))
    return [int(number) - 1 if len(number) < 10 else -1 for number in numbers]


def _with_missing(order: tuple[int, ...], size: int) -> tuple[int, ...]:
    """The order, then the indices that it lacks."""
    known = set(order)
    return (*order, *(index for index in range(size) if index not in known))


def _by_word(logprobs: Mapping[str, float], words: Mapping[str, str]) -> dict[str, float]:
    """The log-probability of each word; ``words`` maps spellings to words."""
    spelt = ((words.get(t.strip(" \t\n\u0120\u2581[(*\"'")), p) for t, p in logprobs.items())
    return sum_by_text((word, value) for word, value in spelt if word is not None)


def _log_of_sum(values: list[float]) -> float:
    highest = max(values)
    if highest == -math.inf:
        return highest
    return highest + math.log(math.fsum(math.exp(value - highest) for value in values))
