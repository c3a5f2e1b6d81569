"""The students of the paper as commands: stage 1, stage 2, re-ranking of first-stage runs."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from experiments.commands import command, rerank, train
from rankdistillm.data.runs import Run
from rankdistillm.evaluation.run_sets import runs_of_folder

FIRST_STAGE = "first-stage"


@dataclass(frozen=True)
class Study:
    """Where a study works, and overrides that every training of it gets (for smaller machines)."""

    work: Path
    runs: Path
    overrides: Sequence[str] = ()
    qrels: dict[str, str] = field(default_factory=dict)

    def prefinetune(self, model: str) -> Path:
        """Stage 1; returns the student's folder."""
        output = self.work / f"prefinetune-{model}"
        return train(output, "+recipe=ecir25_prefinetune", f"model={model}", *self.overrides)

    def distill(self, name: str, model: str, start: Path | None, *overrides: str) -> Path:
        """Stage 2 from ``start`` (None: from the encoder); returns the student's folder."""
        arguments = ["+recipe=ecir25_distill", f"model={model}", *self.overrides, *overrides]
        if start is not None:
            arguments.append(f"model.path={start}")
        return train(self.work / name, *arguments)

    def rerank_all(self, name: str, student: Path) -> None:
        """Re-rank every first-stage run into ``WORK/runs/__NAME@FIRST__COLLECTION.run``."""
        for collection, files in runs_of_folder(self.runs, self.qrels).items():
            for first, file in files.items():
                output = self.work / "runs" / run_name(f"{name}@{first}", collection)
                rerank(output, f"model.path={student}", f"run={file}", "depth=100")

    def copy_runs(self, name: str, folder: Path) -> None:
        """Runs that are there, FIRST__COLLECTION.run, into the same folder under that name."""
        for collection, files in runs_of_folder(folder, self.qrels).items():
            for first, file in files.items():
                output = self.work / "runs" / run_name(f"{name}@{first}", collection)
                output.parent.mkdir(parents=True, exist_ok=True)
                if not output.exists():
                    Run.read(file).truncate(100).write(output)

    def measure(self, output: Path, *arguments: str) -> None:
        """Evaluate all runs so far by nDCG@10 into the report ``output``."""
        given = ", ".join(f"{collection}: {file}" for collection, file in self.qrels.items())
        qrels = [f"qrels={{{given}}}"] if given else []
        runs = f"runs={self.work / 'runs'}"
        command("evaluate", runs, *qrels, "metrics=ndcg@10", f"output={output}", *arguments)


def add_options(parser: argparse.ArgumentParser) -> None:
    """What every study takes from the command line."""
    parser.add_argument("work", type=Path)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--override", action="append", default=[], help="of every training")
    parser.add_argument("--qrels", action="append", default=[], metavar="COLLECTION=FILE")


def study_of(arguments: argparse.Namespace) -> Study:
    """The study that these options describe."""
    qrels = dict(given.split("=", 1) for given in arguments.qrels)
    return Study(arguments.work, arguments.runs, arguments.override, qrels)


def run_name(name: str, collection: str) -> str:
    """The file name that says run and collection, as those of the release do."""
    return f"__{name}__{collection.replace('/', '-')}.run"
