"""A row of a run file: the names of its columns, and its values, checked."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from rankdistillm.data.columns import Coded
from rankdistillm.data.files import integer_of, score_of, text_of
from rankdistillm.errors import InputError, quoted

# The spellings of each column in files of other tools; the first one is ours.
SPELLINGS = {
    "query_id": ("query_id", "qid"),
    "doc_id": ("doc_id", "docid", "docno"),
    "rank": ("rank",),
    "score": ("score",),
    "query": ("query",),
    "text": ("text",),
}
IDS, NUMBERS = ("query_id", "doc_id"), ("rank", "score")


class Row(NamedTuple):
    """One ranked passage; ``line`` is its line or row in the file, from 1."""

    line: int
    query_id: str
    doc_id: str
    rank: int | None
    score: float | None
    query: str | None = None
    text: str | None = None


class RunRows(NamedTuple):
    """The rows of a run file as columns, in the file's order.

    ``ranks``, ``scores``: ``[rows]``, NaN for a row without one, None if no row has one.
    ``query_texts``, ``doc_texts``: the texts in the file, id -> text.
    """

    queries: Coded
    docs: Coded
    ranks: np.ndarray | None
    scores: np.ndarray | None
    query_texts: dict[str, str]
    doc_texts: dict[str, str]


def at(source: str | Path, line: int) -> str:
    """``file, line N``, the start of every message about a row."""
    return f"{source}, line {line}"


def column_positions(found: list[str], where: str) -> dict[str, int]:
    """Map our column names to their indices in ``found``, which may spell them differently.

    Raises `InputError` for a missing and for a repeated column.
    """
    positions = {
        name: found.index(spelling)
        for name, spellings in SPELLINGS.items()
        for spelling in spellings
        if spelling in found
    }
    for name in IDS:
        if name not in positions:
            raise InputError(
                f"{where}: no column {' or '.join(SPELLINGS[name])} among "
                f"{quoted(', '.join(found))}; rename one"
            )
    if "rank" not in positions and "score" not in positions:
        raise InputError(
            f"{where}: neither a rank nor a score among {quoted(', '.join(found))}; add one"
        )
    for i in positions.values():
        if found.count(found[i]) > 1:
            raise InputError(f"{where}: the column {found[i]} appears twice; remove one")
    return positions


def row_of(line: int, record: Mapping[str, Any], where: str) -> Row:
    """Build a row from a record by column name. Raises `InputError` for an invalid value."""
    for name in IDS:
        if record[name] is None:
            raise InputError(f"{where}: the {name} has no value; give one")
    rank, score = record.get("rank"), record.get("score")
    if rank is None and score is None:
        raise InputError(f"{where}: neither rank nor score has a value; give one of them")
    query, text = record.get("query"), record.get("text")
    return Row(
        line,
        text_of(record["query_id"], "query_id", where),
        text_of(record["doc_id"], "doc_id", where),
        None if rank is None else integer_of(rank, "rank", where),
        None if score is None else score_of(score, "score", where),
        None if query is None else text_of(query, "query", where),
        None if text is None else text_of(text, "text", where),
    )


def columns_of(rows: Iterable[Row], queries: set[str] | None = None) -> RunRows:
    """Collect rows into columns; ``queries`` keeps only these queries."""
    query_ids, doc_ids, ranks, scores = [], [], [], []
    query_texts, doc_texts = {}, {}
    for row in rows:
        if queries is not None and row.query_id not in queries:
            continue
        query_ids.append(row.query_id)
        doc_ids.append(row.doc_id)
        ranks.append(row.rank)
        scores.append(row.score)
        if row.query is not None:
            query_texts[row.query_id] = row.query
        if row.text is not None:
            doc_texts[row.doc_id] = row.text
    return RunRows(
        Coded.of(query_ids),
        Coded.of(doc_ids),
        _rank_column(ranks),
        _score_column(scores),
        query_texts,
        doc_texts,
    )


def _rank_column(ranks: list[int | None]) -> np.ndarray | None:
    """Ranks as int64; if some are missing, floats that order alike, with NaN for the missing."""
    present = np.array([rank is not None for rank in ranks], dtype=bool)
    numbers = np.array([rank for rank in ranks if rank is not None], dtype=np.int64)
    if present.all() or not present.any():
        return numbers if len(numbers) else None
    # Floats cannot tell large ranks apart, so number the distinct ranks.
    ordinals = np.full(len(ranks), np.nan)
    ordinals[present] = np.unique(numbers, return_inverse=True)[1]
    return ordinals


def _score_column(scores: list[float | None]) -> np.ndarray | None:
    numbers = np.array(scores, dtype=np.float64)  # None becomes NaN
    return None if np.isnan(numbers).all() else numbers


def refuse_list(rows: Iterable[Row], query_id: str, source: str | Path) -> NoReturn:
    """Raise the `InputError` for the first faulty line of an inconsistent list."""
    rows = [row for row in rows if row.query_id == query_id]
    has_ranks = all(row.rank is not None for row in rows)
    has_scores = all(row.score is not None for row in rows)
    if not has_ranks and not has_scores:
        raise InputError(
            f"{at(source, rows[0].line)}: some passages of query {quoted(query_id)} have a rank "
            "only and some a score only; fill one of the two columns"
        )
    if has_ranks:
        rows.sort(key=lambda row: row.rank or 0)
    else:
        rows.sort(key=lambda row: (row.score, row.doc_id), reverse=True)
    seen: set[str] = set()
    for above, row in zip([rows[0], *rows], rows, strict=False):
        if row.doc_id in seen:
            raise InputError(
                f"{at(source, row.line)}: passage {quoted(row.doc_id)} appears twice in the list "
                f"of query {quoted(query_id)}; keep one of the two lines"
            )
        seen.add(row.doc_id)
        if has_ranks and has_scores:
            _check_order(above, row, source)
    raise AssertionError(f"{source}: query {query_id} has no fault")


def _check_order(above: Row, row: Row, source: str | Path) -> None:
    assert row.score is not None
    assert above.score is not None
    if row.score > above.score or (row.rank == above.rank and row.score != above.score):
        raise InputError(
            f"{at(source, row.line)}: rank {row.rank} with score {row.score:g} contradicts rank "
            f"{above.rank} with score {above.score:g} of the same query; scores must fall as ranks "
            "rise: correct one of the two columns"
        )
