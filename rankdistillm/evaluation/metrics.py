"""Metrics and fusion of runs, computed by ranx on rankings whose ties are broken as in trec_eval.

No other module touches ranx.
"""

import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from rankdistillm.data.qrels import Qrels, check_overlap
from rankdistillm.data.runs import RankedList, Run
from rankdistillm.errors import InputError, quoted

log = logging.getLogger(__name__)

# ranx's bpref is NaN for a query without a passage judged as not relevant, and its rbp uses graded
# instead of binary relevance. Both differ from trec_eval and are left out.
NAMES = (
    "ndcg",
    "ndcg_burges",
    "dcg",
    "dcg_burges",
    "mrr",
    "map",
    "precision",
    "recall",
    "r-precision",
    "f1",
    "hit_rate",
    "hits",
)
METRIC = re.compile(r"(?P<name>.+?)(@(?P<cutoff>[1-9][0-9]*))?(-l(?P<level>[1-9][0-9]*))?")
LARGEST_FLOAT = int(sys.float_info.max)
LARGEST = 10**9  # cut-off and level; ranx computes with 64 bits
# Fusion methods of ranx that need no training on judgements. The first ones see ranks alone.
FUSED_BY_RANK = (
    "rrf", "isr", "log_isr", "logn_isr", "rbc", "bordafuse", "w_bordafuse", "condorcet",
    "w_condorcet",
)  # fmt: skip
FUSED_BY_SCORE = (
    "min", "max", "med", "sum", "anz", "mnz", "gmnz", "wsum", "wmnz", "mixed",
)  # fmt: skip
NORMS = ("min-max", "max", "sum", "zmuv", "rank", "borda")


@dataclass(frozen=True)
class RunMetrics:
    """The metrics of a run over the judged queries.

    ``per_query`` maps metric -> query_id -> value for all judged queries; the value of a query in
    ``without_results`` is 0. The queries in ``without_judgements`` are left out.
    """

    per_query: Mapping[str, Mapping[str, float]]
    without_results: tuple[str, ...] = ()
    without_judgements: tuple[str, ...] = ()

    @property
    def means(self) -> dict[str, float]:
        """Metric -> mean over the judged queries."""
        return {metric: fmean(values.values()) for metric, values in self.per_query.items()}

    @property
    def means_with_results(self) -> dict[str, float]:
        """Metric -> mean over the judged queries that have results."""
        lacking = set(self.without_results)
        return {
            metric: fmean(value for query_id, value in values.items() if query_id not in lacking)
            for metric, values in self.per_query.items()
        }

    @property
    def num_queries(self) -> int:
        """The number of judged queries, over which the means are taken."""
        return len(next(iter(self.per_query.values())))


def evaluate_run(run: Run, qrels: Qrels, metrics: Sequence[str]) -> RunMetrics:
    """Measure a run against judgements.

    ``metrics`` are spelled as in ranx: a name, an optional cut-off, and optionally the lowest
    grade that counts as relevant (1 by default): ``ndcg@10``, ``mrr``, ``recall@100-l2``. Passages
    are ranked by score in float32, equal scores by descending doc_id; the run's own ranks do not
    matter. A negative relevance counts as 0. The values equal those of trec_eval.

    Raises `InputError` for an unknown metric, for a run without any judged query, and for a
    relevance so large that a value is not finite.
    """
    parsed = {metric: parse_metric(metric) for metric in metrics}
    if not parsed:
        raise InputError("no metrics to compute; give some, for example ndcg@10 and mrr@10")
    check_overlap(run, qrels)
    lengths = dict(zip(run, run.lengths.tolist(), strict=True))
    judged_results = [query_id for query_id in qrels if lengths.get(query_id)]
    functions = _ranx_functions({name for name, _, _ in parsed.values()})

    from numba.core.errors import NumbaWarning
    from numba.typed import List

    pairs = [_ranx_arrays(run[query_id], qrels[query_id]) for query_id in judged_results]
    ranx_qrels, ranx_run = (List(arrays) for arrays in zip(*pairs, strict=True))
    per_query = {}
    with warnings.catch_warnings():
        # The compiler warns about ranx's own code, which users cannot fix.
        warnings.simplefilter("ignore", NumbaWarning)
        for metric, (name, cutoff, level) in parsed.items():
            values = functions[name](ranx_qrels, ranx_run, cutoff, level)
            if not np.isfinite(values).all():
                query_id = judged_results[int(np.argmin(np.isfinite(values)))]
                raise InputError(
                    f"{metric} of query {query_id} is not finite, with a relevance of "
                    f"{max(qrels[query_id].values())!s:.20}; correct the judgements"
                )
            per_query[metric] = dict.fromkeys(qrels, 0.0)
            per_query[metric].update(zip(judged_results, values.tolist(), strict=True))
    return RunMetrics(
        per_query,
        without_results=tuple(query_id for query_id in qrels if not lengths.get(query_id)),
        without_judgements=tuple(query_id for query_id in run if query_id not in qrels),
    )


def trec_order(ranked: RankedList) -> list[str]:
    """The doc_ids in trec_eval's order: by descending float32 score, then by descending doc_id."""
    with np.errstate(over="ignore"):  # beyond float32 all scores are equal, as in trec_eval
        scores = ranked.scores.astype(np.float32).tolist()
    by_score = sorted(zip(scores, ranked.doc_ids, strict=True), reverse=True)
    return [doc_id for _, doc_id in by_score]


def parse_metric(metric: str) -> tuple[str, int, int]:
    """Name, cut-off (0: none) and lowest relevant grade of a metric.

    Raises `InputError` for an unknown metric and for numbers that ranx cannot compute with.
    """
    match = METRIC.fullmatch(metric)
    if not match or match["name"] not in NAMES:
        raise InputError(
            f"unknown metric {metric!r}; use one of {', '.join(NAMES)}, optionally with a "
            "cut-off (ndcg@10) and the lowest grade that counts as relevant (recall@100-l2)"
        )
    if match["name"] == "r-precision" and match["cutoff"]:
        raise InputError(f"{metric}: r-precision has its own cut-off; write r-precision")
    for number in (match["cutoff"] or "", match["level"] or ""):
        if len(number) > len(str(LARGEST)) or int(number or 0) > LARGEST:
            raise InputError(
                f"{metric:.60}: a number above {LARGEST:,}; leave out the cut-off to count all "
                "passages, or the level to count every relevance above 0"
            )
    return match["name"], int(match["cutoff"] or 0), int(match["level"] or 1)


def prepare_metrics(metrics: Sequence[str]) -> None:
    """Load and compile these metrics now, so that a failure comes before the work, not after it."""
    evaluate_run(Run.from_scores({"query": {"doc": 1.0}}), {"query": {"doc": 1}}, metrics)


def fuse(
    runs: Sequence[Run],
    *,
    method: str = "rrf",
    norm: str | None = "min-max",
    params: Mapping[str, Any] | None = None,
) -> Run:
    """Fuse rankings of the same queries into one run, with ranx.

    ``method`` and ``params`` are ranx's: `FUSED_BY_RANK`, such as ``rrf`` with ``{"k": 60}``, or
    `FUSED_BY_SCORE`, such as ``wsum`` with ``{"weights": [0.3, 0.7]}``. ``norm`` (`NORMS`, or
    None) is applied to each list's scores before those are fused.

    Raises `InputError` for fewer than two runs, runs of different queries, another number of
    weights than of runs, and methods, norms or params that ranx does not have.
    """
    if len(runs) < 2:
        raise InputError(f"{len(runs)} runs to fuse; give at least two")
    if method not in (*FUSED_BY_RANK, *FUSED_BY_SCORE):
        raise InputError(
            f"unknown fusion {method!r}; take one of {', '.join((*FUSED_BY_RANK, *FUSED_BY_SCORE))}"
        )
    if norm is not None and norm not in NORMS:
        raise InputError(f"unknown norm {norm!r}; take one of {', '.join(NORMS)}, or none")
    weights = (params or {}).get("weights")
    if weights is not None and len(weights) != len(runs):
        raise InputError(f"{len(weights)} weights for {len(runs)} runs to fuse; give one each")
    for i, run in enumerate(runs):
        other = runs[i - 1]
        if missing := next((query_id for query_id in other if query_id not in run), None):
            raise InputError(
                f"{run.source}: query {quoted(missing)} of {other.source} is missing; fuse runs of "
                "the same queries"
            )
    queries = {query_id: str(i) for i, query_id in enumerate(runs[0])}
    if not queries:
        return runs[0]
    by_rank = method in FUSED_BY_RANK
    with _compiling():
        import ranx

    # ranx gets numbers for ids, which it would cut or refuse if they held odd characters.
    doc_ids = list(dict.fromkeys(doc_id for run in runs for doc_id in run.doc_ids()))
    number_of = {doc_id: str(i) for i, doc_id in enumerate(doc_ids)}

    def ranx_run(run: Run) -> Any:
        lists = {}
        for query_id, number in queries.items():
            ranked = run[query_id]
            scores = dict(zip(ranked.doc_ids, ranked.scores.tolist(), strict=True))
            if by_rank:  # so that equal scores have trec_eval's ranks, not any
                scores = {d: -float(rank) for rank, d in enumerate(trec_order(ranked))}
            lists[number] = {number_of[doc_id]: score for doc_id, score in scores.items()}
        return ranx.Run(lists)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about ranx's own code, which users cannot fix
        try:
            fused = ranx.fuse(
                [ranx_run(run) for run in runs],
                norm=None if by_rank else norm,
                method=method,
                params=dict(params or {}),
            )
        except TypeError as error:
            raise InputError(f"fusion {method}: ranx takes other params ({error})") from error
        lists = {
            query_id: {doc_ids[int(d)]: float(score) for d, score in fused.run[number].items()}
            for query_id, number in queries.items()
        }
    return Run.from_scores(lists, source=f"{method} of {', '.join(run.source for run in runs)}")


@contextmanager
def _compiling() -> Iterator[None]:
    """Say what to do if numba finds no folder for its cache."""
    try:
        yield
    except RuntimeError as error:
        raise InputError(
            f"ranx's functions cannot be compiled ({error}); set NUMBA_CACHE_DIR to a folder that "
            "can be written"
        ) from error


def _ranx_functions(names: set[str]) -> dict[str, Callable[..., np.ndarray]]:
    """ranx's functions of (qrels, run, cut-off, lowest relevant grade) -> values ``[queries]``.

    `ranx.evaluate` wraps them in dictionaries that take much longer to compile than the metrics.
    """
    with _compiling():
        import ranx.metrics  # imported late: it takes seconds

    functions = {name: ranx.metrics.metric_switch(name) for name in names}
    cache = Path(ranx.metrics.common.clean_qrels.stats.cache_path)
    # The compiled form of ranx/metrics/ndcg.py is cached as ndcg.*.nbi.
    modules = [sys.modules[function.__module__] for function in functions.values()]
    if not all(any(cache.glob(f"{Path(module.__file__ or '').stem}.*.nbi")) for module in modules):
        log.info("compiling ranx's %s, about 10 s; cached afterwards", ", ".join(functions))
    return functions


def _ranx_arrays(ranked: RankedList, judged: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Judgements and ranking of a query as ranx's ``[n, 2]`` arrays of (document, value).

    Both are sorted by descending value. Judged documents are numbered, all others are -1; ranx
    itself would hash the ids into 53 bits.
    """
    numbers = {doc_id: number for number, doc_id in enumerate(judged)}
    # Python's integers may be larger than any float.
    relevance = np.array([float(min(max(r, 0), LARGEST_FLOAT)) for r in judged.values()])
    best_first = np.argsort(-relevance, kind="stable")
    documents = np.array([numbers.get(doc_id, -1) for doc_id in trec_order(ranked)])
    return (
        np.column_stack((best_first, relevance[best_first])).astype(np.float64),
        np.column_stack((documents, -np.arange(len(documents)))).astype(np.float64),
    )
