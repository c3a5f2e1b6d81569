"""The study with a local language model, on a tiny collection and random weights."""

import pytest

from experiments import commands
from experiments.local_llm import run as local_llm
from rankdistillm.data.runs import Run
from rankdistillm.teachers.prompts import Prompt
from tests.helpers import write_language_model


def test_its_prompts_show_the_query_last():
    """Query likelihood scores the last turn; the passage is in the one before."""
    for name in ("labels", "examples"):
        prompt = Prompt.load(local_llm.PROMPTS[name])
        *before, last = prompt.messages(query="my query", passages=["my passage"])
        assert last == {"role": "assistant", "content": "my query"}
        assert before[-1]["content"].endswith("Passage: my passage\nQuery:")


@pytest.mark.slow
def test_every_prompt_ranks_the_top_alone_and_fused(command, monkeypatch, tmp_path):
    folder = tmp_path / "trec-dl-2019"
    (folder / "runs").mkdir(parents=True)
    first = Run.from_scores({q: {f"{q}-{i}": -float(i) for i in range(25)} for q in ("q1", "q2")})
    first.write(folder / "runs/bm25.run")
    docs = (f"{d}\tpassage {d} holds {'a word ' * i}\n" for i, d in enumerate(first.doc_ids()))
    (folder / "docs.tsv").write_text("".join(docs))
    (folder / "queries.tsv").write_text("q1\twhat is one\nq2\twhat is two\n")
    (folder / "qrels.txt").write_text("q1 0 q1-3 2\nq2 0 q2-0 1\nq2 0 q2-5 3\n")

    def in_this_process(module, *arguments):
        result = command(module, *arguments)
        assert result.status == 0, result.err

    monkeypatch.setattr(commands, "command", in_this_process)
    monkeypatch.setattr(local_llm, "command", in_this_process)
    model = write_language_model(tmp_path / "model", chat=False, context=2048)
    work = tmp_path / "work"
    work.mkdir()
    local_llm.rank(tmp_path, work, str(model))
    top = {q: set(first[q].doc_ids[: local_llm.DEPTH]) for q in first}
    runs = {file.stem: Run.read(file) for file in work.glob("*.run")}
    assert set(runs) == {name for p in local_llm.PROMPTS for name in (p, f"{p}-fused")}
    assert all({q: set(run[q].doc_ids) for q in run} == top for run in runs.values())
    assert all(name in (work / "ranking.md").read_text() for name in ("bm25", *runs))


def test_the_queries_are_asked_for_once_and_measured_before_the_filter(monkeypatch, tmp_path):
    recorded = []
    for module in (commands, local_llm):
        monkeypatch.setattr(module, "command", lambda *given: recorded.append(given))
    local_llm.write(tmp_path, tmp_path, "model", "scifact")
    names = [name for name, *_ in recorded]
    options = [dict(a.split("=", 1) for a in given) for _, *given in recorded]
    assert names == ["generate_queries", "generate_queries", "retrieve", "evaluate"]
    every, kept, retrieved, evaluated = options
    assert every.pop("filter.depth") == "null"
    assert every.pop("output") != kept.pop("output")
    assert every == kept  # the store, too: the second command finds all answers
    assert retrieved["data.queries"].endswith("scifact.all.tsv")
    assert evaluated["qrels"].endswith("scifact.all.qrels")
