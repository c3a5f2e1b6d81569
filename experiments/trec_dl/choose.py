"""Choose the recipe of stage 2 for hundreds of lists without any test query.

    python -m experiments.trec_dl.choose DATA WORK [--seeds 1 2 3] [--only CANDIDATE ...]

Trains each candidate on the largest set of lists of `experiments.trec_dl.run`, less a fifth of the
queries, which are held out and measured by agreement with their teachers (nDCG@10 with relevance 10
for the teacher's best passage down to 1 for its tenth). All candidates and seeds hold out the same
queries.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from experiments.commands import train
from experiments.lists import join_lists, write_qrels, write_texts
from experiments.start import stage_1
from experiments.trec_dl.run import ARMS, SETS, prepare
from rankdistillm.data.qrels import read_qrels
from rankdistillm.data.runs import Run
from rankdistillm.data.texts import read_texts
from rankdistillm.evaluation.metrics import fuse
from rankdistillm.training.validation import JudgedRun

LISTS = ARMS["rankzephyr+gpt4o+dl2023+99"]
HELD_OUT = 0.2

COMMON = (
    "+stage=distill",
    "data=local",
    "queries_per_step=4",
    "optim.learning_rate=5e-5",
    "optim.ema=0.98",
    "max_steps=80",
    "data.train.sampling=random",
    "data.train.list_size=16",
    "data.validation.depth=null",
)
CANDIDATES: dict[str, Sequence[str]] = {
    "random": (),
    "stratified": ("data.train.sampling=stratified",),
    "stratified_scores": ("data.train.sampling=stratified_scores",),
    "mixed": ("loss=mixed", "loss.targets=[rank,judged]"),
    "fused": (),  # its lists differ: see `prepare_held_out`
    "2 lists per step": ("queries_per_step=2", "max_steps=160", "optim.ema=0.99"),
    "top_and_random": ("data.train.sampling=top_and_random",),
    "rate 1e-4": ("optim.learning_rate=1e-4",),
    "rate 2e-5": ("optim.learning_rate=2e-5",),
    "no average": ("optim.ema=null",),
    "160 steps": ("max_steps=160",),
    "kl": ("loss=kl", "data.train.transform=log2_rank"),
    "adr_mse": ("loss=adr_mse",),
    "listmle": ("loss=listmle",),
    "weighted_ranknet": ("loss=weighted_ranknet",),
    "lists of 32": ("data.train.list_size=32", "queries_per_step=2"),
}


def prepare_held_out(data: Path, work: Path) -> Path:
    """Split the lists into those to train on and those held out; returns the folder.

    train.run has a list for each teacher of a query; fused.run has one for each query and its
    candidates, in which the teachers that rank the same candidates are fused.
    """
    files = prepare(data, work, LISTS)
    folder = work / "trec_dl/choose"
    if (folder / "held-out.run").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    lists = Run.read(files / "teacher.run")
    queries = dict(read_texts(files / "queries.tsv", "query"))
    docs = dict(read_texts(files / "docs.tsv", "doc"))
    training, held_out = JudgedRun.held_out(lists, None, queries, docs, share=HELD_OUT, seed=0)
    training.write(folder / "train.run")
    fused, texts = join_lists(_fused_teachers(data), _query_texts(data))
    held_texts = {queries[query_id] for query_id in held_out.run}
    fused.select(q for q in fused if texts[q] not in held_texts).write(folder / "fused.run")
    write_texts(folder / "queries.tsv", queries | texts)
    write_texts(folder / "docs.tsv", docs)
    judged = {c: read_qrels(data / c / "qrels.txt") for c in ("trec-dl-2020", "trec-dl-2023")}
    grades = {q: of_query for qrels in judged.values() for q, of_query in qrels.items()}
    own = {q: q.partition("@")[0] for q in training}
    write_qrels(folder / "qrels.txt", {q: grades[own[q]] for q in own if own[q] in grades})
    write_qrels(folder / "held-out-qrels.txt", held_out.qrels)
    held_out.run.write(folder / "held-out.run")
    return folder


def _query_texts(data: Path) -> dict[str, str]:
    collections = dict.fromkeys(SETS[name][0] for name in LISTS)
    return {
        query_id: text
        for collection in collections
        for query_id, text in read_texts(data / collection / "queries.tsv", "query").items()
    }


def _fused_teachers(data: Path) -> dict[str, Run]:
    """The lists of `LISTS`; runs whose names begin alike have the same candidates."""
    alike: dict[str, list[Run]] = {}
    for name in LISTS:
        collection, _, runs = SETS[name]
        for run in runs:
            key = f"{collection}-{run.partition('_')[0]}"
            alike.setdefault(key, []).append(Run.read(data / collection / f"runs/{run}.run"))
    return {key: fuse(runs) if len(runs) > 1 else runs[0] for key, runs in alike.items()}


def choose(data: Path, work: Path, name: str, seed: int) -> dict[str, float]:
    """Train a candidate; returns the held-out agreement before and after."""
    files = prepare_held_out(data, work)
    folder = work / f"seed{seed}/choose/{name.replace(' ', '_')}"
    train(
        folder,
        *COMMON,
        f"data.docs={files}/docs.tsv",
        f"data.queries={files}/queries.tsv",
        f"data.train.run={files}/{'fused' if name == 'fused' else 'train'}.run",
        *([f"data.train.qrels={files}/qrels.txt"] if name == "mixed" else []),
        f"data.validation.run={files}/held-out.run",
        f"data.validation.qrels={files}/held-out-qrels.txt",
        *CANDIDATES[name],
        f"model.path={stage_1(data, work, seed)}",
        f"seed={seed}",
    )
    means: dict[str, float] = json.loads((folder / "summary.json").read_text())["means"]
    return means


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--only", nargs="+", choices=CANDIDATES, default=list(CANDIDATES))
    arguments = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {}
    for seed in arguments.seeds:
        for name in arguments.only:
            means = choose(arguments.data, arguments.work, name, seed)
            found.setdefault(name, []).append(means)
            print(f"{name}, seed {seed}: {means['student after']:.4f}", flush=True)
    print("\n| candidate | agreement | sd | by seed |")
    print("|---|---|---|---|")
    before = [means["student before"] for means in next(iter(found.values()))]
    after = {name: [means["student after"] for means in seeds] for name, seeds in found.items()}
    for name, values in {"stage 1 alone": before, **after}.items():
        spread = f"{statistics.stdev(values):.4f}" if len(values) > 1 else ""
        seeds = " ".join(f"{value:.4f}" for value in values)
        print(f"| {name} | {statistics.mean(values):.4f} | {spread} | {seeds} |")


if __name__ == "__main__":
    main()
