"""Choose the recipe of stage 2 for hundreds of lists without any test query.

    python -m experiments.trec_dl.choose DATA WORK [--seeds 1] [--only CANDIDATE ...]

Trains each candidate on the largest set of lists of `experiments.trec_dl.run`, less a fifth of the
queries, which are held out and measured by agreement with their teachers (nDCG@10 with relevance 10
for the teacher's best passage down to 1 for its tenth).
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from experiments.commands import train
from experiments.start import stage_1
from experiments.trec_dl.run import ARMS, prepare

COMMON = (
    "+stage=distill",
    "data=local",
    "data.validation.run=null",
    "validation.from_train=0.2",
    "queries_per_step=4",
    "optim.learning_rate=5e-5",
    "optim.ema=0.98",
    "max_steps=80",
    "data.train.sampling=random",
    "data.train.list_size=16",
)
CANDIDATES: dict[str, Sequence[str]] = {
    "random": (),
    "stratified": ("data.train.sampling=stratified",),
    "top_and_random": ("data.train.sampling=top_and_random",),
    "rate 1e-4": ("optim.learning_rate=1e-4",),
    "rate 2e-5": ("optim.learning_rate=2e-5",),
    "no average": ("optim.ema=null",),
    "rate 1e-4, no average": ("optim.learning_rate=1e-4", "optim.ema=null"),
    "stratified_scores": ("data.train.sampling=stratified_scores",),
    "2 lists per step": ("queries_per_step=2", "max_steps=160", "optim.ema=0.99"),
    "160 steps": ("max_steps=160",),
    "160 steps, no average": ("max_steps=160", "optim.ema=null"),
    "kl": ("loss=kl", "data.train.transform=log2_rank"),
    "adr_mse": ("loss=adr_mse",),
    "listmle": ("loss=listmle",),
    "weighted_ranknet": ("loss=weighted_ranknet",),
    "lists of 32": ("data.train.list_size=32", "queries_per_step=2"),
}


def choose(data: Path, work: Path, name: str, seed: int) -> dict[str, float]:
    """Train a candidate; returns its best held-out value, the step, and that of the start."""
    files = prepare(data, work, ARMS["rankzephyr+gpt4o+dl2023+99"])
    folder = work / f"seed{seed}/choose/{name.replace(', ', '_').replace(' ', '_')}"
    train(
        folder,
        *COMMON,
        f"data.docs={files}/docs.tsv",
        f"data.queries={files}/queries.tsv",
        f"data.train.run={files}/teacher.run",
        *CANDIDATES[name],
        f"model.path={stage_1(data, work, seed)}",
        f"seed={seed}",
    )
    summary = json.loads((folder / "summary.json").read_text())
    return {
        "best": summary["best_validation"]["value"],
        "step": summary["best_validation"]["step"],
        "before": summary["means"]["student before"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--only", nargs="+", choices=CANDIDATES, default=list(CANDIDATES))
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        for name in arguments.only:
            found = choose(arguments.data, arguments.work, name, seed)
            print(
                f"| {name} | {seed} | {found['before']:.4f} | {found['best']:.4f} "
                f"| {found['step']:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
