"""The command that lets a teacher rank a first-stage run, against a scripted server."""

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from rankdistillm.cli import PACKAGE
from rankdistillm.data.runs import Run
from rankdistillm.model.cross_encoder import CrossEncoder
from rankdistillm.teachers.store import AnswerStore
from tests.endpoint import completion, error, oracle, serving, task
from tests.helpers import write_language_model

QUERIES, FIRST, DOCS = task(3, 12)
WINDOWS = ["ranking.window=10", "ranking.stride=5"]  # two for each query; the top 5 are exact
FILES = ["data=local", "data.docs=docs.tsv", "data.queries=queries.tsv", "run=first.run"]
FAST = ["teacher.first_wait=0.001", "teacher.longest_wait=0.01", "teacher.attempts=2"]
KEY = "sk-do-not-tell-0123456789"


@pytest.fixture(autouse=True)
def _no_key(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def files(tmp_path):
    (tmp_path / "docs.tsv").write_text("".join(f"{i}\t{t}\n" for i, t in DOCS.items()))
    (tmp_path / "queries.tsv").write_text("".join(f"{i}\t{t}\n" for i, t in QUERIES.items()))
    FIRST.write(tmp_path / "first.run")
    judged = [f"{d.split('_')[0]} 0 {d} {relevance(d) // 500}\n" for d in DOCS]
    (tmp_path / "qrels.txt").write_text("".join(judged))


def relevance(doc_id):
    return int(DOCS[doc_id].split()[1])


def best(query_id, number=5):
    return tuple(sorted(FIRST[query_id].doc_ids, key=relevance, reverse=True)[:number])


@pytest.fixture
def teach(command):
    """Run the command against an endpoint."""

    def run(url, *options):
        asked = [f"teacher.base_url={url}", "teacher.model=m", *FAST, *WINDOWS, *FILES]
        return command("teach", "teacher=openai", *asked, "output=teacher.run", *options)

    return run


def test_an_oracle_behind_an_endpoint(teach, tmp_path):
    with serving(lambda text, _: oracle(text)) as endpoint:
        first = teach(endpoint.url, "qrels=qrels.txt", "prices.input=10", "prices.output=100")
        assert first.status == 0, first.err
        assert sum(endpoint.asked.values()) == 6
        written = (tmp_path / "teacher.run").read_bytes()
        again = teach(endpoint.url)
        assert again.status == 0, again.err
        assert sum(endpoint.asked.values()) == 6
    assert (tmp_path / "teacher.run").read_bytes() == written
    found = Run.read(tmp_path / "teacher.run")
    assert list(found) == list(FIRST)
    for query_id in found:
        assert found[query_id].doc_ids[:5] == best(query_id)
        assert set(found[query_id].doc_ids) == set(FIRST[query_id].doc_ids)
    table = dict(line.split("  ", 1) for line in first.out.splitlines() if "  " in line)
    table = {name: value.strip() for name, value in table.items()}
    assert table["answers"] == "6 now"
    assert "HTTP Request" not in first.out + first.err
    assert table["input tokens"] == "600 now"
    assert table["cost"] == "0.0120 now"  # 600 tokens at 10 and 60 at 100 a million
    assert table["repairs"] == "none"
    assert float(table["teacher"]) > float(table["first stage"])
    assert "Kendall's tau" in table["agreement with the first stage"]
    assert table["new in the top 10"].endswith("% of the passages")
    assert "answers" in again.out
    assert "0 now, 6 from the store" in again.out
    assert "unknown: the prices" in again.out
    names = {path.name for path in tmp_path.iterdir()} - {
        "docs.tsv", "queries.tsv", "first.run", "qrels.txt",
    }  # fmt: skip
    assert names == {"teacher.run", "teacher.run.json", "teacher.run.answers.sqlite"}


def test_the_provenance_says_how_the_run_was_made(teach, tmp_path):
    with serving(lambda text, _: oracle(text)) as endpoint:
        assert teach(endpoint.url).status == 0
    about = json.loads((tmp_path / "teacher.run.json").read_text())
    method = about["method"]
    assert method["model"] == "m"
    assert method["teacher"]["base_url"] == endpoint.url
    assert method["ranking"]["window"] == 10
    assert method["prompt"]["file"].endswith("rank_zephyr.jinja")
    assert len(method["prompt"]["sha256"]) == 64
    assert about["data"]["ranked"] == {
        "queries": 3, "digest": Run.read(tmp_path / "teacher.run").digest(),
    }  # fmt: skip
    assert about["answers"]["asked"] == {"answers": 6, "input_tokens": 600, "output_tokens": 60}
    assert about["answers"]["cost"] is None
    assert about["missing"] == {}
    assert {"rankdistillm", "python", "openai"} <= about["implementation"].keys()


def test_a_limit_stops_and_the_same_command_goes_on(teach, tmp_path):
    with serving(lambda text, _: oracle(text)) as endpoint:
        stopped = teach(endpoint.url, "budget.requests=3", "concurrency=1")
        assert stopped.status != 0
        said = stopped.err.strip().splitlines()[-1]
        assert said.startswith(
            "error: 2 of 3 queries have no ranking: q1 (unfinished: the limit of"
        )
        assert "the others are in partial.teacher.run" in said
        assert not (tmp_path / "teacher.run").exists()
        assert list(Run.read(tmp_path / "partial.teacher.run")) == ["q0"]
        missing = json.loads((tmp_path / "partial.teacher.run.json").read_text())["missing"]
        assert set(missing) == {"q1", "q2"}
        assert teach(endpoint.url, "concurrency=1").status == 0
        assert set(endpoint.asked.values()) == {1}
        assert len(endpoint.asked) == 6
    assert len(Run.read(tmp_path / "teacher.run")) == 3
    assert not list(tmp_path.glob("partial.*"))


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (["budget.tokens=200", "concurrency=1"], "the limit of 200 tokens is reached"),
        (
            ["budget.money=0.001", "prices.input=1", "prices.output=90", "concurrency=1"],
            "the limit of 0.001 on money is reached",
        ),
    ],
)
def test_limits_on_tokens_and_money(limits, said, teach):
    with serving(lambda text, _: oracle(text)) as endpoint:
        result = teach(endpoint.url, *limits)
        assert result.status != 0
        assert said in result.err
        assert 0 < sum(endpoint.asked.values()) < 6


def test_nonsense_is_repaired_and_counted(teach, tmp_path):
    answers = ["", "I cannot rank these.", "[3] > [3] > [99]"]

    def script(text, times):
        number = len(endpoint.asked) - 1
        return completion(answers[number]) if number < len(answers) else oracle(text)

    with serving(script) as endpoint:
        result = teach(endpoint.url, "concurrency=1")
    assert result.status == 0, result.err
    for kind in ("empty 1", "refusal 1", "repetition 1", "out_of_range 1", "missing 1"):
        assert kind in result.out
    repairs = json.loads((tmp_path / "teacher.run.json").read_text())["answers"]["repairs"]
    assert repairs["repetition"] == 1
    found = Run.read(tmp_path / "teacher.run")
    assert {q: set(found[q].doc_ids) for q in found} == {q: set(FIRST[q].doc_ids) for q in FIRST}


def test_passages_that_exceed_the_context_are_shortened(teach, tmp_path):
    longer = {doc_id: f"{text} {'long ' * 40}" for doc_id, text in DOCS.items()}
    (tmp_path / "docs.tsv").write_text("".join(f"{i}\t{t}\n" for i, t in longer.items()))

    def script(text, _):
        if len(text) > 2000:
            return error(400, "This model's maximum context length is 2000 characters")
        return oracle(text)

    with serving(script) as endpoint:
        result = teach(endpoint.url, "concurrency=1")
        assert result.status == 0, result.err
        assert endpoint.answered.total() == 6
        refused = endpoint.asked.total() - 6
        assert 0 < refused < 6  # the later windows begin with what fitted
        again = teach(endpoint.url)
        assert endpoint.asked.total() == 6 + refused
    for said in (result, again):
        assert re.search(r"cut for the context +6 questions", said.out)
        assert (said.out + said.err).count("exceeds the model's context") == 1
    about = json.loads((tmp_path / "teacher.run.json").read_text())
    assert about["answers"]["shortened_questions"] == 6
    found = Run.read(tmp_path / "teacher.run")
    assert {q: found[q].doc_ids[:5] for q in found} == {q: best(q) for q in FIRST}


def test_a_thought_that_is_cut_off_is_no_ranking(teach, tmp_path):
    def script(text, times):
        reply = completion("Okay, [3] is better than [1], and")
        reply.body["choices"][0]["finish_reason"] = "length"
        return reply if "query 1" in text else oracle(text)

    with serving(script) as endpoint:
        result = teach(endpoint.url, "prompt=reasoning")
        assert result.status == 0, result.err
        assert {body["max_tokens"] for body in endpoint.bodies} == {8000}
        teach(endpoint.url, "prompt=reasoning", "ask.max_tokens=900")
        assert endpoint.bodies[-1]["max_tokens"] == 900
    assert "cut_off 2" in result.out
    assert "allow longer answers" in result.out + result.err
    found = Run.read(tmp_path / "teacher.run")
    assert found["q1"].doc_ids == FIRST["q1"].doc_ids


def test_a_query_that_fails_is_named_and_the_others_are_kept(teach, tmp_path):
    with serving(
        lambda text, _: error(400, "bad words") if "query 1" in text else oracle(text)
    ) as endpoint:
        result = teach(endpoint.url)
    assert result.status != 0
    assert "1 of 3 queries have no ranking: q1 (" in result.err
    assert "answers 400: bad words" in result.err
    assert list(Run.read(tmp_path / "partial.teacher.run")) == ["q0", "q2"]
    assert not (tmp_path / "teacher.run").exists()


def test_if_nothing_is_ranked_nothing_is_written(teach, tmp_path):
    with serving(lambda *_: error(401, "who are you")) as endpoint:
        result = teach(endpoint.url)
    assert result.status != 0
    assert "3 of 3 queries have no ranking" in result.err
    assert not list(tmp_path.glob("*teacher.run"))


def test_a_teacher_that_names_no_passage_is_no_teacher(teach, tmp_path):
    with serving(lambda *_: completion("I cannot help with that.")) as endpoint:
        result = teach(endpoint.url)
    assert result.status != 0
    assert "names a passage (refusal" in result.err
    assert not list(tmp_path.glob("*teacher.run"))


def test_a_dry_run_asks_nothing(teach, tmp_path):
    with serving(lambda text, _: oracle(text)) as endpoint:
        before = set(tmp_path.iterdir())
        result = teach(endpoint.url, "dry_run=true")
        assert result.status == 0, result.err
        assert "calls" in result.out
        assert "6 (another 0 are answered already)" in result.out
        assert "unknown: the prices" in result.out
        assert set(tmp_path.iterdir()) == before
        priced = teach(
            endpoint.url, "dry_run=true", "prices.input=0", "prices.output=1e6", "answer_tokens=2"
        )
        assert "up to about 12.0000" in priced.out
        assert not endpoint.asked
        assert teach(endpoint.url, "budget.requests=2", "concurrency=1").status != 0
        result = teach(endpoint.url, "dry_run=true")
        assert "4 (another 2 are answered already)" in result.out
        assert sum(endpoint.asked.values()) == 2


def test_the_key_is_in_no_file_and_no_message(teach, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(
        lambda text, times: error(500, f"{KEY} is busy") if times == 1 else oracle(text)
    ) as endpoint:
        result = teach(endpoint.url)
        assert result.status == 0, result.err
        assert endpoint.keys == {f"Bearer {KEY}"}
    with serving(lambda *_: error(401, f"no such key: {KEY}")) as endpoint:
        failed = teach(endpoint.url, "output=other.run")
        assert "[key]" in failed.err
    shown = result.out + result.err + failed.out + failed.err
    assert KEY not in shown
    ours = [r.getMessage() for r in caplog.records if r.name.startswith(("rankdistillm", "hydra"))]
    assert KEY not in "\n".join(ours)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["teacher.model=???"], "teacher.model is not set; add teacher.model=…"),
        (["run=null"], "run is not set; add run=FILE"),
        (["output=null"], "output is not set; add output=FILE"),
        (["output=first.run"], "output=first.run would overwrite run=first.run, which is read"),
        (["store=docs.tsv"], "store=docs.tsv would overwrite data.docs=docs.tsv, which is read"),
        (["store=teacher.run"], "are one file; choose different names"),
        (["store=qrels.txt"], "qrels.txt: the store of answers cannot be used"),
        (["run=partial.teacher.run"], "would overwrite run=partial.teacher.run, which is read"),
        (["output=/dev/null/o.run"], "/dev/null/o.run: cannot be written"),
        (["prompt=nowhere"], "nowhere.jinja: cannot be read"),
        (["prompt=yes_no"], "asks for score, but this way of asking needs order"),
        (["ranking.stride=11"], "ranking: stride=11 is above window=10"),
        (["ranking.window=1"], "ranking: window=1 is not a whole number of at least 2"),
        (["concurrency=0"], "concurrency=0 is not a whole number"),
        (["ask.words=0"], "ask.words=0 is not a whole number"),
        (["ask.temperature=-1"], "ask.temperature=-1 is not a number"),
        (["budget.requests=0"], "budget.requests=0 is not a whole number"),
        (["budget.money=1"], "a limit on money needs the prices"),
        (["prices.input=1"], "prices: give those of input and output tokens, or neither"),
        (["dry_run=maybe"], "dry_run=maybe is neither true nor false"),
        (["depth=0"], "depth=0 is not a whole number"),
        (["qrels=others.txt"], "none of its 3 queries"),
        (["teacher.base_url=ftp://x"], "teacher: base_url=ftp://x is no address"),
        (["teacher.base_url=null"], "OPENAI_API_KEY holds no key"),
        (["teacher.base_url=http://me:pw@x/v1"], "teacher.base_url contains a user, password"),
        ([f"teacher.key_variable={KEY}"], "key_variable is no name of an environment variable"),
        (["+teacher.extra.api_key=abc"], "teacher.extra.api_key looks like a secret"),
        (["teacher.attempts=0"], "teacher: attempts=0 is not a whole number"),
        (["teacher._target_=builtins.dict"], "builtins.dict makes no teacher"),
        (["data.docs=null"], "first.run, line 1: the doc_id"),
    ],
)
def test_bad_options_end_in_one_line(arguments, said, teach, tmp_path):
    (tmp_path / "others.txt").write_text("other 0 a 1\n")
    FIRST.write(tmp_path / "partial.teacher.run")
    with serving(lambda text, _: oracle(text)) as endpoint:
        result = teach(endpoint.url, *arguments)
        assert not endpoint.asked
    assert result.status != 0
    assert result.err.strip().splitlines()[-1].startswith("error: ")
    assert said in result.err
    assert "Traceback" not in result.err
    assert KEY not in result.err
    assert not (tmp_path / "teacher.run").exists()


def test_a_prompt_of_ones_own(teach, tmp_path):
    (tmp_path / "own.jinja").write_text(
        "Own {{ query }}\n{% for p in passages %}\n[{{ loop.index }}] {{ p }}\n{% endfor %}\n"
    )
    with serving(lambda text, _: oracle(text)) as endpoint:
        assert teach(endpoint.url, "prompt=own.jinja").status == 0
        assert all(text.startswith("Own query") for text in endpoint.asked)
        assert teach(endpoint.url).status == 0  # another prompt asks anew
        assert len(endpoint.asked) == 12


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    return write_language_model(tmp_path_factory.mktemp("causal"), context=2048)


def test_a_language_model_that_writes_nonsense_is_no_teacher(command, language_model, tmp_path):
    """Random weights answer a listwise prompt without any identifier."""
    asked = [f"teacher.model.path={language_model}", "teacher.model.device=cpu", "teacher=local",
             "ask.max_tokens=4", "depth=4", *FILES, "output=t.run"]  # fmt: skip
    result = command("teach", *asked)
    assert "none of its 3 answers names a passage (thinking_cut 3)" in result.err
    assert not (tmp_path / "t.run").exists()
    rehearsed = command("teach", *asked, "dry_run=true", "store=new.sqlite")
    assert "3 (another 0" in rehearsed.out


@pytest.mark.parametrize("teacher", ["yes_no", "query_likelihood"])
def test_a_language_model_in_this_process(teacher, command, language_model, tmp_path):
    given = [
        f"teacher={teacher}",
        f"teacher.model.path={language_model}",
        "teacher.model.device=cpu",
    ]
    if teacher == "yes_no":
        given += ["teacher.yes=a", "teacher.no=b"]  # its tokeniser has neither yes nor no
    asked = ["ask.max_tokens=4", "depth=4", *FILES, "output=t.run", "teacher.model.precision=fp32"]
    result = command("teach", *given, *asked)
    assert result.status == 0, result.err
    found = Run.read(tmp_path / "t.run")
    assert {q: set(found[q].doc_ids) for q in found} == {
        q: set(FIRST[q].doc_ids[:4]) for q in FIRST
    }
    about = json.loads((tmp_path / "t.run.json").read_text())
    assert about["method"]["model"].startswith(f"{language_model.name}@")
    assert about["answers"]["asked"]["answers"] == 12
    names = [line.split("  ")[0] for line in result.out.splitlines() if "  " in line]
    assert names == ["answers", "seconds", "agreement with the first stage", "new in the top 10"]
    moved = shutil.copytree(language_model, tmp_path / "moved")
    given[1] = f"teacher.model.path={moved}"
    again = command("teach", *given, *asked)
    assert "0 now, 12 from the store" in again.out
    rehearsed = command("teach", *given, *asked, "dry_run=true", "store=new.sqlite")
    assert "12 (another 0" in rehearsed.out


def test_another_re_ranker(command, tiny_bert, tmp_path):
    torch.manual_seed(3)
    (tmp_path / "student").mkdir()
    CrossEncoder.from_pretrained(tiny_bert).save_pretrained(tmp_path / "student")
    given = ["teacher.path=student", "teacher.device=cpu", "teacher.precision=fp32"]
    result = command("teach", "teacher=cross_encoder", *given, *FILES, "output=t.run")
    assert result.status == 0, result.err
    options = ["model.path=student", "device=cpu", "precision=fp32", "output=r.run"]
    assert command("rerank", *options, *FILES).status == 0
    found, expected = Run.read("t.run"), Run.read("r.run")
    for query_id in expected:
        assert found[query_id].scores == pytest.approx(expected[query_id].scores, abs=1e-5)


def test_recorded_answers_and_a_query_that_they_lack(command, tmp_path):
    order = " > ".join(f"[{i}]" for i in range(12, 0, -1))
    recorded = [
        {"query": {"qid": q, "text": QUERIES[q]}, "invocations_history": [{"response": order}]}
        for q in FIRST
    ]
    for name, entries in (("all", recorded), ("some", recorded[:2])):
        (tmp_path / f"{name}.json").write_text(json.dumps(entries))
    given = ["teacher=history", *FILES, "output=t.run"]
    assert command("teach", *given, "teacher.path=all.json").status == 0
    for query_id, ranked in Run.read("t.run").items():
        assert ranked.doc_ids == FIRST[query_id].doc_ids[::-1]
    result = command("teach", *given, "teacher.path=some.json")
    assert "1 of 3 queries have no ranking: q2 (the teacher does not know it)" in result.err


def test_runs_to_fuse_are_a_list(command):
    result = command("teach", "teacher=fused", "teacher.runs=first.run", *FILES, "output=t.run")
    assert "teacher: runs=first.run is one run; give a list" in result.err


def test_fused_runs(command, monkeypatch):
    """ranx, which compiles for a minute, fuses in tests/teachers/test_fused.py."""
    fused = []

    def fuse(runs, **options):
        fused.append(([run.source for run in runs], options))
        return runs[0]

    monkeypatch.setattr("rankdistillm.teachers.fused.fuse", fuse)
    given = ["teacher=fused", "teacher.runs=[first.run,first.run]", *FILES, "output=t.run"]
    assert command("teach", *given, "teacher.method=wsum").status == 0
    assert Run.read("t.run")["q0"].doc_ids == FIRST["q0"].doc_ids
    assert fused == [(["first.run"] * 2, {"method": "wsum", "norm": "min-max", "params": None})]


@pytest.mark.slow
def test_a_killed_command_loses_no_answer(teach, tmp_path):
    def script(text, _):
        reply = oracle(text)
        reply.seconds = 0.2
        return reply

    with serving(script) as endpoint:
        asked = [f"teacher.base_url={endpoint.url}", "teacher.model=m", *WINDOWS, *FILES]
        line = ["-m", "rankdistillm.teach", *asked, "output=teacher.run", "concurrency=1"]
        killed = subprocess.Popen(
            [sys.executable, *line], cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
        )  # fmt: skip
        while len(endpoint.asked) < 4:
            assert killed.poll() is None
            time.sleep(0.01)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        with AnswerStore(tmp_path / "teacher.run.answers.sqlite") as store:
            assert len(store) >= 3
        assert not list(tmp_path.glob("*teacher.run"))
        assert teach(endpoint.url).status == 0
        # Only what was under way may be asked for again.
        assert sorted(endpoint.asked.values())[:-1] == [1] * 5
    assert {q: Run.read(tmp_path / "teacher.run")[q].doc_ids[:5] for q in FIRST} == {
        q: best(q) for q in FIRST
    }
