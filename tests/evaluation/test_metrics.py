"""Metrics against numbers computed by hand and against trec_eval, above all on tied scores."""

import logging
import math

import numpy as np
import pytest

from rankdistillm.data.runs import RankedList, Run
from rankdistillm.errors import InputError
from rankdistillm.evaluation.metrics import LARGEST, NAMES, evaluate_run, parse_metric, trec_order

QRELS = {"q1": {"a": 3, "b": 0, "c": 1}, "q2": {"d": 1, "e": 2}}
TREC_EVAL = {  # ranx's spelling -> trec_eval's
    "ndcg": "ndcg",
    "ndcg@10": "ndcg_cut_10",
    "ndcg@100": "ndcg_cut_100",
    "mrr": "recip_rank",
    "map": "map",
    "map@10": "map_cut_10",
    "precision": "set_P",
    "precision@10": "P_10",
    "precision@100": "P_100",
    "recall": "set_recall",
    "recall@10": "recall_10",
    "r-precision": "Rprec",
    "f1": "set_F",
    "hit_rate@10": "success_10",
    "hits": "num_rel_ret",
}


def run_of(scores):
    return Run.from_scores(scores, source="some.run")


def random_collection(seed, num_queries=60):
    """Runs whose scores take few values, some queries unjudged, without results or relevance."""
    rng = np.random.default_rng(seed)
    qrels, scores = {}, {}
    for q in range(num_queries):
        docs = [f"d{i}" for i in rng.permutation(200)]
        listed = docs[: rng.integers(1, 60)]
        # 1e-9 apart: equal in float32, different in float64
        values = 20 + rng.integers(0, 6, len(listed)) + 1e-9 * rng.integers(0, 3, len(listed))
        judged = rng.permutation(docs)[: rng.integers(1, 40)]
        relevance = rng.integers(-1, 4, len(judged)) if q % 7 else np.zeros(len(judged))
        if q % 10 != 1:
            scores[f"q{q}"] = dict(zip(listed, values.tolist(), strict=True))
        if q % 10 != 2:
            qrels[f"q{q}"] = {str(d): int(r) for d, r in zip(judged, relevance, strict=True)}
    return qrels, scores


def trec_eval(qrels, scores, measures, level=1):
    pytrec_eval = pytest.importorskip("pytrec_eval")
    return pytrec_eval.RelevanceEvaluator(qrels, set(measures), relevance_level=level).evaluate(
        scores
    )


def test_metrics_equal_numbers_computed_by_hand():
    # q1 ranks b (0), a (3), an unjudged passage, c (1); q2 ranks e (2) first and misses d (1).
    run = run_of({"q1": {"b": 9.0, "a": 8.0, "x": 7.0, "c": 6.0}, "q2": {"e": 1.0, "y": 0.5}})
    found = evaluate_run(
        run, QRELS, ["ndcg@10", "ndcg@2", "mrr@10", "mrr@1", "map", "recall@2", "precision@2"]
    )
    ideal = 3 + 1 / math.log2(3)
    expected = {
        "ndcg@10": [(3 / math.log2(3) + 1 / math.log2(5)) / ideal, 2 / (2 + 1 / math.log2(3))],
        "ndcg@2": [3 / math.log2(3) / ideal, 2 / (2 + 1 / math.log2(3))],
        "mrr@10": [1 / 2, 1],
        "mrr@1": [0, 1],
        "map": [(1 / 2 + 2 / 4) / 2, 1 / 2],
        "recall@2": [1 / 2, 1 / 2],
        "precision@2": [1 / 2, 1 / 2],
    }
    for metric, (q1, q2) in expected.items():
        assert found.per_query[metric] == pytest.approx({"q1": q1, "q2": q2}), metric
        assert found.means[metric] == pytest.approx((q1 + q2) / 2), metric


@pytest.mark.parametrize("seed", [1, 2])
def test_metrics_equal_trec_eval_on_ties(seed):
    qrels, scores = random_collection(seed)
    theirs = trec_eval(qrels, scores, TREC_EVAL.values())
    # trec_eval rejects or skips what is not in both; its value for those is 0 (with its option -c).
    found = evaluate_run(run_of(scores), qrels, list(TREC_EVAL))
    for metric, measure in TREC_EVAL.items():
        for query_id in qrels:
            expected = theirs.get(query_id, {}).get(measure, 0.0)
            value = found.per_query[metric][query_id]
            assert value == pytest.approx(expected, abs=1e-6), (metric, query_id)


def test_metrics_equal_trec_eval_at_a_relevance_level():
    qrels, scores = random_collection(3)
    pairs = {"mrr-l2": "recip_rank", "map-l2": "map", "recall@10-l2": "recall_10"}
    theirs = trec_eval(qrels, scores, pairs.values(), level=2)
    found = evaluate_run(run_of(scores), qrels, list(pairs))
    for metric, measure in pairs.items():
        for query_id, values in theirs.items():
            value = found.per_query[metric][query_id]
            assert value == pytest.approx(values[measure], abs=1e-6), (metric, query_id)


def test_mrr_with_a_cutoff_equals_trec_eval_within_it():
    qrels, scores = random_collection(4)
    theirs = trec_eval(qrels, scores, ["recip_rank"])
    found = evaluate_run(run_of(scores), qrels, ["mrr@3"]).per_query["mrr@3"]
    for query_id, values in theirs.items():
        expected = values["recip_rank"] if values["recip_rank"] > 0.3 else 0.0
        assert found[query_id] == pytest.approx(expected, abs=1e-6)


def test_order_of_lines_and_queries_does_not_matter():
    qrels, scores = random_collection(5)
    backwards = {q: dict(reversed(docs.items())) for q, docs in reversed(scores.items())}
    one = evaluate_run(run_of(scores), qrels, ["ndcg@10"])
    two = evaluate_run(run_of(backwards), qrels, ["ndcg@10"])
    assert one.per_query == two.per_query


def test_ties_are_broken_as_trec_eval_does():
    def order(doc_ids, scores):
        return trec_order(RankedList(doc_ids, np.array(scores)))

    assert order(("a", "c", "b"), [1.0, 1.0, 1.0]) == ["c", "b", "a"]
    assert order(("a", "b"), [1.0 + 1e-9, 1.0]) == ["b", "a"]  # equal in float32
    assert order(("a", "b"), [0.0, -0.0]) == ["b", "a"]
    assert order(("a", "b"), [1e300, 1e299]) == ["b", "a"]  # both infinite in float32
    assert order(("10", "9"), [1.0, 1.0]) == ["9", "10"]  # as strings, not as numbers
    assert order(("z", "é", "中"), [1.0, 1.0, 1.0]) == ["中", "é", "z"]  # as strcmp on UTF-8


def test_queries_without_results_count_zero_and_those_without_judgements_are_left_out():
    found = evaluate_run(run_of({"q1": {"a": 1.0}, "q9": {"a": 1.0}}), QRELS, ["mrr"])
    assert found.per_query == {"mrr": {"q1": 1.0, "q2": 0.0}}
    assert found.means == {"mrr": 0.5}
    assert found.means_with_results == {"mrr": 1.0}
    assert found.num_queries == 2
    assert found.without_results == ("q2",)
    assert found.without_judgements == ("q9",)


def test_negative_relevance_counts_as_none():
    run = run_of({"q1": {"junk": 2.0, "good": 1.0}})
    found = evaluate_run(run, {"q1": {"junk": -2, "good": 1}}, ["ndcg@10", "dcg", "precision@2"])
    assert found.means == pytest.approx(
        {"ndcg@10": 1 / math.log2(3), "dcg": 1 / math.log2(3), "precision@2": 0.5}
    )


def test_queries_without_a_relevant_passage_score_zero():
    found = evaluate_run(run_of({"q1": {"a": 1.0}}), {"q1": {"a": 0, "b": -1}}, NAMES)
    assert set(found.means.values()) == {0.0}


@pytest.mark.parametrize(
    "metric", ["nDCG@10", "ndcg@", "ndcg@0", "ndcg@ten", "bpref", "rbp.95", ""]
)
def test_unknown_metric_names_the_valid_ones(metric):
    with pytest.raises(InputError, match=rf"unknown metric '{metric}'.*ndcg.*mrr.*recall@100-l2"):
        evaluate_run(run_of({"q1": {"a": 1.0}}), QRELS, [metric])


def test_a_cutoff_that_ranx_would_ignore_is_refused():
    with pytest.raises(InputError, match=r"r-precision@10: .*write r-precision"):
        evaluate_run(run_of({"q1": {"a": 1.0}}), QRELS, ["r-precision@10"])


def test_cutoffs_and_levels_are_bounded():
    run = run_of({"q1": {"a": 1.0, "b": 0.5}})
    qrels = {"q1": {"a": 10**9, "b": 1}}
    for name in (
        name for name in NAMES if name not in ("r-precision", "ndcg_burges", "dcg_burges")
    ):
        largest, complete = f"{name}@{LARGEST}", f"{name}@2"
        values = evaluate_run(run, qrels, [largest, complete, f"{name}-l{LARGEST}"]).means
        if name not in ("precision", "f1"):  # they count the passages that a list lacks
            assert values[largest] == pytest.approx(values[complete])
    for metric in (
        "ndcg@99999999999999999999",
        "ndcg@10-l99999999999999999999",
        f"mrr@{LARGEST + 1}",
        "mrr@" + "9" * 5000,  # Python does not read that many digits
    ):
        with pytest.raises(InputError, match=r"a number above 1,000,000,000; leave out the cut"):
            parse_metric(metric)
    for digits in ("٣", "１０", "1٠"):  # noqa: RUF001
        with pytest.raises(InputError, match="unknown metric"):
            parse_metric(f"ndcg@{digits}")


@pytest.mark.parametrize("relevance", [5000, 10**25, 10**400])
def test_the_error_for_an_infinite_metric_names_the_relevance(relevance):
    run, qrels = run_of({"q1": {"a": 1.0}, "q2": {"a": 1.0}}), {"q1": {"a": 1}, "q2": {}}
    qrels["q2"] = {"a": relevance, "b": -relevance, "c": relevance}
    assert evaluate_run(run, qrels, ["mrr"]).means == {"mrr": 1.0}
    with pytest.raises(InputError, match=r"ndcg_burges of query q2 is not finite, .*correct the j"):
        evaluate_run(run, qrels, ["ndcg_burges"])


def test_no_metrics_are_refused():
    with pytest.raises(InputError, match="no metrics"):
        evaluate_run(run_of({"q1": {"a": 1.0}}), QRELS, [])


def test_judgements_of_other_queries_are_refused():
    expected = r"some.run: .* 1 queries \(other\) .* 2 judged ones \(q1, q2\); give the qrels"
    with pytest.raises(InputError, match=expected):
        evaluate_run(run_of({"other": {"a": 1.0}}), QRELS, ["mrr"])


def test_a_line_says_when_ranx_is_compiled(monkeypatch, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    run = run_of({"q1": {"a": 1.0}})
    evaluate_run(run, QRELS, ["mrr"])
    caplog.clear()
    evaluate_run(run, QRELS, ["mrr"])
    assert not caplog.records
    import ranx.metrics

    cache = ranx.metrics.common.clean_qrels._cache
    monkeypatch.setattr(cache, "_cache_path", str(tmp_path))  # nothing is compiled there
    evaluate_run(run, QRELS, ["mrr"])
    assert [record.getMessage() for record in caplog.records] == [
        "compiling ranx's mrr, about 10 s; cached afterwards"
    ]
