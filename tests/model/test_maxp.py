"""Long passages: windows, and the scores of their best ones."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from rankdistillm.data.runs import Run
from rankdistillm.errors import InputError
from rankdistillm.model import reranker as reranker_module
from rankdistillm.model.maxp import Windows
from rankdistillm.model.reranker import Reranker
from tests.helpers import collection_words, load, write_classifier

QUERIES = {"q1": "why do tides turn", "q2": "how is bread made"}
WORDS = collection_words()
RNG = np.random.default_rng(2)
DOCS = {
    f"d{i}": " ".join(RNG.choice(WORDS, size))
    for i, size in enumerate([3, 90, 12, 0, 70, 16, 17, 31, 120, 9])
}
RUN = Run.from_scores({q: {d: -i for i, d in enumerate(DOCS)} for q in QUERIES})
WIDTH = 16


@pytest.fixture(scope="module")
def model(tiny_models):
    return load(tiny_models("bert"), doc_length=WIDTH)


def scores(reranker, pairs):
    return dict(zip(pairs, reranker.score_pairs(pairs), strict=True))


def best_of_windows(model, query, doc, width, stride):
    """The best score of the passage's windows, each packed and scored by itself."""
    uncut = model.tokenise_docs({"d": doc}, cut=False)["d"]
    tokens = model.tokenise_queries({"q": query})["q"]
    starts = range(0, max(1, len(uncut) - width + stride), stride)
    shown = [uncut[start : start + width] for start in starts]
    assert len(uncut) == 0 or starts[-1] + len(shown[-1]) == len(uncut)
    return max(float(model(model.template.pack([(tokens, part)])).detach()) for part in shown)


@pytest.mark.parametrize("stride", [None, 5, WIDTH])
def test_a_long_passage_scores_like_its_best_window_alone(model, stride):
    reranker = Reranker(model, long="maxp", stride=stride)
    reranked = reranker.rerank(RUN, QUERIES, DOCS, progress=False)
    for query_id, ranked in reranked.items():
        assert sorted(ranked.doc_ids) == sorted(DOCS)  # one score a passage
        query = QUERIES[query_id]
        for doc_id, score in zip(ranked.doc_ids, ranked.scores, strict=True):
            expected = best_of_windows(model, query, DOCS[doc_id], WIDTH, stride or WIDTH // 2)
            assert score == pytest.approx(expected, abs=1e-5)
        docs = list(DOCS.values())
        assert reranker.score(query, docs) == pytest.approx(
            [dict(zip(ranked.doc_ids, ranked.scores, strict=True))[d] for d in DOCS], abs=1e-5
        )
        assert [DOCS[d] for d in ranked.doc_ids[:3]] == [
            found.doc for found in reranker.rank(query, docs, depth=3)
        ]


@pytest.mark.parametrize("at_once", [4096, 7])
def test_short_passages_score_the_same_to_the_last_bit(model, at_once, monkeypatch):
    monkeypatch.setattr(reranker_module, "SORTED_AT_ONCE", at_once)
    pairs = [(q, d) for q in QUERIES.values() for d in DOCS.values()]
    cut = scores(Reranker(model), pairs)
    best = scores(Reranker(model, long="maxp"), pairs)
    is_long = {d: len(model.tokenise_docs({"d": d}, cut=False)["d"]) > WIDTH for d in DOCS.values()}
    assert 3 <= sum(is_long.values()) <= len(DOCS) - 3
    for query, doc in pairs:
        if is_long[doc]:  # the first window is the passage that was cut
            assert best[query, doc] >= cut[query, doc]
        else:
            assert best[query, doc] == cut[query, doc]
    assert any(best[pair] > cut[pair] for pair in pairs)


def test_windows_leave_room_for_the_query_where_the_encoder_limits_the_pair(tmp_path):
    write_classifier(tmp_path, "bert")  # no lengths of its own; pairs of 64 tokens
    model = load(tmp_path)
    assert model.doc_length is None
    for query in ("tides", " ".join(WORDS[:40]), " ".join(WORDS[:200])):
        size = len(model.tokenise_queries({"q": query})["q"])
        width = model.template.doc_room(size)
        doc = DOCS["d8"]
        found = Reranker(model, long="maxp").score(query, [doc])[0]
        expected = best_of_windows(model, query, doc, width, width // 2)
        activation = model.network.activation
        if activation is not None:  # it keeps the order
            expected = float(activation(torch.tensor(expected)))
        assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("max_length", [8, 9, 20])
def test_the_room_for_a_passage_is_what_a_pair_keeps(model, max_length):
    template = type(model.template)(**{**vars(model.template), "max_length": max_length})
    for query_size in range(30):
        for size in range(60):
            (kept,) = template._cut(np.array([[query_size, size]]))[:, 1]
            assert (kept == size) == (size <= template.doc_room(query_size)), (query_size, size)


def test_windows_cover_every_token_and_end_with_the_passage():
    rng = np.random.default_rng(1)
    for _ in range(200):
        sizes = rng.integers(0, 90, rng.integers(1, 9))
        widths = rng.integers(1, 30, len(sizes))
        stride = None if rng.random() < 0.3 else int(rng.integers(1, 40))
        windows = Windows.overlapping(sizes, widths, stride)
        batches = windows.batches(5)
        assert all(batch.stop - batch.start <= 5 for batch in batches)
        shown = [(i, part) for batch in batches for i, part in windows.shown(batch)]
        assert len(shown) == len(windows)
        assert [i for i, _ in shown[: len(sizes)]] == list(range(len(sizes)))
        for i, (size, width) in enumerate(zip(sizes, widths, strict=True)):
            parts = [np.arange(size)[part] for owner, part in shown if owner == i]
            assert set(np.concatenate(parts)) == set(range(size))
            assert all(0 < len(part) <= width for part in parts) or size == 0
            steps = {int(b[0] - a[0]) for a, b in pairwise(parts)}
            assert steps <= {max(1, width // 2) if stride is None else min(stride, width)}
            assert len(parts) == 1 or size > width
        scores = rng.normal(size=len(windows))
        owners = np.array([i for i, _ in shown])
        expected = [scores[owners == i].max() for i in range(len(sizes))]
        assert windows.best(scores).tolist() == expected


def test_memory_holds_one_batch_of_windows_at_a_time(model, monkeypatch):
    monkeypatch.setattr(reranker_module, "SORTED_AT_ONCE", 8)
    packed = []
    pack = type(model.template).pack
    monkeypatch.setattr(
        type(model.template),
        "pack",
        lambda self, pairs: packed.append(len(pairs)) or pack(self, pairs),
    )
    Reranker(model, long="maxp").rerank(RUN, QUERIES, DOCS, progress=False)
    assert max(packed) == 8
    assert sum(packed) > 4 * len(DOCS)


@pytest.mark.parametrize(
    ("long", "said"),
    [
        ("truncate", "are cut; long=maxp scores them by overlapping windows"),
        ("maxp", "are scored by overlapping windows, "),
    ],
)
def test_long_passages_are_counted_and_said_once(long, said, model, caplog):
    caplog.set_level("INFO")
    Reranker(model, long=long).rerank(RUN, QUERIES, DOCS, progress=False)
    uncut = model.tokenise_docs(DOCS, cut=False)
    number = sum(len(uncut[doc_id]) > WIDTH for doc_id in DOCS)
    (line,) = caplog.messages
    assert f"{number} of 10 passages are longer than the 16 tokens that the student reads" in line
    assert said in line
    caplog.clear()
    short = dict.fromkeys(DOCS, "tide")
    Reranker(model, long=long).rerank(RUN, QUERIES, short, progress=False)
    assert not caplog.messages


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"long": "max"}, "long=max is not one of truncate, maxp"),
        ({"long": "maxp", "stride": 0}, "stride=0 is not a whole number above 0"),
        ({"long": "maxp", "stride": WIDTH + 1}, "stride=17 is above doc_length=16"),
        ({"stride": 4}, "stride=4 is for long=maxp"),
    ],
)
def test_unsuitable_windows_are_rejected(options, said, model):
    with pytest.raises(InputError, match=said):
        Reranker(model, **options)


def test_windows_do_not_go_with_retokenise(tiny_bert):
    with pytest.raises(InputError, match="does not go with retokenise"):
        Reranker(load(tiny_bert, retokenise=True), long="maxp")


@pytest.mark.parametrize("pairs", [[], [("q", "")]])
def test_nothing_to_score(pairs, model):
    assert len(Reranker(model, long="maxp").score_pairs(pairs)) == len(pairs)
