"""The PyTerrier transformer, in pipelines of the real PyTerrier; without Java."""

import numpy as np
import pytest
import torch

from rankdistillm import Reranker
from rankdistillm.errors import InputError
from rankdistillm.model.cross_encoder import CrossEncoder

pt = pytest.importorskip("pyterrier", reason="the extra pyterrier is not installed")
pd = pytest.importorskip("pandas")
from rankdistillm import pyterrier  # noqa: E402

# PyTerrier itself calls pandas so.
pytestmark = pytest.mark.filterwarnings("ignore:The inplace keyword")

QUERIES = {"q1": "why do tides turn", "q2": "how is bread made"}
DOCS = {
    "a": "Bread rises because yeast makes gas.",
    "b": "The tide follows the Moon. " * 40,
    "c": "Owls fly without noise.",
}
ROWS = [
    {
        "qid": q,
        "query": query,
        "docno": d,
        "text": text,
        "score": float(-i),
        "rank": i,
        "own": d * 2,
    }
    for q, query in QUERIES.items()
    for i, (d, text) in enumerate(DOCS.items())
]


@pytest.fixture(scope="module")
def student(tiny_models, tmp_path_factory):
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("student")
    CrossEncoder.from_pretrained(tiny_models("bert")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def ours(student):
    return Reranker.from_pretrained(student, precision="fp32")


def test_a_pipeline_ends_with_the_scores_and_ranks_of_our_reranker(student, ours):
    first = pt.Transformer.from_df(pd.DataFrame(ROWS))
    pipeline = first >> pyterrier.Reranker(student, precision="fp32")
    topics = pd.DataFrame({"qid": list(QUERIES), "query": list(QUERIES.values())})
    found = pipeline(topics)
    assert len(found) == len(ROWS)
    assert (found["own"] == found["docno"] * 2).all()
    for qid, query in QUERIES.items():
        rows = found[found["qid"] == qid].sort_values("rank")
        expected = ours.rank(query, list(DOCS.values()))
        assert rows["rank"].tolist() == [0, 1, 2]  # PyTerrier counts from 0
        assert rows["text"].tolist() == [ranked.doc for ranked in expected]
        assert rows["score"].to_numpy() == pytest.approx([r.score for r in expected], abs=1e-6)
    assert len((pipeline % 2)(topics)) == 4


def test_the_frame_that_comes_in_is_not_changed(ours):
    frame = pd.DataFrame(ROWS)
    pyterrier.Reranker(ours)(frame)
    assert frame.equals(pd.DataFrame(ROWS))


def test_all_queries_are_scored_together(ours, monkeypatch):
    calls = []
    score = Reranker.score_pairs
    monkeypatch.setattr(
        Reranker, "score_pairs", lambda self, pairs: calls.append(len(pairs)) or score(self, pairs)
    )
    pyterrier.Reranker(ours)(pd.DataFrame(ROWS))
    assert calls == [len(ROWS)]


def test_one_docno_may_have_another_text_for_each_query(ours):
    rows = [ROWS[0] | {"text": "tides"}, ROWS[3] | {"text": "owls"}]
    found = pyterrier.Reranker(ours)(pd.DataFrame(rows))
    for row in rows:
        score = found[found["qid"] == row["qid"]]["score"].item()
        assert score == pytest.approx(ours.score(row["query"], [row["text"]])[0], abs=1e-6)


def test_an_empty_frame_stays_empty(ours):
    for columns in (["qid", "query", "docno", "text"], list(ROWS[0])):
        found = pyterrier.Reranker(ours)(pd.DataFrame(columns=columns))
        assert len(found) == 0
        assert {"score", "rank", "qid", "docno"} <= set(found.columns)


def test_other_columns_and_options(student, ours):
    frame = pd.DataFrame(ROWS).rename(columns={"text": "body"})
    long = pyterrier.Reranker(student, text_field="body", long="maxp", doc_length=16)
    cut = pyterrier.Reranker(student, text_field="body", doc_length=16)
    assert (long(frame)["score"] >= cut(frame)["score"]).all()
    assert long.model.long == "maxp"
    with pytest.raises(TypeError, match="doc_length"):
        pyterrier.Reranker(ours, doc_length=16)


@pytest.mark.parametrize("missing", ["qid", "query", "docno", "text"])
def test_a_missing_column_is_the_error_of_pyterrier(missing, ours):
    with pytest.raises(pt.validate.InputValidationError, match=missing):
        pyterrier.Reranker(ours)(pd.DataFrame(ROWS).drop(columns=missing))


@pytest.mark.parametrize("text", [None, np.nan, 5])
def test_a_passage_without_text_is_refused(text, ours):
    frame = pd.DataFrame([*ROWS[:2], ROWS[2] | {"text": text}])
    with pytest.raises(InputError, match=r"^qid \S+, docno \S+: query or text is no text"):
        pyterrier.Reranker(ours)(frame)
