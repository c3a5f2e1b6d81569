"""All queries side by side: troubles end a query, answers are kept, limits stop cleanly."""

import logging
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from rankdistillm.data.runs import Run
from rankdistillm.errors import InputError
from rankdistillm.teachers.backends import Backend, Completion, QueryFailed, ScoringBackend
from rankdistillm.teachers.budget import Budget, Prices, Usage
from rankdistillm.teachers.questions import AskOptions
from rankdistillm.teachers.rankings import pointwise, setwise, sliding_window
from rankdistillm.teachers.store import AnswerStore
from rankdistillm.teachers.tally import check_readable
from tests.endpoint import (
    CALLS,
    ORDER,
    PASSAGE,
    Reply,
    ask_endpoint,
    error,
    serving,
    task,
    troubled,
    windows,
)
from tests.teacher import (
    BEST,
    LETTERS,
    SCORE,
    Model,
    Scorer,
    ask,
    by_relevance,
    oracle_text,
    orders,
)


def test_an_oracle_brings_the_best_to_the_top(tmp_path):
    given = queries, candidates, docs = task(7)
    model = Model()
    assert isinstance(model, Backend)
    ranked, tally = ask(tmp_path, given, model, concurrency=3)
    assert list(ranked) == list(queries)
    for query_id in queries:
        expected = by_relevance(candidates[query_id].doc_ids, docs)
        assert list(ranked[query_id].doc_ids[:5]) == expected[:5]
        assert sorted(ranked[query_id].doc_ids) == sorted(expected)
    assert tally.calls == model.asked.total() == 7 * CALLS
    assert tally.asked == Usage(7 * CALLS, 100 * 7 * CALLS, 10 * 7 * CALLS)
    assert (tally.cache_hits, tally.failed, tally.stopped) == (0, {}, None)
    assert tally.cost is tally.total_cost is None
    assert not tally.repairs
    assert tally.seconds > 0
    assert model.most <= 3
    assert set(model.sent) == {(200, 0.0, None)}


def test_a_second_time_nothing_is_asked_and_the_result_is_the_same(tmp_path):
    given = task()
    prices = Prices(1.0, 2.0)
    first, expected = ask(tmp_path, given, Model(), budget=Budget(prices=prices))
    model = Model()
    second, tally = ask(tmp_path, given, model, budget=Budget(prices=prices))
    assert orders(first) == orders(second)
    assert not model.asked
    assert (tally.calls, tally.stored) == (0, expected.asked)
    assert tally.cost == 0.0
    assert tally.total_cost == expected.cost == pytest.approx(4 * CALLS * 120 / 1e6)


@pytest.mark.parametrize(
    "change", ["prompt", "temperature", "words", "options", "override", "model", "query"]
)
def test_whatever_changes_asks_anew(tmp_path, change):
    given = queries, candidates, docs = task(2, filler="and more words than one")
    ask(tmp_path, given, Model())
    # The backend's own option wins over that of the same name, in the request and in the key.
    model = Model(options={"options": {"seed": 1}, "override": {"temperature": 1.0}}.get(change))
    if change == "model":
        model.identity = "other"
    if change == "query":
        queries = {query_id: f"{text}?" for query_id, text in queries.items()}
    options = {"temperature": {"temperature": 0.5}, "words": {"words": 3}}.get(change, {})
    source = f"{ORDER}Please." if change == "prompt" else ORDER
    given = queries, candidates, docs
    _, tally = ask(tmp_path, given, model, source=source, options=AskOptions(**options))
    assert (tally.calls, tally.cache_hits) == (2 * CALLS, 0)


def test_an_answer_that_is_needed_again_counts_once(tmp_path):
    def passes(doc_ids):
        return sliding_window(doc_ids, passes=3)  # the third asks what the second did

    for calls in (2, 0):
        model = Model()
        _, tally = ask(tmp_path, task(1, 8), model, ranking=passes)
        assert (model.asked.total(), tally.calls, tally.cache_hits) == (calls, calls, 2 - calls)


def test_lists_of_no_passage_one_passage_and_no_queries(tmp_path):
    candidates = Run.from_scores({"q1": {"d": 1.0}, "q0": {}})
    ranked, tally = ask(tmp_path, ({"q1": "x", "q0": "y"}, candidates, {"d": "text"}), Model())
    assert orders(ranked) == {"q1": ("d",), "q0": ()}
    assert tally.calls == 0
    ranked, tally = ask(tmp_path, ({}, Run({}), {}), Model())
    assert len(ranked) == tally.calls == 0


def test_repairs_are_counted_also_in_stored_answers(tmp_path):
    given = task(4, 8)
    bad = {"query 1": "", "query 2": "I would rather not.", "query 3": "[2] > [2]"}
    for calls in (4, 0):
        model = Model(lambda text: Completion(bad.get(text.split("\n")[0], oracle_text(text))))
        ranked, tally = ask(tmp_path, given, model, ranking=sliding_window)
        assert tally.calls == calls
        assert tally.repairs == {"empty": 1, "refusal": 1, "repetition": 1, "missing": 1}
        assert ranked["q1"].doc_ids == given[1]["q1"].doc_ids


def test_a_ranking_that_is_cut_off_is_counted_and_a_thought_is_none(tmp_path, caplog):
    given = task(4, 8)
    cut = {
        "query 0": "[8] > [7] > [",
        "query 1": "Okay, [8] is better than [7], and",
        "query 2": "<think>[8]",
    }

    def answer(text):
        query = text.split("\n")[0]
        return Completion(cut.get(query, oracle_text(text)), cut_off=query in cut)

    for calls in (4, 0):
        ranked, tally = ask(tmp_path, given, Model(answer), ranking=sliding_window)
        assert tally.calls == calls
        assert tally.repairs == {"cut_off": 3, "thinking_cut": 2, "missing": 1, "wrong_format": 1}
        assert (tally.read, tally.unreadable) == (4, 2)
    assert ranked["q0"].doc_ids[:2] == ("q0_7", "q0_6")
    for query_id in ("q1", "q2"):
        assert ranked[query_id].doc_ids == given[1][query_id].doc_ids
    check_readable(tally, "model")
    assert "3 of 4 answers are cut off; allow longer answers" in caplog.text
    only = given[0], given[1].select(["q1", "q2"]), given[2]
    _, tally = ask(tmp_path, only, Model(), ranking=sliding_window)
    with pytest.raises(InputError, match=r"none of its 2 answers names a passage \(thinking_cut 2"):
        check_readable(tally, "model")


def test_a_query_that_fails_ends_alone(tmp_path):
    def answer(text):
        if text.startswith("query 2\n"):
            raise QueryFailed("the endpoint answers 401: no")
        return Completion(oracle_text(text))

    given = task(5)
    ranked, tally = ask(tmp_path, given, Model(answer))
    assert list(ranked) == ["q0", "q1", "q3", "q4"]
    assert tally.failed == {"q2": "the endpoint answers 401: no"}
    assert tally.stopped is None
    again, tally = ask(tmp_path, given, Model())
    assert (tally.calls, tally.cache_hits) == (CALLS, 4 * CALLS)
    assert list(again) == [f"q{i}" for i in range(5)]


def test_a_query_that_failed_asks_no_more_of_its_questions(tmp_path):
    def answer(_):
        raise QueryFailed("the endpoint answers 401: no")

    model = Model(answer)
    _, tally = ask(tmp_path, task(3), model, source=SCORE, ranking=pointwise, concurrency=2)
    assert len(tally.failed) == 3
    assert model.asked.total() <= 3 * 2  # of 75


def test_a_teacher_that_never_answers_is_given_up(tmp_path):
    def answer(_):
        raise QueryFailed("cannot be reached")

    model = Model(answer)
    ranked, tally = ask(tmp_path, task(100), model, concurrency=2)
    assert len(ranked) == 0
    assert len(tally.failed) == 100
    assert tally.stopped == "20 queries in a row failed: cannot be reached"
    assert model.asked.total() <= 22


def test_a_text_that_is_missing_is_named_before_anything_is_asked(tmp_path):
    queries, candidates, docs = task(3)
    del docs["q2_24"]
    model = Model()
    with pytest.raises(InputError, match=r"first\.run: the doc_id q2_24 has no text"):
        ask(tmp_path, (queries, candidates, docs), model)
    del queries["q1"]
    with pytest.raises(InputError, match=r"first\.run: the query_id q1 has no text"):
        ask(tmp_path, (queries, candidates, docs), model)
    assert not model.asked


def test_errors_of_the_program_are_not_answers(tmp_path):
    def answer(_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ask(tmp_path, task(3), Model(answer))


@pytest.mark.parametrize("limit", [{"requests": 10}, {"tokens": 1100}, {"money": 0.0011}])
def test_a_limit_stops_and_the_same_command_goes_on(tmp_path, limit):
    given = task(6)
    whole, _ = ask(tmp_path, given, Model(), store="whole")
    total, rounds = 0, 0
    while True:
        budget = Budget(**limit, prices=Prices(1.0, 1.0))
        ranked, tally = ask(tmp_path, given, Model(), budget=budget, concurrency=1)
        total, rounds = total + tally.calls, rounds + 1
        if tally.stopped is None:
            break
        assert tally.calls == 10
        assert tally.stopped.startswith("the limit of")
        assert set(tally.failed) | set(ranked) == set(given[0])
        assert all(reason.startswith("unfinished: the limit") for reason in tally.failed.values())
    assert (total, rounds) == (6 * CALLS, 3)
    assert orders(ranked) == orders(whole)


def test_a_spent_budget_still_takes_what_is_stored(tmp_path):
    queries, candidates, docs = task(6)
    last = candidates.select(["q5"])
    ask(tmp_path, (queries, last, docs), Model())
    ranked, tally = ask(
        tmp_path, (queries, candidates, docs), Model(), budget=Budget(requests=1), concurrency=1
    )
    assert list(ranked) == ["q5"]
    assert len(tally.failed) == 5


def test_setwise(tmp_path):
    def best(text):
        _, number = max((int(r), int(n)) for n, r in PASSAGE.findall(text))
        return Completion("ABCD"[number - 1])

    given = queries, candidates, docs = task(3)
    ranked, tally = ask(tmp_path, given, Model(best), source=BEST, ranking=setwise)
    assert not tally.repairs
    for query_id in queries:
        expected = by_relevance(candidates[query_id].doc_ids, docs)
        assert list(ranked[query_id].doc_ids[:10]) == expected[:10]


def test_a_model_that_scores(tmp_path):
    given = queries, candidates, docs = task(5)
    scorer = Scorer()
    assert isinstance(scorer, ScoringBackend)
    assert not isinstance(scorer, Backend)
    ranked, tally = ask(tmp_path, given, scorer, ranking=pointwise)
    assert scorer.calls == [25] * 5
    assert (tally.calls, tally.asked.tokens) == (125, 0)
    for query_id in queries:
        expected = by_relevance(candidates[query_id].doc_ids, docs)
        assert list(ranked[query_id].doc_ids) == expected
        assert ranked[query_id].scores[0] == float(docs[expected[0]].split()[1]) / 8

    # Some passages more: only they are scored.
    docs |= {"new0": "relevance 1", "new1": "relevance 2000"}
    longer = dict(zip(candidates["q0"].doc_ids, range(25, 0, -1), strict=True))
    more = Run.from_scores({"q0": longer | {"new0": 0.5, "new1": 0.1}})
    again = Scorer()
    ranked, tally = ask(tmp_path, (queries, more, docs), again, ranking=pointwise)
    assert again.calls == [2]
    assert (tally.calls, tally.cache_hits) == (2, 25)
    assert (ranked["q0"].doc_ids[0], ranked["q0"].scores[0]) == ("new1", 250.0)


def test_a_prompt_that_does_not_fit_the_way_of_asking(tmp_path):
    for backend, ranking, source in (
        (Model(), pointwise, ORDER),
        (Model(), windows, SCORE),
        (Model(), setwise, LETTERS),
        (Scorer(), windows, ORDER),
    ):
        with pytest.raises(InputError, match=r"asks for .* choose another ranking"):
            ask(tmp_path, task(2), backend, ranking=ranking, source=source)
        assert not (backend.calls if isinstance(backend, Scorer) else backend.asked)


def test_only_as_many_queries_are_open_as_questions_may_be(tmp_path):
    alive, most = 0, 0

    def ranking(doc_ids):
        nonlocal alive, most
        alive, most = alive + 1, max(most, alive + 1)
        try:
            return (yield from windows(doc_ids))
        finally:
            alive -= 1

    ask(tmp_path, task(40), Model(), ranking=ranking, concurrency=4)
    assert (alive, most) == (0, 4)


def test_a_server_of_every_trouble_that_dies_half_way(tmp_path, caplog):
    with serving(troubled) as endpoint:
        whole, expected = ask_endpoint(tmp_path, endpoint.url, "whole")
    assert len(whole) == 12
    assert endpoint.answered.total() == expected.calls
    assert expected.repairs["empty"] + expected.repairs["refusal"] + expected.repairs["missing"] > 0

    answered = 0

    def dies(text, times):
        nonlocal answered
        reply = Reply(drop="before") if answered == 24 else troubled(text, times)
        answered += reply.is_answer
        return reply

    with serving(dies) as dying:
        partial, before = ask_endpoint(tmp_path, dying.url, "broken")
    assert len(partial) < 12
    assert set(partial) | set(before.failed) == set(whole)
    assert all("cannot be reached" in reason for reason in before.failed.values())
    assert before.calls == dying.answered.total() == 24

    with serving(troubled) as restarted:
        complete, after = ask_endpoint(tmp_path, restarted.url, "broken")
    assert orders(complete) == orders(whole)
    assert not after.failed
    assert not dying.answered.keys() & restarted.answered.keys()
    assert set(dying.answered.values()) | set(restarted.answered.values()) == {1}
    assert before.calls + after.calls == expected.calls == after.calls + after.cache_hits
    assert after.asked + after.stored == expected.asked
    assert (after.repairs, after.shortened) == (expected.repairs, expected.shortened)
    assert expected.shortened > 0


def test_the_key_is_in_no_store_and_no_log(tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret-0123456789")

    def script(text, times):
        if text.startswith("query 2\n"):
            return error(401, "Incorrect API key: sk-very-secret-0123456789")
        return troubled(text, times)

    with serving(script) as endpoint:
        _, tally = ask_endpoint(tmp_path, endpoint.url, "answers")
    assert endpoint.keys == {"Bearer sk-very-secret-0123456789"}
    assert "Incorrect API key: [key]" in tally.failed["q2"]
    written = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"very-secret" not in written
    assert "very-secret" not in caplog.text
    assert "very-secret" not in repr(tally)


KILLED = """
import sys
from pathlib import Path
from tests.endpoint import ask_endpoint
ask_endpoint(Path(sys.argv[1]), sys.argv[2], "killed")
"""


@pytest.mark.slow
def test_killed_at_eight_moments(tmp_path):
    """Nothing that was stored is asked again, and the result is that of an undisturbed run."""
    with serving(troubled) as endpoint:
        whole, expected = ask_endpoint(tmp_path, endpoint.url, "whole")
    rng = random.Random(3)
    stored = 0

    def slowly(text, times):
        reply = troubled(text, times)
        reply.seconds += 0.05
        return reply

    with serving(slowly) as endpoint:
        for _ in range(8):
            asked = endpoint.asked.total()
            process = subprocess.Popen(
                [sys.executable, "-W", "error", "-c", KILLED, str(tmp_path), endpoint.url],
                cwd=os.getcwd(),
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
            while endpoint.asked.total() == asked and process.poll() is None:
                time.sleep(0.01)  # it imports
            time.sleep(rng.uniform(0.0, 0.4))
            process.send_signal(signal.SIGKILL)
            process.wait()
            with AnswerStore(tmp_path / "killed") as answers:
                assert len(answers) >= stored
                stored = len(answers)
        ranked, tally = ask_endpoint(tmp_path, endpoint.url, "killed")
    assert orders(ranked) == orders(whole)
    assert tally.cache_hits >= stored
    assert tally.calls + tally.cache_hits == expected.calls
    assert (tally.repairs, tally.shortened) == (expected.repairs, expected.shortened)
    # What was under way when the process was killed is asked again: at most six questions a time.
    assert endpoint.answered.total() <= expected.calls + 8 * 6
