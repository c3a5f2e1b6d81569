"""Re-rank and measure the validation and test queries of a training."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rankdistillm import distributed
from rankdistillm.data.qrels import Qrels, check_overlap, read_qrels
from rankdistillm.data.runs import RankedList, Run
from rankdistillm.data.texts import texts_of_run
from rankdistillm.errors import InputError
from rankdistillm.evaluation.metrics import RunMetrics, evaluate_run, trec_order
from rankdistillm.evaluation.names import shown
from rankdistillm.evaluation.significance import compare
from rankdistillm.evaluation.tables import metrics_table, print_table
from rankdistillm.evaluation.trainings import BEFORE, STUDENT, TEACHER
from rankdistillm.model.cross_encoder import CrossEncoder
from rankdistillm.model.reranker import Reranker
from rankdistillm.model.tokenise import TokenisedTexts

log = logging.getLogger(__name__)

MOST_MOVED = 4  # passages named for each query


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
        """Read the files that ``config`` names (as in conf/data); None if it names no run.

        ``name`` (validation or test) is for messages. Raises `InputError` for a run without qrels.
        """
        if config["run"] is None:
            return None
        if config["qrels"] is None:
            raise InputError(
                f"{name}: the run {config['run']} has no qrels; give the judgements of its queries"
            )
        run = Run.read(config["run"]).truncate(config["depth"])
        queries, docs = texts_of_run(run, config["queries"], config["docs"])
        teacher = Run.read(config["teacher"]) if config["teacher"] else None
        judgements = read_qrels(config["qrels"])
        check_overlap(run, judgements)
        if teacher is not None:
            check_overlap(teacher, judgements)
        return cls._of(name, run, judgements, queries, docs, teacher)

    @classmethod
    def _of(
        cls,
        name: str,
        run: Run,
        judgements: Qrels,
        queries: Mapping[str, str],
        docs: Mapping[str, str],
        teacher: Run | None = None,
    ) -> "JudgedRun":
        """Keep the judgements of the run's queries; report how many queries lack them."""
        # Judged queries outside the run would count 0.
        qrels = {query_id: grades for query_id, grades in judgements.items() if query_id in run}
        if len(qrels) < max(len(judgements), len(run)):
            log.info(
                "%s: metrics are over the %d judged queries of %s; left out: %d queries "
                "without judgements, %d judged queries without results",
                name,
                len(qrels),
                shown(run.source, "text"),
                len(run) - len(qrels),
                len(judgements) - len(qrels),
            )
        run.check_writable(Path("before.run"))
        return cls(run, teacher, qrels, queries, docs)

    @classmethod
    def held_out(
        cls,
        run: Run,
        qrels: Qrels | None,
        queries: Mapping[str, str],
        docs: Mapping[str, str],
        *,
        share: float,
        seed: int,
    ) -> "tuple[Run, JudgedRun]":
        """Split a training run: the lists to train on, and a share of its queries to validate on.

        Lists of one query text are held out together. With ``qrels`` the metrics count judgements.
        With None they count agreement with the run itself, the teacher's: relevance 10 for its best
        passage, 9 for the second, down to 1 for the tenth.

        Raises `InputError` if nothing is left to train on, or nothing to validate on.
        """
        texts = sorted({queries[query_id] for query_id in run})
        drawn = np.random.default_rng(seed).permutation(len(texts))[: round(len(texts) * share)]
        held = {texts[i] for i in drawn}
        if not 0 < len(held) < len(texts):
            raise InputError(
                f"{run.source}: a share of {share} of its {len(texts)} queries is "
                f"{len(held)}; choose a share that leaves queries on both sides"
            )
        training = run.select(q for q in run if queries[q] not in held)
        validation = run.select(q for q in run if queries[q] in held).ranked()
        measure = "judgements" if qrels else "agreement with the teacher"
        if not qrels:
            qrels = {
                query_id: {doc_id: 10 - i for i, doc_id in enumerate(ranked.doc_ids[:10])}
                for query_id, ranked in validation.items()
            }
        qrels = {query_id: qrels[query_id] for query_id in validation if query_id in qrels}
        check_overlap(validation, qrels)
        log.info("%d of %d queries are held out, measured by %s", len(held), len(texts), measure)
        own_queries = {query_id: queries[query_id] for query_id in validation}
        own_docs = {doc_id: docs[doc_id] for doc_id in validation.doc_ids()}
        return training, cls._of("held-out queries", validation, qrels, own_queries, own_docs)

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


@dataclass(frozen=True)
class Comparison:
    """The closing table of a training, on the queries of ``judged``.

    ``runs`` and ``measured`` map each row to its ranking and its metrics: the first stage, then the
    teacher and the untrained student if there are any, then the trained student.
    """

    judged: JudgedRun
    metric: str
    runs: Mapping[str, Run]
    measured: Mapping[str, RunMetrics]

    @property
    def columns(self) -> dict[str, str]:
        """Row -> a name that it has whatever the file of the first stage is called."""
        first, *others = self.runs
        return {first: "first stage", **{name: name for name in others}}

    def gains(self) -> list[dict[str, Any]]:
        """A row per judged query, the largest gain first: where the student changed the ranking.

        Each has ``query_id``, ``query`` (the text), the metric of each run under its name in
        `columns`, ``gain`` (the trained student minus the untrained one, or minus the first stage
        where that is unknown) and ``moved``: the passages that moved most between the two, with
        their ranks and judgements.
        """
        base = BEFORE if BEFORE in self.runs else next(iter(self.runs))
        rows = []
        for query_id, judgements in self.judged.qrels.items():
            values = {
                column: self.measured[name].per_query[self.metric][query_id]
                for name, column in self.columns.items()
            }
            gain = values[STUDENT] - values[self.columns[base]]
            moved = _moved(self.runs[base][query_id], self.runs[STUDENT][query_id], judgements)
            query = self.judged.queries[query_id]
            rows.append(
                {"query_id": query_id, "query": query, **values, "gain": gain, "moved": moved}
            )
        return sorted(rows, key=lambda row: -row["gain"])


def _moved(before: RankedList, after: RankedList, judgements: Mapping[str, int]) -> str:
    """The passages that moved most: ``d7: 14 → 2 (relevance 3); d1: 1 → 9 (unjudged)``.

    Ranks are those that the metrics take, and count as in nDCG: moves near the top count most.
    """
    old = {doc_id: rank for rank, doc_id in enumerate(trec_order(before), 1)}
    moves = [
        (abs(1 / math.log2(1 + old[doc_id]) - 1 / math.log2(1 + new)), doc_id, old[doc_id], new)
        for new, doc_id in enumerate(trec_order(after), 1)
        if old.get(doc_id, new) != new
    ]
    return "; ".join(
        f"{doc_id}: {rank} → {new} "
        + (f"(relevance {judgements[doc_id]})" if doc_id in judgements else "(unjudged)")
        for _, doc_id, rank, new in sorted(moves, key=lambda move: -move[0])[:MOST_MOVED]
    )


def print_comparison(
    judged: JudgedRun, student: CrossEncoder, metric: str, output: Path
) -> Comparison | None:
    """Print the metric of the first stage, the teacher, and the student before and after training.

    Reads ``before.run`` in the folder ``output`` if it exists, and writes ``after.run`` there.
    Returns None in all processes of a job but the first.
    """
    after = judged.rerank(student)
    if not distributed.is_first():
        return None
    after.write(output / "after.run", tag="after")
    runs = {}
    if judged.teacher is not None:
        runs[TEACHER] = judged.teacher
    file = output / "before.run"
    # A resumed training may have started with other queries.
    if file.exists() and (before := Run.read(file)).keys() == judged.run.keys():
        runs[BEFORE] = before
    runs[STUDENT] = after
    first_stage = judged.name if judged.name and judged.name not in runs else "first stage"
    runs = {first_stage: judged.run, **runs}
    measured = {name: evaluate_run(run, judged.qrels, [metric]) for name, run in runs.items()}
    print_table(metrics_table(measured, [metric]))
    return Comparison(judged, metric, runs, measured)


def summarise(comparison: Comparison) -> dict[str, Any]:
    """Sum up a comparison: the means, and whether the student differs from the other rows.

    ``p_values``: row -> p-value of the paired t-test between it and the trained student, corrected
    by Holm's method for the number of rows; left out if there are fewer than two queries.
    """
    measured, metric = comparison.measured, comparison.metric
    student = measured[STUDENT]
    summary: dict[str, Any] = {
        "queries": student.num_queries,
        "means": {name: row.means[metric] for name, row in measured.items()},
    }
    if student.num_queries > 1:
        found = compare(measured, [STUDENT]).p_values[STUDENT]
        summary["p_values"] = {name: p[metric] for name, p in found.items()}
    return summary
