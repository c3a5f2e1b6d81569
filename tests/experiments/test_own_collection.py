"""One command goes from texts to an evaluated student, with a scripted server as the teacher."""

import re

import pytest

from experiments.own_collection.run import split
from rankdistillm.cli import PACKAGE
from rankdistillm.data.qrels import read_qrels
from rankdistillm.data.runs import Run
from rankdistillm.errors import InputError
from tests.endpoint import completion, serving
from tests.helpers import FORKED_COMMANDS

STEPS = ["max_steps=1", "queries_per_step=2", "data.train.list_size=4"]


def answer(text, _):
    """A model that writes the beginning of the passage, and finds every order right."""
    if text.endswith("Query:"):
        return completion(" ".join(re.findall(r"^Passage: (.*)", text, re.M)[-1].split()[:8]))
    return completion(" > ".join(f"[{i}]" for i in range(1, text.count("\n[") + 1)))


def test_every_fifth_query_is_held_out(tmp_path):
    first = Run.from_scores({f"q{i}": {"a": 2.0, "b": 1.0} for i in range(11)})
    qrels = {query_id: {"a": 1} for query_id in first if query_id != "q10"}
    split(first, qrels, tmp_path)
    parts = {part: set(Run.read(tmp_path / f"{part}.bm25.run")) for part in ("train", "test")}
    assert parts["test"] == {"q0", "q5"}
    assert parts["train"] == set(qrels) - parts["test"]
    for part, query_ids in parts.items():
        assert set(read_qrels(tmp_path / f"{part}.qrels")) == query_ids
    with pytest.raises(InputError, match="1 judged queries are too few"):
        split(first, {"q0": {"a": 1}}, tmp_path)


@pytest.mark.slow
def test_one_command_from_texts_to_a_table(process, tiny_bert, tmp_path):
    lines = (PACKAGE / "mini/docs.tsv").read_text().splitlines(keepends=True)[:40]
    (tmp_path / "my docs.tsv").write_text("".join(lines))
    with serving(answer) as endpoint:
        line = ["-m", "experiments.own_collection.run", "work", "--docs", "my docs.tsv"]
        line += ["--teacher", "teacher.model=m", f"teacher.base_url={endpoint.url}", "--depth", "5"]
        line += ["--generate", "num_passages=12", "--train", f"model.path={tiny_bert}", *STEPS]
        (tmp_path / "sitecustomize.py").write_text(FORKED_COMMANDS)
        path = f"{tmp_path}:{PACKAGE.parent}"
        result = process(*line, cwd=tmp_path, PYTHONPATH=path)
        assert result.returncode == 0, result.stderr
        asked = sum(endpoint.asked.values())
        again = process(*line, cwd=tmp_path, PYTHONPATH=path)
        assert again.returncode == 0, again.stderr
        assert sum(endpoint.asked.values()) == asked
    steps = re.findall(r"^python -m rankdistillm\.(\w+)", again.stdout, re.M)
    assert steps == ["evaluate"]
    table = (tmp_path / "work/table.md").read_text()
    assert all(name in table for name in ("bm25", "prefinetuned", "distilled"))
    judged = set(read_qrels(tmp_path / "work/train.qrels"))
    assert not judged & set(read_qrels(tmp_path / "work/test.qrels"))
    assert set(Run.read(tmp_path / "work/teacher.run")) == judged
