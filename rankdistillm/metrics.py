"""Effectiveness of runs: the one place that touches ranx."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rankdistillm.errors import InputError
from rankdistillm.qrels import Qrels, check_overlap
from rankdistillm.runs import RankedList, Run

log = logging.getLogger(__name__)

NAMES = (
    "ndcg, ndcg_burges, dcg, dcg_burges, mrr, map, precision, recall, f1, hits, hit_rate, "
    "r-precision, bpref, rbp.P; all but the last three may end in @K, and each in -lL, the lowest "
    "relevance that counts"
)


@dataclass(frozen=True)
class Figures:
    """What a run reaches on some judgements.

    ``per_query``: metric -> query_id -> value, over all judged queries; ``without_results``: judged
    queries that the run lacks (each counts 0); ``without_judgements``: queries of the run that
    nobody judged (left out).
    """

    per_query: dict[str, dict[str, float]]
    without_results: list[str]
    without_judgements: list[str]

    @property
    def means(self) -> dict[str, float]:
        """metric -> mean over the judged queries."""
        return {m: float(np.mean(list(values.values()))) for m, values in self.per_query.items()}


def evaluate_run(run: Run, qrels: Qrels, metrics: Sequence[str]) -> Figures:
    """Measure a run as trec_eval does (with ``-c``), metrics named as ranx spells them.

    Equal scores (as float32) are ordered by descending doc_id before ranx sees them, which else
    orders them as it likes. A negative relevance counts as 0.

    Raises `InputError` for a metric that ranx does not know and for judgements of other queries.
    """
    check_overlap(run, qrels)
    shared = [query_id for query_id in qrels if query_id in run]
    values = _ranx(
        {q: {d: max(0, relevance) for d, relevance in qrels[q].items()} for q in shared},
        {q: _without_ties(run[q]) for q in shared},
        metrics,
    )
    return Figures(
        {
            metric: {query_id: found.get(query_id, 0.0) for query_id in qrels}
            for metric, found in values.items()
        },
        [query_id for query_id in qrels if query_id not in run],
        [query_id for query_id in run if query_id not in qrels],
    )


def _without_ties(ranked: RankedList) -> dict[str, float]:
    """Strictly falling scores in the order of trec_eval, which reads scores as float32."""
    scores = ranked.scores.astype(np.float32)
    order = sorted(range(len(ranked)), key=lambda i: (scores[i], ranked.doc_ids[i]), reverse=True)
    return {ranked.doc_ids[i]: float(len(order) - place) for place, i in enumerate(order)}


def _ranx(
    qrels: dict[str, dict[str, int]], run: dict[str, dict[str, float]], metrics: Sequence[str]
) -> dict[str, dict[str, float]]:
    import ranx  # late: it takes seconds, and compiles at first use

    if not _is_compiled(Path(ranx.__file__).parent):
        log.info("compiling the metrics for the first time: about 40 seconds, once")
    ranx_run = ranx.Run(run)
    try:
        ranx.evaluate(ranx.Qrels(qrels), ranx_run, list(metrics))
    except ValueError as error:
        raise InputError(
            f"metrics={list(metrics)}: not known to ranx ({error}); choose among {NAMES}"
        ) from error
    return {
        metric: {query_id: float(value) for query_id, value in scores.items()}
        for metric, scores in ranx_run.scores.items()
    }


def _is_compiled(package: Path) -> bool:
    """Whether numba has left its index of compiled functions where it looks for it."""
    cache = os.environ.get("NUMBA_CACHE_DIR")
    return any(Path(cache or package).rglob("*.nbi"))
