"""One command retrieves, re-ranks and evaluates on several collections."""

import json
import re
import sys

import pytest

from experiments.breadth import run as breadth
from rankdistillm.cli import PACKAGE
from rankdistillm.data.qrels import read_qrels
from rankdistillm.data.runs import Run
from rankdistillm.data.texts import read_texts
from rankdistillm.model.cross_encoder import CrossEncoder
from tests.helpers import FORKED_COMMANDS

MINI = PACKAGE / "mini"
# A data set that every command finds by its id.
SITE = """
import ir_datasets
dataset = ir_datasets.create_dataset(
    docs_tsv={docs!r}, queries_tsv={queries!r}, qrels_trec={qrels!r}
)
ir_datasets.registry._registered["tiny/own/test"] = dataset
"""


def write_collection(folder, split, num_queries):
    """Some queries of the embedded collection; one has a positive that shares no word with it."""
    folder.mkdir()
    queries = dict(list(read_texts(MINI / split / "queries.tsv", "query").items())[:num_queries])
    qrels = read_qrels(MINI / split / "qrels.txt")
    judged = {query_id: qrels[query_id] for query_id in queries if query_id in qrels}
    next(iter(judged.values()))["unlike"] = 2
    lines = (f"{q} 0 {d} {r}\n" for q, docs in judged.items() for d, r in docs.items())
    (folder / "qrels.txt").write_text("".join(lines))
    (folder / "queries.tsv").write_text("".join(f"{i}\t{t}\n" for i, t in queries.items()))
    (folder / "docs.tsv").write_text((MINI / "docs.tsv").read_text() + "unlike\txyzzy\n")
    return list(queries)


@pytest.mark.slow
def test_one_command_gives_one_table(process, tiny_bert, tmp_path):
    asked = write_collection(tmp_path / "my texts", "test", 5)
    write_collection(tmp_path / "own", "train", 6)
    files = {name: str(tmp_path / f"own/{name}.tsv") for name in ("docs", "queries")}
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(
        FORKED_COMMANDS + SITE.format(**files, qrels=str(tmp_path / "own/qrels.txt"))
    )
    CrossEncoder.from_pretrained(tiny_bert).save_pretrained(tmp_path / "student one")
    arguments = ["-m", "experiments.breadth.run", "work", "--depth", "4"]
    arguments += ["--collections", "my texts", "tiny/own/test", "--students", "tiny=student one"]
    path = f"{tmp_path / 'site'}:{PACKAGE.parent}"
    result = process(*arguments, cwd=tmp_path, PYTHONPATH=path)
    assert result.returncode == 0, result.stderr
    runs = {file.name: Run.read(file) for file in (tmp_path / "work/runs").iterdir()}
    assert set(runs) == {
        f"{name}__{collection}.run"
        for name in ("bm25", "tiny")
        for collection in ("my texts", "tiny-own-test")
    }
    first, student = runs["bm25__my texts.run"], runs["tiny__my texts.run"]
    assert set(first) == set(student) == set(asked)
    for query_id in first:  # the student gets what BM25 found, and no judged positive beyond it
        assert len(first[query_id]) == 4
        assert set(student[query_id].doc_ids) == set(first[query_id].doc_ids)
        assert "unlike" not in first[query_id].doc_ids
    table = (tmp_path / "work/table.md").read_text()
    assert "| my texts | tiny/own/test | mean | geometric mean |" in table
    assert "from bm25 (two-sided paired t-test" in table
    assert re.search(r"\| bm25[^\n]*\n\| tiny", table)
    report = json.loads((tmp_path / "work/results.json").read_text())
    assert set(report["collections"]) == {"my texts", "tiny/own/test"}, report.keys()
    again = process(*arguments, cwd=tmp_path, PYTHONPATH=path)
    assert again.returncode == 0, again.stderr
    assert "rankdistillm.retrieve" in result.stdout
    assert "rankdistillm.retrieve" not in again.stdout + again.stderr
    assert "rankdistillm.rerank" not in again.stdout + again.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--collections", "half"], "half: no queries.tsv or queries.tsv.gz or queries.jsonl"),
        (["--collections", "a", "--students", "bm25=x"], "give each student a name of its own"),
        (["--collections", "a", "--students", "x"], "give each student a name of its own"),
        (["--collections", "a", "--students", "x=1", "x=2"], "give each student a name of its"),
        (["--collections", "a/b", "a-b"], "two collections have one name"),
    ],
)
def test_bad_arguments_are_rejected(arguments, said, tmp_path, monkeypatch, capsys):
    (tmp_path / "half").mkdir()
    (tmp_path / "half/docs.tsv").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["breadth", "work", *arguments])
    with pytest.raises(SystemExit):
        breadth.main()
    assert said in capsys.readouterr().err
    assert not (tmp_path / "work").exists()
