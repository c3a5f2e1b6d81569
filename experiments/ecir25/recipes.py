"""The students of the paper as commands: stage 1, stage 2, re-ranking of first-stage runs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from experiments.commands import rerank, train
from rankdistillm.judged_runs import runs_of_folder
from rankdistillm.runs import Run

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

    def copy_first_stages(self) -> None:
        """The first-stage runs themselves, into the same folder."""
        for collection, files in runs_of_folder(self.runs, self.qrels).items():
            for first, file in files.items():
                output = self.work / "runs" / run_name(f"{FIRST_STAGE}@{first}", collection)
                output.parent.mkdir(parents=True, exist_ok=True)
                if not output.exists():
                    Run.read(file).truncate(100).write(output)


def run_name(name: str, collection: str) -> str:
    """The file name that says run and collection, as those of the release do."""
    return f"__{name}__{collection.replace('/', '-')}.run"
