"""The command ``evaluate``: its table, its significance tests, its files, its errors."""

import csv
import json
import struct

import numpy as np
import pytest
from scipy import stats

from rankdistillm.data.runs import Run
from rankdistillm.evaluation.metrics import evaluate_run
from rankdistillm.evaluation.plots import PANELS_ACROSS
from rankdistillm.evaluation.tables import MISSING, as_text, metrics_table

QUERIES = [f"q{i}" for i in range(20)]
QRELS = {query_id: {"a": 2, "b": 1} for query_id in QUERIES}


@pytest.fixture
def files(tmp_path):
    """Judgements, and runs that are bad, somewhat better, and good on most queries."""
    rng = np.random.default_rng(1)
    (tmp_path / "qrels.txt").write_text(
        "".join(f"{q} 0 {d} {r}\n" for q, judged in QRELS.items() for d, r in judged.items())
    )
    for name, gain in (("bad", 0.0), ("better", 0.4), ("good", 3.0)):
        scores = {
            q: {d: rng.random() + gain * QRELS[q].get(d, 0) for d in "abcdefgh"} for q in QUERIES
        }
        Run.from_scores(scores).write(tmp_path / f"{name}.run")
    return tmp_path


def runs(*names):
    return "runs={" + ", ".join(f"{name}: {name}.run" for name in names) + "}"


def rows(out):
    """Run name -> the cells of its row."""
    lines = out.partition("\n\n")[0].splitlines()
    start = next(i for i, line in enumerate(lines) if line.split()[:1] == ["run"])
    return {line.split()[0]: line.split()[1:] for line in lines[start:]}


def refused(result, *parts):
    """Assert one line on stderr that holds all these parts, and a status other than 0."""
    assert result.status not in (0, None)
    assert "Traceback" not in result.out + result.err
    lines = result.err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    for part in parts:
        assert part in lines[0]


def test_table(files, command):
    result = command(
        "evaluate",
        "qrels=qrels.txt",
        runs("bad", "good"),
        "baseline=bad",
        "metrics=[ndcg@10,mrr@10]",
    )
    assert result.status == 0, result.err
    table = rows(result.out)
    assert table["run"] == ["ndcg@10", "mrr@10"]
    for name in ("bad", "good"):
        means = evaluate_run(Run.read(files / f"{name}.run"), QRELS, ["ndcg@10", "mrr@10"]).means
        mark = "*" if name == "good" else ""
        assert table[name] == [f"{mean:.4f}{mark}" for mean in means.values()]
    for part in ("20", "judged queries", "* from bad", "paired t-test", "Holm", "0.05"):
        assert part in result.out
    assert "without" not in result.out


def test_without_baseline_nothing_is_tested(files, command):
    result = command("evaluate", "qrels=qrels.txt", runs("bad", "good"))
    assert result.status == 0, result.err
    assert "*" not in result.out
    assert "t-test" not in result.out


def test_missing_and_unjudged_queries_are_reported(files, command):
    good = Run.read(files / "good.run")
    lists = {q: ranked for q, ranked in good.items() if q not in ("q0", "q1")}
    Run({**lists, "extra": good["q0"]}).write(files / "partial.run")
    result = command(
        "evaluate", "qrels=qrels.txt", runs("good", "partial"), "metrics=[mrr]", "output=o.json"
    )
    assert result.status == 0, result.err
    said = [line for line in result.out.splitlines() if line.startswith(("good: ", "partial: "))]
    assert [line.split(";")[0] for line in said] == [
        "partial: no results for 2 judged queries, which count 0",
        "partial: queries without judgements, left out: 1",
    ]
    report = json.loads((files / "o.json").read_text())["runs"]["partial"]
    assert report["without_results"] == ["q0", "q1"]
    assert report["without_judgements"] == ["extra"]
    values = report["per_query"]["mrr"]
    assert list(values) == QUERIES
    assert values["q0"] == values["q1"] == 0.0
    assert report["means"]["mrr"] == pytest.approx(sum(values.values()) / 20)
    own = sum(values.values()) / 18
    assert report["means_over_queries_with_results"]["mrr"] == pytest.approx(own)
    assert report["judged_queries"] == 20
    assert said[0].endswith(f"which count 0; mean over the other 18: mrr {own:.4f}")


def test_p_values_equal_scipys_with_holms_correction(files, command):
    (files / "same.run").write_text((files / "bad.run").read_text())
    result = command(
        "evaluate",
        "qrels=qrels.txt",
        runs("bad", "better", "good", "same"),
        "baseline=bad",
        "metrics=[ndcg@10]",
        "output=deep/metrics.json",
    )
    assert result.status == 0, result.err
    report = json.loads((files / "deep" / "metrics.json").read_text())
    values = {
        name: [run["per_query"]["ndcg@10"][q] for q in QUERIES]
        for name, run in report["runs"].items()
    }
    p = {name: stats.ttest_rel(values[name], values["bad"]).pvalue for name in ("better", "good")}
    assert p["good"] < p["better"]
    expected = {"good": min(1, 3 * p["good"]), "same": 1.0}
    expected["better"] = min(1, max(expected["good"], 2 * p["better"]))
    p_values = report["significance"]["p_values"]
    found = {name: p["ndcg@10"] for name, p in p_values["bad"].items()}
    assert found == pytest.approx(expected)
    assert "*" not in rows(result.out)["same"][0]
    assert [entry.name for entry in (files / "deep").iterdir()] == ["metrics.json"]


def test_the_table_of_a_training_is_aligned():
    measured = {
        name: evaluate_run(Run.from_scores({"q0": {"a": 1.0}}), {"q0": {"a": 1}}, ["mrr@10"])
        for name in ("bm25", "student before")
    }
    header, one, two = as_text(metrics_table(measured, ["mrr@10"])).splitlines()[:3]
    assert (one.split(), two.split()) == (["bm25", "1.0000"], ["student", "before", "1.0000"])
    assert one.index("1.0000") == two.index("1.0000")
    assert header.index("mrr@10") >= len("student before")


# ---- many collections


@pytest.fixture
def folder(files):
    """Runs RUN__COLLECTION.run of three collections, and of one without judgements."""
    for collection in ("a-1", "a-2", "b"):
        for name in ("bad", "good"):
            text = (files / f"{name}.run").read_text()
            if (collection, name) == ("b", "good"):
                text = (files / "better.run").read_text()
            path = files / "runs" / f"__{name}__{collection}.run"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
    (files / "runs" / "__bad__nobody.run").write_text((files / "bad.run").read_text())
    (files / "runs" / "README").write_text("no run")
    return files


QRELS_OF = "qrels={a/1: qrels.txt, a/2: qrels.txt, b: qrels.txt}"


def table_of(path):
    with open(path) as file:
        return {(row["run"], row["measurement"]): row for row in csv.DictReader(file)}


def test_a_folder_of_runs_of_many_collections(folder, command):
    options = ["runs=runs", QRELS_OF, "metrics=ndcg@10", "baseline=bad"]
    result = command("evaluate", *options, "table=t.csv", "per_query=q.csv")
    assert result.status == 0, result.err
    means = {
        name: evaluate_run(Run.read(folder / f"{name}.run"), QRELS, ["ndcg@10"]).means["ndcg@10"]
        for name in ("bad", "better", "good")
    }
    table = table_of(folder / "t.csv")
    of_good = [means["good"], means["good"], means["better"]]
    for column, expected in zip(("a/1", "a/2", "b"), of_good, strict=True):
        assert float(table["good", column]["value"]) == pytest.approx(expected)
    assert float(table["good", "mean"]["value"]) == pytest.approx(np.mean(of_good))
    geometric = float(stats.gmean(of_good))
    assert float(table["good", "geometric mean"]["value"]) == pytest.approx(geometric)
    assert table["good", "a/1"]["marks"] == "*"
    assert "nobody: no judgements, left out: bad" in result.out
    with open(folder / "q.csv") as file:
        per_query = list(csv.DictReader(file))
    assert len(per_query) == 3 * 2 * len(QUERIES)
    chosen = [float(r["value"]) for r in per_query if (r["collection"], r["run"]) == ("b", "bad")]
    assert np.mean(chosen) == pytest.approx(means["bad"])


def test_collections_of_a_corpus_count_as_one(folder, command):
    options = ["runs=runs", QRELS_OF, "metrics=ndcg@10", "by=corpus", "baseline=bad", "table=t.csv"]
    assert command("evaluate", *options).status == 0
    table = {key: float(row["value"]) for key, row in table_of(folder / "t.csv").items()}
    assert {column for _, column in table} == {"a", "b", "mean", "geometric mean"}
    assert table["good", "mean"] == pytest.approx((table["good", "a"] + table["good", "b"]) / 2)
    assert command("evaluate", *options, "corpora={a: letters}").status == 0
    assert "letters" in (folder / "t.csv").read_text()


def test_a_run_that_lacks_a_collection_has_no_mean(folder, command):
    (folder / "runs" / "__good__b.run").unlink()
    result = command("evaluate", "runs=runs", QRELS_OF, "metrics=ndcg@10", "table=t.csv")
    assert result.status == 0, result.err
    assert "good: no run of b, so no mean" in result.out
    assert {column for run, column in table_of(folder / "t.csv") if run == "good"} == {"a/1", "a/2"}


def test_a_collection_that_cannot_be_tested_is_named_and_the_others_are_tested(folder, command):
    (folder / "runs" / "__good__b.run").unlink()
    result = command("evaluate", "runs=runs", QRELS_OF, "metrics=ndcg@10", "baseline=bad")
    assert result.status == 0, result.err
    assert "b: not tested: nothing to compare with the baseline bad" in result.out
    assert "*" in rows(result.out)["good"][1]
    assert "means over its collections" not in result.out


def test_marks_of_a_baseline_are_the_same_in_every_collection(folder, command):
    (folder / "runs" / "__bad__b.run").rename(folder / "runs" / "__other__b.run")
    options = ["runs=runs", QRELS_OF, "metrics=ndcg@10", "baseline=[bad,other]", "table=t.csv"]
    result = command("evaluate", *options)
    assert result.status == 0, result.err
    table = table_of(folder / "t.csv")
    assert (table["good", "a/1"]["marks"], table["good", "b"]["marks"]) == ("a", "b")


def test_a_note_explains_means_and_tests_of_a_corpus(folder, command):
    result = command("evaluate", "runs=runs", QRELS_OF, "by=corpus", "baseline=bad")
    assert "metrics of a corpus are means over its collections; the tests pool" in result.out


def test_judgements_of_a_single_collection_need_no_name(folder, command):
    for file in (folder / "runs").glob("*.run"):
        if not file.name.endswith("a-1.run"):
            file.unlink()
    (folder / "runs" / "notes.txt").write_text("no run")
    result = command("evaluate", "runs=runs", "qrels=qrels.txt", "metrics=ndcg@10")
    assert result.status == 0, result.err
    assert set(rows(result.out)) >= {"bad", "good"}
    assert "without __COLLECTION, left out: notes.txt" in result.out + result.err


def test_a_folder_of_runs_of_one_collection(files, command):
    (files / "qrels.txt").rename(files / "judged.run")  # the judgements are not a run
    result = command("evaluate", "runs=.", "qrels=judged.run", "metrics=ndcg@10")
    assert result.status == 0, result.err
    assert set(rows(result.out)) >= {"bad", "good", "better"}
    named = command(
        "evaluate", runs("bad", "good", "better"), "qrels=judged.run", "metrics=ndcg@10"
    )
    assert rows(result.out)["good"] == rows(named.out)["good"]
    refused(command("evaluate", "runs=."), "runs without __COLLECTION need qrels that are one file")


def test_one_file_of_judgements_for_many_collections_is_refused(folder, command):
    result = command("evaluate", "runs=runs", "qrels=qrels.txt")
    assert "give 'qrels={a-1: FILE, a-2: FILE, b: FILE, nobody: FILE}'" in result.err


def test_two_files_of_the_same_run_are_refused(folder, command):
    (folder / "runs" / "__bad__b.jsonl").write_text("{}")
    result = command("evaluate", "runs=runs", QRELS_OF)
    assert "__bad__b.jsonl and" in result.err
    assert "__bad__b.run are both the run bad of b; rename one" in result.err


def test_collections_by_name(folder, command):
    options = "runs={one: {bad: bad.run, good: good.run}, two: {bad: better.run}}"
    result = command("evaluate", options, "qrels={one: qrels.txt, two: qrels.txt}", "metrics=mrr")
    assert result.status == 0, result.err
    assert rows(result.out)["good"][1] == MISSING
    assert "good: no run of two" in result.out


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_plots_are_the_same_file_each_time(suffix, files, command):
    options = ["qrels=qrels.txt", runs("bad", "better", "good"), "baseline=bad"]
    for name in ("one", "two"):
        result = command("evaluate", *options, f"plot={name}.{suffix}")
        assert result.status == 0, result.err
        assert f"wrote {name}.{suffix}" in result.out
    content = (files / f"one.{suffix}").read_bytes()
    assert content[:4] == {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xm"}[suffix]
    assert content == (files / f"two.{suffix}").read_bytes()


def test_the_plot_of_many_collections_has_the_test_over_all_their_queries(
    folder, command, monkeypatch
):
    drawn = []
    monkeypatch.setattr("rankdistillm.evaluate.plot_gains", lambda *given: drawn.append(given))
    options = ["runs=runs", QRELS_OF, "metrics=ndcg@10", "baseline=bad", "plot=p.svg"]
    result = command("evaluate", *options)
    assert result.status == 0, result.err
    values = {
        name: list(
            evaluate_run(Run.read(folder / f"{name}.run"), QRELS, ["ndcg@10"])
            .per_query["ndcg@10"]
            .values()
        )
        for name in ("bad", "better", "good")
    }
    p = stats.ttest_rel(2 * values["good"] + values["better"], 3 * values["bad"]).pvalue
    ((*_, tested),) = drawn
    assert tested.p_values["bad"]["good"]["ndcg@10"] == pytest.approx(p)
    (folder / "runs" / "__good__b.run").unlink()  # then nothing can be tested over all
    assert command("evaluate", *options).status == 0
    assert drawn[1][-1] is None


def test_many_panels_fill_several_rows(files, command):
    names = "".join(f", r{n}: good.run" for n in range(PANELS_ACROSS + 1))
    options = ["qrels=qrels.txt", f"runs={{bad: bad.run{names}}}", "baseline=bad"]
    assert command("evaluate", *options, "plot=many.png").status == 0
    two = ["qrels=qrels.txt", runs("bad", "good"), "baseline=bad"]
    assert command("evaluate", *two, "plot=one.png").status == 0
    size = {name: png_size(files / f"{name}.png") for name in ("one", "many")}
    assert size["many"][1] == 2 * size["one"][1]
    assert size["many"][0] < (PANELS_ACROSS + 1) * size["one"][0]


def png_size(path):
    """Width and height, the first two fields of a PNG's header."""
    return struct.unpack(">II", path.read_bytes()[16:24])


# ---- hostile names

NAMES = (r"cost$\foo$", "a|b\nc", "=1+1", "\x1b[31mred", "中文", "\udcffhalf", "[x] & y_z", "_u")


def test_every_output_escapes_hostile_file_names(files, command):
    (files / "runs").mkdir()
    for name in ("bad", *NAMES):
        text = (files / ("bad.run" if name == "bad" else "good.run")).read_text()
        (files / "runs" / f"{name}.run").write_text(text)
    outputs = [f"table=t{suffix}" for suffix in (".csv", ".md", ".tex")]
    for table in outputs:
        others = ["output=o.json", "per_query=q.csv", "plot=p.png"]
        options = ["qrels=qrels.txt", "runs=runs", "baseline=bad", "metrics=mrr", table]
        options += others if table == outputs[0] else []
        result = command("evaluate", *options)
        assert result.status == 0, result.err
        assert "\x1b" not in result.out + result.err
        assert "Traceback" not in result.err + result.out
    assert set(json.loads((files / "o.json").read_text())["runs"]) == {"bad", *NAMES}
    for path, column in (("t.csv", "run"), ("q.csv", "run")):
        with open(files / path, newline="") as file:
            found = {row[column].removeprefix("'") for row in csv.DictReader(file)}
        assert found == {"bad", *NAMES} - {"\udcffhalf"} | {r"\udcffhalf"}
    assert png_size(files / "p.png")


def test_an_error_escapes_control_characters(files, command):
    result = command("evaluate", "qrels=qrels.txt", "runs={'\x1b[31mred': none.run}", "baseline=x")
    refused(result, r"\x1b[31mred")
    assert "\x1b" not in result.err


def test_other_files_are_written_before_a_plot_that_fails(files, command, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr("rankdistillm.evaluate.plot_gains", fail)
    options = ["qrels=qrels.txt", runs("bad", "good"), "baseline=bad", "output=o.json"]
    with pytest.raises(MemoryError):
        command("evaluate", *options, "table=t.md", "per_query=q.csv", "plot=p.png")
    assert {"o.json", "t.md", "q.csv"} <= {path.name for path in files.iterdir()}


def test_an_empty_plot_is_refused_before_runs_are_read(files, command):
    (files / "bad.run").write_text("not a run\n")
    options = ["qrels=qrels.txt", "plot=p.png", "baseline=bad"]
    refused(command("evaluate", runs("bad"), *options), "p.png: nothing to draw beside")
    many = "runs={bad: bad.run" + "".join(f", r{i}: good.run" for i in range(301)) + "}"
    refused(command("evaluate", many, *options), "301 panels are too many for a .png")


# ---- bad input


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["test=z"], "test=z is not one of t, randomisation"),
        (["alpha=5"], "alpha=5 is not a number between 0 and 1"),
        (["correction=none"], "correction=none is not one of holm, bonferroni"),
        (["table=t.xls"], "t.xls: the suffix is not one of .txt, .md, .tex, .csv"),
        (["plot=p.png", "baseline=null"], "plot=p.png shows gains over a baseline"),
        (["plot=p.gif"], "p.gif: the suffix is not one of .png, .pdf, .svg"),
        (["by=query"], "by=query is not one of collection, corpus"),
    ],
)
def test_senseless_settings_are_refused_before_runs_are_read(arguments, said, files, command):
    (files / "good.run").write_text("not a run\n")
    options = {"qrels": "qrels.txt", "baseline": "bad"} | dict(a.split("=") for a in arguments)
    result = command("evaluate", runs("bad", "good"), *(f"{k}={v}" for k, v in options.items()))
    refused(result, said)


def test_runs_and_judgements_are_required(command):
    refused(command("evaluate"), "runs is not set", "runs={bm25: first.run")
    refused(command("evaluate", "runs={a: a.run}"), "qrels is not set", "qrels=qrels.txt")
    refused(command("evaluate", "runs=[a,b]"), "runs=['a', 'b']: give each value a name")


def test_no_runs(files, command):
    refused(command("evaluate", "qrels=qrels.txt"), "runs is not set", "runs={bm25: first.run")


def test_runs_without_names(files, command):
    result = command("evaluate", "qrels=qrels.txt", "runs=bad.run")
    refused(result, "runs=bad.run", "name", "runs={bm25: first.run")


def test_runs_beside_collections(files, command):
    result = command("evaluate", "qrels=qrels.txt", "runs={bad: bad.run, c: {good: good.run}}")
    refused(result, "give all runs by collection, or none", "runs={bm25: first.run")


def test_unknown_baseline(files, command):
    result = command("evaluate", "qrels=qrels.txt", runs("bad", "good"), "baseline=bm25")
    refused(result, "baseline=bm25", "bad, good")


def test_unknown_metric(files, command):
    result = command("evaluate", "qrels=qrels.txt", runs("bad"), "metrics=[nDCG@10]")
    refused(result, "nDCG@10", "ndcg", "mrr")


def test_qrels_for_other_queries(files, command):
    (files / "other.txt").write_text("x1 0 a 1\n")
    refused(command("evaluate", "qrels=other.txt", runs("bad")), "x1", "q0", "give the qrels")


def test_bad_run_names_file_and_line(files, command):
    with (files / "bad.run").open("a") as file:
        file.write("q0 Q0 z 9 1\n")
    result = command("evaluate", "qrels=qrels.txt", runs("bad"))
    refused(result, "bad.run, line 161", "6 columns", "found 5")


def test_output_that_cannot_be_written(files, command):
    (files / "file").write_text("")
    result = command("evaluate", "qrels=qrels.txt", runs("bad"), "output=file/metrics.json")
    refused(result, "file/metrics.json: cannot be written", "another place")


# ---- the command in its own process


@pytest.mark.slow
def test_the_command_in_its_own_process_leaves_no_files(files, process, command):
    before = sorted(files.iterdir())
    good = process(
        *("-m", "rankdistillm.evaluate", "qrels=qrels.txt", runs("bad", "good")),
        *("baseline=bad", "metrics=[ndcg@10]"),
        cwd=files,
        OMP_NUM_THREADS="1",
    )
    assert good.returncode == 0, good.stderr
    assert rows(good.stdout)["good"][0].endswith("*")
    assert sorted(files.iterdir()) == before  # no folder and no log file from Hydra

    bad = command("evaluate", "qrels=qrels.txt", runs("bad", "absent"))
    refused(bad, "absent.run: neither a file nor an ir_datasets id")
    assert sorted(files.iterdir()) == before
