"""Measure the authors' own runs, and set students of ours beside them on the same candidates.

    python -m experiments.ecir25.authors_runs DATA WORK [--student NAME=CHECKPOINT ...]

DATA holds published-runs (files FIRST_SYSTEM__COLLECTION.run.gz; FIRST is colbert or tirex, the
candidates of ColBERTv2 or BM25), and trec-dl-2019 and trec-dl-2020 with their qrels.txt, docs.tsv
and queries.tsv. The first table is the paper's, all passages counted. The second, with `--student`,
is of TREC DL 2019 alone and leaves out passages whose text is not in docs.tsv, for all systems.
"""

import argparse
import json
import shutil
from pathlib import Path

from experiments.commands import command, local, rerank
from rankdistillm.data.runs import RankedList, Run
from rankdistillm.data.texts import read_texts

YEARS = ("trec-dl-2019", "trec-dl-2020")
FIRST_STAGES = {"tirex": "bm25", "colbert": "colbert"}
SYSTEMS = (
    "monoelectra-base", "monoelectra-large", "set-encoder-base", "set-encoder-large",
    "rankzephyr", "rankgpt4", "rankgpt4o-full",
)  # fmt: skip
BASELINE = "monoelectra-base"
PUBLISHED = json.loads((Path(__file__).parent / "published.json").read_text())["trec_dl"]
PUBLISHED_NAMES = {
    "monoelectra-base": "monoelectra-base-dual-rank-distillm-colbert",
    "monoelectra-large": "monoelectra-large",
    "rankzephyr": "rankzephyr",
    "rankgpt4": "rankgpt-4",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--student", nargs="*", default=[], metavar="NAME=CHECKPOINT")
    arguments = parser.parse_args()
    data, work = arguments.data, arguments.work
    runs = work / "authors"
    runs.mkdir(parents=True, exist_ok=True)
    for prefix, first in FIRST_STAGES.items():
        for year in YEARS:
            for system in SYSTEMS:
                file = data / f"published-runs/{prefix}_{system}__{year}.run.gz"
                shutil.copy(file, runs / f"{system}__{first}-{year}.run.gz")
    measure(data, runs, YEARS)
    compare_with_published(runs.with_suffix(".json"))
    if arguments.student:
        students = dict(student.split("=", 1) for student in arguments.student)
        measure(data, with_students(data, work, students), YEARS[:1])


def measure(data: Path, runs: Path, years: tuple[str, ...]) -> None:
    """Evaluate a folder of runs, tested against the authors' base model.

    Writes RUNS.json, RUNS.tex and RUNS.md beside the folder.
    """
    qrels = [
        f"{first}-{year}: {data / year / 'qrels.txt'}"
        for first in FIRST_STAGES.values()
        for year in years
    ]
    for suffix in (".tex", ".md"):
        command(
            "evaluate",
            f"runs={runs}",
            f"qrels={{{', '.join(qrels)}}}",
            "metrics=[ndcg@10]",
            f"baseline={BASELINE}",
            f"output={runs}.json",
            f"table={runs}{suffix}",
        )


def compare_with_published(report: Path) -> None:
    """Print each measured mean beside the paper's."""
    collections = json.loads(report.read_text())["collections"]
    print("\n| system | candidates | measured | published |\n|---|---|---|---|")
    for system, name in PUBLISHED_NAMES.items():
        for collection, measured in collections.items():
            first, _, year = collection.partition("-")
            published = PUBLISHED[name][f"{first} msmarco-passage/{year}/judged"]["value"]
            mean = measured["runs"][system]["means"]["ndcg@10"]
            print(f"| {system} | {collection} | {mean:.4f} | {published:.3f} |")


def with_students(data: Path, work: Path, students: dict[str, str]) -> Path:
    """The runs of TREC DL 2019 without passages whose text is missing, and the students' runs."""
    year = YEARS[0]
    texts = read_texts(data / year / "docs.tsv", "doc")
    folder = work / "students"
    folder.mkdir(parents=True, exist_ok=True)
    for first in FIRST_STAGES.values():
        for system in SYSTEMS:
            lists: dict[str, RankedList] = {}
            for query_id, ranked in Run.read(
                work / f"authors/{system}__{first}-{year}.run.gz"
            ).items():
                known = [i for i, doc_id in enumerate(ranked.doc_ids) if doc_id in texts]
                lists[query_id] = ranked.take(known)
            Run(lists).write(folder / f"{system}__{first}-{year}.run")
        for name, checkpoint in students.items():
            rerank(
                folder / f"{name}__{first}-{year}.run",
                f"model.path={checkpoint}",
                *local(data / year),
                f"run={folder / f'{BASELINE}__{first}-{year}.run'}",
            )
    return folder


if __name__ == "__main__":
    main()
