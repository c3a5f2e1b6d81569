"""Large runs in Parquet, read column by column: a hundred million rows in minutes and memory."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from rankdistillm.files import LARGEST_SCORE
from rankdistillm.run_files import parquet_columns


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

    None where a look at each row is called for: texts in the file, numbers as texts or decimals, a
    value that is missing or that no run may hold, a passage that stands twice, ranks that
    contradict the scores, a damaged file. Raises `InputError` as
    `rankdistillm.run_files.parquet_columns` does.
    """
    import pyarrow
    import pyarrow.parquet
    from pyarrow import types

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = parquet_columns(file.schema_arrow, path)
            if "query" in names or "text" in names:
                return None
            table = file.read(columns=list(names.values()))
        columns = {name: table[found] for name, found in names.items()}
        if table.num_rows == 0 or any(column.null_count for column in columns.values()):
            return None
        encoded = {
            name: columns[name].cast(pyarrow.large_string()).combine_chunks().dictionary_encode()
            for name in ("query_id", "doc_id")
        }
        for ids in encoded.values():
            ids.dictionary.validate(full=True)  # a text need not be UTF-8
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError):
        return None
    numbers = {name: columns[name] for name in ("rank", "score") if name in columns}
    kinds = [column.type for column in numbers.values()]
    if not all(types.is_integer(kind) or types.is_floating(kind) for kind in kinds):
        return None
    queries, docs = (encoded[name].indices.to_numpy() for name in ("query_id", "doc_id"))
    distinct = encoded["doc_id"].dictionary.to_numpy(zero_copy_only=False)
    rank = numbers["rank"].to_numpy() if "rank" in numbers else None
    score = numbers["score"].to_numpy().astype(np.float64) if "score" in numbers else None
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
        scores = score[order]
    if not _sound(queries, docs, None if rank is None else rank[order], scores):
        return None
    query_ids = encoded["query_id"].dictionary.to_pylist()
    return Columns(
        [query_ids[code] for code in queries[starts[:-1]]], starts, docs, distinct, scores
    )


def _sound(
    queries: np.ndarray, docs: np.ndarray, rank: np.ndarray | None, scores: np.ndarray
) -> bool:
    """Scores that float32 holds and that never rise, whole ranks, no passage twice in a list."""
    same = queries[1:] == queries[:-1]
    if not (np.abs(scores) <= LARGEST_SCORE).all() or (same & (scores[1:] > scores[:-1])).any():
        return False
    if rank is not None:
        number = rank.astype(np.float64)
        if not ((np.abs(number) < 2.0**63) & (number == np.floor(number))).all():
            return False
        if (same & (rank[1:] == rank[:-1]) & (scores[1:] != scores[:-1])).any():
            return False
    pairs = np.sort(queries.astype(np.int64) * (int(docs.max()) + 1) + docs)
    return not (pairs[1:] == pairs[:-1]).any()
