"""Distil LLM rankings of MS MARCO passages into MiniLM, test on TREC DL 2019.

    python -m experiments.trec_dl.run DATA WORK [--seeds 1 2 3] [--only ARM ...]

DATA holds the folders of `SETS` and of experiments/start.py (see README.md). Each arm adds a
teacher or queries to the one before. Every training and re-ranking is a command, printed before it
runs; finished steps in WORK are skipped.
"""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

from experiments.commands import local, rerank, train
from experiments.lists import join_lists, write_texts
from experiments.start import DISTILL, stage_1, warm_start
from rankdistillm.data.qrels import read_qrels
from rankdistillm.data.runs import Run
from rankdistillm.data.texts import read_texts
from rankdistillm.evaluation.metrics import evaluate_run

METRIC = "ndcg@10"

# Set of training lists: the folder in DATA, its file of passages, and its teacher runs.
SETS = {
    "rankvicuna": (
        "trec-dl-2020",
        "docs.tsv",
        [
            f"rankvicuna-{first}"
            for first in ("bm25", "bm25-rm3", "splade-pp-ed", "tas-b", "openai-ada2")
        ],
    ),
    "rankzephyr": ("trec-dl-2020", "docs.tsv", ["colbert_rankzephyr", "tirex_rankzephyr"]),
    "gpt4o": ("trec-dl-2020", "docs.tsv", ["colbert_rankgpt4o-full", "tirex_rankgpt4o-full"]),
    "dl2023": ("trec-dl-2023", "docs.tsv.gz", ["teacher"]),
    "rankzephyr99": ("msmarco-train-rankzephyr99", "docs.tsv", ["teacher"]),
}
ARMS = {
    "warm": (),
    "stage1": (),
    "rankvicuna": ("rankvicuna",),
    "rankzephyr": ("rankzephyr",),
    "rankzephyr+gpt4o": ("rankzephyr", "gpt4o"),
    "rankzephyr+gpt4o+dl2023": ("rankzephyr", "gpt4o", "dl2023"),
    "rankzephyr+gpt4o+dl2023+99": ("rankzephyr", "gpt4o", "dl2023", "rankzephyr99"),
}


def prepare(data: Path, work: Path, sets: Sequence[str]) -> Path:
    """Write the lists, queries and passages of some sets as one teacher run; returns its folder."""
    folder = work / "trec_dl" / "+".join(sets)
    if (folder / "teacher.run").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    teachers: dict[str, Run] = {}
    queries: dict[str, str] = {}
    docs: dict[str, str] = {}
    for name in sets:
        collection, file, runs = SETS[name]
        for run in runs:
            teachers[f"{name}-{run}"] = Run.read(data / collection / f"runs/{run}.run")
        queries |= dict(read_texts(data / collection / "queries.tsv", "query"))
        docs |= dict(read_texts(data / collection / file, "doc"))
    joined, texts = join_lists(teachers, queries)
    write_texts(folder / "queries.tsv", texts)
    write_texts(folder / "docs.tsv", {doc_id: docs[doc_id] for doc_id in joined.doc_ids()})
    joined.write(folder / "teacher.run")
    return folder


def student(data: Path, work: Path, arm: str, seed: int) -> Path:
    """Train one student; returns its folder."""
    if arm == "warm":
        return warm_start(data, work, seed)
    start = stage_1(data, work, seed)
    if arm == "stage1":
        return start
    files = prepare(data, work, ARMS[arm])
    return train(
        work / f"seed{seed}/trec_dl/{arm}",
        *DISTILL,
        *local(files),
        f"data.train.run={files}/teacher.run",
        f"model.path={start}",
        f"seed={seed}",
    )


def test(data: Path, work: Path, arm: str, seed: int) -> Path:
    """The student's ranking of BM25's top 100 for TREC DL 2019."""
    test_set = data / "trec-dl-2019"
    folder = work / f"seed{seed}/trec_dl"
    folder.mkdir(parents=True, exist_ok=True)
    return rerank(
        folder / f"{arm}.run",
        f"model.path={student(data, work, arm, seed)}",
        *local(test_set),
        f"run={test_set}/runs/bm25.run",
    )


def measure(test_set: Path, run: Path) -> float:
    """nDCG@10 of a run file."""
    return evaluate_run(Run.read(run), read_qrels(test_set / "qrels.txt"), [METRIC]).means[METRIC]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--only", nargs="+", choices=ARMS, default=list(ARMS))
    arguments = parser.parse_args()
    data, work = arguments.data, arguments.work
    work.mkdir(parents=True, exist_ok=True)
    test_set = data / "trec-dl-2019"
    values: dict[str, list[float]] = {arm: [] for arm in arguments.only}
    for seed in arguments.seeds:
        for arm in arguments.only:
            values[arm].append(measure(test_set, test(data, work, arm, seed)))
    print(f"\n| {METRIC} on TREC DL 2019, BM25 top 100 | mean | sd | by seed |")
    print("|---|---|---|---|")
    for name in ("bm25", "rankvicuna-bm25"):
        print(f"| {name} | {measure(test_set, test_set / f'runs/{name}.run'):.4f} | | |")
    for arm, found in values.items():
        spread = statistics.stdev(found) if len(found) > 1 else float("nan")
        seeds = " ".join(f"{value:.4f}" for value in found)
        print(f"| {arm} | {statistics.mean(found):.4f} | {spread:.4f} | {seeds} |")


if __name__ == "__main__":
    main()
