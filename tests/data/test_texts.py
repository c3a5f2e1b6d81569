"""Texts by id: TSV, JSONL and ir_datasets, and ids of a run that have no text."""

import gzip
import json
from types import SimpleNamespace

import pytest

from rankdistillm.data.qrels import read_qrels
from rankdistillm.data.runs import Run
from rankdistillm.data.texts import read_texts, texts_of_run
from rankdistillm.errors import InputError

RUN = "q1 Q0 d1 1 2 t\nq1 Q0 d2 2 1 t\nq2 Q0 d1 1 2 t\n"


@pytest.fixture
def write(tmp_path):
    def write(text, name):
        path = tmp_path / name
        path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
        return path

    return write


@pytest.mark.parametrize("name", ["docs.tsv", "docs.tsv.gz", "docs.txt"])
def test_tsv(write, name):
    path = write("d1\tfirst text\tand its tab\nd2\tsecond\n\nd3\t\n", name)
    expected = {"d1": "first text\tand its tab", "d2": "second", "d3": ""}
    assert read_texts(path, "doc") == expected
    assert read_texts(path, "doc", wanted={"d2", "absent"}) == {"d2": "second"}


@pytest.mark.parametrize("name", ["docs.jsonl", "docs.jsonl.gz"])
@pytest.mark.parametrize("identifier", ["doc_id", "docid", "docno", "id", "_id"])
@pytest.mark.parametrize("text", ["text", "contents"])
def test_jsonl_docs(write, name, identifier, text):
    lines = [
        json.dumps({identifier: 1, text: "plain", "url": "x"}),
        json.dumps({identifier: "b", "title": "Title", text: "and text"}),
        json.dumps({identifier: "c", "title": "", text: "ü"}, ensure_ascii=False),
    ]
    path = write("\n".join(lines), name)
    assert read_texts(path, "doc") == {"1": "plain", "b": "Title and text", "c": "ü"}


def test_a_carriage_return_does_not_end_a_line(write):
    path = write("d1\tfoo\rd3\tbar\r\nd2\ttwo\n", "docs.tsv")
    assert read_texts(path, "doc") == {"d1": "foo\rd3\tbar", "d2": "two"}


@pytest.mark.parametrize("identifier", ["query_id", "qid", "id", "_id"])
@pytest.mark.parametrize("text", ["query", "text"])
def test_jsonl_queries(write, identifier, text):
    path = write(json.dumps({identifier: "q1", text: "who?"}), "queries.jsonl")
    assert read_texts(path, "query") == {"q1": "who?"}


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.tsv", "d1\ta\nd2 b\n", "line 2: expected 'id<TAB>text', found no tab; write"),
        ("a.tsv", "d1\ta\nd2\tb\nd1\tc\n", "line 3: the doc_id d1 appears twice; keep one"),
        ("a.jsonl", '{"doc_id": 1, "text": "a"}\n{"doc', "line 2: not JSON .*one object a line"),
        ("a.jsonl", '{"doc_id": 1, "body": "a"}', "line 1: .*doc_id and text, found doc_id, body"),
        ("a.jsonl", '{"text": "a"}', "line 1: .*found text; rename"),
        ("a.jsonl", "[1]", "line 1: .*found no object"),
        (
            "a.jsonl",
            '{"doc_id": 1, "text": ["a"]}',
            r"line 1: the text \['a'\] is not a text; write",
        ),
        (
            "a.jsonl",
            '{"doc_id": 1, "title": ["a"], "text": "b"}',
            r"the title \['a'\] is not a text",
        ),
        ("a.jsonl", '{"doc_id": "\\ud800", "text": "a"}', r"line 1: the doc_id \\ud800 holds half"),
        ("a.jsonl", '{"doc_id": 1, "text": "\\udc00"}', r"line 1: the text \\udc00 holds half"),
        ("a.jsonl", '{"doc_id": 1, "title": false, "text": "a"}', "the title False is not a text"),
        ("a.jsonl", '{"doc_id": true, "text": "a"}', "line 1: the doc_id True is not a text"),
        ("a.tsv", "", "the file is empty"),
    ],
)
def test_bad_file(write, name, text, expected):
    with pytest.raises(InputError, match=expected) as caught:
        read_texts(write(text, name), "doc")
    assert name in str(caught.value)


def test_cut_off_gz(write):
    path = write("d1\ta\n" * 100, "docs.tsv.gz")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputError, match=r"docs\.tsv\.gz, after line .*cut off"):
        read_texts(path, "doc", wanted=set())


def test_neither_file_nor_id():
    with pytest.raises(InputError, match="no/docs: neither a file nor an ir_datasets id"):
        read_texts("no/docs", "doc")


# ---- of a run


@pytest.fixture
def run(write):
    return Run.read(write(RUN, "some.run"))


def test_only_the_texts_of_the_run_are_kept(write, run):
    queries = write("q1\tone?\nq2\ttwo?\nq3\tthree?\n", "queries.tsv")
    docs = write("d1\tfirst\nd2\tsecond\nd3\tthird\n", "docs.tsv")
    assert texts_of_run(run, queries, docs) == (
        {"q1": "one?", "q2": "two?"},
        {"d1": "first", "d2": "second"},
    )


def test_unknown_document_names_the_line_of_the_run(write, run):
    queries, docs = write("q1\t1\nq2\t2\n", "queries.tsv"), write("d1\tfirst\n", "docs.tsv")
    expected = r"some\.run, line 2: the doc_id d2 has no text in .*docs\.tsv; .*set docs to"
    with pytest.raises(InputError, match=expected):
        texts_of_run(run, queries, docs)


def test_unknown_query_names_the_line_of_the_run(write, run):
    queries, docs = write("q1\t1\n", "queries.tsv"), write("d1\ta\nd2\tb\n", "docs.tsv")
    expected = r"some\.run, line 3: the query_id q2 has no text in .*queries\.tsv; .*set queries to"
    with pytest.raises(InputError, match=expected):
        texts_of_run(run, queries, docs)


def test_texts_in_the_run_itself(write):
    row = {"query_id": "q1", "doc_id": "d1", "score": 1, "query": "who?", "text": "them"}
    run = Run.read(write(json.dumps(row), "a.jsonl"))
    assert texts_of_run(run, None, None) == ({"q1": "who?"}, {"d1": "them"})


def test_no_texts_anywhere(run):
    expected = r"line 1: the query_id q1 has no text in the run itself; set queries to"
    with pytest.raises(InputError, match=expected):
        texts_of_run(run, None, None)


# ---- ir_datasets, with a tiny data set that is really registered


@pytest.fixture
def identifier(write, tmp_path, monkeypatch):
    monkeypatch.setenv("IR_DATASETS_HOME", str(tmp_path / "home"))
    import ir_datasets

    name = "rankdistillm-test"
    dataset = ir_datasets.create_dataset(
        docs_tsv=str(write("d1\tfirst\nd2\tsecond\n", "docs.tsv")),
        queries_tsv=str(write("q1\tone?\nq2\ttwo?\n", "queries.tsv")),
        qrels_trec=str(write("q1 0 d1 2\n", "qrels.txt")),
    )
    monkeypatch.setitem(ir_datasets.registry._registered, name, dataset)
    return name


def test_ir_datasets(identifier):
    assert read_texts(identifier, "query") == {"q1": "one?", "q2": "two?"}
    assert read_texts(identifier, "query", wanted={"q2"}) == {"q2": "two?"}
    assert read_texts(identifier, "doc") == {"d1": "first", "d2": "second"}
    assert read_texts(identifier, "doc", wanted={"d2", "absent"}) == {"d2": "second"}
    assert read_qrels(identifier) == {"q1": {"d1": 2}}


def test_a_disk_without_room_for_an_index_of_ir_datasets(identifier, monkeypatch):
    class Store:
        def get_many(self, _):
            raise ValueError("Insufficient disk space:\n14GB are needed")

    dataset = SimpleNamespace(docs_store=Store)
    monkeypatch.setattr("rankdistillm.data.texts._ir_dataset", lambda *_: dataset)
    with pytest.raises(InputError, match=f"{identifier}: Insufficient disk space: 14GB are needed"):
        read_texts(identifier, "doc", wanted={"d1"})


def test_ir_datasets_without_scoreddocs(identifier):
    with pytest.raises(InputError, match=f"{identifier}: this ir_datasets id has no scoreddocs"):
        Run.read(identifier)


def test_ir_datasets_for_a_run(identifier, run):
    assert texts_of_run(run, identifier, identifier)[1] == {"d1": "first", "d2": "second"}
