"""A run that is re-ranked and measured during training: the validation and the test queries."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rankdistillm import processes
from rankdistillm.errors import InputError
from rankdistillm.metrics import evaluate_run
from rankdistillm.model import CrossEncoder
from rankdistillm.names import shown
from rankdistillm.qrels import Qrels, check_overlap, read_qrels
from rankdistillm.reports import format_table
from rankdistillm.rerank import Reranker
from rankdistillm.runs import Run
from rankdistillm.texts import texts_of_run
from rankdistillm.token_cache import TokenisedTexts

log = logging.getLogger(__name__)


@dataclass
class JudgedRun:
    """A first-stage run with its judgements and texts, and maybe the teacher's run of it.

    Only its own queries count: a mean is over those of them that are judged. In another run of
    them, such as the teacher's, a query without results counts 0.

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
        judgements = read_qrels(config["qrels"])
        for judged in (run, teacher) if teacher else (run,):
            check_overlap(judged, judgements)
        # A file of judgements for more queries does not scale the metrics.
        qrels = {query_id: of for query_id, of in judgements.items() if query_id in run}
        if len(qrels) < max(len(judgements), len(run)):
            log.info(
                "data.%s: metrics over the %d judged queries of %s; left out: %d of its queries "
                "without judgements, %d judged queries that it lacks",
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
        """How the first stage is called in tables: the name of its file."""
        return Path(self.run.source).name.split(".")[0]

    def rerank(self, model: CrossEncoder) -> Run:
        """The student's ranking of the run."""
        if self._tokens is None:
            self._tokens = model.tokenise_queries(self.queries), model.tokenise_docs(self.docs)
        return Reranker(model).rerank_tokenised(self.run, *self._tokens, progress=False)

    def measure(self, run: Run, metric: str) -> float:
        """The mean of a metric over these queries, of some ranking of them."""
        return evaluate_run(run, self.qrels, [metric]).means[metric]


def measure_gain(
    judged: JudgedRun, student: CrossEncoder, metric: str, output: Path
) -> dict[str, float]:
    """Print what the first stage, the teacher, and the student before and after reach.

    ``output`` holds ``before.run``; ``after.run`` is written beside it. Returns row -> metric, in
    the first process of a job alone.
    """
    after = judged.rerank(student)
    if not processes.is_first():
        return {}
    after.write(output / "after.run", tag="after")
    runs = {}
    if judged.teacher is not None:
        runs["teacher"] = judged.teacher
    file = output / "before.run"
    # The training may have begun without these queries.
    if file.exists() and (before := Run.read(file)).keys() == judged.run.keys():
        runs["student before"] = before
    runs["student after"] = after
    first_stage = judged.name if judged.name and judged.name not in runs else "first stage"
    runs = {first_stage: judged.run, **runs}
    metrics = {name: evaluate_run(run, judged.qrels, [metric]) for name, run in runs.items()}
    print(format_table(metrics, [metric]))
    return {name: measured.means[metric] for name, measured in metrics.items()}
