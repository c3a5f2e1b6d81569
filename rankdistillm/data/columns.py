"""The columns of a run: integer codes of passages, list offsets and scores.

A hundred million rows fit into memory this way; Python objects for each row would not.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from typing import NamedTuple

import numpy as np

# Methods that look at every row do so in blocks of this many, to bound the memory.
ROWS_AT_ONCE = 1 << 22


class Coded(NamedTuple):
    """Ids as integer codes: row i has the id ``ids[codes[i]]``.

    ``codes``: int32 ``[rows]``, numbered by first appearance. ``ids``: array of str
    ``[distinct ids]``.
    """

    codes: np.ndarray
    ids: np.ndarray

    @classmethod
    def of(cls, ids: Iterable[str]) -> "Coded":
        """Encode ids."""
        code_of: dict[str, int] = {}
        codes = [code_of.setdefault(identifier, len(code_of)) for identifier in ids]
        return cls(np.array(codes, dtype=np.int32), as_array(list(code_of)))

    def compact(self) -> "Coded":
        """The same rows without the ids that no row has."""
        is_used = np.zeros(len(self.ids), dtype=bool)
        is_used[self.codes] = True
        renumbered = np.cumsum(is_used, dtype=np.int32) - 1
        return Coded(renumbered[self.codes], self.ids[is_used])


class UnsoundListError(Exception):
    """The list of ``query_id`` is inconsistent; its rows tell where."""

    def __init__(self, query_id: str) -> None:
        super().__init__(query_id)
        self.query_id = query_id


@dataclass(frozen=True)
class Columns:
    """Ranked lists: list i is rows ``starts[i]`` to ``stops[i]``, best passage first.

    ``query_ids``: array of str ``[lists]``. ``starts``, ``stops``: int64 ``[lists]``. ``docs``:
    int32 ``[rows]``, codes of ``doc_ids``, an array of str ``[distinct passages]``. ``scores``:
    float32 or float64 ``[rows]``, as in the file. Sub-samples share the rows and differ only in
    ``starts`` and ``stops``.
    """

    query_ids: np.ndarray
    starts: np.ndarray
    stops: np.ndarray
    docs: np.ndarray
    doc_ids: np.ndarray
    scores: np.ndarray

    @classmethod
    def from_lists(
        cls, query_ids: Iterable[str], lengths: Iterable[int], docs: Coded, scores: np.ndarray
    ) -> "Columns":
        """Build columns from lists of these lengths, end to end, best passage first."""
        stops = np.cumsum(np.fromiter(lengths, np.int64))
        starts = np.append(0, stops[:-1])[: len(stops)]
        return cls(as_array(list(query_ids)), starts, stops, docs.codes, docs.ids, scores)

    @classmethod
    def from_rows(
        cls, queries: Coded, docs: Coded, ranks: np.ndarray | None, scores: np.ndarray | None
    ) -> "Columns":
        """Group rows in any order by query and rank them.

        ``ranks``, ``scores``: ``[rows]``, NaN for a row without one, None if no row has one. A
        list is ordered by rank if all its rows have one, else by score as trec_eval does: equal
        scores by descending doc_id. Ranks without scores give the scores -1, -2, …

        Raises `UnsoundListError` for a list with neither all ranks nor all scores, whose scores
        rise as ranks rise, with equal ranks and other scores, or with a passage twice.
        """
        num_lists = len(queries.ids)
        by_rank = _complete(ranks, queries.codes, num_lists)
        has_scores = _complete(scores, queries.codes, num_lists)
        faulty = [np.flatnonzero(~by_rank & ~has_scores)]
        if len(faulty[0]):
            raise UnsoundListError(str(queries.ids[faulty[0][0]]))
        order = _order(queries.codes, docs, ranks, scores, by_rank)
        lists, codes = queries.codes, docs.codes
        if order is not None:
            lists, codes = lists[order], codes[order]
            ranks = None if ranks is None else ranks[order]
            scores = None if scores is None else scores[order]
        bounds = np.searchsorted(lists, np.arange(num_lists + 1))
        starts, stops = bounds[:-1], bounds[1:]
        if scores is None or not has_scores.all():
            falling = np.repeat(starts, stops - starts) - np.arange(len(lists)) - 1.0
            scores = falling if scores is None else np.where(has_scores[lists], scores, falling)
        columns = cls(queries.ids, starts, stops, codes, docs.ids, scores)
        same = lists[1:] == lists[:-1]
        rises = same & (scores[1:] > scores[:-1])
        faulty.append(lists[1:][rises][:1])
        if ranks is not None:
            differ = same & (ranks[1:] == ranks[:-1]) & (scores[1:] != scores[:-1])
            faulty.append(lists[1:][differ & (by_rank & has_scores)[lists[1:]]][:1])
        faulty.append(columns._first_with_repeats())
        if len(first := np.concatenate(faulty)):
            raise UnsoundListError(str(queries.ids[first.min()]))
        return columns

    @property
    def lengths(self) -> np.ndarray:
        """int64 ``[lists]``: passages in each list."""
        return self.stops - self.starts

    def lists(self, chosen: np.ndarray | slice) -> "Columns":
        """Some of the lists; their rows are shared, not copied."""
        return replace(
            self,
            query_ids=self.query_ids[chosen],
            starts=self.starts[chosen],
            stops=self.stops[chosen],
        )

    def truncate(self, depth: int | None) -> "Columns":
        """The best ``depth`` passages of each list (None: all); the rows are shared."""
        if depth is None:
            return self
        return replace(self, stops=np.minimum(self.stops, self.starts + depth))

    def rows(self) -> np.ndarray | slice:
        """The rows of all lists, one list after the other."""
        if len(self.starts) and np.array_equal(self.starts[1:], self.stops[:-1]):
            return slice(int(self.starts[0]), int(self.stops[-1]))
        lengths = self.lengths
        ends = np.cumsum(lengths)
        return np.repeat(self.starts - (ends - lengths), lengths) + np.arange(lengths.sum())

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Yield ``(first, stop)`` ranges of lists with about `ROWS_AT_ONCE` rows each."""
        first, ends = 0, np.cumsum(self.lengths)
        while first < len(ends):
            before = ends[first - 1] if first else 0
            last = max(first + 1, int(np.searchsorted(ends, before + ROWS_AT_ONCE, side="right")))
            yield first, last
            first = last

    def listed(self) -> np.ndarray:
        """int32 ``[distinct listed passages]``: their codes, by first appearance in the lists."""
        is_listed = np.zeros(len(self.doc_ids), dtype=bool)
        found = [np.empty(0, dtype=np.int32)]
        for first, stop in self.blocks():
            docs = self.docs[self.lists(slice(first, stop)).rows()]
            new, first_rows = np.unique(docs[~is_listed[docs]], return_index=True)
            found.append(new[np.argsort(first_rows)])
            is_listed[new] = True
        return np.concatenate(found)

    def holds(self, docs: np.ndarray) -> np.ndarray:
        """bool ``[lists]``: whether list i has the passage ``docs[i]``, a code."""
        found = np.zeros(len(self.starts), dtype=bool)
        for first, stop in self.blocks():
            block = self.lists(slice(first, stop))
            lists = np.repeat(np.arange(first, stop), block.lengths)
            found[lists[self.docs[block.rows()] == docs[lists]]] = True
        return found

    def encode(self, doc_ids: Iterable[str]) -> Coded:
        """Encode passages with the codes of these columns; unknown ones get the next codes."""
        doc_ids = list(doc_ids)
        wanted = dict.fromkeys(doc_ids)
        code_of = {d: code for code, d in enumerate(self.doc_ids.tolist()) if d in wanted}
        unknown = [d for d in wanted if d not in code_of]
        code_of.update(zip(unknown, count(len(self.doc_ids))))
        codes = np.array([code_of[d] for d in doc_ids], dtype=np.int32)
        return Coded(codes, np.append(self.doc_ids, as_array(unknown)))

    def _first_with_repeats(self) -> np.ndarray:
        """The index of the first list with a repeated passage; int64 ``[0 or 1]``."""
        for first, last in self.blocks():
            lists = np.repeat(np.arange(first, last), self.lengths[first:last])
            docs = self.docs[self.starts[first] : self.stops[last - 1]]
            pairs = np.sort(lists * len(self.doc_ids) + docs)
            twice = pairs[1:][pairs[1:] == pairs[:-1]]
            if len(twice):
                return twice[:1] // len(self.doc_ids)
        return np.empty(0, dtype=np.int64)


def as_array(ids: list[str]) -> np.ndarray:
    """An object array of Python strings; `np.array` would build a fixed-width one."""
    array = np.empty(len(ids), dtype=object)
    array[:] = ids
    return array


def order_by_score(lists: np.ndarray, scores: np.ndarray, docs: Coded) -> np.ndarray:
    """Sort rows by list, descending score and descending doc_id, as trec_eval does."""
    return _with_ties_by_id(np.lexsort((-scores, lists)), lists, scores, docs)


def _complete(values: np.ndarray | None, lists: np.ndarray, num_lists: int) -> np.ndarray:
    """bool ``[lists]``: whether every row of the list has a value."""
    complete = np.full(num_lists, values is not None)
    if values is not None and values.dtype.kind == "f":
        complete[lists[np.isnan(values)]] = False
    return complete


def _order(
    lists: np.ndarray,
    docs: Coded,
    ranks: np.ndarray | None,
    scores: np.ndarray | None,
    by_rank: np.ndarray,
) -> np.ndarray | None:
    """The order of rows by list and rank; None if they are in that order already."""
    if by_rank.all():
        assert ranks is not None
        follows = (lists[1:] > lists[:-1]) | ((lists[1:] == lists[:-1]) & (ranks[1:] >= ranks[:-1]))
        return None if follows.all() else np.lexsort((ranks, lists))
    assert scores is not None
    if not by_rank.any():
        return order_by_score(lists, scores, docs)
    assert ranks is not None
    ranked = by_rank[lists]
    order = np.lexsort((np.where(ranked, ranks, -scores), lists))
    return _with_ties_by_id(order, lists, np.where(ranked, np.nan, scores), docs)


def _with_ties_by_id(
    order: np.ndarray, lists: np.ndarray, scores: np.ndarray, docs: Coded
) -> np.ndarray:
    """Reorder rows of equal score within a list by descending doc_id; NaN equals nothing."""
    found = scores[order]
    is_tie = (found[1:] == found[:-1]) & (lists[order[1:]] == lists[order[:-1]])
    indices = np.flatnonzero(np.append(is_tie, False) | np.append(False, is_tie))
    if len(indices):
        tied = order[indices]
        # Sorting strings is slow, so only the tied ones are sorted.
        _, alphabetic = np.unique(docs.ids[docs.codes[tied]], return_inverse=True)
        order[indices] = tied[np.lexsort((-alphabetic, -scores[tied], lists[tied]))]
    return order
