"""A run that is re-ranked and measured during training: the validation and the test queries."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rankdistillm import processes
from rankdistillm.errors import InputError
from rankdistillm.metrics import Figures, evaluate_run
from rankdistillm.model import CrossEncoder
from rankdistillm.qrels import Qrels, check_overlap, read_qrels
from rankdistillm.reports import format_table
from rankdistillm.rerank import Reranker
from rankdistillm.runs import Run
from rankdistillm.texts import texts_of_run
from rankdistillm.token_cache import TokenisedTexts


@dataclass
class JudgedRun:
    """A first-stage run with its judgements and texts, and maybe the teacher's run of it.

    It is re-ranked by one student, at several times: its texts are tokenised once.
    """

    run: Run
    teacher: Run | None
    qrels: Qrels
    queries: Mapping[str, str]
    docs: Mapping[str, str]
    _tokens: tuple[TokenisedTexts, TokenisedTexts] | None = field(default=None, init=False)

    @classmethod
    def read(cls, name: str, config: Mapping[str, Any]) -> "JudgedRun | None":
        """Read what ``data.NAME`` (validation or test) holds; None where it names no run."""
        if config["run"] is None:
            return None
        if config["qrels"] is None:
            raise InputError(
                f"data.{name}.run is set but data.{name}.qrels is not; give the judgements of "
                "these queries"
            )
        run = Run.read(config["run"]).truncate(config["depth"])
        queries, docs = texts_of_run(run, config["queries"], config["docs"])
        teacher = Run.read(config["teacher"]) if config["teacher"] else None
        qrels = read_qrels(config["qrels"])
        for judged in (run, teacher) if teacher else (run,):
            check_overlap(judged, qrels)
        run.check_writable(Path("before.run"))
        return cls(run, teacher, qrels, queries, docs)

    @property
    def name(self) -> str:
        """How the first stage is called in tables: the name of its file."""
        return Path(self.run.source).name.split(".")[0]

    def rerank(self, model: CrossEncoder) -> Run:
        """The student's ranking of the run."""
        if self._tokens is None:
            self._tokens = model.tokenise_queries(self.queries), model.tokenise_docs(self.docs)
        return Reranker(model).rerank_tokenised(self.run, *self._tokens, progress=False)

    def evaluate(self, run: Run, metrics: Sequence[str]) -> Figures:
        """The metrics of some ranking of these queries."""
        return evaluate_run(run, self.qrels, metrics)


def print_gain(judged: JudgedRun, student: CrossEncoder, metric: str, output: Path) -> None:
    """Print what the first stage, the teacher, and the student before and after reach.

    ``output`` holds ``before.run``; ``after.run`` is written beside it.
    """
    after = judged.rerank(student)
    if not processes.is_first():
        return
    after.write(output / "after.run", tag="after")
    runs = {judged.name: judged.run}
    if judged.teacher is not None:
        runs["teacher"] = judged.teacher
    file = output / "before.run"
    # The training may have begun without these queries.
    if file.exists() and (before := Run.read(file)).keys() == judged.run.keys():
        runs["student before"] = before
    runs["student after"] = after
    figures = {name: judged.evaluate(run, [metric]) for name, run in runs.items()}
    print(format_table(figures, [metric]))
