"""Runs: a ranked list of passages for each query."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import compress
from pathlib import Path

import numpy as np

from rankdistillm.data import catalogue
from rankdistillm.data.columns import Coded, Columns, UnsoundListError, order_by_score
from rankdistillm.data.files import LARGEST_SCORE, is_utf8
from rankdistillm.data.formats import check_ids, read_columns, read_rows, write_run
from rankdistillm.data.rows import Row, at, columns_of, refuse_list
from rankdistillm.errors import InputError, check_count, quoted


@dataclass(frozen=True, slots=True)
class RankedList:
    """The passages of one query, best first: ``doc_ids[0]`` has rank 1.

    ``scores`` is float64 ``[len(doc_ids)]`` and never increases; NaN, at the end of a list, marks a
    passage that was added without a rank (`Run.with_relevant`).
    """

    doc_ids: tuple[str, ...]
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.doc_ids)

    def take(self, indices: Iterable[int]) -> "RankedList":
        """The entries at these indices (from 0), in their order."""
        indices = list(indices)
        return RankedList(tuple(self.doc_ids[i] for i in indices), self.scores[indices])


class Run(Mapping[str, RankedList]):
    """Ranked lists by ``query_id``, in file order.

    The lists are stored as columns (`rankdistillm.data.columns`); a `RankedList` is built when it
    is accessed. ``queries`` and ``docs`` hold the texts that the file itself carries, id -> text.

    Raises `InputError` for an id that is not valid text and for a score that is not finite in
    float32.
    """

    def __init__(
        self,
        lists: Mapping[str, RankedList],
        *,
        source: str = "run",
        queries: Mapping[str, str] | None = None,
        docs: Mapping[str, str] | None = None,
    ) -> None:
        for query_id, ranked in lists.items():
            if len(ranked.doc_ids) != len(ranked.scores):
                raise ValueError(
                    f"query {query_id}: {len(ranked.doc_ids)} passages, {len(ranked.scores)} scores"
                )
        _check_lists(lists, source)
        coded = Coded.of(doc_id for ranked in lists.values() for doc_id in ranked.doc_ids)
        scores = np.concatenate([np.empty(0), *(ranked.scores for ranked in lists.values())])
        self._columns = Columns.from_lists(lists, map(len, lists.values()), coded, scores)
        self.source = source
        self.queries = dict(queries or {})
        self.docs = dict(docs or {})

    @classmethod
    def _of(
        cls,
        columns: Columns,
        source: str,
        queries: Mapping[str, str] | None = None,
        docs: Mapping[str, str] | None = None,
    ) -> "Run":
        run = cls({}, source=source, queries=queries, docs=docs)
        run._columns = columns
        return run

    def __getitem__(self, query_id: str) -> RankedList:
        columns, i = self._columns, self._index[query_id]
        rows = slice(columns.starts[i], columns.stops[i])
        doc_ids = tuple(columns.doc_ids[columns.docs[rows]].tolist())
        return RankedList(doc_ids, columns.scores[rows].astype(np.float64))

    def __contains__(self, query_id: object) -> bool:
        return query_id in self._index

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns.query_ids.tolist())

    def __len__(self) -> int:
        return len(self._columns.query_ids)

    def __repr__(self) -> str:
        return f"Run({self.source!r}, {len(self)} queries)"

    @cached_property
    def _index(self) -> dict[str, int]:
        return {query_id: i for i, query_id in enumerate(self)}

    @property
    def lengths(self) -> np.ndarray:
        """int64 ``[queries]``: passages in each list."""
        return self._columns.lengths

    def doc_ids(self) -> list[str]:
        """The ids of all passages, without repeats."""
        columns = self._columns
        is_listed = np.zeros(len(columns.doc_ids), dtype=bool)
        is_listed[columns.docs[columns.rows()]] = True
        return columns.doc_ids[is_listed].tolist()

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Yield ``(query_id, doc_id)`` of all rows, list by list, best passage first."""
        for query_id, doc_ids in self._lists():
            for doc_id in doc_ids:
                yield query_id, doc_id

    def _lists(self) -> Iterator[tuple[str, list[str]]]:
        """Yield each query with its doc_ids, decoded in blocks: faster than list by list."""
        columns = self._columns
        for first, stop in columns.blocks():
            block = columns.lists(slice(first, stop))
            doc_ids = columns.doc_ids[columns.docs[block.rows()]].tolist()
            ends = np.cumsum(block.lengths).tolist()
            for query_id, start, end in zip(block.query_ids, [0, *ends[:-1]], ends, strict=True):
                yield query_id, doc_ids[start:end]

    def listed_relevance(self, qrels: Mapping[str, Mapping[str, int]]) -> dict[str, list[int]]:
        """For each query, the relevance of the judged passages in its list, 0 if negative."""
        judged = [
            (i, doc_id, max(0, relevance))
            for i, query_id in enumerate(self)
            for doc_id, relevance in qrels.get(query_id, {}).items()
        ]
        lists = np.array([i for i, _, _ in judged], dtype=np.int64)
        docs = self._columns.encode(doc_id for _, doc_id, _ in judged)
        is_listed = self._columns.lists(lists).holds(docs.codes)
        found: list[list[int]] = [[] for _ in self]
        for i, _, relevance in compress(judged, is_listed):
            found[i].append(relevance)
        return dict(zip(self, found, strict=True))

    @classmethod
    def read(cls, source: str | Path, *, queries: set[str] | None = None) -> "Run":
        """Read a run from a file or from the ``scoreddocs`` of an ir_datasets id.

        The suffix names the format: ``.parquet``, ``.jsonl`` / ``.json``, else TREC (six columns
        separated by white space). A ``.tsv`` may start with a header line. All but Parquet may be
        gzipped. ``queries`` keeps only these queries.

        Raises `InputError` with file and line for a wrong number of columns, a rank that is not an
        integer, a score that is not finite, a passage that is repeated in a list, ranks that
        contradict the scores, and an empty file.
        """
        file = catalogue.local_run(source)
        if file.exists():
            read = read_columns(file, queries)
        else:
            read = columns_of(catalogue.scored_docs(str(source)), queries)
        if not len(read.queries.codes):
            raise InputError(f"{source}: the run is empty; expected at least one ranked passage")
        try:
            columns = Columns.from_rows(read.queries, read.docs, read.ranks, read.scores)
        except UnsoundListError as error:
            refuse_list(_rows(source), error.query_id, source)
        return cls._of(columns, str(source), read.query_texts, read.doc_texts)

    @classmethod
    def from_columns(cls, columns: Columns, *, source: str = "run") -> "Run":
        """A run of ranked lists that are columns already."""
        return cls._of(columns, source)

    @classmethod
    def from_scores(
        cls, scores: Mapping[str, Mapping[str, float]], *, source: str = "run"
    ) -> "Run":
        """Rank by score as trec_eval does: highest first, equal scores by descending doc_id."""
        unranked = cls(
            {
                query_id: RankedList(tuple(scored), np.array(list(scored.values()), np.float64))
                for query_id, scored in scores.items()
            },
            source=source,
        )
        return unranked.with_scores(unranked._columns.scores, source=source)

    def with_scores(self, scores: np.ndarray, *, source: str) -> "Run":
        """The same passages, ranked by other scores as `from_scores` does.

        ``scores`` ``[rows]``: list by list, in the order of `pairs`.
        """
        columns = self._columns
        lists = np.repeat(np.arange(len(self)), columns.lengths)
        docs = columns.docs[columns.rows()]
        order = order_by_score(lists, scores, Coded(docs, columns.doc_ids))
        ranked = Coded(docs[order], columns.doc_ids)
        return self._of(
            Columns.from_lists(
                columns.query_ids, columns.lengths, ranked, scores[order].astype(np.float64)
            ),
            source,
        )

    def write(self, path: str | Path, *, tag: str = "rankdistillm") -> None:
        """Write as TREC, JSONL or Parquet, by suffix; an error leaves no partial file.

        Scores are rounded to float32. Raises `InputError` as `check_writable` does.
        """
        self.check_writable(path)
        write_run(Path(path), self._columns, tag)

    def digest(self, *, scores: bool = False) -> str:
        """A hash of the ids and their order, and with ``scores`` of these; texts do not count.

        Each id is hashed once and the lists as codes, because looking up the id of every row takes
        several times as long. Passages are numbered by first appearance in the lists, because the
        codes of equal runs may differ.
        """
        columns = self._columns
        listed = columns.listed()
        number_of = np.empty(len(columns.doc_ids), dtype=np.int32)
        number_of[listed] = np.arange(len(listed))
        digest = hashlib.blake2b(digest_size=8)
        for ids in (columns.query_ids, columns.doc_ids[listed]):
            # The lengths distinguish the ids "ab", "c" from "a", "bc".
            digest.update(np.array([len(ids), *map(len, ids)], dtype=np.int64).tobytes())
            digest.update("".join(ids).encode())
        digest.update(columns.lengths.tobytes())
        for first, stop in columns.blocks():
            rows = columns.lists(slice(first, stop)).rows()
            digest.update(number_of[columns.docs[rows]].tobytes())
            if scores:
                digest.update(columns.scores[rows].astype(np.float64).tobytes())
        return digest.hexdigest()

    def check_writable(self, path: str | Path) -> None:
        """Raises `InputError` if `write` could not write the ids in the format of ``path``."""
        check_ids(Path(path), self)
        check_ids(Path(path), self.doc_ids())

    def truncate(self, depth: int | None) -> "Run":
        """Keep the best ``depth`` passages of each list (all for None)."""
        check_count("depth", depth, optional=True)
        if depth is None or not (self.lengths > depth).any():
            return self
        return self._with(self._columns.truncate(depth))

    def within(self, first_stage: "Run", depth: int | None) -> "Run":
        """Keep the passages that ``first_stage`` has in its top ``depth``, in this run's order.

        Use this to sub-sample a teacher run: the depth counts in the first-stage run that the
        teacher re-ranked, not in the teacher's own ranking. Raises `InputError` for a query that
        ``first_stage`` lacks or that keeps no passage: the two runs do not belong together.
        """
        check_count("depth", depth, optional=True)
        for query_id in self:
            if query_id not in first_stage:
                raise InputError(
                    f"{self.where(query_id)}: query {quoted(query_id)} is not in the first-stage "
                    f"run {first_stage.source}; give the run that the teacher re-ranked"
                )
        columns = self._columns
        indices = np.array([first_stage._index[query_id] for query_id in self], dtype=np.int64)
        top = first_stage._columns.lists(indices).truncate(depth)
        # Both dictionaries may be those of much larger runs.
        own = Coded(columns.docs[columns.rows()], columns.doc_ids).compact()
        theirs = Coded(top.docs[top.rows()], top.doc_ids).compact()
        code_of = {doc_id: code for code, doc_id in enumerate(theirs.ids.tolist())}
        translation = np.array([code_of.get(d, -1) for d in own.ids.tolist()], dtype=np.int32)
        # For each passage, the last list that had it in its top. The last entry stands for the
        # passages that are in no top.
        seen_in = np.full(len(theirs.ids) + 1, -1)
        kept = []
        lists = np.split(own.codes, np.cumsum(columns.lengths)[:-1])
        tops = np.split(theirs.codes, np.cumsum(top.lengths)[:-1])
        for i, (query_id, listed, wanted) in enumerate(zip(self, lists, tops, strict=False)):
            seen_in[wanted] = i
            kept.append(seen_in[translation[listed]] == i)
            if not kept[-1].any():
                raise InputError(
                    f"{self.where(query_id)}: no passage of query {quoted(query_id)} is in the top "
                    f"{depth} of {first_stage.source}; give the run that the teacher re-ranked"
                )
        is_kept = np.concatenate([np.empty(0, dtype=bool), *kept])
        lengths = [int(flags.sum()) for flags in kept]
        docs = Coded(own.codes[is_kept], own.ids)
        scores = columns.scores[columns.rows()][is_kept]
        return self._with(Columns.from_lists(columns.query_ids, lengths, docs, scores))

    def sample_queries(self, num_queries: int | None, seed: int) -> "Run":
        """Keep ``num_queries`` queries, drawn without replacement (all for None).

        For one seed the samples are nested (the 1,000 queries are among the 2,000), so that a study
        over sizes varies only the size.
        """
        check_count("num_queries", num_queries, optional=True)
        if num_queries is None or num_queries >= len(self):
            return self
        shuffled = np.random.default_rng(seed).permutation(sorted(self))
        return self.select(shuffled[:num_queries].tolist())

    def with_relevant(self, qrels: Mapping[str, Mapping[str, int]]) -> "Run":
        """Append the judged positives that a list lacks, with NaN scores: they are not ranked."""
        columns = self._columns
        positives = [
            (i, doc_id)
            for i, query_id in enumerate(self)
            for doc_id, relevance in qrels.get(query_id, {}).items()
            if relevance > 0
        ]
        lists = np.array([i for i, _ in positives], dtype=np.int64)
        docs = columns.encode(doc_id for _, doc_id in positives)
        is_missing = ~columns.lists(lists).holds(docs.codes)
        lists, missing = lists[is_missing], docs.codes[is_missing]
        rows, ends = columns.rows(), np.cumsum(columns.lengths)[lists]
        return self._with(
            Columns.from_lists(
                columns.query_ids,
                columns.lengths + np.bincount(lists, minlength=len(self)),
                Coded(np.insert(columns.docs[rows], ends, missing), docs.ids),
                np.insert(columns.scores[rows].astype(np.float64), ends, np.nan),
            )
        )

    def ranked(self) -> "Run":
        """Without the passages that have no rank (`with_relevant`)."""
        columns = self._columns
        rows = columns.rows()
        scores = columns.scores[rows]
        kept = ~np.isnan(scores)
        if kept.all():
            return self
        lists = np.repeat(np.arange(len(self)), columns.lengths)
        return self._with(
            Columns.from_lists(
                columns.query_ids,
                np.bincount(lists[kept], minlength=len(self)),
                Coded(columns.docs[rows][kept], columns.doc_ids),
                scores[kept],
            )
        )

    def select(self, queries: Iterable[str]) -> "Run":
        """Keep these queries, in this run's order; unknown queries are ignored."""
        index = self._index
        kept = np.array(sorted(index[q] for q in set(queries) if q in index), dtype=np.int64)
        return self._with(self._columns.lists(kept))

    def where(self, query_id: str, doc_id: str | None = None) -> str:
        """``file, line N`` of an entry, for error messages.

        Reads the file again, which is cheaper than keeping a line number for every row.
        """
        try:
            for row in _rows(self.source):
                if row.query_id == query_id and doc_id in (None, row.doc_id):
                    return at(self.source, row.line)
        except InputError:
            pass  # the run was not read from a file
        return self.source

    def _with(self, columns: Columns) -> "Run":
        return self._of(columns, self.source, self.queries, self.docs)


def _rows(source: str | Path) -> Iterator[Row]:
    """The rows of a run file or ir_datasets id, in their order."""
    file = catalogue.local_run(source)
    return read_rows(file) if file.exists() else catalogue.scored_docs(str(source))


def _check_lists(lists: Mapping[str, RankedList], source: str) -> None:
    for query_id, ranked in lists.items():
        try:
            sound = is_utf8(query_id) and is_utf8("".join(ranked.doc_ids))
        except (AttributeError, TypeError):  # not a text
            sound = False
        if not sound:
            ids = (query_id, *ranked.doc_ids)
            wrong = next(i for i in ids if not isinstance(i, str) or not is_utf8(i))
            raise InputError(
                f"{source}: the id {quoted(repr(wrong))} of query {quoted(query_id)} is not a text "
                "that can be written; give each query and passage one"
            )
        inside = np.abs(ranked.scores) <= LARGEST_SCORE
        if not inside.all():
            raise InputError(
                f"{source}: the score {ranked.scores[~inside][0]} of query {quoted(query_id)} is "
                "not finite in float32; give each passage a number"
            )
