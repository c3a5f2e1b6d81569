"""Any answer of a model becomes an order, a choice or a score; what it lacked is named."""

import doctest
import random
import re
from math import exp, inf, log, nan

import pytest

from rankdistillm.teachers import answers
from rankdistillm.teachers.answers import (
    LETTERS,
    REPAIRS,
    order_from_logprobs,
    read_choice,
    read_order,
    read_query,
    score_from_logprobs,
    sum_by_text,
)


def numbers(order):
    return " > ".join(f"[{index + 1}]" for index in order)


@pytest.mark.parametrize(
    ("text", "order", "repairs"),
    [
        ("[2] > [1] > [3]", "213", ""),
        ("  [2]>[1] >\n[3]\n", "213", ""),
        ("[2] > [1] = [3]", "213", "tie"),
        # Prose and other formats
        ("The ranking is: [2] > [1] > [3].", "213", "wrong_format"),
        ("2, 1, 3", "213", "wrong_format"),
        ("Passage 3, then 1.", "312", "wrong_format missing"),
        ("Of the 3 passages, the best are\n[2] > [1] > [3]", "213", "wrong_format"),
        ("First [1] > [2] > [3]. No: [3] > [2] > [1]", "321", "wrong_format"),
        ("[2] > [3] = [1], I think", "231", "wrong_format tie"),
        ("Of the 3 passages, [2] is best", "321", "wrong_format missing"),  # the published rule
        # Incomplete and inconsistent
        ("[3]", "312", "missing"),
        ("[3] > [3] > [1] > [2]", "312", "repetition"),
        ("[3] > [1] > [3]", "312", "repetition missing"),
        ("[4] > [3] > [2] > [1]", "321", "out_of_range"),
        ("[0] > [3] > [2] > [1]", "321", "out_of_range"),
        ("[7] > [8]", "123", "out_of_range missing"),
        (f"[{'9' * 5000}] > [3]", "312", "out_of_range missing"),
        (f"[{'0' * 5000}3] > [2] > [1]", "321", ""),
        ("[-3] > [2]", "321", "wrong_format missing"),
        # Nothing to read
        ("", "123", "empty"),
        (" \n", "123", "empty"),
        ("I cannot help with that.", "123", "refusal"),
        ("> = []", "123", "refusal"),
        # Thoughts
        ("<think>[1] is best, or 3</think>[2] > [1] > [3]", "213", ""),
        ("[1] is best</think>\n\n[2] > [1] > [3]", "213", ""),
        ("<think>a</think>[1]<think>b</think>[2] > [1] > [3]", "213", ""),
        ("<think>[3] > [2] > [1]", "123", "thinking_cut"),
        ("[2] > [1] > [3] <think>or [3]", "213", "thinking_cut"),
        ("Hm. <think>or [3]", "123", "thinking_cut refusal"),
        ("<think>3</think>", "123", "empty"),
        ("<THINK>3</THINK>[2] > [1] > [3]", "213", ""),
        ("3 <answer>[2] > [1] > [3]</answer> 3", "213", ""),
        ("<think>3</think> 3 <answer> [2] > [1] > [3]", "213", ""),
        ("<answer>[3]</answer><answer>[2] > [1] > [3]</answer>", "213", ""),
        ("<answer></answer> [2]", "123", "empty"),
        # Digits of other scripts; Chinese and Roman numerals are words
        ("[\uff12] > [\uff11] > [\uff13]", "213", ""),
        ("[②] > [①] > [³]", "213", ""),
        ("[\u0662] > [\u0661] > [\u0663]", "213", ""),
        ("[❷] > [₁] > [三] > [Ⅲ] > [½]", "213", "wrong_format missing"),
        ("[\x00٢\u202e] > \ud800[1]", "213", "wrong_format missing"),
    ],
)  # fmt: skip
def test_orders(text, order, repairs):
    answer = read_order(text, 3)
    assert "".join(str(index + 1) for index in answer.order) == order
    assert answer.repairs == set(repairs.split())


@pytest.mark.parametrize(
    ("text", "order", "repairs"),
    [
        ("[3] > [1] > [2]", "312", ""),  # complete: the limit came just behind it
        ("[3] > [1] >", "312", "cut_off missing wrong_format"),
        ("[3] > [1", "312", "cut_off missing wrong_format"),  # the 1 may be that of [12]
        ("[3]", "312", "cut_off missing"),
        ("3, 1, ", "312", "cut_off missing wrong_format"),
        ("[3] [1] [", "312", "cut_off missing wrong_format"),
        ("[", "123", "cut_off thinking_cut"),
        ("[2", "123", "cut_off empty"),
        ("", "123", "cut_off empty"),
        ("Here is my ranking:\n[3] > [1]", "312", "cut_off missing wrong_format"),
        ("[3] > [1] > [2]\n\nThe first passage", "312", "wrong_format"),
        # A thought, with and without its mark
        ("<think>[3] is better than [1]", "123", "cut_off thinking_cut"),
        ("Okay, passage [3] says more than [1] and [2].", "123", "cut_off thinking_cut"),
        ("First I compare [3] > [2] > [1], but", "123", "cut_off thinking_cut"),
        ("[3] and [1] are about tides, so", "123", "cut_off thinking_cut"),
        ("[1] is best.</think>", "123", "cut_off empty"),
        ("[1] is best.</think>\n\nThe final ranking", "123", "cut_off refusal"),
        ("[1] is best.</think>\n\n[3] > [2", "312", "cut_off missing wrong_format"),
        ("[1] is best.</think>\n\n<answer>[3] > [2] >", "321", "cut_off missing wrong_format"),
        ("[1] or [2]? <answer>[3] > [2] > [1]</answer> I", "321", ""),
    ],
)
def test_orders_that_are_cut_off(text, order, repairs):
    answer = read_order(text, 3, cut_off=True)
    assert "".join(str(index + 1) for index in answer.order) == order
    assert answer.repairs == set(repairs.split())


@pytest.mark.parametrize(
    ("text", "letter", "repairs"),
    [
        ("C", "C", ""),
        ("[C]", "C", ""),
        ("Okay, passage C is about tides, while B", "A", "cut_off thinking_cut"),
        ("<think>C or", "A", "cut_off thinking_cut"),
        ("C?</think>The best is B, because", "B", "wrong_format"),
        ("", "A", "cut_off empty"),
        ("C?</think>", "A", "cut_off empty"),
    ],
)
def test_choices_that_are_cut_off(text, letter, repairs):
    assert read_choice(text, 3, cut_off=True) == (LETTERS.index(letter), set(repairs.split()))


def test_queries_that_are_cut_off():
    assert read_query("how to keep a pan from", cut_off=True) == ("", {"cut_off"})
    assert read_query("do swifts sleep\n\nPassage:", cut_off=True) == (
        "do swifts sleep", {"wrong_format"},
    )  # fmt: skip
    assert read_query("<think>so\nthe", cut_off=True) == ("", {"cut_off", "thinking_cut"})


def test_numbers_of_two_digits():
    order = tuple(reversed(range(20)))
    assert read_order(numbers(order), 20) == (order, frozenset())
    assert read_order("⑳⑲ > [⑪]", 20).order[:3] == (19, 18, 10)
    assert read_order("¹² \uff13", 20).order[:2] == (11, 2)


@pytest.mark.parametrize("size", [0, 1])
def test_orders_of_no_or_one_passage(size):
    assert read_order("[1]", size).order == tuple(range(size))
    assert read_order("", size) == (tuple(range(size)), {"empty"})


PIECES = [
    "[1]", "[2]", "[20]", "[21]", "[0]", " > ", " = ", "<think>", "</think>", "<answer>",
    "</answer>", "the 20 passages", "①", "⑫", "٣", "\ud800", "\x00", "三", "½", "9" * 400,
    "Passage B", "**C**", "A ", "I", "[D]", "no", "Yes", "\n", "[", "]", "é\u0301", "\u212a",
    "\u017f",
]  # fmt: skip


def random_texts(number, seed):
    rng = random.Random(seed)
    for _ in range(number):
        if rng.random() < 0.2:
            yield "".join(chr(rng.randrange(0x110000)) for _ in range(rng.randrange(30)))
        yield "".join(rng.choices(PIECES, k=rng.randrange(12)))


def test_any_text_gives_an_order_and_a_choice():
    seen, rng = set(), random.Random(5)
    for text in random_texts(2000, seed=1):
        for size in (1, 2, 3, 20):
            order, repairs = read_order(text, size, cut_off=rng.random() < 0.5)
            assert sorted(order) == list(range(size)), text
            assert repairs <= set(REPAIRS), text
            index, needed = read_choice(text, size, cut_off=rng.random() < 0.5)
            assert 0 <= index < size, text
            assert needed <= set(REPAIRS), text
            seen |= {frozenset({repair}) for repair in repairs} | {repairs}
    # What is cut off is incomplete in another way, too.
    assert {frozenset({repair}) for repair in REPAIRS if repair != "cut_off"} <= seen


def published(text, size):
    """The rule as rank_llm applies it, for text in ASCII."""
    text = text.split("</think>")[-1]
    named = [int(number) - 1 for number in re.findall("[0-9]+", text)]
    return tuple(dict.fromkeys([i for i in named if 0 <= i < size] + list(range(size))))


def test_orders_are_those_of_the_published_rule():
    rng = random.Random(3)
    pieces = ["[1]", "[2]", "[7]", "0", " > ", ", ", "Passage 3", "</think>", "so", "\n", "12"]
    for _ in range(2000):
        text = "".join(rng.choices(pieces, k=rng.randrange(12)))
        assert read_order(text, 9).order == published(text, 9), text


def damaged(order, rng):
    """An answer with known faults, what it must be read as, and its faults."""
    size, named, faults = len(order), [str(index + 1) for index in order], set()
    left_out = set()
    if rng.random() < 0.5:
        left_out = set(rng.sample(range(size), rng.randrange(1, size)))
        named = [n for n in named if int(n) - 1 not in left_out]
        faults.add("missing")
    expected = [int(n) - 1 for n in named] + sorted(left_out)
    if rng.random() < 0.5:  # repeats behind the first mention
        named += rng.choices(named, k=3)
        faults.add("repetition")
    if rng.random() < 0.5:
        named.insert(rng.randrange(len(named) + 1), rng.choice(["0", str(size + 1), "9" * 30]))
        faults.add("out_of_range")
    text = " > ".join(f"[{n}]" for n in named)
    if rng.random() < 0.3:
        text = f"Sure: {text}."
        faults.add("wrong_format")
    if rng.random() < 0.3:
        text = f"<think>[2] or [1]?</think>{text}"
    return text, tuple(expected), faults


def test_faults_are_repaired_and_counted():
    rng = random.Random(2)
    for _ in range(2000):
        size = rng.randrange(2, 21)
        text, expected, faults = damaged(rng.sample(range(size), size), rng)
        assert read_order(text, size) == (expected, faults), text


@pytest.mark.parametrize(
    ("text", "letter", "repairs"),
    [
        ("C", "C", ""),
        ("c", "C", ""),
        ("[C]", "C", ""),
        ("Passage C", "C", ""),
        ('Passage "C".', "C", ""),
        ("**C**", "C", ""),
        ("3", "C", ""),
        ("[②]", "B", ""),
        ("The most relevant passage is C.", "C", "wrong_format"),
        ("A passage about tides, so C fits.", "C", "wrong_format"),
        ("I think B", "B", "wrong_format"),
        ("A is better than B", "A", "wrong_format"),
        ("C: The tide follows the Moon.", "C", "wrong_format"),
        ("Given A and B, I choose [C].", "C", "wrong_format"),
        ("Given A and B, passage C is best.", "C", "wrong_format"),
        ("Number 2 is best", "B", "wrong_format"),
        ("<think>A or B?</think>C", "C", ""),
        ("<answer>C</answer>", "C", ""),
        ("<think>A or C?", "A", "thinking_cut"),
        ("Z", "A", "out_of_range"),
        ("Z or C", "C", "wrong_format"),
        ("0", "A", "out_of_range"),
        ("9" * 5000, "A", "out_of_range"),
        ("none of them", "A", "refusal"),
        ("\u212a", "A", "refusal"),  # the Kelvin sign is no K
        ("", "A", "empty"),
    ],
)
def test_choices(text, letter, repairs):
    choice = read_choice(text, 4)
    assert LETTERS[choice.best] == letter
    assert choice.repairs == set(repairs.split())


def test_the_log_probabilities_of_letters_order_passages():
    logprobs = {"C": -0.5, "A": -1.0, "B": -2.0, "The": -0.1}
    assert order_from_logprobs(logprobs, 3) == ((2, 0, 1), frozenset())
    assert order_from_logprobs(logprobs, 4) == ((2, 0, 1, 3), {"missing"})
    assert order_from_logprobs(logprobs, 2) == ((0, 1), frozenset())  # C is no passage
    # A model that begins to think says nothing about the passages.
    assert order_from_logprobs({"<think>": 0.0, "a": -9.0}, 3) == ((0, 1, 2), {"refusal"})
    assert order_from_logprobs({}, 2) == ((0, 1), {"refusal"})
    assert order_from_logprobs({}, 0) == ((), frozenset())
    # Equal letters keep the present order; nan is no probability, -inf is the lowest one.
    assert order_from_logprobs({"B": -1, "A": -1, "C": nan, "D": -inf}, 4).order == (0, 1, 3, 2)


def test_tokens_that_spell_the_same_letter_are_added_up():
    logprobs = {
        "A": log(0.3),
        " A": log(0.15),
        "[A": log(0.05),
        "B": log(0.4),
        "\u2581B": log(0.05),
    }
    assert order_from_logprobs(logprobs, 2).order == (0, 1)
    assert order_from_logprobs({"A": log(0.3), "\u0120B": log(0.4)}, 2).order == (1, 0)


def test_tokens_that_read_alike_are_added_up():
    tokens = [("A", log(0.3)), ("B", log(0.4)), ("A", log(0.2)), ("C", None), ("D", nan)]
    assert sum_by_text(tokens) == pytest.approx({"A": log(0.5), "B": log(0.4)})
    assert sum_by_text([("A", -inf), ("A", -inf)]) == {"A": -inf}


def test_more_passages_than_letters_are_refused():
    assert len(order_from_logprobs({"Z": -1.0}, 26).order) == 26
    with pytest.raises(ValueError, match="27 passages"):
        order_from_logprobs({}, 27)


def test_the_odds_of_yes_score_a_passage():
    score = score_from_logprobs({"Yes": log(0.5), " yes": log(0.1), "no": log(0.2), "NO": log(0.1)})
    assert score.value == pytest.approx(log(0.6 / 0.3))
    assert not score.repairs
    # The odds still tell passages apart where P(yes) is 1 in floating point.
    assert score_from_logprobs({"yes": -1e-20, "no": -50.0}) > score_from_logprobs(
        {"yes": -1e-20, "no": -45.0}
    )
    assert score_from_logprobs({"maybe": -0.1}) == (-inf, {"refusal"})
    assert score_from_logprobs({}) == (-inf, {"refusal"})


def test_a_missing_yes_or_no_is_as_improbable_as_the_others_allow():
    value, repairs = score_from_logprobs({"yes": log(0.9), "maybe": log(0.06), "so": log(0.01)})
    assert value == pytest.approx(log(0.9 / 0.01))
    assert repairs == {"missing"}
    value, _ = score_from_logprobs({"no": log(0.9)})
    assert value == pytest.approx(log(0.1 / 0.9))
    assert score_from_logprobs({"no": 0.0}).value < -20
    assert score_from_logprobs({"yes": 0.0, "x": nan}).value > 20
    # An impossible token says no more than one that is not listed.
    assert score_from_logprobs({"yes": -1.0, "no": -inf}) == score_from_logprobs({"yes": -1.0})
    assert score_from_logprobs({"yes": -inf}) == (-inf, {"refusal"})
    assert exp(score_from_logprobs({"yes": log(0.5)}).value) == pytest.approx(1)


def test_the_examples_of_the_module():
    failed, tried = doctest.testmod(answers)
    assert failed == 0
    assert tried >= 5


@pytest.mark.parametrize(
    ("text", "query", "repairs"),
    [
        ("do swifts sleep", "do swifts sleep", set()),
        ("Query: do swifts sleep", "do swifts sleep", set()),
        ('**Search query:** "do  swifts sleep"', "do swifts sleep", set()),
        ("<think>Query: no</think>\n\nyes", "yes", set()),
        ("first\nsecond", "first", {"wrong_format"}),
        ("3 body problem", "3 body problem", set()),
        ("潮汐的原因", "潮汐的原因", set()),
        ("", "", {"empty"}),
        ("  \n ", "", {"empty"}),
        ('""', "", {"refusal"}),
        ("<think>do swifts", "", {"thinking_cut"}),
        ("word " * 41, "", {"wrong_format"}),
    ],
)
def test_queries(text, query, repairs):
    assert read_query(text) == (query, frozenset(repairs))
