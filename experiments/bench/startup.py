"""How long the commands take until they have done the least of work: one step, pair, metric.

    python -m experiments.bench.startup [--rounds 5]

Whole processes on the embedded collection, nothing subtracted.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from rankdistillm.cli import PACKAGE
from rankdistillm.runs import Run

MINI = PACKAGE / "mini"


def commands(folder: Path) -> dict[str, list[str]]:
    """The least that each command can do, into this folder; `rerank` takes what `train` left."""
    run = Run.read(MINI / "test/bm25.run")
    run.select(list(run)[:1]).truncate(1).write(folder / "one.run")
    train = ["+stage=distill", "max_steps=1", "queries_per_step=1", "data.train.list_size=2"]
    train += ["data.validation.run=null", "data.test.run=null", "resume=never"]
    texts = [f"data.docs={MINI}/docs.tsv", f"data.queries={MINI}/test/queries.tsv"]
    return {
        "train": [*train, f"output={folder}/training"],
        "rerank": [
            *texts,
            f"model.path={folder}/training/checkpoint",
            f"run={folder}/one.run",
            f"output={folder}/reranked.run",
        ],
        "evaluate": [
            f"qrels={MINI}/test/qrels.txt",
            f"runs={{one: {folder}/one.run}}",
            "metrics=[ndcg@10]",
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        for _ in range(arguments.rounds):
            for module, options in commands(Path(name)).items():
                command = [sys.executable, "-W", "ignore", "-m", f"rankdistillm.{module}", *options]
                started = time.perf_counter()
                subprocess.run(command, cwd=name, check=True, capture_output=True)
                seconds.setdefault(module, []).append(time.perf_counter() - started)
    print("| command | seconds, median | range |\n|---|---|---|")
    for module, found in seconds.items():
        print(f"| {module} | {median(found):.1f} | {min(found):.1f}-{max(found):.1f} |")


if __name__ == "__main__":
    main()
