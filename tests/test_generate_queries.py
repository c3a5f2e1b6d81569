"""The command that writes queries for a bare collection, against a scripted server."""

import json
import re

import pytest
import torch
import transformers

from rankdistillm.data.qrels import read_qrels
from rankdistillm.data.texts import read_texts
from rankdistillm.model.cross_encoder import CrossEncoder
from rankdistillm.model.reranker import Reranker
from rankdistillm.retrieval.bm25 import Bm25
from rankdistillm.teachers.store import AnswerStore
from tests.endpoint import completion, error, serving
from tests.helpers import write_language_model

SUBJECTS = (
    "owl", "tide", "bread", "glacier", "violin", "beetle", "harbour", "comet", "saffron", "loom",
    "marsh", "quartz",
)  # fmt: skip
DOCS = {f"d{i}": f"The {s} and its history, told for everybody." for i, s in enumerate(SUBJECTS)}
ASKED = ["data=local", "data.docs=docs.tsv", "output=queries.tsv"]
FAST = ["teacher.first_wait=0.001", "teacher.longest_wait=0.01", "teacher.attempts=2"]


def subject(text):
    """That of the last passage in a prompt."""
    return re.findall(r"^Passage: The (\w+)", text, re.MULTILINE)[-1]


def writer(text, _=0):
    return completion(f'Query: "history of the {subject(text)}"')


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "docs.tsv").write_text("".join(f"{i}\t{t}\n" for i, t in DOCS.items()))


@pytest.fixture
def generate(command):
    def run(url, *options):
        given = [f"teacher.base_url={url}", "teacher.model=m", *FAST, *ASKED]
        return command("generate_queries", "teacher=openai", *given, *options)

    return run


def test_queries_and_judgements_of_a_sample(generate, tmp_path):
    with serving(writer) as endpoint:
        result = generate(endpoint.url, "num_passages=5")
        assert result.status == 0, result.err
        written = [(tmp_path / f"queries.{kind}").read_bytes() for kind in ("tsv", "qrels")]
        again = generate(endpoint.url, "num_passages=5")
        assert again.status == 0, again.err
        assert len(endpoint.asked) == sum(endpoint.asked.values()) == 5
        assert written == [(tmp_path / f"queries.{k}").read_bytes() for k in ("tsv", "qrels")]
        other = generate(endpoint.url, "num_passages=5", "seed=2", "output=other.tsv")
        assert other.status == 0, other.err
    queries = read_texts(tmp_path / "queries.tsv", "query")
    qrels = read_qrels(tmp_path / "queries.qrels")
    assert list(queries) == list(qrels)
    assert len(queries) == 5
    for query_id, query in queries.items():
        ((doc_id, grade),) = qrels[query_id].items()
        assert (query_id, grade) == (f"q_{doc_id}", 1)
        assert query == f"history of the {SUBJECTS[int(doc_id[1:])]}"
    assert set(read_texts(tmp_path / "other.tsv", "query")) != set(queries)
    assert re.search(r"find their passage +5\n", result.out)
    about = json.loads((tmp_path / "queries.tsv.json").read_text())
    assert about["data"] == {
        "docs": "docs.tsv", "seed": 1, "passages": 5, "queries written": 5, "distinct": 5,
        "find their passage": 5,
    }  # fmt: skip
    assert about["answers"]["stored"]["answers"] == 5
    assert len(about["method"]["examples"]) == 3


def test_duplicates_and_queries_that_miss_their_passage_are_dropped(generate, tmp_path):
    wrong = {"tide": "history of the owl", "bread": "History: of the OWL!", "comet": "violin loom"}

    def script(text, _):
        return completion(wrong[subject(text)]) if subject(text) in wrong else writer(text)

    with serving(script) as endpoint:
        result = generate(endpoint.url, "filter.depth=1")
        assert result.status == 0, result.err
        found = read_texts(tmp_path / "queries.tsv", "query")
        assert set(found) == {f"q_d{i}" for i, s in enumerate(SUBJECTS) if s not in wrong}
        assert re.search(r"queries written +12\ndistinct +10\nfind their passage +9\n", result.out)
        assert generate(endpoint.url, "filter.depth=null").status == 0
        assert len(read_texts(tmp_path / "queries.tsv", "query")) == 10
        assert sum(endpoint.asked.values()) == 12


def test_a_re_ranker_as_the_filter(generate, tiny_bert, tmp_path):
    torch.manual_seed(3)
    (tmp_path / "student").mkdir()
    CrossEncoder.from_pretrained(tiny_bert).save_pretrained(tmp_path / "student")
    with serving(writer) as endpoint:
        assert generate(endpoint.url, "filter.reranker=student", "filter.depth=3").status == 0
    queries = {f"d{i}": f"history of the {s}" for i, s in enumerate(SUBJECTS)}
    run = Bm25(DOCS).search(queries, progress=False)
    ranked = Reranker.from_pretrained(tmp_path / "student").rerank(run, queries, DOCS)
    expected = {f"q_{d}" for d in queries if d in ranked[d].doc_ids[:3]}
    assert set(read_texts(tmp_path / "queries.tsv", "query")) == expected
    assert 0 < len(expected) < 12


def test_examples_are_shown(generate, tmp_path):
    (tmp_path / "own.tsv").write_text("Cranes dance.\twhy do cranes dance\n")
    with serving(writer) as endpoint:
        for options in ([], ["examples=own.tsv"], ["examples=null"]):
            assert generate(endpoint.url, *options, "num_passages=1").status == 0
        default, own, without = endpoint.asked
    assert default.count("Query: ") == 3
    assert "Passage: Cranes dance.\nQuery: why do cranes dance\n" in own
    assert own.count("Passage: ") == 2
    assert without.count("Passage: ") == 1
    assert all(text.endswith("Query:") for text in endpoint.asked)


def test_a_limit_stops_and_the_same_command_goes_on(generate, tmp_path):
    with serving(writer) as endpoint:
        stopped = generate(endpoint.url, "budget.requests=5", "concurrency=1")
        assert stopped.status != 0
        said = stopped.err.strip().splitlines()[-1]
        assert said.startswith("error: 7 of 12 passages have no query: d5 (unfinished: the limit")
        assert "the other queries are in partial.queries.tsv" in said
        assert not (tmp_path / "queries.tsv").exists()
        assert not (tmp_path / "queries.qrels").exists()
        partial = read_texts(tmp_path / "partial.queries.tsv", "query")
        assert set(partial) == set(read_qrels(tmp_path / "partial.queries.qrels"))
        assert len(partial) == 5
        assert generate(endpoint.url).status == 0
        assert set(endpoint.asked.values()) == {1}
    assert len(read_texts(tmp_path / "queries.tsv", "query")) == 12
    assert not list(tmp_path.glob("partial.*"))


def test_answers_without_a_query_are_counted(generate, tmp_path):
    answers = {"owl": "", "tide": "<think>hm", "bread": '""', "comet": "word " * 41}

    def script(text, _):
        return completion(answers[subject(text)]) if subject(text) in answers else writer(text)

    with serving(script) as endpoint:
        result = generate(endpoint.url)
    assert result.status == 0, result.err
    for kind in ("empty 1", "thinking_cut 1", "refusal 1", "wrong_format 1"):
        assert kind in result.out
    assert len(read_texts(tmp_path / "queries.tsv", "query")) == 8


def test_passages_that_exceed_the_context_are_shortened(generate, tmp_path):
    longer = {doc_id: f"{text} {'long ' * 100}" for doc_id, text in DOCS.items()}
    (tmp_path / "docs.tsv").write_text("".join(f"{i}\t{t}\n" for i, t in longer.items()))

    def script(text, _):
        return error(400, "prompt is too long") if len(text) > 600 else writer(text)

    with serving(script) as endpoint:
        result = generate(endpoint.url, "examples=null")
    assert result.status == 0, result.err
    assert re.search(r"cut for the context +12 questions", result.out)
    assert len(read_texts(tmp_path / "queries.tsv", "query")) == 12


def test_a_passage_that_fails_is_named(generate, tmp_path):
    with serving(
        lambda text, _: error(400, "bad words") if subject(text) == "owl" else writer(text)
    ) as endpoint:
        result = generate(endpoint.url)
    assert result.status != 0
    assert "1 of 12 passages have no query: d0 (" in result.err
    assert len(read_texts(tmp_path / "partial.queries.tsv", "query")) == 11


def test_a_dry_run_asks_nothing(generate, tmp_path):
    before = set(tmp_path.iterdir())
    with serving(writer) as endpoint:
        result = generate(endpoint.url, "dry_run=true", "num_passages=4")
        assert not endpoint.asked
    assert result.status == 0, result.err
    assert re.search(r"calls +4 \(another 0", result.out)
    assert set(tmp_path.iterdir()) == before


def test_no_query_that_finds_its_passage(generate, tmp_path):
    with serving(lambda *_: completion("owl")) as endpoint:
        result = generate(endpoint.url, "num_passages=null", "filter.depth=1", "seed=1")
        assert result.status == 0  # the owl's own passage is the first with this query
        (tmp_path / "docs.tsv").write_text("a\ttide\nb\towl\n")
        result = generate(endpoint.url, "output=o.tsv")
    assert result.status != 0
    assert "none of 2 queries finds its passage" in result.err
    assert not (tmp_path / "o.tsv").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["output=null"], "output is not set; add output=FILE"),
        (["output=queries.jsonl"], "queries are written as TSV; give a name in .tsv"),
        (["output=docs.tsv"], "output=docs.tsv would overwrite data.docs=docs.tsv, which is read"),
        (["examples=queries.qrels"], "would overwrite examples=queries.qrels, which is read"),
        (["data.docs=null"], "data.docs is not set; add data.docs="),
        (["data.docs=nowhere"], "nowhere: neither a file nor an ir_datasets id"),
        (["data.docs=blank.tsv"], "blank.tsv: no passage has a text"),
        (["data.docs=spaces.tsv"], "the id 'a b' cannot"),
        (["prompt=rank_zephyr"], "asks for order, not for a query; choose another one"),
        (["prompt=null"], "prompt is not set"),
        (["num_passages=0"], "num_passages=0 is not a whole number"),
        (["seed=-1"], "seed=-1 is not a whole number"),
        (["examples=spaces.tsv"], "spaces.tsv, line 2: expected 'passage<TAB>query'"),
        (["filter.depth=0"], "filter.depth=0 is not a whole number"),
        (["teacher.model=???"], "teacher.model is not set; add teacher.model=…"),
        (["budget.money=1"], "a limit on money needs the prices"),
        (["filter.language=klingon"], "language=klingon is not one of"),
    ],
)
def test_bad_options_end_in_one_line(arguments, said, generate, tmp_path):
    (tmp_path / "spaces.tsv").write_text("a b\ttide\nc\t\n")
    (tmp_path / "blank.tsv").write_text("a\t \n")
    (tmp_path / "queries.qrels").write_text("a\tb\n")
    with serving(writer) as endpoint:
        result = generate(endpoint.url, *arguments)
        assert not endpoint.asked
    assert result.status != 0
    assert result.err.strip().splitlines()[-1].startswith("error: ")
    assert said in result.err
    assert "Traceback" not in result.err
    assert not (tmp_path / "queries.tsv").exists()


def test_a_teacher_that_cannot_write(command, tmp_path):
    (tmp_path / "h.json").write_text("[]")
    result = command("generate_queries", "teacher=history", "teacher.path=h.json", *ASKED)
    assert result.status != 0
    assert result.err.startswith("error: ")


def test_a_language_model_in_this_process(command, tmp_path_factory, tmp_path, monkeypatch):
    folder = write_language_model(tmp_path_factory.mktemp("causal"), context=2048)
    given = ["teacher=local", f"teacher.model.path={folder}", "teacher.model.device=cpu", *ASKED]
    asked = [*given, "num_passages=3", "filter.depth=null", "teacher.model.precision=fp32"]
    result = command("generate_queries", *asked, "ask.max_tokens=1")
    assert "none of 3 answers holds a query (cut_off 3)" in result.err
    assert not (tmp_path / "queries.tsv").exists()
    # Random weights seldom end an answer; so that they do, most tokens end it.
    config = transformers.GenerationConfig.from_pretrained(folder)
    config.eos_token_id = list(range(30, 3000))
    config.save_pretrained(folder)
    result = command("generate_queries", *asked, "output=ended.tsv")
    assert result.status == 0, result.err
    assert 0 < len(read_texts(tmp_path / "ended.tsv", "query")) <= 3
    with AnswerStore(tmp_path / "ended.tsv.answers.sqlite") as store:
        assert len(store) == 3

    def fail(*_, **__):
        raise AssertionError("the weights are loaded")

    # Another filter alone needs no model: every answer is in the store.
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", fail)
    again = command("generate_queries", *asked, "output=ended.tsv", "filter.depth=1000")
    assert "none of 3 queries has a word in common with the passages" in again.err
