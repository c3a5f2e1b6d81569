"""Ways of asking, with an oracle in the model's place: what is exact, what is asked, how often."""

import doctest
import inspect
import random
from itertools import product
from math import ceil, inf, nan
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from rankdistillm.errors import InputError
from rankdistillm.teachers import rankings
from rankdistillm.teachers.prompts import Prompt
from rankdistillm.teachers.rankings import (
    answer_all,
    pointwise,
    setwise,
    sliding_window,
    tdpart,
)

CONFIGS = Path(__file__).parents[2] / "conf"
WINDOWS = [(20, 10), (20, 20), (20, 1), (5, 2), (4, 3), (3, 3), (2, 1)]
# All short lists and some long ones; where the answers cost nothing, all up to 200 are tried.
SIZES = [*range(45), 60, 99, 100, 101, 137, 200]


def relevance(doc_id):
    return int(doc_id)


def oracle(question):
    """A perfect teacher: the id of a passage is its relevance."""
    if question.kind == "score":
        assert len(question) == 1
        return float(relevance(question.doc_ids[0]))
    assert len(question) > 1, "a question about one passage is wasted"
    order = sorted(range(len(question)), key=lambda i: -relevance(question.doc_ids[i]))
    return tuple(order) if question.kind == "order" else order[0]


def whim(rng):
    """A teacher whose answers mean nothing."""

    def answer(question):
        order = rng.sample(range(len(question)), len(question))
        return {"order": tuple(order), "best": order[0], "score": rng.choice([0.0, 1.0, inf])}[
            question.kind
        ]

    return answer


def watched(answer, asked):
    def reply(question):
        asked.append(question)
        return answer(question)

    return reply


def rounds_of(ranking, answer):
    """The result, and the questions of each round."""
    rounds, replies = [], None
    try:
        while True:
            rounds.append(ranking.send(replies))
            replies = [answer(question) for question in rounds[-1]]
    except StopIteration as end:
        return end.value, rounds


def shuffled(number, seed):
    return random.Random(seed).sample([str(i) for i in range(number)], number)


def best_first(doc_ids):
    return sorted(doc_ids, key=relevance, reverse=True)


def exact(ranked):
    """How many ranks at the top are those of a perfect ranking."""
    pairs = zip(ranked, best_first(ranked), strict=True)
    return next((rank for rank, (found, best) in enumerate(pairs) if found != best), len(ranked))


WAYS = {
    "sliding_window": sliding_window,
    "several passes": lambda ids: sliding_window(ids, window=7, stride=3, passes=3),
    "no overlap": lambda ids: sliding_window(ids, window=7, stride=7),
    "some depth": lambda ids: sliding_window(ids, window=7, stride=3, depth=30),
    "tdpart": tdpart,
    "tdpart, small windows": lambda ids: tdpart(ids, window=5, buffer=None, pivot=3),
    "tdpart, pivot last": lambda ids: tdpart(ids, window=4, buffer=9, pivot=4),
    "setwise": setwise,
    "setwise, two children": lambda ids: setwise(ids, children=2, top=1000),
    "pointwise": pointwise,
}


@pytest.mark.parametrize("way", WAYS)
def test_every_passage_comes_back_once_whatever_the_answers(way):
    for number in SIZES:
        doc_ids = shuffled(number, seed=number)
        given = list(doc_ids)
        ranked = answer_all(WAYS[way](doc_ids), whim(random.Random(number)))
        assert sorted(ranked) == sorted(doc_ids)
        assert doc_ids == given  # the caller's list is left alone


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("doc_ids", [[], ["7"]])
def test_lists_of_no_or_one_passage_ask_nothing(way, doc_ids):
    assert answer_all(WAYS[way](doc_ids), pytest.fail) == doc_ids


@pytest.mark.parametrize("way", WAYS)
def test_a_question_never_repeats_a_passage(way):
    def answer(question):
        assert len(set(question.doc_ids)) == len(question)
        return oracle(question)

    for number in (2, 19, 20, 21, 100, 137):
        answer_all(WAYS[way](shuffled(number, seed=1)), answer)


# Sliding window


@pytest.mark.parametrize("passes", [1, 2, 3])
@pytest.mark.parametrize(("window", "stride"), WINDOWS)
def test_each_pass_makes_the_overlap_more_of_the_top_exact(window, stride, passes):
    overlap = window - stride
    for number in SIZES:
        for order in (shuffled(number, seed=number), [str(i) for i in range(number)]):
            ranked = answer_all(
                sliding_window(order, window=window, stride=stride, passes=passes), oracle
            )
            certain = number if number <= window else min(number, passes * overlap)
            assert exact(ranked) >= certain, (number, order)


@pytest.mark.parametrize(("window", "stride"), WINDOWS)
def test_no_more_of_the_top_is_certain(window, stride):
    overlap = window - stride
    for number in range(window + 1, 60):  # the worst order: the best passage last
        worst = [str(i) for i in range(number)]
        ranked = answer_all(sliding_window(worst, window=window, stride=stride), oracle)
        assert exact(ranked) == overlap
    for passes in (2, 3):
        number = 10 * window
        ranked = answer_all(
            sliding_window(
                [str(i) for i in range(number)], window=window, stride=stride, passes=passes
            ),
            oracle,
        )
        assert exact(ranked) == passes * overlap


def expected_windows(number, window, stride):
    """(start, stop) of each window, from the bottom; the last one begins at 0."""
    if number < 2:
        return []
    calls = 1 + max(0, ceil((number - window) / stride))
    stops = [number - call * stride for call in range(calls)]
    return [(max(0, stop - window), stop) for stop in stops]


@pytest.mark.parametrize(("window", "stride"), [*WINDOWS, (20, 7), (20, 15), (10, 5)])
def test_windows_are_anchored_at_the_bottom_and_end_at_the_top(window, stride):
    for number in range(201):
        doc_ids = [str(i) for i in range(number)]
        asked = []
        keep = watched(lambda question: tuple(range(len(question))), asked)
        answer_all(sliding_window(doc_ids, window=window, stride=stride), keep)
        expected = [doc_ids[a:b] for a, b in expected_windows(number, window, stride) if b - a > 1]
        assert [list(question.doc_ids) for question in asked] == expected
        # A window of one passage needs no question; without overlap, the top one may be that small.
        assert stride == window or len(expected) == len(expected_windows(number, window, stride))


@pytest.mark.parametrize(
    ("number", "calls"), [(2, 1), (19, 1), (20, 1), (21, 2), (25, 2), (30, 2), (31, 3), (100, 9)]
)
def test_calls_of_the_default_windows(number, calls):
    asked = []
    answer_all(sliding_window(shuffled(number, seed=1)), watched(oracle, asked))
    assert len(asked) == calls
    answer_all(sliding_window(shuffled(number, seed=1), passes=3), watched(oracle, asked))
    assert len(asked) == 4 * calls


def test_passages_below_the_depth_keep_their_ranks():
    for number, depth in product((0, 1, 5, 30, 60), (1, 2, 20, 45)):
        doc_ids = shuffled(number, seed=2)
        asked = []
        ranked = answer_all(sliding_window(doc_ids, depth=depth), watched(oracle, asked))
        alone = answer_all(sliding_window(doc_ids[:depth]), oracle)
        assert ranked == alone + doc_ids[depth:]
        assert not {d for question in asked for d in question.doc_ids} & set(doc_ids[depth:])


# Top-down partitioning


@pytest.mark.parametrize(("window", "pivot"), [(20, 10), (20, 20), (5, 2), (4, 3)])
def test_tdpart_without_a_limit_makes_the_top_exact(window, pivot):
    for number in SIZES:
        for order in (shuffled(number, seed=number), [str(i) for i in range(number)]):
            ranked = answer_all(tdpart(order, window=window, buffer=None, pivot=pivot), oracle)
            assert exact(ranked) >= (number if number <= window else min(number, pivot))


def test_tdpart_puts_the_pivot_at_its_true_rank_and_the_top_is_exact_within_the_buffer():
    limited = 0
    for number in range(21, 201, 3):
        for seed in range(2):
            doc_ids = shuffled(number, seed=seed)
            pivot = best_first(doc_ids[:20])[9]
            true_rank = best_first(doc_ids).index(pivot)
            ranked = answer_all(tdpart(doc_ids), oracle)
            assert ranked.index(pivot) == true_rank
            assert set(ranked[:true_rank]) == set(best_first(doc_ids)[:true_rank])
            if true_rank <= 20:
                assert exact(ranked) > true_rank
            else:
                limited += 1
    assert limited > 10  # both cases were seen


def test_tdpart_asks_all_further_windows_side_by_side():
    best_on_top = best_first(shuffled(100, seed=1))
    _, rounds = rounds_of(tdpart(best_on_top), oracle)
    assert [len(questions) for questions in rounds] == [1, 5]  # 6 calls
    pivot = best_on_top[9]
    assert all(question.doc_ids[0] == pivot for question in rounds[1])
    compared = [doc_id for question in rounds[1] for doc_id in question.doc_ids[1:]]
    assert compared == best_on_top[20:]
    # With new candidates, these are ordered in one more call.
    _, rounds = rounds_of(tdpart(shuffled(100, seed=1)), oracle)
    assert [len(questions) for questions in rounds] == [1, 5, 1]


def test_calls_of_tdpart():
    for number in SIZES[2:]:
        asked = []
        answer_all(tdpart(shuffled(number, seed=number)), watched(oracle, asked))
        partition = 1 + ceil(max(0, number - 20) / 19)
        assert len(asked) in ((1,) if number <= 20 else (partition, partition + 1))
        assert max(map(len, asked)) <= 20


# Setwise


@pytest.mark.parametrize(("children", "top"), [(3, 10), (2, 1), (5, 7), (19, 10), (3, 1000)])
def test_setwise_makes_the_top_exact_and_leaves_the_rest(children, top):
    for number in SIZES:
        doc_ids = shuffled(number, seed=number)
        ranked = answer_all(setwise(doc_ids, children=children, top=top), oracle)
        assert exact(ranked) >= min(number, top)
        best = set(ranked[:top])
        assert ranked[top:] == [doc_id for doc_id in doc_ids if doc_id not in best]


def height(number, children):
    levels, size = 0, 1
    while size < number:
        levels, size = levels + 1, size + children ** (levels + 1)
    return levels


@pytest.mark.parametrize(("children", "top"), [(3, 10), (2, 5), (9, 10)])
def test_calls_of_setwise(children, top):
    for number in SIZES[2:]:
        _, rounds = rounds_of(
            setwise(shuffled(number, seed=number), children=children, top=top), oracle
        )
        asked = [question for questions in rounds for question in questions]
        assert {question.kind for question in asked} == {"best"}
        assert max(map(len, asked)) <= children + 1
        # Each inner node asks at least once while the heap is built, and at most once a level.
        levels, inner = height(number, children), ceil((number - 1) / children)
        sifts = inner + min(top, number) - 1
        assert inner <= len(asked) <= sifts * levels
        # The subtrees of a level are asked about side by side.
        assert len(rounds) <= levels * (levels + 1) / 2 + (min(top, number) - 1) * levels


def test_setwise_of_a_hundred():
    _, rounds = rounds_of(setwise(best_first(shuffled(100, seed=1))), oracle)
    # A heap already: 20 + 9 + 3 + 1 inner nodes, each level at once, then 9 sifts.
    assert [len(questions) for questions in rounds[:4]] == [20, 9, 3, 1]
    assert all(len(questions) == 1 for questions in rounds[4:])
    assert len(rounds) - 4 <= 9 * 4


# Pointwise


def test_pointwise_asks_about_each_passage_at_once_and_ranks_all():
    for number in SIZES[2:]:
        doc_ids = shuffled(number, seed=number)
        ranked, rounds = rounds_of(pointwise(doc_ids), oracle)
        assert ranked == best_first(doc_ids)
        assert [[question.doc_ids for question in r] for r in rounds] == [[(d,) for d in doc_ids]]


def test_equal_scores_keep_the_initial_order():
    scores = {"a": 1.0, "b": 2.0, "c": 1.0, "d": 2.0, "e": -inf}
    ranked = answer_all(pointwise("eabcd"), lambda question: scores[question.doc_ids[0]])
    assert ranked == ["b", "d", "a", "c", "e"]


def test_a_score_that_is_not_a_number_is_no_answer():
    with pytest.raises(ValueError, match="passage b"):
        answer_all(pointwise("ab"), lambda question: nan if question.doc_ids == ("b",) else 1.0)


# Options


@pytest.mark.parametrize(
    ("way", "options", "message"),
    [
        (sliding_window, {"stride": 0}, "stride=0"),
        (sliding_window, {"stride": 21}, "above window=20"),
        (sliding_window, {"window": 1, "stride": 1}, "window=1"),
        (sliding_window, {"passes": 0}, "passes=0"),
        (sliding_window, {"depth": 0}, "depth=0"),
        (sliding_window, {"window": 20.0}, "window=20.0"),
        (tdpart, {"window": 1}, "window=1"),
        (tdpart, {"pivot": 21}, "above window=20"),
        (tdpart, {"pivot": 1}, "pivot=1"),
        (tdpart, {"buffer": 9}, "below pivot=10"),
        (setwise, {"children": 1}, "children=1"),
        (setwise, {"top": 0}, "top=0"),
    ],
)
def test_bad_options_are_refused_before_anything_is_asked(way, options, message):
    with pytest.raises(InputError, match=message):
        way(["a", "b", "c"], **options)


def test_every_config_makes_its_way_of_asking():
    made = {}
    for path in (CONFIGS / "ranking").glob("*.yaml"):
        config = OmegaConf.load(path)
        made[path.stem] = ranking = instantiate(config.ranking)
        settings = inspect.signature(ranking.func).parameters.values()
        defaults = {s.name: s.default for s in settings if s.default is not s.empty}
        assert ranking.keywords == defaults
        prompt = Prompt.load(CONFIGS / "prompts" / f"{config.prompt}.jinja")
        _, rounds = rounds_of(ranking(shuffled(5, seed=1)), oracle)
        assert {question.kind for questions in rounds for question in questions} == {prompt.kind}
    assert {ranking.func for ranking in made.values()} == {
        sliding_window, tdpart, setwise, pointwise,
    }  # fmt: skip


def test_the_examples_of_the_module():
    assert doctest.testmod(rankings) == (0, 2)
