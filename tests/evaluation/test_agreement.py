"""How far a ranking agrees with the one that it re-ordered."""

import pytest

from rankdistillm.data.runs import Run
from rankdistillm.errors import InputError
from rankdistillm.evaluation.agreement import agreement


def run_of(**lists):
    return Run.from_scores(
        {q: {d: -rank for rank, d in enumerate(doc_ids)} for q, doc_ids in lists.items()}
    )


def test_the_same_and_the_reverse():
    first = run_of(q1="abcd", q2="ef")
    same, reverse = agreement(first, first), agreement(run_of(q1="dcba", q2="fe"), first)
    assert (same.kendall_tau, same.new_in_top) == (1.0, 0.0)
    assert (reverse.kendall_tau, reverse.new_in_top) == (-1.0, 0.0)


def test_one_pair_of_six_is_exchanged():
    found = agreement(run_of(q1="abdc"), run_of(q1="abcd", q2="xy"))
    assert found.kendall_tau == pytest.approx((5 - 1) / 6)


def test_passages_that_come_into_the_top_ten():
    docs = "abcdefghijklm"
    found = agreement(run_of(q1=docs[3:] + docs[:3]), run_of(q1=docs))
    assert found.new_in_top == pytest.approx(0.3)  # k, l and m


def test_lists_of_one_shared_passage_have_no_order():
    first = run_of(q1="ab", q2="c")
    assert agreement(run_of(q1="ba", q2="c"), first).kendall_tau == -1.0
    assert agreement(run_of(q1="bxa"), first).kendall_tau == -1.0
    with pytest.raises(InputError, match="no list shares two passages"):
        agreement(run_of(q2="c"), first)
