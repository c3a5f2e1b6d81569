"""The studies on real LLM rankings, on tiny made-up collections in the same folders."""

import sys

import pytest

from experiments import commands, start
from experiments.antique import choose, report
from experiments.antique import run as antique
from experiments.ecir25 import authors_runs
from experiments.lists import join_lists, write_qrels, write_texts
from experiments.trec_dl import run as trec_dl
from rankdistillm.data.qrels import read_qrels
from rankdistillm.data.runs import Run
from rankdistillm.data.texts import read_texts


def ranking(query_ids, size=6, backwards=False):
    order = range(size)
    return Run.from_scores(
        {q: {f"{q}-{i}": float(i if backwards else -i) for i in order} for q in query_ids}
    )


def write_collection(folder, runs, relevance=(0, 1, 0)):
    """queries.tsv, docs.tsv, qrels.txt and runs/NAME.run of a few queries of six passages each."""
    (folder / "runs").mkdir(parents=True)
    query_ids = sorted({q for run in runs.values() for q in run})
    write_texts(folder / "queries.tsv", {q: f"what is {q}" for q in query_ids})
    docs = {d: f"passage {d}" for run in runs.values() for d in run.doc_ids()}
    write_texts(folder / "docs.tsv", docs)
    judged = {q: {f"{q}-{i}": grade for i, grade in enumerate(relevance)} for q in query_ids}
    write_qrels(folder / "qrels.txt", judged)
    for name, run in runs.items():
        run.write(folder / f"runs/{name}.run")


def test_a_query_of_two_teachers_has_two_lists():
    queries = {"q1": "one", "q2": "two"}
    joined, texts = join_lists({"a": ranking(["q1", "q2"]), "b": ranking(["q1"])}, queries)
    assert list(joined) == list(texts) == ["q1@a", "q2@a", "q1@b"]
    assert texts["q1@b"] == "one"


def test_each_fold_trains_on_the_queries_of_the_others(tmp_path):
    query_ids = [f"q{i}" for i in range(10)]
    runs = {name: ranking(query_ids) for name, _, _ in antique.ARMS.values()}
    write_collection(tmp_path / "antique", runs, relevance=(4, 1, 2))
    folds = "".join(f"{q}\t{i % 5}\n" for i, q in enumerate(query_ids))
    (tmp_path / "antique/folds.tsv").write_text(folds)
    files = antique.prepare(tmp_path, tmp_path / "work")
    tested = []
    for fold in antique.FOLDS:
        test = set(Run.read(files / f"bm25-pool-test{fold}.run"))
        train = set(Run.read(files / f"gpt4o-ensemble-train{fold}.run"))
        assert not test & train
        assert test | train == set(query_ids)
        tested += test
    assert sorted(tested) == query_ids
    assert read_qrels(files / "qrels.txt")["q0"] == {"q0-0": 3, "q0-1": 0, "q0-2": 1}


def test_the_report_pairs_each_arm_with_stage_1_of_its_seeds(tmp_path, monkeypatch, capsys):
    query_ids = [f"q{i}" for i in range(10)]
    names = {name for name, _, _ in antique.ARMS.values()}
    write_collection(tmp_path / "antique", {name: ranking(query_ids) for name in names}, (3, 1, 2))
    (tmp_path / "antique/folds.tsv").write_text("".join(f"{q}\t0\n" for q in query_ids))
    work = tmp_path / "work"
    for seed, arm, backwards in (
        (1, "stage1", True), (2, "stage1", False), (1, "gpt4o-ranknet", False),
        (10, "warm", True),
    ):  # fmt: skip
        file = work / f"seed{seed}/antique/{arm}/pooled.run"
        file.parent.mkdir(parents=True)
        ranking(query_ids, backwards=backwards).write(file)
    monkeypatch.setattr(sys, "argv", ["report", str(tmp_path), str(work)])
    report.main()
    rows = {line.split(" | ")[0].strip("| "): line for line in capsys.readouterr().out.splitlines()}
    cells = rows["gpt4o-ranknet"].split(" | ")
    forwards, backwards = float(cells[1]), float(rows["warm"].split(" | ")[1])
    # Seed 2 of stage 1, which the arm does not have, is left out.
    assert float(cells[4].split()[0]) == pytest.approx(forwards - backwards, abs=2e-4)
    assert rows["gpt4o-ranknet"].endswith("| 1.000 |")
    assert (work / "antique_teachers.png").stat().st_size > 1000


def test_agreement_is_kendalls_tau():
    teacher = ranking(["q1", "q2"])
    backwards = ranking(["q1", "q2"], backwards=True)
    assert report.agreement([teacher], teacher) == pytest.approx(1)
    assert report.agreement([teacher, backwards], teacher) == pytest.approx(0)


def test_no_student_of_a_fold_trains_on_its_queries(tmp_path, monkeypatch):
    query_ids = [f"q{i}" for i in range(10)]
    names = {name for name, _, _ in antique.ARMS.values()}
    write_collection(tmp_path / "antique", {name: ranking(query_ids) for name in names}, (3, 1, 2))
    folds = "".join(f"{q}\t{i % 5}\n" for i, q in enumerate(query_ids))
    (tmp_path / "antique/folds.tsv").write_text(folds)
    trained = {}

    def record(module, *arguments):
        options = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
        if module == "train":
            run = options.get("data.train.run", "")
            trained[f"{options['output']}/checkpoint"] = run
        else:
            candidates = Run.read(options["run"])
            assert not {*candidates} & {*Run.read(trained[options["model.path"]])}
            candidates.write(options["output"])

    def stage_1(*_):
        return tmp_path / "stage1"

    monkeypatch.setattr(commands, "command", record)
    monkeypatch.setattr(antique, "stage_1", stage_1)
    (tmp_path / "work").mkdir()
    monkeypatch.setattr(commands.Path, "touch", lambda *_: None)
    pooled = antique.pooled(tmp_path, tmp_path / "work", "gpt4o-ranknet", 1)
    assert {*Run.read(pooled)} == {*query_ids}
    assert len(trained) == 5


def test_each_fold_is_tested_with_the_candidate_that_it_chooses(tmp_path, monkeypatch, capsys):
    query_ids = [f"q{i}" for i in range(10)]
    names = {name for name, _, _ in antique.ARMS.values()}
    write_collection(tmp_path / "antique", {name: ranking(query_ids) for name in names}, (3, 1, 2))
    folds = "".join(f"{q}\t{i % 5}\n" for i, q in enumerate(query_ids))
    (tmp_path / "antique/folds.tsv").write_text(folds)
    two, four = choose.CANDIDATES[:2]
    held_out = {two: [0.5, 0.4, 0.3, 0.2, 0.1], four: [0.3] * 5}
    tested = []

    def test(data, work, arm, seed, fold):
        tested.append(arm)
        return antique.prepare(data, work) / f"bm25-pool-test{fold}.run"

    monkeypatch.setattr(choose, "agreement", lambda *given: held_out[given[2]][given[4]])
    monkeypatch.setattr(choose, "test", test)
    monkeypatch.setattr(
        sys, "argv", ["choose", str(tmp_path), str(tmp_path / "work"), "--only", two, four]
    )
    choose.main()
    assert tested == [two, two, two, four, four]
    out = capsys.readouterr().out
    assert f"| 1 | 3 | 0.2000 | 0.3000 | {four} |" in out
    assert "seed 1, chosen in each fold: ndcg@10 " in out


def test_the_lists_of_several_teachers_are_joined_with_their_texts(tmp_path):
    folder, _, runs = trec_dl.SETS["rankzephyr"]
    write_collection(tmp_path / folder, {name: ranking(["q1", "q2"]) for name in runs})
    files = trec_dl.prepare(tmp_path, tmp_path / "work", ["rankzephyr"])
    teacher = Run.read(files / "teacher.run")
    assert len(teacher) == 4
    assert set(read_texts(files / "queries.tsv", "query")) == set(teacher)
    assert set(read_texts(files / "docs.tsv", "doc")) == set(teacher.doc_ids())


def test_stage_1_leaves_out_its_validation_queries_and_repeated_ones(tmp_path, monkeypatch):
    warm = []
    monkeypatch.setattr(start, "HELD_OUT", 2)
    monkeypatch.setattr(start, "write_warm_start", lambda run, *_: warm.extend(run))
    samples = list(start.SAMPLES.items())
    for i, (sample, name) in enumerate(samples):
        # Each sample repeats one query of the sample before.
        query_ids = [f"q{j}" for j in range(3 * i, 3 * i + 4)]
        write_collection(tmp_path / sample, {name: ranking(query_ids)})
    files = start.prepare(tmp_path, tmp_path / "work")
    training = set(Run.read(files / "train.run"))
    validation = set(Run.read(files / "validation.run"))
    first_sample = {f"q{j}" for j in range(4)}
    assert len(validation) == 2
    assert validation < first_sample
    assert training == {f"q{j}" for j in range(10)} - validation
    assert set(warm) == first_sample - validation


@pytest.mark.slow
def test_the_authors_runs_are_set_beside_the_published_table(tmp_path, monkeypatch, capfd):
    folder = tmp_path / "published-runs"
    folder.mkdir()
    query_ids = ["q1", "q2", "q3"]
    for year in authors_runs.YEARS:
        write_collection(tmp_path / year, {"bm25": ranking(query_ids)})
        for prefix in authors_runs.FIRST_STAGES:
            for i, system in enumerate(authors_runs.SYSTEMS):
                run = ranking(query_ids, backwards=i % 2 == 1)
                run.write(folder / f"{prefix}_{system}__{year}.run.gz")
    monkeypatch.setattr(sys, "argv", ["authors_runs", str(tmp_path), str(tmp_path / "work")])
    authors_runs.main()
    out = capfd.readouterr().out
    published = "| monoelectra-base | colbert-trec-dl-2020 | 0.6309 | 0.770 |"
    assert published in out
    assert "differs significantly" in (tmp_path / "work/authors.tex").read_text()
