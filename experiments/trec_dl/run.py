"""Distil RankVicuna's rankings of TREC DL 2020 into MiniLM, test on TREC DL 2019.

    python experiments/trec_dl/run.py DATA WORK [--seeds 1 2 3] [--only STUDENT ...]

DATA holds the folders msmarco-dev-sample, trec-dl-2019 and trec-dl-2020 (see README.md). Every
training and re-ranking is one of the commands of the README, printed before it runs; what already
stands in WORK is not done again, so that a study can be interrupted and continued.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np

from rankdistillm.metrics import evaluate_run
from rankdistillm.qrels import read_qrels
from rankdistillm.runs import RankedList, Run
from rankdistillm.texts import read_texts

FIRST_STAGES = ("bm25", "bm25-rm3", "splade-pp-ed", "tas-b", "openai-ada2")
HELD_OUT = 60  # queries of the pre-fine-tuning data that choose the best epoch
METRIC = "ndcg@10"

PREFINETUNE = "epochs=2 queries_per_step=8 optim.learning_rate=1e-4"
DISTILL = (
    "epochs=3 queries_per_step=8 optim.learning_rate=2e-4 data.train.sampling=top_and_random "
    "data.train.list_size=16"
)
STUDENTS = {
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


def command(module: str, arguments: str) -> None:
    """Run one command of the README."""
    print(f"python -m rankdistillm.{module} {arguments}", flush=True)
    subprocess.run(
        [sys.executable, "-m", f"rankdistillm.{module}", *shlex.split(arguments)], check=True
    )


def train(data: Path, work: Path, seed: int, prefinetuned: bool, loss: str | None) -> Path:
    """Train one student, and its first stage if it has one; returns the student's folder."""
    checkpoint = None
    if prefinetuned:
        output = work / f"seed{seed}/prefinetune"
        sample = data / "msmarco-dev-sample"
        if not (output / "done").exists():
            command(
                "train",
                f"+stage=prefinetune data=local data.docs={sample}/docs.tsv "
                f"data.queries={sample}/queries.tsv data.train.run={work}/prefinetune-train.run "
                f"data.train.qrels={sample}/qrels.txt "
                f"data.validation.run={work}/prefinetune-validation.run "
                f"data.validation.qrels={work}/prefinetune-validation.qrels validation.every=20 "
                f"{PREFINETUNE} seed={seed} output={output}",
            )
            (output / "done").touch()
        checkpoint = output / "checkpoint"
    if loss is None:
        return checkpoint
    output = work / f"seed{seed}/{'both' if prefinetuned else 'distill'}-{loss}"
    if not (output / "done").exists():
        start = f"model.path={checkpoint}" if prefinetuned else ""
        command(
            "train",
            f"+stage=distill data=local data.docs={data}/trec-dl-2020/docs.tsv "
            f"data.queries={work}/distill-queries.tsv data.train.run={work}/distill-teacher.run "
            f"loss={loss} {DISTILL} {start} seed={seed} output={output}",
        )
        (output / "done").touch()
    return output / "checkpoint"


def test(data: Path, student: Path) -> float:
    """nDCG@10 of the student's ranking of BM25's top 100 for TREC DL 2019."""
    output = student.parent / "trec-dl-2019.run"
    test_set = data / "trec-dl-2019"
    if not output.exists():
        command(
            "rerank",
            f"model.path={student} data=local data.docs={test_set}/docs.tsv "
            f"data.queries={test_set}/queries.tsv run={test_set}/runs/bm25.run output={output}",
        )
    return figure(test_set, output)


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
    if not (work / "distill-teacher.run").exists():
        prepare(data, work)
    values: dict[str, list[float]] = {name: [] for name in arguments.only}
    for seed in arguments.seeds:
        for name in arguments.only:
            values[name].append(test(data, train(data, work, seed, *STUDENTS[name])))
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
