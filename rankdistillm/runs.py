"""Runs: for each query a ranked list of passages, read from and written to TREC, JSONL, Parquet."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rankdistillm.errors import InputError, check_count, quoted
from rankdistillm.files import LARGEST_SCORE, is_utf8
from rankdistillm.run_columns import Columns, read_columns
from rankdistillm.run_files import Row, at, check_ids, local_file, read_rows, write_rows


@dataclass(frozen=True, slots=True)
class RankedList:
    """The passages of one query, best first: ``doc_ids[0]`` has rank 1.

    ``scores`` is float64 ``[len(doc_ids)]`` and never increases.
    """

    doc_ids: tuple[str, ...]
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.doc_ids)

    def take(self, positions: Iterable[int]) -> "RankedList":
        """The entries at these positions (from 0), in their order."""
        positions = list(positions)
        return RankedList(tuple(self.doc_ids[i] for i in positions), self.scores[positions])


class Run(Mapping[str, RankedList]):
    """Ranked lists by ``query_id``, in the order in which the queries stand in the file.

    ``queries`` and ``docs`` hold the texts that the file itself carries (id -> text), if any.

    Raises `InputError` for what no run can be written or learnt from: an id that is not a text or
    holds half of a surrogate pair, a score that is not finite in float32.
    """

    def __init__(
        self,
        lists: Mapping[str, RankedList],
        *,
        source: str = "run",
        queries: Mapping[str, str] | None = None,
        docs: Mapping[str, str] | None = None,
    ) -> None:
        self._lists = dict(lists)
        _check_lists(self._lists, source)
        self.source = source
        self.queries = dict(queries or {})
        self.docs = dict(docs or {})

    def __getitem__(self, query_id: str) -> RankedList:
        return self._lists[query_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._lists)

    def __len__(self) -> int:
        return len(self._lists)

    def __repr__(self) -> str:
        return f"Run({self.source!r}, {len(self)} queries)"

    @classmethod
    def read(cls, source: str | Path, *, queries: set[str] | None = None) -> "Run":
        """Read a run from a file or from the ``scoreddocs`` of an ir_datasets id.

        The suffix tells the format: ``.parquet``, ``.jsonl`` / ``.json``, anything else TREC
        (six columns separated by white space); a ``.tsv`` may start with a line of column names.
        All but Parquet may be gzipped. ``queries`` keeps only these queries.

        Raises `InputError` with file and line for a wrong number of columns, a rank that is not a
        whole number, a score that is not a finite one (both in the digits 0 to 9), a passage that
        stands twice in a list, ranks that contradict the scores, and a file without entries.
        """
        path = local_file(source)
        if path.suffix == ".parquet" and path.exists() and (columns := read_columns(path)):
            lists = _lists_of(columns, queries)
            if lists:
                return cls({}, source=str(source))._with(lists)
        rows: dict[str, list[Row]] = {}
        texts: tuple[dict[str, str], dict[str, str]] = ({}, {})
        for row in read_rows(source):
            if queries is not None and row.query_id not in queries:
                continue
            rows.setdefault(row.query_id, []).append(row)
            if row.query is not None:
                texts[0][row.query_id] = row.query
            if row.text is not None:
                texts[1][row.doc_id] = row.text
        if not rows:
            raise InputError(f"{source}: the run is empty; expected at least one ranked passage")
        lists = {query_id: _ranked(listed, source) for query_id, listed in rows.items()}
        return cls({}, source=str(source), queries=texts[0], docs=texts[1])._with(lists)

    @classmethod
    def from_scores(
        cls, scores: Mapping[str, Mapping[str, float]], *, source: str = "run"
    ) -> "Run":
        """Rank by score as trec_eval does: highest first, equal scores by descending doc_id."""
        lists = {}
        for query_id, scored in scores.items():
            best_first = sorted(scored, key=lambda d: (scored[d], d), reverse=True)
            values = np.array([scored[doc_id] for doc_id in best_first], dtype=np.float64)
            lists[query_id] = RankedList(tuple(best_first), values)
        return cls(lists, source=source)

    def write(self, path: str | Path, *, tag: str = "rankdistillm") -> None:
        """Write as TREC, JSONL or Parquet, as the suffix says; no half file is left on an error.

        Scores are rounded to float32. Raises `InputError` as `check_writable` does.
        """
        self.check_writable(path)
        rows = (
            (query_id, doc_id, rank, float(score))
            for query_id, ranked in self.items()
            for rank, (doc_id, score) in enumerate(
                zip(ranked.doc_ids, ranked.scores, strict=True), 1
            )
        )
        write_rows(Path(path), rows, tag)

    def digest(self) -> str:
        """A name of the ranked lists: the ids and their order, without scores and texts."""
        digest = hashlib.blake2b(digest_size=8)
        for query_id, ranked in self.items():
            digest.update("\t".join((query_id, *ranked.doc_ids, "\n")).encode("utf-8", "replace"))
        return digest.hexdigest()

    def check_writable(self, path: str | Path) -> None:
        """Raises `InputError` where `write` to ``path`` would, for ids that its format lacks."""
        check_ids(Path(path), self)
        for ranked in self.values():
            check_ids(Path(path), ranked.doc_ids)

    def truncate(self, depth: int | None) -> "Run":
        """Keep the best ``depth`` passages of each list (all for None)."""
        check_count("depth", depth, optional=True)
        if depth is None:
            return self
        return self._with(
            {q: ranked.take(range(len(ranked))[:depth]) for q, ranked in self.items()}
        )

    def within(self, first_stage: "Run", depth: int | None) -> "Run":
        """Keep the passages that ``first_stage`` has in its top ``depth``, in this run's order.

        This is how a teacher run is sub-sampled: the depth counts in the first-stage run that the
        teacher re-ranked, not in the teacher's own ranking. Queries that ``first_stage`` lacks or
        that keep no passage are an `InputError`, since the two runs do not belong together.
        """
        check_count("depth", depth, optional=True)
        lists = {}
        for query_id, ranked in self.items():
            if query_id not in first_stage:
                raise InputError(
                    f"{self.where(query_id)}: query {quoted(query_id)} is not in the first-stage "
                    f"run {first_stage.source}; give the run that the teacher re-ranked"
                )
            kept = set(first_stage[query_id].doc_ids[:depth])
            lists[query_id] = ranked.take(i for i, d in enumerate(ranked.doc_ids) if d in kept)
            if not lists[query_id]:
                raise InputError(
                    f"{self.where(query_id)}: no passage of query {quoted(query_id)} is in the top "
                    f"{depth} of {first_stage.source}; give the run that the teacher re-ranked"
                )
        return self._with(lists)

    def sample_queries(self, num_queries: int | None, seed: int) -> "Run":
        """Keep ``num_queries`` queries, drawn without replacement (all for None).

        For one seed the samples are nested: the 1,000 queries are among the 2,000, so that a study
        over sizes varies the size alone.
        """
        check_count("num_queries", num_queries, optional=True)
        if num_queries is None or num_queries >= len(self):
            return self
        shuffled = np.random.default_rng(seed).permutation(sorted(self))
        drawn = set(shuffled[:num_queries].tolist())
        return self._with({q: ranked for q, ranked in self.items() if q in drawn})

    def with_relevant(self, qrels: Mapping[str, Mapping[str, int]]) -> "Run":
        """Append to each list the judged positives that it lacks, below its last passage."""
        lists = {}
        for query_id, ranked in self.items():
            ranked_ids = set(ranked.doc_ids)
            judged = qrels.get(query_id, {})
            missing = tuple(d for d, r in judged.items() if r > 0 and d not in ranked_ids)
            below = ranked.scores[-1] - np.arange(1.0, len(missing) + 1)
            scores = np.concatenate([ranked.scores, below])
            lists[query_id] = RankedList(ranked.doc_ids + missing, scores)
        return self._with(lists)

    def select(self, queries: Iterable[str]) -> "Run":
        """Keep these queries (those that the run has), in this run's order."""
        wanted = set(queries)
        return self._with({q: ranked for q, ranked in self.items() if q in wanted})

    def where(self, query_id: str, doc_id: str | None = None) -> str:
        """``file, line N`` of an entry, for error messages.

        It reads the file again: cheaper than to keep a line number for each of millions of rows.
        """
        try:
            for row in read_rows(self.source):
                if row.query_id == query_id and doc_id in (None, row.doc_id):
                    return at(self.source, row.line)
        except InputError:
            pass  # not read from a file
        return self.source

    def _with(self, lists: dict[str, RankedList]) -> "Run":
        """The same with other lists, whose ids and scores have been checked."""
        run = copy(self)
        run._lists = lists
        return run


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


def _lists_of(columns: Columns, queries: set[str] | None) -> dict[str, RankedList]:
    """The ranked lists of these queries (None: of all); equal doc_ids are one string."""
    distinct = np.array(columns.distinct_doc_ids, dtype=object)
    lists = {}
    for query_id, start, stop in zip(
        columns.query_ids, columns.starts[:-1], columns.starts[1:], strict=True
    ):
        if queries is None or query_id in queries:
            doc_ids = tuple(distinct[columns.doc_ids[start:stop]].tolist())
            lists[query_id] = RankedList(doc_ids, columns.scores[start:stop].copy())
    return lists


def _ranked(rows: list[Row], source: str | Path) -> RankedList:
    """Order one query's rows by rank (by score where there are no ranks) and check them."""
    has_ranks = all(row.rank is not None for row in rows)
    has_scores = all(row.score is not None for row in rows)
    if not has_ranks and not has_scores:
        raise InputError(
            f"{at(source, rows[0].line)}: some passages of query {quoted(rows[0].query_id)} have "
            "a rank only and some a score only; fill one of the two columns"
        )
    if has_ranks:
        rows.sort(key=lambda row: row.rank or 0)
    else:  # as trec_eval: equal scores by descending doc_id
        rows.sort(key=lambda row: (row.score, row.doc_id), reverse=True)
    seen: set[str] = set()
    for i, row in enumerate(rows):
        if row.doc_id in seen:
            raise InputError(
                f"{at(source, row.line)}: passage {quoted(row.doc_id)} stands twice in the list of "
                f"query {quoted(row.query_id)}; keep one of the two lines"
            )
        seen.add(row.doc_id)
        if i and has_ranks and has_scores:
            _check_order(rows[i - 1], row, source)
    if has_scores:
        scores = np.array([row.score for row in rows], dtype=np.float64)
    else:
        scores = -np.arange(1.0, len(rows) + 1)
    return RankedList(tuple(row.doc_id for row in rows), scores)


def _check_order(above: Row, row: Row, source: str | Path) -> None:
    assert above.score is not None
    assert row.score is not None
    if row.score > above.score or (row.rank == above.rank and row.score != above.score):
        raise InputError(
            f"{at(source, row.line)}: rank {row.rank} with score {row.score:g} contradicts rank "
            f"{above.rank} with score {above.score:g} of the same query; scores must fall as ranks "
            "rise: correct one of the two columns"
        )
