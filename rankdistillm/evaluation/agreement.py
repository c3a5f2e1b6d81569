"""How far a ranking agrees with the one that it re-ordered."""

from dataclasses import dataclass
from statistics import fmean

from rankdistillm.data.runs import Run
from rankdistillm.errors import InputError

TOP = 10


@dataclass(frozen=True)
class Agreement:
    """Means over queries.

    ``kendall_tau``: from 1 (the same order) to -1 (the reverse), over the passages that both lists
    have. ``new_in_top``: share of the new top 10 that was not in the old one.
    """

    kendall_tau: float
    new_in_top: float


def agreement(ranked: Run, before: Run) -> Agreement:
    """Compare two runs over the queries of ``ranked``.

    Lists that share fewer than two passages have no order and are left out. Raises `InputError` if
    no list is left.
    """
    from scipy.stats import kendalltau  # imported late: it takes a second

    taus, new_in_top = [], []
    for query_id in ranked:
        new, old = ranked[query_id].doc_ids, before[query_id].doc_ids
        old_rank = {doc_id: rank for rank, doc_id in enumerate(old)}
        shared = [old_rank[doc_id] for doc_id in new if doc_id in old_rank]
        if len(shared) < 2:
            continue
        taus.append(float(kendalltau(range(len(shared)), shared).statistic))
        new_in_top.append(fmean(doc_id not in old[:TOP] for doc_id in new[:TOP]))
    if not taus:
        raise InputError(f"{ranked.source}: no list shares two passages with {before.source}")
    return Agreement(fmean(taus), fmean(new_in_top))
