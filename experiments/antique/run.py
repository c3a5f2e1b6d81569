"""Distil rankings of ANTIQUE by folds; test all 150 queries with their human grades.

    python -m experiments.antique.run DATA WORK [--seeds 1 2 3] [--only ARM ...]

DATA holds the folder antique and those of experiments/start.py (see README.md). For each fold, a
student is distilled from the teacher's lists of the other four and re-ranks the fold's queries; the
runs of the five folds are pooled. Every training and re-ranking is a command, printed before it
runs; finished steps in WORK are skipped.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from experiments.commands import local, rerank, train
from experiments.lists import write_qrels
from experiments.start import DISTILL, stage_1, warm_start
from rankdistillm.data.qrels import read_qrels
from rankdistillm.data.runs import RankedList, Run
from rankdistillm.evaluation.metrics import evaluate_run

FOLDS = range(5)
METRIC = "ndcg@10"
GRADES = ("data.train.targets=relevance",)

# Arm: the run whose lists it trains on, its options, and the number of seeds.
ARMS: dict[str, tuple[str, Sequence[str], int]] = {
    "gpt4o-ranknet": ("gpt4o-ensemble", (), 3),
    "control-ranknet": ("bm25-pool", (), 3),
    "grades-ranknet": ("bm25-pool", GRADES, 1),
    "llama-ranknet": ("llama3.2-umbrela", (), 1),
    "gpt4o-adr_mse": ("gpt4o-ensemble", ("loss=adr_mse",), 1),
    "gpt4o-kl": ("gpt4o-ensemble", ("loss=kl", "data.train.transform=log2_rank"), 1),
    "gpt4o-listmle": ("gpt4o-ensemble", ("loss=listmle",), 1),
    "gpt4o-mixed": ("gpt4o-ensemble", ("loss=mixed", "loss.targets=[rank,judged]"), 1),
    "gpt4o-stratified": ("gpt4o-ensemble", ("data.train.sampling=stratified",), 1),
    "gpt4o-ranknet-4": ("gpt4o-ensemble", ("queries_per_step=4", "optim.ema=0.98"), 1),
}
ALL = ("warm", "stage1", *ARMS)


def prepare(data: Path, work: Path) -> Path:
    """Write qrels in which the lowest grade is 0, and each fold's queries and training lists."""
    folder = work / "antique"
    if (folder / "qrels.txt").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    lines = (data / "antique/folds.tsv").read_text().splitlines()
    fold_of = dict(line.split("\t") for line in lines)
    for name in {"bm25-pool", *(name for name, _, _ in ARMS.values())}:
        run = Run.read(data / f"antique/runs/{name}.run")
        for fold in FOLDS:
            inside = {query_id for query_id in run if int(fold_of[query_id]) == fold}
            run.select(inside).write(folder / f"{name}-test{fold}.run")
            run.select(set(run) - inside).write(folder / f"{name}-train{fold}.run")
    grades = read_qrels(data / "antique/qrels.txt")  # 1 to 4
    write_qrels(
        folder / "qrels.txt",
        {q: {d: grade - 1 for d, grade in judged.items()} for q, judged in grades.items()},
    )
    return folder


def student(data: Path, work: Path, arm: str, seed: int, fold: int) -> Path:
    """Train the student of one arm that never saw ``fold``; returns its folder."""
    if arm == "warm":
        return warm_start(data, work, seed)
    if arm == "stage1":
        return stage_1(data, work, seed)
    folder = work / f"seed{seed}/antique/{arm}/fold{fold}"
    return train(folder, *DISTILL, *options(data, work, arm, seed, fold))


def options(data: Path, work: Path, arm: str, seed: int, fold: int) -> list[str]:
    """The options of stage 2 in one arm, which starts from stage 1 and never sees ``fold``."""
    start, files = stage_1(data, work, seed), prepare(data, work)
    teacher, own, _ = ARMS[arm]
    return [
        *local(data / "antique"),
        f"data.train.run={files}/{teacher}-train{fold}.run",
        f"data.train.qrels={files}/qrels.txt",
        *own,
        f"model.path={start}",
        f"seed={seed}",
    ]


def test(data: Path, work: Path, arm: str, seed: int, fold: int) -> Path:
    """The run over the queries of ``fold``, re-ranked by the student that never saw them."""
    files = prepare(data, work)
    folder = work / f"seed{seed}/antique/{arm}"
    folder.mkdir(parents=True, exist_ok=True)
    return rerank(
        folder / f"fold{fold}.run",
        f"model.path={student(data, work, arm, seed, fold)}",
        *local(data / "antique"),
        f"run={files}/bm25-pool-test{fold}.run",
    )


def pooled(data: Path, work: Path, arm: str, seed: int) -> Path:
    """The run over all 150 queries, each re-ranked by the student that never saw its fold."""
    output = work / f"seed{seed}/antique/{arm}/pooled.run"
    if not output.exists():
        ranked: dict[str, RankedList] = {}
        for fold in FOLDS:
            ranked |= Run.read(test(data, work, arm, seed, fold))
        Run(ranked).write(output, tag=arm)
    return output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--only", nargs="+", choices=ALL, default=ALL)
    arguments = parser.parse_args()
    data, work = arguments.data, arguments.work
    qrels = read_qrels(prepare(data, work) / "qrels.txt")
    for seed in arguments.seeds:
        for arm in arguments.only:
            if arm in ARMS and arguments.seeds.index(seed) >= ARMS[arm][2]:
                continue
            measured = evaluate_run(Run.read(pooled(data, work, arm, seed)), qrels, [METRIC])
            print(f"{arm}, seed {seed}: {METRIC} {measured.means[METRIC]:.4f}", flush=True)


if __name__ == "__main__":
    main()
