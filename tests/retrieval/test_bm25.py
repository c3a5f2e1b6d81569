"""BM25's scores, the order of its lists, and the index on disk."""

import json
import logging
import math
import os
import sys

import numpy as np
import pytest

from rankdistillm.data.runs import Run
from rankdistillm.errors import InputError
from rankdistillm.retrieval.bm25 import Bm25

DOCS = {
    "a": "tide tide moon",
    "b": "moon bread",
    "c": "bread yeast gas dough bread",
    "d": "",
    "e": "owl moon tide",
}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RANKDISTILLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/bm25"


def by_hand(query, docs, k1, b):
    """The formula, term by term."""
    words = {doc_id: text.split() for doc_id, text in docs.items()}
    mean_length = sum(map(len, words.values())) / len(words)
    scores = dict.fromkeys(docs, 0.0)
    for term in query.split():
        df = sum(term in text for text in words.values())
        idf = math.log(1 + (len(docs) - df + 0.5) / (df + 0.5))
        for doc_id, text in words.items():
            tf = text.count(term)
            norm = k1 * (1 - b + b * len(text) / mean_length)
            scores[doc_id] += idf * tf / (tf + norm) if tf else 0.0
    return {doc_id: score for doc_id, score in scores.items() if score}


@pytest.mark.parametrize(("k1", "b"), [(0.9, 0.4), (1.2, 0.75), (0, 0), (2, 1)])
@pytest.mark.parametrize("query", ["tide", "moon bread", "bread bread gas", "owl nothing"])
def test_scores_are_those_of_the_formula(query, k1, b):
    found = Bm25(DOCS, k1=k1, b=b, language="none").search({"q": query}, progress=False)["q"]
    expected = by_hand(query, DOCS, k1, b)
    assert dict(zip(found.doc_ids, found.scores, strict=True)) == pytest.approx(expected, rel=1e-6)
    assert (np.diff(found.scores) <= 0).all()


@pytest.mark.parametrize("depth", [1, 3, 4, 7, None])
def test_equal_scores_are_ordered_by_descending_doc_id_also_at_the_cut(depth):
    docs = {f"d{i}": "tide" if i % 2 else "tide tide" for i in range(14)}
    found = Bm25(docs, k1=5, b=0).search({"q": "tides"}, depth, progress=False)["q"]
    twice = sorted((d for d in docs if int(d[1:]) % 2 == 0), reverse=True)
    once = sorted((d for d in docs if int(d[1:]) % 2), reverse=True)
    assert list(found.doc_ids) == [*twice, *once][:depth]
    assert len(set(found.scores)) == (1 if depth and depth <= 7 else 2)
    again = Run.from_scores({"q": dict(zip(found.doc_ids, found.scores, strict=True))})
    assert again["q"].doc_ids == found.doc_ids


def test_a_query_without_passages_gets_no_list_and_is_named(caplog):
    queries = {"q1": "moon", "q2": "the", "q3": "zebra", "q4": ""}
    run = Bm25(DOCS).search(queries, progress=False)
    assert list(run) == ["q1"]
    said = "3 of 4 queries have no word in common with any passage and get no list: q2, q3, q4"
    assert said in caplog.text
    with pytest.raises(InputError, match="none of 1 queries has a word in common"):
        Bm25(DOCS).search({"q": "zebra"}, progress=False)


def test_passages_may_all_be_empty():
    with pytest.raises(InputError, match="none of 1 queries has a word in common"):
        Bm25({"a": "", "b": "the"}).search({"q": "moon"}, progress=False)
    with pytest.raises(InputError, match="no passages"):
        Bm25({})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"k1": -1}, "k1=-1 is not a number of at least 0"),
        ({"k1": math.inf}, "k1=inf is not a number"),
        ({"b": 1.5}, "b=1.5 is not a number from 0 to 1"),
        ({"b": -0.1}, "b=-0.1 is not a number of at least 0"),
        ({"language": "x"}, "language=x is not one of"),
    ],
)
def test_settings_out_of_range_are_rejected(options, said, cache):
    with pytest.raises(InputError, match=said):
        Bm25(DOCS, **options)
    assert not cache.exists()


def test_a_bad_depth_is_rejected():
    with pytest.raises(InputError, match="depth=0 is not a whole number"):
        Bm25(DOCS).search({"q": "moon"}, 0)


@pytest.mark.parametrize("missing", ["bm25s", "Stemmer"])
def test_a_missing_package_names_the_extra(missing, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(InputError, match=r"pip install 'rankdistillm\[teach\]'"):
        Bm25(DOCS)


# ---- the index on disk


def entries(cache):
    return sorted(path for path in cache.iterdir() if path.is_dir())


@pytest.fixture
def times_made(monkeypatch):
    """A list with an entry for each index that was made instead of opened."""
    made = []
    make = Bm25._made
    monkeypatch.setattr(Bm25, "_made", lambda self: made.append(1) or make(self))
    return made


def search(docs=DOCS, **options):
    run = Bm25(docs, **options).search({"q": "moon bread"}, progress=False)
    return run["q"].doc_ids, run["q"].scores.tolist()


def test_an_index_is_made_once_and_memory_mapped(cache, times_made, caplog):
    caplog.set_level(logging.INFO)
    first = search()
    assert search() == first
    assert len(times_made) == 1
    assert len(entries(cache)) == 1
    assert isinstance(Bm25(DOCS)._index.scores["data"], np.memmap)
    assert not [name for name in os.listdir(cache) if name.startswith(".")]
    assert not caplog.text  # nothing of bm25s


def test_the_same_passages_share_an_index_whatever_their_file(cache, times_made, tmp_path):
    expected = search()
    (tmp_path / "docs.tsv").write_text("".join(f"{i}\t{t}\n" for i, t in DOCS.items()))
    rows = (json.dumps({"doc_id": i, "text": t}) + "\n" for i, t in DOCS.items())
    (tmp_path / "docs.jsonl").write_text("".join(rows))
    for file in ("docs.tsv", "docs.jsonl"):
        assert search(tmp_path / file) == expected
    assert len(times_made) == 1
    renamed = search({f"x{i}": text for i, text in DOCS.items()})
    assert renamed == (tuple(f"x{i}" for i in expected[0]), expected[1])
    assert len(times_made) == 1


def test_other_texts_and_settings_have_an_index_of_their_own(cache, times_made):
    search()
    others = [{"k1": 1.2}, {"b": 0.75}, {"language": "none"}, {"docs": DOCS | {"b": "moon"}}]
    others.append({"docs": dict(reversed(DOCS.items()))})
    for i, options in enumerate(others, 2):
        assert search(**options) == search(**options)
        assert len(times_made) == len(entries(cache)) == i
    assert search(k1=1.2) != search()


def test_a_folder_of_ones_own_keeps_the_index(cache, tmp_path, times_made):
    expected = search(index=tmp_path / "mine")
    assert search(index=str(tmp_path / "mine")) == expected
    assert len(entries(tmp_path / "mine")) == len(times_made) == 1
    assert not cache.exists()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"index=.*file: cannot be written"):
        search(index=tmp_path / "file")


@pytest.mark.parametrize("damage", ["changed", "cut", "missing"])
@pytest.mark.parametrize("pattern", ["data*", "indices*", "indptr*", "vocab*", "params*", "meta*"])
def test_a_damaged_index_is_made_again(pattern, damage, cache, times_made, caplog):
    expected = search()
    (file,) = entries(cache)[0].glob(pattern)
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(content[:-3] if damage == "cut" else content[:-2] + b"??")
    assert search() == expected
    assert "the index is damaged; indexing again" in caplog.text
    assert search() == expected
    assert len(times_made) == 2


def test_without_a_writable_cache_the_index_stays_in_memory(tmp_path, monkeypatch, caplog):
    expected = search()
    (tmp_path / "file").touch()
    monkeypatch.setenv("RANKDISTILLM_CACHE", str(tmp_path / "file"))
    assert search() == expected
    assert "the index cannot be cached" in caplog.text


def test_an_interrupted_indexing_leaves_no_index(cache, monkeypatch):
    import bm25s

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bm25s.BM25, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            search()
    assert not entries(cache)
    search()
    assert len(entries(cache)) == 1
