"""The studies of the paper, scaled down, one command each: data sets by id from a local hub."""

import importlib
import json

import pytest

from rankdistillm.cli import PACKAGE
from rankdistillm.data import catalogue
from rankdistillm.data.runs import Run
from rankdistillm.data.texts import read_texts
from rankdistillm.model.cross_encoder import CrossEncoder
from tests.helpers import FORKED_COMMANDS, write_parquet
from tests.hub import serving, with_checksums

ROOT = PACKAGE.parent
MINI = PACKAGE / "mini"
COLLECTION = "msmarco-passage/trec-dl-2019"
# The commands take the checksums of the small files for the published ones.
SITE = """
from rankdistillm.data import catalogue
for name, file in {published!r}.items():
    catalogue.RELEASED[name] = catalogue.ReleasedFile(*file)
"""


@pytest.fixture
def study(tmp_path, process, tiny_models):
    """Run ``python -m experiments.ecir25.NAME WORK RUNS ...`` on the embedded collection."""
    files = {}
    for file in catalogue.RELEASED.values():
        kind = "bm25.run" if "__colbert__" in file.name else "teacher.run"
        run = Run.read(MINI / "train" / kind)
        rows = [
            (q, d, rank, float(-rank))
            for q, ranked in run.items()
            for rank, d in enumerate(ranked.doc_ids, 1)
        ]
        write_parquet(tmp_path / "made.parquet", rows)
        files[file.name] = (tmp_path / "made.parquet").read_bytes()
    home = tmp_path / "home"
    place = home / "msmarco-passage"
    for name, source in {
        "collection.tsv": MINI / "docs.tsv",
        "train/queries.tsv": MINI / "train/queries.tsv",
        "trec-dl-2019/queries.tsv": MINI / "test/queries.tsv",
    }.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(source.read_text())
    (place / "irds_version.txt").write_text("v2")
    first = Run.read(MINI / "test/bm25.run")
    first = first.select(list(first)[:12]).truncate(6)
    for name in ("bm25", "colbert"):
        first.write(tmp_path / "runs" / f"{name}__{COLLECTION.replace('/', '-')}.run.gz")
    site = tmp_path / "site"
    site.mkdir()
    published = {key: tuple(file) for key, file in with_checksums(files).items()}
    (site / "sitecustomize.py").write_text(FORKED_COMMANDS + SITE.format(published=published))
    overrides = [
        f"model.path={tiny_models('electra')}",
        "precision=fp32",
        "max_steps=2",
        "queries_per_step=4",
        "data.train.list_size=5",
        f"data.train.qrels={MINI / 'train/qrels.txt'}",
    ]

    def run(name, *arguments, chosen=overrides):
        with serving(files, home) as environment:
            return process(
                "-m",
                f"experiments.ecir25.{name}",
                tmp_path / "work",
                tmp_path / "runs",
                f"--qrels={COLLECTION}={MINI / 'test/qrels.txt'}",
                *(f"--override={override}" for override in chosen),
                *arguments,
                cwd=ROOT,
                PYTHONPATH=f"{site}:{ROOT}",
                **environment,
            )

    return run


@pytest.fixture
def studies(monkeypatch):
    """The modules of ``experiments.ecir25``, which are not installed."""
    monkeypatch.syspath_prepend(str(ROOT))
    return lambda name: importlib.import_module(f"experiments.ecir25.{name}")


def report(path, means):
    """What evaluate writes: (collection, run) -> nDCG@10."""
    collections: dict = {}
    for (collection, run), value in means.items():
        runs = collections.setdefault(collection, {"runs": {}})["runs"]
        runs[run] = {"means": {"ndcg@10": value}}
    path.write_text(json.dumps({"collections": collections}))
    return path


def test_the_main_table_has_the_published_figures_beside_ours(studies, tmp_path, capsys):
    dl19, dl20 = (f"msmarco-passage/trec-dl-20{year}/judged" for year in (19, 20))
    means = {
        (dl19, "first-stage@bm25"): 0.1, (dl19, "teacher@bm25"): 0.2,
        (dl19, "base-both-adr-mse@bm25"): 0.3, (dl20, "large-both@colbert"): 0.4,
        (dl20, "base-stage-1@other"): 0.5,
    }  # fmt: skip
    studies("trec_dl").print_table(report(tmp_path / "r.json", means))
    shown = [row[3:] for row in rows_of(capsys.readouterr().out)]
    assert shown == [
        ["0.100", "0.480"], ["0.200", "0.719"], ["0.300", "0.716"], ["0.400", "0.799"], ["0.500"],
    ]  # fmt: skip


def test_tirex_means_are_over_complete_corpora(studies, tmp_path, capsys):
    tirex = studies("tirex")
    means = {
        ("vaswani", "s@bm25"): 0.4, ("nfcorpus/test", "s@bm25"): 0.1,
        ("medline/2004/trec-genomics-2004", "s@bm25"): 0.9,
    }  # fmt: skip
    published = tirex.PUBLISHED["monoelectra-large"]
    tirex.print_table(report(tmp_path / "r.json", means), "s@bm25", published)
    rows = {row[0]: row[1:] for row in rows_of(capsys.readouterr().out)}
    assert len(rows) == 13 + 2
    assert rows["medline"][:2] == ["1 of 4", "0.900"]
    assert rows["vaswani"] == ["1 of 1", "0.400", f"{published['vaswani']['value']:.3f}"]
    assert rows["gov"][:2] == ["0 of 3", ""]
    assert rows["arithmetic mean of 2 corpora"][1] == "0.250"
    assert rows["geometric mean of 2 corpora"][1] == "0.200"


def test_published_subsampling_figures_stand_beside_the_same_setting_alone(
    studies, tmp_path, capsys
):
    show = studies("subsampling").show
    names = {(1000, 100): "queries-1000-depth-100", (10000, 100): "queries-10000-depth-100",
             (10000, 10): "queries-10000-depth-10"}  # fmt: skip
    means = {(c, f"{name}@bm25"): 0.5 for c in ("dl19", "dl20") for name in names.values()}
    show(report(tmp_path / "a.json", means), names, (10000, 100))
    shown = {(row[1], row[2]): row[3:] for row in rows_of(capsys.readouterr().out)}
    assert shown["1000", "100"] == ["2", "0.500", "0.606"]
    assert shown["10000", "10"] == ["2", "0.500", "0.681"]
    names[1000, 100] += "-matched"
    means = {key: value for key, value in means.items() if "1000-" not in key[1]}
    means |= {("dl19", "queries-1000-depth-100-matched@bm25"): 0.4}
    show(report(tmp_path / "b-matched.json", means), names, (10000, 100))
    shown = {(row[1], row[2]): row[3:] for row in rows_of(capsys.readouterr().out)}
    assert shown["1000", "100"] == ["1", "0.400"]
    plots = {path.name for path in tmp_path.glob("*.pdf")}
    assert plots == {f"{n}_{axis}.pdf" for n in ("a", "b-matched") for axis in ("queries", "depth")}


def rows_of(out: str) -> list[list[str]]:
    table = [line for line in out.splitlines() if line.startswith("| ")]
    lines = [[cell.strip() for cell in line.strip("| ").split("|")] for line in table]
    return lines[1:]


@pytest.mark.slow
def test_the_main_table(study, tmp_path):
    students = ["base-stage-1", "base-both-ranknet"]
    result = study("trec_dl", "--students", *students)
    assert result.returncode == 0, result.stdout + result.stderr
    rows = rows_of(result.stdout)
    assert {(row[0], row[1]) for row in rows} == {
        (name, first) for name in ["first-stage", *students] for first in ("bm25", "colbert")
    }
    assert all(0 < float(row[3]) < 1 for row in rows)
    work = tmp_path / "work"
    assert r"\toprule" in (work / "trec_dl.tex").read_text()
    assert "query_id" in (work / "trec_dl_queries.csv").read_text()
    steps = (work / "base-both-ranknet/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in steps] == [1, 2, 2]  # the last line is the summary
    again = study("trec_dl", "--students", *students)
    assert again.returncode == 0
    assert "rankdistillm.train" not in again.stdout
    assert rows_of(again.stdout) == rows


@pytest.mark.slow
def test_the_subsampling_study_ends_in_table_and_plots(study, tmp_path):
    (tmp_path / "runs" / "colbert__msmarco-passage-trec-dl-2019.run.gz").unlink()
    sizes = ["--queries", "4", "8", "--depths", "5", "10"]
    result = study("subsampling", *sizes)
    assert result.returncode == 0, result.stdout + result.stderr
    shown = {(int(row[1]), int(row[2])) for row in rows_of(result.stdout)}
    assert shown == {(4, 10), (8, 10), (8, 5)}
    work = tmp_path / "work"
    for name in ("queries", "depth"):
        assert (work / f"subsampling_{name}.pdf").read_bytes()[:4] == b"%PDF"
    before = (work / "subsampling.json").read_bytes()
    matched = study("subsampling", *sizes, "--matched")
    assert matched.returncode == 0, matched.stdout + matched.stderr
    # The largest has its steps already; the others are trained anew, with names of their own.
    assert matched.stdout.count("rankdistillm.train") == 1
    assert "max_steps=1 " in matched.stdout
    assert (work / "subsampling-matched.json").exists()
    assert (work / "subsampling.json").read_bytes() == before


@pytest.mark.slow
def test_tirex_from_runs_to_the_table(process, tiny_models, tmp_path):
    docs = read_texts(MINI / "docs.tsv", "doc")
    queries = read_texts(MINI / "test/queries.tsv", "query")
    first = Run.read(MINI / "test/bm25.run")
    (tmp_path / "runs").mkdir()
    for name in ("vaswani", "medline-2004-trec-genomics-2004"):
        with open(tmp_path / "runs" / f"bm25__{name}.jsonl", "w") as file:
            for query_id, ranked in first.select(list(first)[:8]).items():
                for rank, doc_id in enumerate(ranked.doc_ids[:6], 1):
                    entry = {"query_id": query_id, "doc_id": doc_id, "rank": rank}
                    entry |= {"query": queries[query_id], "text": docs[doc_id]}
                    file.write(json.dumps(entry) + "\n")
    student = tmp_path / "student"
    student.mkdir()
    CrossEncoder.from_pretrained(tiny_models("bert")).save_pretrained(student)
    qrels = MINI / "test/qrels.txt"
    (tmp_path / "sitecustomize.py").write_text(FORKED_COMMANDS)
    result = process(
        "-m",
        "experiments.ecir25.tirex",
        tmp_path / "work",
        tmp_path / "runs",
        student,
        f"--qrels=vaswani={qrels}",
        f"--qrels=medline/2004/trec-genomics-2004={qrels}",
        cwd=ROOT,
        PYTHONPATH=f"{tmp_path}:{ROOT}",
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "cranfield: no run in" in result.stdout
    rows = {row[0]: row[1:] for row in rows_of(result.stdout)}
    assert rows["vaswani"][0] == "1 of 1"
    assert rows["medline"][0] == "1 of 4"
    assert rows["vaswani"][1] == rows["arithmetic mean of 1 corpora"][1]
    assert r"\toprule" in (tmp_path / "work/tirex.tex").read_text()
