"""Re-rank and measure the validation and test queries of a training."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rankdistillm import distributed
from rankdistillm.data.qrels import Qrels, check_overlap, read_qrels
from rankdistillm.data.runs import Run
from rankdistillm.data.texts import texts_of_run
from rankdistillm.errors import InputError
from rankdistillm.evaluation.metrics import evaluate_run
from rankdistillm.evaluation.names import shown
from rankdistillm.evaluation.report import format_table
from rankdistillm.model.cross_encoder import CrossEncoder
from rankdistillm.model.reranker import Reranker
from rankdistillm.model.tokenise import TokenisedTexts

log = logging.getLogger(__name__)


@dataclass
class JudgedRun:
    """A first-stage run with its judgements and texts, and optionally the teacher's run.

    Means are over the judged queries of the first-stage run. A query for which another run, such as
    the teacher's, has no results counts 0.

    The texts are tokenised once: all re-rankings must be by students with the same tokeniser.
    """

    run: Run
    teacher: Run | None
    qrels: Qrels
    queries: Mapping[str, str]
    docs: Mapping[str, str]
    _tokens: tuple[TokenisedTexts, TokenisedTexts] | None = field(default=None, init=False)

    @classmethod
    def read(cls, name: str, config: Mapping[str, Any]) -> "JudgedRun | None":
        """Read the options ``data.NAME`` (validation or test); None if they name no run."""
        if config["run"] is None:
            return None
        if config["qrels"] is None:
            raise InputError(
                f"data.{name}.run is set but data.{name}.qrels is not; set it to the judgements of "
                "these queries"
            )
        run = Run.read(config["run"]).truncate(config["depth"])
        queries, docs = texts_of_run(run, config["queries"], config["docs"])
        teacher = Run.read(config["teacher"]) if config["teacher"] else None
        judgements = read_qrels(config["qrels"])
        check_overlap(run, judgements)
        if teacher is not None:
            check_overlap(teacher, judgements)
        # Judged queries outside the run would count 0.
        qrels = {query_id: grades for query_id, grades in judgements.items() if query_id in run}
        if len(qrels) < max(len(judgements), len(run)):
            log.info(
                "data.%s: metrics are over the %d judged queries of %s; left out: %d queries "
                "without judgements, %d judged queries without results",
                name,
                len(qrels),
                shown(run.source, "text"),
                len(run) - len(qrels),
                len(judgements) - len(qrels),
            )
        run.check_writable(Path("before.run"))
        return cls(run, teacher, qrels, queries, docs)

    @property
    def name(self) -> str:
        """The name of the first stage in tables: that of its file."""
        return Path(self.run.source).name.split(".")[0]

    def rerank(self, model: CrossEncoder) -> Run:
        """Re-rank the first-stage run with the student."""
        if self._tokens is None:
            self._tokens = model.tokenise_queries(self.queries), model.tokenise_docs(self.docs)
        return Reranker(model).rerank_tokenised(self.run, *self._tokens, progress=False)

    def measure(self, run: Run, metric: str) -> float:
        """The mean of a metric over the judged queries, for any run of them."""
        return evaluate_run(run, self.qrels, [metric]).means[metric]


def save_ranking_before(judged: JudgedRun, student: CrossEncoder, output: Path) -> None:
    """Write ``before.run``, the ranking by the untrained student, into the folder ``output``."""
    before = judged.rerank(student)
    if distributed.is_first():
        before.write(output / "before.run", tag="before")


def print_comparison(
    judged: JudgedRun, student: CrossEncoder, metric: str, output: Path
) -> dict[str, float]:
    """Print the metric of the first stage, the teacher, and the student before and after training.

    Reads ``before.run`` in the folder ``output`` if it exists, and writes ``after.run`` there.
    Returns row of the table -> mean of the metric; empty in all processes of a job but the first.
    """
    after = judged.rerank(student)
    if not distributed.is_first():
        return {}
    after.write(output / "after.run", tag="after")
    runs = {}
    if judged.teacher is not None:
        runs["teacher"] = judged.teacher
    file = output / "before.run"
    # A resumed training may have started with other queries.
    if file.exists() and (before := Run.read(file)).keys() == judged.run.keys():
        runs["student before"] = before
    runs["student after"] = after
    first_stage = judged.name if judged.name and judged.name not in runs else "first stage"
    runs = {first_stage: judged.run, **runs}
    metrics = {name: evaluate_run(run, judged.qrels, [metric]) for name, run in runs.items()}
    print(format_table(metrics, [metric]))
    return {name: measured.means[metric] for name, measured in metrics.items()}
