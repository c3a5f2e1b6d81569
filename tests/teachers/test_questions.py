"""One question: passages that fit, answers that are read, and nothing that is asked twice."""

import logging
from itertools import pairwise

import pytest

from rankdistillm.data.runs import Run
from rankdistillm.teachers.backends import Completion, ContextTooLong, QueryFailed
from rankdistillm.teachers.questions import AskOptions, shortenings
from rankdistillm.teachers.rankings import pointwise
from tests.endpoint import CALLS, PASSAGE, task
from tests.teacher import LETTERS, SCORE, Model, Scorer, ask, by_relevance, oracle_text, orders


def test_passages_are_cut_until_the_question_fits(tmp_path, caplog):
    given = queries, _, docs = task(3, filler="long " * 100)
    docs |= {doc_id: text[:20] for doc_id, text in docs.items() if doc_id.startswith("q1_")}

    def answer(text):
        if len(text) > 1500:
            raise ContextTooLong("1501 characters exceed 1500")
        return Completion(oracle_text(text))

    ranked, tally = ask(tmp_path, given, Model(answer), options=AskOptions(words=1000))
    assert list(ranked) == list(queries)
    assert tally.shortened == 2 * CALLS
    (said,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert said.startswith("model: a question exceeds the model's context; its passages are cut to")
    best = by_relevance(docs, docs)[0]
    assert ranked[best.split("_")[0]].doc_ids[0] == best

    model = Model(answer)
    again, tally = ask(tmp_path, given, model, options=AskOptions(words=1000))
    assert orders(again) == orders(ranked)
    assert (model.asked.total(), tally.shortened) == (0, 2 * CALLS)


def test_a_length_that_was_refused_is_not_tried_again(tmp_path):
    refused = []

    def answer(text):
        if len(text) > 1500:
            refused.append(len(text))
            raise ContextTooLong("1501 characters exceed 1500")
        return Completion(oracle_text(text))

    given = task(6, filler="long " * 100)
    options = AskOptions(words=1000)
    _, tally = ask(tmp_path, given, Model(answer), options=options, concurrency=1)
    assert tally.shortened == tally.calls == 6 * CALLS
    assert refused == sorted(refused, reverse=True)
    assert len(refused) < 12  # of the first question's; the other 23 ask almost none

    # The key is that of the question as it first was.
    model = Model(answer)
    _, tally = ask(tmp_path, given, model, options=options)
    assert (model.asked.total(), tally.shortened) == (0, 6 * CALLS)


def test_a_question_that_is_under_way_is_not_asked_again(tmp_path):
    """Two queries of one text, and two passages of one text."""
    queries, candidates, docs = task(1, 8)
    both = {"q0": queries["q0"], "again": queries["q0"]}
    lists = {q: dict.fromkeys(candidates["q0"].doc_ids, 1.0) for q in both}
    given = both, Run.from_scores(lists), docs
    model = Model()
    ranked, tally = ask(tmp_path, given, model)
    assert (model.asked.total(), tally.calls, tally.cache_hits) == (1, 1, 1)
    assert ranked["q0"].doc_ids == ranked["again"].doc_ids

    def odds(text):
        return Completion("yes", 1, 1, [{"yes": -0.1, "no": -2.0}])

    same = dict.fromkeys(docs, "relevance 7")
    for backend, calls in ((Model(odds), 1), (Scorer(), 1)):
        store = type(backend).__name__
        given = queries, candidates, same
        _, tally = ask(
            tmp_path, given, backend, ranking=pointwise, source=SCORE, store=f"{store}.sqlite"
        )
        assert tally.calls == calls
    assert backend.calls == [1]


def test_a_question_whose_asker_failed_is_asked_by_the_next(tmp_path):
    queries, candidates, docs = task(1, 8)
    both = {"q0": queries["q0"], "again": queries["q0"]}
    lists = {q: dict.fromkeys(candidates["q0"].doc_ids, 1.0) for q in both}
    answers = iter([QueryFailed("no"), None])

    def answer(text):
        if error := next(answers):
            raise error
        return Completion(oracle_text(text))

    ranked, tally = ask(tmp_path, (both, Run.from_scores(lists), docs), Model(answer))
    assert (list(ranked), tally.failed) == (["again"], {"q0": "no"})


def test_a_model_that_cuts_passages_itself_gets_them_whole(tmp_path):
    class Whole(Scorer):
        def score(self, query, passages):
            self.seen = passages
            return super().score(query, passages)

    given = task(1, 2, filler="word " * 400)
    for cuts_passages, words in ((True, 402), (False, 300)):
        scorer = Whole()
        scorer.cuts_passages = cuts_passages
        ask(tmp_path, given, scorer, ranking=pointwise, store=f"{words}.sqlite")
        assert {len(passage.split()) for passage in scorer.seen} == {words}


@pytest.mark.parametrize("text", ["word " * 300, "潮汐" * 300, "x" * 2000])
def test_every_script_is_cut_down_to_a_few_characters(text):
    tried = list(shortenings(AskOptions().cut([text, "short"])))
    lengths = [max(map(len, passages)) for passages in tried]
    assert all(later < earlier for earlier, later in pairwise(lengths))
    assert lengths[-1] <= 20
    assert list(shortenings(["short"])) == [["short"]]
    assert {passages[1] for passages in tried} == {"short"}


def test_a_question_that_never_fits_ends_its_query(tmp_path):
    def answer(_):
        raise ContextTooLong("it holds 8 tokens")

    _, tally = ask(tmp_path, task(1, 2), Model(answer))
    assert tally.failed == {"q0": "too long even with passages of 20 characters: it holds 8 tokens"}


def test_letters_and_scores_come_from_log_probabilities(tmp_path):
    def letters(text):
        found = PASSAGE.findall(text)
        top = {"ABCDEFGHIJ"[int(n) - 1]: int(relevance) / 1000 for n, relevance in found}
        return Completion("A", 1, 1, [top])

    def odds(text):
        return Completion("yes", 1, 1, [{"yes": int(text.split()[3]) / 1000, "no": -1.0}])

    given = queries, candidates, docs = task(3)
    options = AskOptions(max_tokens=99, top_logprobs=12)
    by_letters, _ = ask(tmp_path, given, Model(letters), source=LETTERS, options=options)
    model = Model(odds)
    by_odds, tally = ask(tmp_path, given, model, source=SCORE, ranking=pointwise, options=options)
    assert set(model.sent) == {(1, 0.0, 12)}
    assert tally.calls == 75
    for query_id in queries:
        expected = by_relevance(candidates[query_id].doc_ids, docs)
        assert list(by_letters[query_id].doc_ids[:5]) == expected[:5]
        assert list(by_odds[query_id].doc_ids) == expected
        best = int(docs[expected[0]].split()[1]) / 1000 + 1.0
        assert by_odds[query_id].scores[0] == pytest.approx(best)


def test_a_model_that_scores_gets_shorter_passages_too(tmp_path):
    given = task(2, filler="long " * 50)
    for calls in (50, 0):
        ranked, tally = ask(tmp_path, given, Scorer(longest=100), ranking=pointwise)
        assert (len(ranked), tally.calls, tally.shortened) == (2, calls, 50)
