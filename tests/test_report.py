"""The command ``report``: its inputs, its notes, what `teach` left, its errors."""

import base64
import gzip
import json
import re
import shlex
import shutil

import pytest

from rankdistillm.cli import CONFIGS
from rankdistillm.data.runs import Run
from rankdistillm.evaluation.metrics import evaluate_run
from tests.endpoint import completion, oracle, serving, task

DOCS = {"a": "Bread rises.", "b": "The tide\tturns.", "c": "Owls fly. " * 40}
QRELS = {"q1": {"a": 2, "b": 0}, "q2": {"b": 1}, "q3": {"c": 3}}
SCORES = {
    "first": {"q1": {"b": 3, "a": 2, "c": 1}, "q2": {"b": 2, "a": 1}, "unjudged": {"a": 1}},
    "second": {"q1": {"a": 0.123456789, "b": 0.05}, "q2": {"a": 2, "b": 1}, "q3": {"c": 9}},
}
GIVEN = ["qrels=qrels.txt", "runs={first: first.run, second: second.run}", "output=report.html"]
TEXTS = ["data.docs=docs.tsv", "data.queries=queries.tsv"]


@pytest.fixture(autouse=True)
def files(tmp_path):
    (tmp_path / "docs.tsv").write_text("".join(f"{d}\t{text}\n" for d, text in DOCS.items()))
    (tmp_path / "queries.tsv").write_text("q1\tbread?\nq2\ttides\nq3\towls\nunjudged\tx\n")
    lines = [f"{q} 0 {d} {r}\n" for q, judged in QRELS.items() for d, r in judged.items()]
    (tmp_path / "qrels.txt").write_text("".join(lines))
    for name, scores in SCORES.items():
        Run.from_scores(scores).write(tmp_path / f"{name}.run")


def data_of(path):
    """The data of the page, unpacked."""
    packed = re.search(r'id="data">([^<]*)</script>', path.read_text("utf-8"))[1]
    return json.loads(gzip.decompress(base64.b64decode(packed)))


def refused(result, *parts):
    assert result.status not in (0, None)
    (line,) = result.err.splitlines()
    assert line.startswith("error: ")
    for part in parts:
        assert part in line


def test_the_page_has_the_table_of_evaluate_and_the_data_of_each_query(command, tmp_path):
    result = command("report", *GIVEN, *TEXTS, "baseline=first", "title='Two & three'")
    assert result.status == 0, result.err
    assert "wrote report.html: 4 queries" in result.out
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "<title>Two &amp; three</title>" in page
    measured = {
        name: evaluate_run(Run.read(tmp_path / f"{name}.run"), QRELS, ["ndcg@10", "mrr@10"])
        for name in SCORES
    }
    for found in measured.values():
        for mean in found.means.values():
            assert f"{mean:.4f}<sup>" in page
    assert "judged queries: 3" in page
    assert "first: queries without judgements, left out: 1" in page
    assert "two-sided paired t-test, Holm correction" in page
    data = data_of(tmp_path / "report.html")
    assert (data["runs"], data["metrics"]) == (["first", "second"], ["ndcg@10", "mrr@10"])
    assert data["means"] == [[m.means[k] for m in measured.values()] for k in data["metrics"]]
    assert data["p"][0][0][1] == data["p"][0][1][0] is not None
    assert data["p"][0][0][0] is None
    queries = {query["id"]: query for query in data["queries"]}
    assert list(queries) == ["q1", "q2", "unjudged", "q3"]
    texts = dict(zip(data["docs"], data["texts"], strict=True))
    assert texts == DOCS
    first, second = queries["q1"]["lists"]
    assert [data["docs"][i] for i in first[0]] == ["b", "a", "c"]
    assert second[1] == [0.123457, 0.05]
    assert {data["docs"][int(i)]: g for i, g in queries["q1"]["grades"].items()} == QRELS["q1"]
    assert queries["q1"]["judged"] == {"2": 1, "0": 1}
    assert queries["q2"]["values"] == [
        [m.per_query[k]["q2"] for m in measured.values()] for k in data["metrics"]
    ]
    assert queries["unjudged"]["values"] is None
    assert queries["q3"]["lists"][0] is None


def test_without_texts_or_a_baseline_the_page_says_so(command, tmp_path):
    result = command("report", *GIVEN)
    assert result.status == 0, result.err
    for said in ("no text for 4 of 4 queries (data.queries is not set)", "no text for 3 of 3 docs"):
        assert said in result.out
        assert said in (tmp_path / "report.html").read_text("utf-8")
    data = data_of(tmp_path / "report.html")
    assert data["texts"] == [None] * 3
    assert data["p"] == [[[None, None], [None, None]]] * 2


def test_missing_texts_are_counted_and_long_ones_cut(command, tmp_path):
    (tmp_path / "docs.tsv").write_text(f"a\t{DOCS['a']}\nc\t{DOCS['c']}\n")
    result = command("report", *GIVEN, *TEXTS, "characters=25")
    assert "no text for 1 of 3 docs (docs.tsv)" in result.out
    data = data_of(tmp_path / "report.html")
    texts = dict(zip(data["docs"], data["texts"], strict=True))
    assert texts == {"a": DOCS["a"], "b": None, "c": "Owls fly. Owls fly. Owls …"}


def test_depth_and_the_queries_that_differ_most(command, tmp_path):
    result = command("report", *GIVEN, *TEXTS, "depth=1", "num_queries=2", "metrics=mrr@10")
    assert result.status == 0, result.err
    assert "below, 2 of 4 queries: those where the runs differ most in mrr@10" in result.out
    data = data_of(tmp_path / "report.html")
    assert [query["id"] for query in data["queries"]] == ["q1", "q3"]
    lists = [listed for query in data["queries"] for listed in query["lists"]]
    assert [listed and len(listed[0]) for listed in lists] == [1, 1, None, 1]
    assert data["docs"] == ["b", "a", "c"]
    assert data["judged"] == 3
    assert data["means"][0] == pytest.approx([0.5, 0.8333333])


def test_equal_scores_are_ranked_as_the_metrics_rank_them(command, tmp_path):
    (tmp_path / "first.run").write_text("q1 Q0 a 1 1 x\nq1 Q0 b 2 1 x\n")
    assert command("report", *GIVEN, *TEXTS).status == 0
    data = data_of(tmp_path / "report.html")
    assert [data["docs"][i] for i in data["queries"][0]["lists"][0][0]] == ["b", "a"]


def test_the_texts_that_a_run_carries_are_shown(command, tmp_path):
    row = {"query_id": "q1", "doc_id": "a", "rank": 1, "score": 1.0, "query": "Q", "text": "T"}
    (tmp_path / "own.jsonl").write_text(json.dumps(row))
    assert command("report", GIVEN[0], "runs={own: own.jsonl}", GIVEN[2]).status == 0
    data = data_of(tmp_path / "report.html")
    assert (data["queries"][0]["text"], data["texts"]) == ("Q", ["T"])


def test_equal_inputs_give_the_same_page(command, tmp_path):
    for name in ("one.html", "two.html"):
        assert command("report", *GIVEN[:2], *TEXTS, f"output={name}").status == 0
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["output=null"], ["output is not set; add output=FILE.html"]),
        (["runs=null"], ["runs is not set"]),
        (["baseline=third"], ["baseline=third is not among the runs: first, second"]),
        (["metrics=foo"], ["foo"]),
        (["alpha=2"], ["alpha=2"]),
        (["depth=0"], ["depth=0"]),
        (["data=null"], ["data=null: name one of the choices of the group"]),
        (["data=5"], ["data=5: name one of the choices of the group"]),
        (["data={a: b}"], ["data={a: b}: name one of the choices of the group"]),
        (["runs={first: docs.tsv}"], ["docs.tsv, line 1: expected the 6 columns"]),
        (["runs={first: qrels.txt}"], ["qrels.txt, line 1"]),
        (["data.docs=queries.tsv"], ["queries.tsv: none of the 3 texts", "doc_id"]),
        (["output=first.run"], ["would overwrite", "is read"]),
        (["output=first.run.json"], ["would overwrite first.run.json (beside first.run), which"]),
        (
            ["runs={x: {a: first.run}, y: {a: second.run}}", "qrels={x: qrels.txt, y: qrels.txt}"],
            ["2 collections (x, y), and a page shows one"],
        ),
    ],
)
def test_bad_input_ends_in_one_line(options, parts, command, tmp_path):
    replaced = {option.partition("=")[0] for option in options}
    kept = [option for option in (*GIVEN, *TEXTS) if option.partition("=")[0] not in replaced]
    refused(command("report", *kept, *options), *parts)
    assert not (tmp_path / "report.html").exists()


# ---- what teach left

QUERIES, FIRST, TAUGHT = task(3, 12)
TEACH = [
    "teacher=openai", "teacher.model=m/7b", "ranking.window=10", "ranking.stride=5",
    "data=local", "data.docs=d.tsv", "data.queries=q.tsv", "run=f.run", "output=t.run",
]  # fmt: skip


@pytest.fixture
def taught(command, tmp_path):
    """Let a teacher rank with these options; its first answer needs a repair."""
    (tmp_path / "d.tsv").write_text("".join(f"{d}\t{text}\n" for d, text in TAUGHT.items()))
    (tmp_path / "q.tsv").write_text("".join(f"{q}\t{text}\n" for q, text in QUERIES.items()))
    (tmp_path / "qr.txt").write_text("".join(f"{q} 0 {q}_0 1\n" for q in QUERIES))
    FIRST.write(tmp_path / "f.run")

    def teach(*options):
        with serving(
            lambda text, _: completion("[3] > [3]") if len(endpoint.bodies) == 1 else oracle(text)
        ) as endpoint:
            result = command(
                "teach", *TEACH, f"teacher.base_url={endpoint.url}", "concurrency=1", *options
            )
        assert result.status == 0, result.err
        return len(endpoint.bodies)

    return teach


WINDOW = '{"query_id": "q0", "windows": [{"kind": "order", "doc_ids": ["q0_0"], "reply": %s}]}'
SHOW = ["qrels=qr.txt", "runs={bm25: f.run, teacher: t.run}", "output=report.html"]


def test_windows_and_repairs_of_a_teacher_are_shown(command, taught, tmp_path):
    assert taught("windows=true", "prices.input=10", "prices.output=100") == 6
    assert command("report", *SHOW).status == 0
    page = (tmp_path / "report.html").read_text("utf-8")
    for fact in ("m/7b", "sliding window, window 10, stride 5", "rank_zephyr.jinja", "0.0120"):
        assert fact in page
    assert "600 in, 60 out" in page
    assert "missing 1, repetition 1" in page
    data = data_of(tmp_path / "report.html")
    query = data["queries"][0]
    none, ((asked, replied, repairs), second) = query["windows"]
    assert none == []
    listed = query["lists"][0][0]
    assert asked == listed[2:]  # the window at the bottom comes first
    assert replied == [listed[4], listed[2], listed[3], *listed[5:]]
    assert "repetition" in repairs
    assert second[2] == []
    assert sorted(second[0]) == sorted(second[1])
    assert query["lists"][1][0][:3] == second[1][:3]


def test_windows_are_written_later_without_asking_again(command, taught, tmp_path):
    assert taught() == 6
    assert not (tmp_path / "t.run.windows.jsonl").exists()
    assert command("report", *SHOW).status == 0
    assert "not kept; the same teach command" in (tmp_path / "report.html").read_text("utf-8")
    assert {q["windows"] for q in data_of(tmp_path / "report.html")["queries"]} == {None}
    assert taught("windows=true") == 0
    assert command("report", *SHOW).status == 0
    assert all(q["windows"] for q in data_of(tmp_path / "report.html")["queries"])


def test_what_describes_another_run_is_ignored(command, taught, tmp_path):
    taught("windows=true")
    shutil.copy(tmp_path / "f.run", tmp_path / "t.run")
    result = command("report", *SHOW)
    assert result.status == 0
    assert "t.run.json describes another run than t.run; it is ignored" in result.out
    assert "m/7b" not in (tmp_path / "report.html").read_text("utf-8")
    assert {q["windows"] for q in data_of(tmp_path / "report.html")["queries"]} == {None}


def test_stale_windows_are_ignored(command, taught, tmp_path):
    taught("windows=true")
    taught()
    assert (tmp_path / "t.run.windows.jsonl").exists()
    assert command("report", *SHOW).status == 0
    assert {q["windows"] for q in data_of(tmp_path / "report.html")["queries"]} == {None}


def test_a_teacher_that_is_killed_as_it_writes_leaves_no_stale_windows(
    command, taught, tmp_path, monkeypatch
):
    taught("windows=true")

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("rankdistillm.teach.write_provenance", killed)
        with pytest.raises(AssertionError, match="interrupted"):
            taught("windows=true")
    assert not (tmp_path / "t.run.windows.jsonl").exists()
    assert command("report", *SHOW).status == 0


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("t.run.json", "{", "t.run.json: cannot be read as JSON"),
        ("t.run.windows.jsonl", '{"query_id": "q0"}', "line 1: not the windows of a query"),
        ("t.run.windows.jsonl", WINDOW % '[0.0], "repairs": []', "line 1: not the windows"),
        ("t.run.windows.jsonl", WINDOW % '[0], "repairs": "abc"', "line 1: not the windows"),
    ],
)
def test_damaged_files_of_a_teacher_are_refused(file, text, said, command, taught, tmp_path):
    taught("windows=true")
    (tmp_path / file).write_text(text)
    refused(command("report", *SHOW), said)


def test_the_commands_of_the_documentation_run(command, tmp_path):
    documentation = CONFIGS.parent / "docs/report.md"
    if not documentation.exists():
        pytest.skip("installed without its documentation")
    (tmp_path / "stage2").mkdir()
    for name in ("teacher", "reranked", "stage2/before", "stage2/after"):
        shutil.copy(tmp_path / "first.run", tmp_path / f"{name}.run")
    lines = re.findall(r"^python -m rankdistillm\.report .*", documentation.read_text(), re.M)
    assert len(lines) == 2
    for line in lines:
        result = command("report", *shlex.split(line)[3:])
        assert result.status == 0, result.err
    assert (tmp_path / "training.html").exists()


def test_json_of_somebody_else_is_ignored(command, tmp_path):
    (tmp_path / "first.run.json").write_text('{"method": 1}')
    assert command("report", *GIVEN, *TEXTS).status == 0


def test_a_cost_beyond_any_number_is_somebody_elses(command, taught, tmp_path):
    taught()
    provenance = json.loads((tmp_path / "t.run.json").read_text())
    provenance["answers"]["total_cost"] = 10**400
    (tmp_path / "t.run.json").write_text(json.dumps(provenance))
    result = command("report", *SHOW)
    assert result.status == 0, result.err
    assert "m/7b" not in (tmp_path / "report.html").read_text("utf-8")
