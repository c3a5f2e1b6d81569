"""Large runs in Parquet, read column by column: a hundred million rows in minutes and memory."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rankdistillm.run_files import column_positions


class Columns(NamedTuple):
    """A whole Parquet run, its rows grouped by query and best first within each.

    Query ``query_ids[i]`` has the rows ``starts[i]`` to ``starts[i + 1]``; ``doc_ids`` ``[rows]``
    holds positions in ``distinct_doc_ids``, ``scores`` ``[rows]`` is float64.
    """

    query_ids: list[str]
    starts: np.ndarray
    doc_ids: np.ndarray
    distinct_doc_ids: np.ndarray
    scores: np.ndarray


def read_columns(path: Path) -> Columns | None:
    """Read a Parquet run; its rows are never made.

    None where a look at each row is called for: texts in the file, a value that is missing, not a
    number or not finite, a passage that stands twice, ranks that contradict the scores.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(path)
        names = column_positions(schema.names, str(path))
        if "query" in names or "text" in names:
            return None
        table = pyarrow.parquet.read_table(path, columns=[schema.names[i] for i in names.values()])
        columns = {name: table[schema.names[i]].combine_chunks() for name, i in names.items()}
        if table.num_rows == 0 or any(column.null_count for column in columns.values()):
            return None
        if not all(_is_id(columns[name].type) for name in ("query_id", "doc_id")):
            return None
        encoded = {
            name: columns[name].cast(pyarrow.large_string()).dictionary_encode()
            for name in ("query_id", "doc_id")
        }
    except (pyarrow.ArrowException, OSError):
        return None
    numbers = {name: columns[name].to_numpy() for name in ("rank", "score") if name in columns}
    if any(not np.issubdtype(values.dtype, np.number) for values in numbers.values()):
        return None
    queries, docs = (encoded[name].indices.to_numpy() for name in ("query_id", "doc_id"))
    distinct = encoded["doc_id"].dictionary.to_numpy(zero_copy_only=False)
    rank, score = numbers.get("rank"), numbers.get("score")
    if rank is not None:
        order = np.lexsort((rank, queries))
    else:  # as trec_eval: equal scores by descending doc_id
        assert score is not None
        place = np.empty(len(distinct), dtype=np.int64)
        place[np.argsort(distinct)] = np.arange(len(distinct))
        order = np.lexsort((-place[docs], -score, queries))
    queries, docs = queries[order], docs[order]
    starts = np.flatnonzero(np.r_[True, queries[1:] != queries[:-1], True])
    if score is None:
        scores = -(np.arange(len(docs)) - np.repeat(starts[:-1], np.diff(starts)) + 1.0)
    else:
        scores = score[order].astype(np.float64)
    if not _sound(queries, docs, None if rank is None else rank[order], scores):
        return None
    query_ids = encoded["query_id"].dictionary.to_pylist()
    return Columns(
        [query_ids[code] for code in queries[starts[:-1]]], starts, docs, distinct, scores
    )


def _is_id(kind: Any) -> bool:
    """Whether values of this type of pyarrow's are ids, as `rankdistillm.files.text_of` has it."""
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    checks = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)
    return any(check(kind) for check in (*checks, types.is_integer))


def _sound(
    queries: np.ndarray, docs: np.ndarray, rank: np.ndarray | None, scores: np.ndarray
) -> bool:
    """Finite scores that never rise, whole ranks, no passage twice in the list of a query."""
    same = queries[1:] == queries[:-1]
    if not np.isfinite(scores).all() or (same & (scores[1:] > scores[:-1])).any():
        return False
    if rank is not None:
        if not np.isfinite(rank).all() or (rank != np.floor(rank)).any():
            return False
        if (same & (rank[1:] == rank[:-1]) & (scores[1:] != scores[:-1])).any():
            return False
    pairs = np.sort(queries.astype(np.int64) * (int(docs.max()) + 1) + docs)
    return not (pairs[1:] == pairs[:-1]).any()
