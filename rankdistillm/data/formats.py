"""The file formats of runs: TREC, JSONL and Parquet, read into and written from columns."""

import gzip
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from rankdistillm.data import parquet
from rankdistillm.data.columns import Coded, Columns
from rankdistillm.data.files import integer_of, json_lines, numbered_lines, score_of, suffix_of
from rankdistillm.data.outputs import replacing
from rankdistillm.data.rows import SPELLINGS, Row, RunRows, at, column_positions, columns_of, row_of
from rankdistillm.errors import InputError, quoted

TREC_COLUMNS = "query_id Q0 doc_id rank score tag"


def read_columns(path: Path, queries: set[str] | None = None) -> RunRows:
    """Read a run file into columns; ``queries`` keeps only these queries.

    Raises `InputError` with file and line for a malformed row.
    """
    if suffix_of(path) == ".parquet" and (columns := parquet.read_columns(path)):
        return columns if queries is None else _of_queries(columns, queries)
    return columns_of(read_rows(path), queries)


def _of_queries(columns: RunRows, queries: set[str]) -> RunRows:
    is_kept = np.array([query_id in queries for query_id in columns.queries.ids], dtype=bool)
    rows = np.flatnonzero(is_kept[columns.queries.codes])
    renumbered = np.cumsum(is_kept, dtype=np.int32) - 1
    return columns._replace(
        queries=Coded(renumbered[columns.queries.codes[rows]], columns.queries.ids[is_kept]),
        docs=Coded(columns.docs.codes[rows], columns.docs.ids).compact(),
        ranks=None if columns.ranks is None else columns.ranks[rows],
        scores=None if columns.scores is None else columns.scores[rows],
    )


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a run file in file order.

    Raises `InputError` with file and line for a malformed row.
    """
    if suffix_of(path) == ".parquet":
        yield from parquet.read_rows(path)
    elif suffix_of(path) in (".jsonl", ".json"):
        yield from _jsonl_rows(path)
    else:
        yield from _trec_rows(path)


def _trec_rows(path: Path) -> Iterator[Row]:
    names: dict[str, int] | None = None
    for line, text in numbered_lines(path):
        if line == 1 and suffix_of(path) == ".tsv":
            header = text.split("\t")
            if set(header) & set(SPELLINGS["query_id"]):
                names = column_positions(header, f"{path}, line 1")
                continue
        if names is not None:
            values = text.split("\t")
            if len(values) != len(header):
                raise InputError(
                    f"{at(path, line)}: expected {len(header)} columns as in line 1, found "
                    f"{len(values)}; separate them by one tab each"
                )
            yield row_of(line, {name: values[i] for name, i in names.items()}, at(path, line))
            continue
        values = text.split()
        if len(values) != 6:
            raise InputError(
                f"{at(path, line)}: expected the 6 columns '{TREC_COLUMNS}', found {len(values)}; "
                "correct the line"
            )
        query_id, _, doc_id, rank, score, _ = values
        where = at(path, line)
        yield Row(
            line, query_id, doc_id, integer_of(rank, "rank", where), score_of(score, "score", where)
        )


def _jsonl_rows(path: Path) -> Iterator[Row]:
    for line, record in json_lines(path):
        if not isinstance(record, dict):
            raise InputError(
                f"{at(path, line)}: expected a JSON object, found {quoted(json.dumps(record))}; "
                "write one a line"
            )
        names = column_positions(list(record), at(path, line))
        values = list(record.values())
        yield row_of(line, {name: values[i] for name, i in names.items()}, at(path, line))


def check_ids(path: Path, ids: Iterable[str]) -> None:
    """Raises `InputError` for an id that the format of ``path`` cannot hold: in TREC, a space."""
    if suffix_of(path) in (".parquet", ".jsonl", ".json"):
        return
    for identifier in ids:
        if len(identifier.split()) != 1:
            raise InputError(
                f"{path}: the id {quoted(repr(identifier))} cannot be written to a TREC run, "
                "whose columns are separated by white space; write a .jsonl"
            )


def write_run(path: Path, columns: Columns, tag: str) -> None:
    """Write ranked lists in the format named by the suffix.

    Scores are rounded to float32 and written with enough digits to read the same float32 back.
    """
    with replacing(path) as beside:
        if suffix_of(path) == ".parquet":
            parquet.write_columns(beside, columns)
            return
        is_json = suffix_of(path) in (".jsonl", ".json")
        open_ = gzip.open if path.suffix == ".gz" else open
        with open_(beside, "wt", encoding="utf-8") as file:
            for query_id, start, stop in zip(
                columns.query_ids, columns.starts, columns.stops, strict=True
            ):
                doc_ids = columns.doc_ids[columns.docs[start:stop]]
                scores = map(str, columns.scores[start:stop].astype(np.float32))
                for rank, (doc_id, score) in enumerate(zip(doc_ids, scores, strict=True), 1):
                    if is_json:
                        row = {
                            "query_id": query_id,
                            "doc_id": doc_id,
                            "rank": rank,
                            "score": float(score),
                        }
                        file.write(json.dumps(row, ensure_ascii=False) + "\n")
                    else:
                        file.write(f"{query_id} Q0 {doc_id} {rank} {score} {tag}\n")
