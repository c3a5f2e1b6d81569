"""Choose settings of stage 2 without any test query, fold by fold; test what was chosen.

    python -m experiments.antique.choose DATA WORK [--seeds 1] [--only CANDIDATE ...]

In each fold, all candidates train on the queries of the other folds less a fifth of them, which
are held out: the candidate whose student agrees most with GPT-4o on these is chosen. Trained on all
queries of the other folds (an arm of `experiments.antique.run`), it re-ranks the fold. Nothing of
the fold takes part in the choice, and human grades only where a candidate trains on them.
"""

import argparse
import json
from pathlib import Path

from experiments.antique.run import FOLDS, METRIC, options, prepare, test
from experiments.commands import train
from rankdistillm.data.qrels import read_qrels
from rankdistillm.data.runs import RankedList, Run
from rankdistillm.evaluation.metrics import evaluate_run

# Lists drawn at random, 2 and 4 a step; stratified ones; the human grades mixed in.
CANDIDATES = ("gpt4o-ranknet", "gpt4o-ranknet-4", "gpt4o-stratified", "gpt4o-mixed")
HELD_OUT = ("+recipe=small_distill", "validation.from_train=0.2", "validation.every=null")


def agreement(data: Path, work: Path, arm: str, seed: int, fold: int) -> float:
    """How far the last student agrees with GPT-4o on the held-out queries (`METRIC`)."""
    folder = work / f"seed{seed}/antique/choose/{arm}/fold{fold}"
    train(folder, *HELD_OUT, *options(data, work, arm, seed, fold))
    return float(json.loads((folder / "summary.json").read_text())["best_validation"]["value"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--only", nargs="+", choices=CANDIDATES, default=CANDIDATES)
    arguments = parser.parse_args()
    data, work = arguments.data, arguments.work
    qrels = read_qrels(prepare(data, work) / "qrels.txt")
    rows: list[tuple[object, ...]] = []
    values = {}
    for seed in arguments.seeds:
        ranked: dict[str, RankedList] = {}
        for fold in FOLDS:
            agreeing = {arm: agreement(data, work, arm, seed, fold) for arm in arguments.only}
            chosen = max(agreeing, key=lambda arm: agreeing[arm])
            ranked |= Run.read(test(data, work, chosen, seed, fold))
            rows.append((seed, fold, *(f"{value:.4f}" for value in agreeing.values()), chosen))
        values[seed] = evaluate_run(Run(ranked), qrels, [METRIC]).means[METRIC]
    print("\n| seed | fold | " + " | ".join(arguments.only) + " | chosen |")
    print("|---" * (len(arguments.only) + 3) + "|")
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")
    for seed, value in values.items():
        print(f"\nseed {seed}, chosen in each fold: {METRIC} {value:.4f}")


if __name__ == "__main__":
    main()
