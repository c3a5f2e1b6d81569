"""The studies of the paper, scaled down, one command each: data sets by id from a local hub."""

import json
from pathlib import Path

import pytest
from hub import serving, with_checksums

from rankdistillm import released
from rankdistillm.cli import PACKAGE
from rankdistillm.run_files import write_rows
from rankdistillm.runs import Run

ROOT = PACKAGE.parent
MINI = PACKAGE / "mini"
COLLECTION = "msmarco-passage/trec-dl-2019"
# The commands take the checksums of the small files for the published ones.
SITE = """
from rankdistillm import released
for name, file in {published!r}.items():
    released.RELEASED[name] = released.ReleasedFile(*file)
"""


@pytest.fixture
def study(tmp_path, process, tiny_models):
    """Run ``python -m experiments.ecir25.NAME WORK RUNS ...`` on the embedded collection."""
    files = {}
    for file in released.RELEASED.values():
        kind = "bm25.run" if "__colbert__" in file.name else "teacher.run"
        run = Run.read(MINI / "train" / kind)
        rows = [
            (q, d, rank, float(-rank))
            for q, ranked in run.items()
            for rank, d in enumerate(ranked.doc_ids, 1)
        ]
        write_rows(tmp_path / "made.parquet", rows, "tag")
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
    (site / "sitecustomize.py").write_text(SITE.format(published=published))
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


def rows_of(out: str) -> list[list[str]]:
    lines = [line.strip("| ").split(" | ") for line in out.splitlines() if line.startswith("| ")]
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
    assert [json.loads(line)["step"] for line in steps] == [1, 2]
    again = study("trec_dl", "--students", *students)
    assert again.returncode == 0
    assert "rankdistillm.train" not in again.stdout
    assert rows_of(again.stdout) == rows


@pytest.mark.slow
def test_the_subsampling_study_ends_in_table_and_plots(study, tmp_path):
    (tmp_path / "runs" / "colbert__msmarco-passage-trec-dl-2019.run.gz").unlink()
    result = study("subsampling", "--queries", "4", "8", "--depths", "5", "10")
    assert result.returncode == 0, result.stdout + result.stderr
    sizes = {(int(row[1]), int(row[2])) for row in rows_of(result.stdout)}
    assert sizes == {(4, 10), (8, 10), (8, 5)}
    for name in ("queries", "depth"):
        plot = tmp_path / "work" / f"subsampling_{name}.pdf"
        assert Path(plot).read_bytes()[:4] == b"%PDF"
