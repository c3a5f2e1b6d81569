"""Judgements from TREC files and ir_datasets."""

import gzip
from types import SimpleNamespace

import pytest

from rankdistillm.data import qrels
from rankdistillm.data.qrels import read_qrels
from rankdistillm.errors import InputError

TREC = "q1 0 d1 3\nq1 0 d2 -1\nq2 0 d1 0\n"


@pytest.fixture
def write(tmp_path):
    def write(text, name="qrels.txt"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_trec(write):
    assert read_qrels(write(TREC)) == {"q1": {"d1": 3, "d2": -1}, "q2": {"d1": 0}}


def test_gz_tabs_and_blank_lines(tmp_path):
    path = tmp_path / "qrels.gz"
    path.write_bytes(gzip.compress(b"\nq1\t0\td1\t1\r\n\n"))
    assert read_qrels(path) == {"q1": {"d1": 1}}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("q1 0 d3", "expected the 4 columns 'query_id 0 doc_id relevance', found 3; correct"),
        ("q1 0 d3 1 x", "found 5; correct"),
        ("q1 0 d3 high", "relevance 'high' is not a whole number; correct"),
        ("q1 0 d3 1_0", "relevance '1_0' is not a whole number; correct"),
        ("q1 0 d3 \u0967", "relevance '\u0967' is not a whole number; correct"),
        ("q1 0 d3 9223372036854775808", "relevance '9223372036854775808' is too large; correct"),
        ("q1 0 d3 1.5", r"relevance '1\.5' is not a whole number; correct"),
        ("q1 0 d1 3", "d1 is judged twice for query q1; keep one"),
    ],
)
def test_bad_line(write, line, expected):
    with pytest.raises(InputError, match=rf"qrels\.txt, line 4: .*{expected}"):
        read_qrels(write(TREC + line))


def test_empty(write):
    with pytest.raises(InputError, match=r"qrels\.txt: the file is empty"):
        read_qrels(write(""))


def test_cut_off_gz(tmp_path):
    path = tmp_path / "qrels.gz"
    path.write_bytes(gzip.compress(TREC.encode())[:-10])
    with pytest.raises(InputError, match=r"qrels\.gz, after line .*cut off or damaged"):
        read_qrels(path)


def test_gzipped_without_the_suffix(tmp_path):
    path = tmp_path / "qrels.txt"
    path.write_bytes(gzip.compress(TREC.encode()))
    with pytest.raises(InputError, match=r"qrels\.txt: a gzip file; rename it to end in \.gz"):
        read_qrels(path)


def test_neither_file_nor_id():
    with pytest.raises(InputError, match=r"no/qrels: neither a file nor an ir_datasets id.*qrels"):
        read_qrels("no/qrels")


def test_ir_datasets(monkeypatch):
    entry = SimpleNamespace(query_id="q1", doc_id="d1", relevance=2)
    dataset = SimpleNamespace(has_qrels=lambda: True, qrels_iter=lambda: iter([entry]))
    monkeypatch.setattr(qrels, "load_ir_dataset", lambda identifier, what: dataset)
    assert read_qrels("some/data") == {"q1": {"d1": 2}}
    dataset.has_qrels = lambda: False
    with pytest.raises(InputError, match="some/data: this ir_datasets id has no qrels"):
        read_qrels("some/data")
