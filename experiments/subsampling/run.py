"""How many queries, and how deep a list, of RankVicuna's rankings the student needs.

    python -m experiments.subsampling.run DATA WORK [--seeds 1 2 3]

DATA and WORK as for experiments.trec_dl.run, whose stage 1 the students start from. Stage 2 has the
same number of steps for every size, so that only the data differ.
"""

import argparse
import json
from pathlib import Path
from statistics import fmean, stdev

import numpy as np

from experiments.commands import train
from experiments.trec_dl.run import DISTILL, FIRST_STAGES, figure, prepare, student, test
from rankdistillm.data.runs import RankedList, Run
from rankdistillm.evaluation.plots import plot_amounts

QUERIES, DEPTHS = (7, 14, 27, 54), (10, 20, 50, 100)
STEPS = 68  # one epoch of the 270 lists, 4 a step
LIST_SIZE = 16


def first_stages(data: Path, work: Path) -> Path:
    """What the teacher re-ranked, under the query_ids of its combined run."""
    file = work / "distill-first.run"
    if not file.exists():
        lists: dict[str, RankedList] = {}
        for first in FIRST_STAGES:
            for query_id, ranked in Run.read(data / f"trec-dl-2020/runs/{first}.run").items():
                lists[f"{query_id}@{first}"] = ranked
        Run(lists).write(file, tag="first-stage")
    return file


def teacher(work: Path, num_queries: int, seed: int) -> Path:
    """The lists of some queries, over all first stages; the samples of a seed are nested."""
    file = work / f"seed{seed}/teacher-{num_queries}.run"
    if not file.exists():
        run = Run.read(work / "distill-teacher.run")
        queries = sorted({key.partition("@")[0] for key in run})
        drawn = set(np.random.default_rng(seed).permutation(queries)[:num_queries].tolist())
        run.select(key for key in run if key.partition("@")[0] in drawn).write(file)
    return file


def measure(data: Path, work: Path, seed: int, num_queries: int, depth: int) -> float:
    """nDCG@10 on TREC DL 2019 of a student trained on that much."""
    start = student(data, work, seed, True, None)
    folder = train(
        work / f"seed{seed}/subsampling-{num_queries}-{depth}",
        "+stage=distill",
        "data=local",
        f"data.docs={data}/trec-dl-2020/docs.tsv",
        f"data.queries={work}/distill-queries.tsv",
        f"data.train.run={teacher(work, num_queries, seed)}",
        f"data.train.first_stage={first_stages(data, work)}",
        f"data.train.depth={depth}",
        *DISTILL,
        f"data.train.list_size={min(LIST_SIZE, depth)}",
        f"max_steps={STEPS}",
        f"model.path={start}",
        f"seed={seed}",
    )
    return test(data, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    arguments = parser.parse_args()
    data, work = arguments.data, arguments.work
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "warm-teacher.run").exists():
        prepare(data, work)
    sizes = [(number, max(DEPTHS)) for number in QUERIES]
    sizes += [(max(QUERIES), depth) for depth in DEPTHS[:-1]]
    values: dict[tuple[int, int], list[float]] = {size: [] for size in sizes}
    for seed in arguments.seeds:
        for size in sizes:
            values[size].append(measure(data, work, seed, *size))
            report = {f"{number} queries, depth {d}": v for (number, d), v in values.items()}
            (work / "subsampling.json").write_text(json.dumps(report, indent=2) + "\n")
    print("\n| queries | depth | mean | spread (sd) | by seed |\n|---|---|---|---|---|")
    for (number, depth), found in values.items():
        spread = f"{stdev(found):.4f}" if len(found) > 1 else ""
        seeds = " ".join(f"{value:.4f}" for value in found)
        print(f"| {number} | {depth} | {fmean(found):.4f} | {spread} | {seeds} |")
    runs = data / "trec-dl-2019/runs"
    levels = {
        name: figure(data / "trec-dl-2019", runs / f"{file}.run")
        for name, file in (("RankVicuna", "rankvicuna-bm25"), ("BM25", "bm25"))
    }
    stage_1 = [test(data, student(data, work, seed, True, None)) for seed in arguments.seeds]
    levels["student before, mean"] = fmean(stage_1)
    for axis, name in enumerate(("queries", "depth")):
        full = (max(QUERIES), max(DEPTHS))
        points = {size[axis]: v for size, v in values.items() if size[1 - axis] == full[1 - axis]}
        plot_amounts(
            {"student": points},
            work / f"subsampling_{name}.png",
            amount=f"{name} of the teacher's rankings",
            measurement="nDCG@10, TREC DL 2019",
            levels=levels,
        )


if __name__ == "__main__":
    main()
