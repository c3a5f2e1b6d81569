"""Holding out a share of the training queries (`JudgedRun.held_out`)."""

import pytest

from rankdistillm.data.runs import Run
from rankdistillm.errors import InputError
from rankdistillm.training.validation import JudgedRun

# Two lists for each of ten query texts, as of two teachers.
QUERIES = {f"q{i}@{teacher}": f"query {i}" for i in range(10) for teacher in "ab"}
RUN = Run.from_scores({q: {f"{q}-{i}": -i for i in range(12)} for q in QUERIES})
DOCS = dict.fromkeys(RUN.doc_ids(), "text")


def split(run=RUN, qrels=None, share=0.3, seed=1):
    return JudgedRun.held_out(run, qrels, QUERIES, DOCS, share=share, seed=seed)


def test_no_query_text_is_on_both_sides():
    training, held_out = split()
    assert {*training} | {*held_out.run} == {*QUERIES}
    trained, validated = ({QUERIES[q] for q in run} for run in (training, held_out.run))
    assert len(validated) == 3
    assert not trained & validated
    assert {*held_out.queries} == {*held_out.run}
    assert {*held_out.docs} == {*held_out.run.doc_ids()}


def test_the_split_follows_from_the_seed():
    first, again, other = (set(split(seed=seed)[0]) for seed in (1, 1, 2))
    assert first == again != other


def test_agreement_counts_the_teachers_best_ten():
    _, held_out = split()
    for query_id, grades in held_out.qrels.items():
        ranked = held_out.run[query_id].doc_ids
        assert grades == {doc_id: 10 - i for i, doc_id in enumerate(ranked[:10])}
    assert held_out.measure(held_out.run, "ndcg@10") == pytest.approx(1)


def test_judgements_count_where_they_are_given():
    qrels = {q: {f"{q}-3": 2} for q in QUERIES}
    _, held_out = split(qrels=qrels)
    assert held_out.qrels == {q: qrels[q] for q in held_out.run}


def test_passages_without_a_rank_are_no_candidates():
    extended = RUN.with_relevant({q: {"added": 1} for q in QUERIES})
    training, held_out = JudgedRun.held_out(
        extended, None, QUERIES, DOCS | {"added": "text"}, share=0.3, seed=1
    )
    assert "added" not in held_out.run.doc_ids()
    assert "added" in training.doc_ids()


@pytest.mark.parametrize("share", [0.01, 0.99])
def test_a_share_that_leaves_one_side_empty_is_refused(share):
    with pytest.raises(InputError, match="leaves queries on both sides"):
        split(share=share)
