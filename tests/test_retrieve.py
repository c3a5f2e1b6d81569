"""The command that retrieves a first-stage run."""

import gzip
import os
import sys

import numpy as np
import pytest

from rankdistillm.cli import PACKAGE
from rankdistillm.data.qrels import read_qrels
from rankdistillm.data.runs import Run
from rankdistillm.data.texts import iterate_texts, read_texts
from rankdistillm.evaluation.metrics import evaluate_run
from rankdistillm.retrieval.bm25 import Bm25

DOCS = {
    "a": "Bread rises because yeast makes gas.",
    "b": "The tide follows the Moon.",
    "c": "",
    "d": "A tide, and another tide.",
}
QUERIES = {"q1": "why do tides turn", "q2": "how is bread made", "q3": "zebra"}


@pytest.fixture
def files(tmp_path):
    (tmp_path / "docs.tsv").write_text("".join(f"{i}\t{t}\n" for i, t in DOCS.items()))
    (tmp_path / "queries.tsv").write_text("".join(f"{i}\t{t}\n" for i, t in QUERIES.items()))
    return ["data=local", "data.docs=docs.tsv", "data.queries=queries.tsv"]


@pytest.mark.parametrize("output", ["first.run", "new/first.jsonl", "first.parquet"])
def test_the_command_writes_the_run_of_the_class(output, command, files):
    result = command("retrieve", *files, f"output={output}")
    assert result.status == 0, result.err
    assert "1 of 3 queries have no word in common with any passage and get no list: q3" in (
        result.out + result.err
    )
    found, expected = Run.read(output), Bm25(DOCS).search(QUERIES, progress=False)
    assert list(found) == list(expected) == ["q1", "q2"]
    assert found["q1"].doc_ids == expected["q1"].doc_ids == ("d", "b")
    assert found["q2"].doc_ids == ("a",)
    for query_id in found:
        both = (run[query_id].scores.astype(np.float32) for run in (found, expected))
        assert np.array_equal(*both)


def test_options_reach_the_search(command, files):
    given = ["depth=1", "k1=2", "b=1", "language=none", "index=mine", "output=o.run"]
    result = command("retrieve", *files, *given)
    assert result.status == 0, result.err
    bm25 = Bm25(DOCS, k1=2, b=1, language="none")
    expected = bm25.search(QUERIES, 1, progress=False)
    found = Run.read("o.run")
    assert list(found) == ["q2"]
    assert found["q2"].scores == pytest.approx(expected["q2"].scores)
    assert len([path for path in os.scandir("mine") if path.is_dir()]) == 1
    assert command("retrieve", *files, "depth=null", "output=all.run").status == 0
    assert len(Run.read("all.run")["q1"]) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "output is not set; add output="),
        (["output=o.run", "data.docs=null"], "data.docs is not set; add data.docs="),
        (["output=o.run", "data.queries=null"], "data.queries is not set; add data.queries="),
        (["output=."], "output=.: a folder; give the name of a file"),
        (["output=docs.tsv"], "output=docs.tsv would overwrite data.docs=docs.tsv, which is read"),
        (["output=o.run", "k1=-1"], "k1=-1 is not a number of at least 0"),
        (["output=o.run", "b=2"], "b=2 is not a number from 0 to 1"),
        (["output=o.run", "depth=0"], "depth=0 is not a whole number above 0"),
        (["output=o.run", "language=klingon"], "language=klingon is not one of arabic, "),
        (["output=o.run", "index=docs.tsv"], "index=docs.tsv: cannot be written"),
        (["output=o.run", "data.docs=nowhere"], "nowhere: neither a file nor an ir_datasets id"),
        (["output=o.run", "data.docs=twice.tsv"], "twice.tsv, line 2: the doc_id a appears twice"),
        (["output=o.run", "data.docs=broken.tsv"], "broken.tsv, line 1: expected 'id<TAB>text'"),
        (["output=o.run", "data.queries=zebra.tsv"], "none of 1 queries has a word in common"),
        (["output=o.run", "data.docs=spaces.tsv"], "the id 'a b' cannot be written to a TREC run"),
    ],
)
def test_bad_input_ends_in_one_line(arguments, said, command, files, tmp_path):
    (tmp_path / "twice.tsv").write_text("a\tone\na\ttwo\n")
    (tmp_path / "broken.tsv").write_text("a one\n")
    (tmp_path / "zebra.tsv").write_text("q\tzebra\n")
    (tmp_path / "spaces.tsv").write_text("a b\ttide\n")
    result = command("retrieve", *files, *arguments)
    assert result.status != 0
    assert result.err.strip().splitlines()[-1].startswith("error: ")
    assert said in result.err
    assert "Traceback" not in result.err
    assert not (tmp_path / "o.run").exists()


def test_a_missing_extra_is_named(command, files, monkeypatch):
    monkeypatch.setitem(sys.modules, "bm25s", None)
    result = command("retrieve", *files, "output=o.run")
    assert result.err == (
        "error: retrieval needs bm25s and PyStemmer; install them with "
        "pip install 'rankdistillm[teach]'\n"
    )


def test_collections_of_ir_datasets(command, tmp_path, monkeypatch):
    import ir_datasets

    (tmp_path / "docs.tsv").write_text("".join(f"{i}\t{t}\n" for i, t in DOCS.items()))
    (tmp_path / "queries.tsv").write_text("q1\twhy do tides turn\n")
    dataset = ir_datasets.create_dataset(
        docs_tsv=str(tmp_path / "docs.tsv"), queries_tsv=str(tmp_path / "queries.tsv")
    )
    monkeypatch.setitem(ir_datasets.registry._registered, "tiny/tides", dataset)
    assert dict(iterate_texts("tiny/tides", "doc")) == DOCS
    given = ["data.docs=tiny/tides", "data.queries=tiny/tides", "output=o.run"]
    result = command("retrieve", *given)
    assert result.status == 0, result.err
    assert Run.read("o.run")["q1"].doc_ids == ("d", "b")


def test_texts_are_read_one_by_one(tmp_path):
    with gzip.open(tmp_path / "docs.tsv.gz", "wt") as file:
        file.writelines(f"{i}\t{text}\n" for i, text in DOCS.items())
    texts = iterate_texts(tmp_path / "docs.tsv.gz", "doc")
    assert next(texts) == ("a", DOCS["a"])
    assert dict(texts) == {i: text for i, text in DOCS.items() if i != "a"}


def test_the_embedded_collection_is_ranked_as_well_as_by_its_own_first_stage():
    mini = PACKAGE / "mini"
    queries = read_texts(mini / "test/queries.tsv", "query")
    qrels = read_qrels(mini / "test/qrels.txt")
    found = Bm25(mini / "docs.tsv").search(queries, 20, progress=False)
    runs = (found, Run.read(mini / "test/bm25.run"))
    ours, theirs = (evaluate_run(run, qrels, ["ndcg@10"]).means["ndcg@10"] for run in runs)
    assert ours == pytest.approx(theirs, abs=0.01)


def test_a_log_has_no_bars(process, files, tmp_path):
    result = process("-m", "rankdistillm.retrieve", *files, "output=o.run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""  # in a log, only work of more than a minute has lines
