"""Distil RankVicuna's rankings of TREC DL 2020 into MiniLM, test on TREC DL 2019.

    python -m experiments.trec_dl.run DATA WORK [--seeds 1 2 3] [--only STUDENT ...]

DATA holds the folders msmarco-dev-sample, trec-dl-2019 and trec-dl-2020 (see README.md). Every
training and re-ranking is one of the commands of the README, printed before it runs; what already
stands in WORK is not done again, so that a study can be interrupted and continued.
"""

import argparse
import json
import statistics
from pathlib import Path

import numpy as np

from experiments.commands import rerank, train
from experiments.trec_dl.warm_start import write_warm_start
from rankdistillm.data.qrels import read_qrels
from rankdistillm.data.runs import RankedList, Run
from rankdistillm.data.texts import read_texts
from rankdistillm.evaluation.metrics import evaluate_run

FIRST_STAGES = ("bm25", "bm25-rm3", "splade-pp-ed", "tas-b", "openai-ada2")
HELD_OUT = 60  # queries of the pre-fine-tuning data that choose the best step
METRIC = "ndcg@10"

WARM_START = (
    "loss=margin_mse",
    "data.train.targets=score",
    "data.train.sampling=random",
    "data.train.list_size=10",
    "epochs=1",
    "queries_per_step=4",
    "optim.learning_rate=2e-4",
    "optim.head_learning_rate=2e-3",
    "optim.ema=0.99",
)
PREFINETUNE = ("epochs=1", "queries_per_step=4", "optim.learning_rate=5e-5", "optim.ema=0.98")
DISTILL = (
    "data.train.sampling=top_and_random",
    "data.train.list_size=16",
    "epochs=2",
    "queries_per_step=4",
    "optim.learning_rate=2e-5",
    "optim.ema=0.98",
)
STUDENTS = {
    "no stage": (False, None),
    "stage 1 only": (True, None),
    "stage 2 only, RankNet": (False, "ranknet"),
    "stage 2 only, ADR-MSE": (False, "adr_mse"),
    "both, RankNet": (True, "ranknet"),
    "both, ADR-MSE": (True, "adr_mse"),
}


def prepare(data: Path, work: Path) -> None:
    """Split the pre-fine-tuning queries; give each (query, first stage) a query_id of its own."""
    sample = Run.read(data / "msmarco-dev-sample/runs/bm25-sampled.run")
    qrels = read_qrels(data / "msmarco-dev-sample/qrels.txt")
    positive = sorted(q for q in sample if any(r > 0 for r in qrels.get(q, {}).values()))
    shuffled = np.random.default_rng(0).permutation(positive).tolist()
    sample.select(shuffled[:HELD_OUT]).write(work / "prefinetune-validation.run")
    sample.select(shuffled[HELD_OUT:]).write(work / "prefinetune-train.run")
    held_out = set(shuffled[:HELD_OUT])
    lines = (data / "msmarco-dev-sample/qrels.txt").read_text().splitlines(keepends=True)
    kept = (line for line in lines if line.split()[0] in held_out)
    (work / "prefinetune-validation.qrels").write_text("".join(kept))

    queries = read_texts(data / "trec-dl-2020/queries.tsv", "query")
    lists: dict[str, RankedList] = {}
    with open(work / "distill-queries.tsv", "w", encoding="utf-8") as file:
        for first in FIRST_STAGES:
            teacher = Run.read(data / f"trec-dl-2020/runs/rankvicuna-{first}.run")
            for query_id, ranked in teacher.items():
                lists[f"{query_id}@{first}"] = ranked
                file.write(f"{query_id}@{first}\t{queries[query_id]}\n")
    Run(lists).write(work / "distill-teacher.run", tag="rankvicuna")

    kept_queries = sample.select(set(sample) - held_out)
    write_warm_start(
        kept_queries,
        read_texts(data / "msmarco-dev-sample/queries.tsv", "query"),
        read_texts(data / "msmarco-dev-sample/docs.tsv", "doc"),
        work,
    )


def student(data: Path, work: Path, seed: int, prefinetuned: bool, loss: str | None) -> Path:
    """Train one student with the stages that it has; returns its folder."""
    sample, teacher = data / "msmarco-dev-sample", data / "trec-dl-2020"
    start = train(
        work / f"seed{seed}/warm",
        "+stage=distill",
        "data=local",
        f"data.docs={sample}/docs.tsv",
        f"data.queries={work}/warm-queries.tsv",
        f"data.train.run={work}/warm-teacher.run",
        *WARM_START,
        f"seed={seed}",
    )
    if prefinetuned:
        start = train(
            work / f"seed{seed}/prefinetune",
            "+stage=prefinetune",
            "data=local",
            f"data.docs={sample}/docs.tsv",
            f"data.queries={sample}/queries.tsv",
            f"data.train.run={work}/prefinetune-train.run",
            f"data.train.qrels={sample}/qrels.txt",
            f"data.validation.run={work}/prefinetune-validation.run",
            f"data.validation.qrels={work}/prefinetune-validation.qrels",
            "validation.every=40",
            *PREFINETUNE,
            f"model.path={start}",
            f"seed={seed}",
        )
    if loss is None:
        return start
    return train(
        work / f"seed{seed}/{'both' if prefinetuned else 'distill'}-{loss}",
        "+stage=distill",
        "data=local",
        f"data.docs={teacher}/docs.tsv",
        f"data.queries={work}/distill-queries.tsv",
        f"data.train.run={work}/distill-teacher.run",
        f"loss={loss}",
        *DISTILL,
        f"model.path={start}",
        f"seed={seed}",
    )


def test(data: Path, folder: Path) -> float:
    """nDCG@10 of the student's ranking of BM25's top 100 for TREC DL 2019."""
    test_set = data / "trec-dl-2019"
    run = rerank(
        folder.parent / "trec-dl-2019.run",
        f"model.path={folder}",
        "data=local",
        f"data.docs={test_set}/docs.tsv",
        f"data.queries={test_set}/queries.tsv",
        f"run={test_set}/runs/bm25.run",
    )
    return figure(test_set, run)


def figure(test_set: Path, run: Path) -> float:
    """nDCG@10 of a run file."""
    return evaluate_run(Run.read(run), read_qrels(test_set / "qrels.txt"), [METRIC]).means[METRIC]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--only", nargs="+", choices=STUDENTS, default=list(STUDENTS))
    arguments = parser.parse_args()
    data, work = arguments.data, arguments.work
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "warm-teacher.run").exists():
        prepare(data, work)
    values: dict[str, list[float]] = {name: [] for name in arguments.only}
    for seed in arguments.seeds:
        for name in arguments.only:
            values[name].append(test(data, student(data, work, seed, *STUDENTS[name])))
            (work / "results.json").write_text(json.dumps(values, indent=2) + "\n")
    runs = data / "trec-dl-2019/runs"
    print(f"\n| {METRIC} on TREC DL 2019, BM25 top 100 | mean | spread (sd) | by seed |")
    print("|---|---|---|---|")
    for name in ("bm25", "rankvicuna-bm25"):
        print(f"| {name} | {figure(data / 'trec-dl-2019', runs / f'{name}.run'):.4f} | | |")
    for name, found in values.items():
        spread = statistics.stdev(found) if len(found) > 1 else float("nan")
        seeds = " ".join(f"{value:.4f}" for value in found)
        print(f"| {name} | {statistics.mean(found):.4f} | {spread:.4f} | {seeds} |")


if __name__ == "__main__":
    main()
