"""How long the commands take to begin their work, and to do the least of it.

    python -m experiments.bench.startup [--rounds 5]

On the embedded collection; the least is one step, one pair, one metric of one query. The work
begins when the command says so; ``evaluate`` does not, and its table counts instead. The whole
process is timed too, nothing subtracted.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from rankdistillm.cli import PACKAGE
from rankdistillm.data.runs import Run

MINI = PACKAGE / "mini"
# Part of what each command prints when its work begins.
BEGUN = {"train": "distill on ", "rerank": "re-ranking ", "evaluate": "ndcg@10"}


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


def time_command(command: list[str], folder: str, begun: str) -> tuple[float, float]:
    """The seconds until ``command`` prints a line with ``begun`` in it, and until it has ended."""
    started = time.perf_counter()
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        printed = [(line, time.perf_counter() - started) for line in process.stdout]
    if process.returncode:
        raise RuntimeError("".join(line for line, _ in printed))
    ended = time.perf_counter() - started
    return next(seconds for line, seconds in printed if begun in line), ended


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        for _ in range(arguments.rounds):
            for module, options in commands(Path(name)).items():
                command = [sys.executable, "-W", "ignore", "-m", f"rankdistillm.{module}", *options]
                found.setdefault(module, []).append(time_command(command, name, BEGUN[module]))
    print("| command | seconds until its work, median | range | whole process | range |")
    print("|---|---|---|---|---|")
    for module, times in found.items():
        columns = [
            f"{median(seconds):.1f} | {min(seconds):.1f}-{max(seconds):.1f}"
            for seconds in zip(*times, strict=True)
        ]
        print(f"| {module} | {' | '.join(columns)} |")


if __name__ == "__main__":
    main()
