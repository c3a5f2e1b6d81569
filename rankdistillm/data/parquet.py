"""Runs in Parquet, read column by column: a hundred million rows in a minute.

Files that also hold query or passage texts, unusual number types or invalid values are read row by
row, which locates errors.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rankdistillm.data.columns import Coded, Columns
from rankdistillm.data.files import LARGEST_SCORE
from rankdistillm.data.rows import NUMBERS, Row, RunRows, at, column_positions, row_of
from rankdistillm.errors import InputError, quoted

ROWS_AT_ONCE = 1 << 20


class _LookAtRowsError(Exception):
    """A value that must be examined row by row."""


def read_columns(path: Path) -> RunRows | None:
    """Read a Parquet run by column; None if it must be read row by row.

    That is the case for files with texts, with numbers stored as texts or decimals, with missing
    or invalid values, and for damaged files. Raises `InputError` as `column_names` does.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            found = column_names(file.schema_arrow, path)
            if found.keys() & {"query", "text"} or not file.metadata.num_rows:
                return None
            # Passages first: encoding them needs the most memory.
            docs, queries = (_read_ids(file, found[name]) for name in ("doc_id", "query_id"))
            numbers = {n: _read_numbers(file, found[n]) for n in NUMBERS if n in found}
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError, _LookAtRowsError):
        return None
    ranks, scores = numbers.get("rank"), numbers.get("score")
    if ranks is not None and not _are_integers(ranks):
        return None
    if scores is not None:
        if scores.dtype not in (np.float32, np.float64):
            scores = scores.astype(np.float64)
        if not (np.abs(scores) <= LARGEST_SCORE).all():
            return None
    return RunRows(queries, docs, ranks, scores, {}, {})


def column_names(schema: Any, path: Path) -> dict[str, str]:
    """Map our column names to those of a Parquet file with this Arrow schema.

    Raises `InputError` for a missing column and for a column whose type cannot hold its values.
    """
    names = {n: schema.names[i] for n, i in column_positions(schema.names, str(path)).items()}
    for name, found in names.items():
        kind = schema.field(found).type
        is_number = name in NUMBERS
        if not (_holds_texts(kind) or _holds_numbers(kind, integers_only=not is_number)):
            raise InputError(
                f"{path}: the column {found} holds {quoted(str(kind))}; write it as "
                f"{'numbers' if is_number else 'texts'}"
            )
    return names


def _holds_texts(kind: Any) -> bool:
    """Whether this Arrow type holds texts, or bytes that may be texts."""
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    # Compared by name, because string views came with pyarrow 16.
    name = str(kind).removeprefix("large_")
    return name in ("string", "string_view", "binary", "binary_view") or (
        types.is_fixed_size_binary(kind)
    )


def _holds_numbers(kind: Any, *, integers_only: bool) -> bool:
    """Whether this Arrow type holds numbers; the type of an empty column counts."""
    from pyarrow import types

    if types.is_null(kind) or types.is_integer(kind):
        return True
    return not integers_only and (types.is_floating(kind) or types.is_decimal(kind))


def _read_ids(file: Any, name: str) -> Coded:
    import pyarrow

    batches = [batch.column(0).cast(pyarrow.string()) for batch in _batches(file, name)]
    # All batches share one dictionary, ordered by first appearance.
    encoded = pyarrow.chunked_array(batches, pyarrow.string()).dictionary_encode()
    del batches
    codes = np.empty(len(encoded), dtype=np.int32)
    end = 0
    for chunk in encoded.chunks:
        start, end = end, end + len(chunk)
        codes[start:end] = chunk.indices.to_numpy()
    dictionary = chunk.dictionary
    del encoded, chunk
    pyarrow.default_memory_pool().release_unused()
    dictionary.validate(full=True)  # Arrow does not check that strings are UTF-8
    return Coded(codes, dictionary.to_numpy(zero_copy_only=False))


def _read_numbers(file: Any, name: str) -> np.ndarray:
    from pyarrow import types

    kind = file.schema_arrow.field(name).type
    if not (types.is_integer(kind) or types.is_floating(kind)):
        raise _LookAtRowsError
    values = np.empty(file.metadata.num_rows, kind.to_pandas_dtype())
    end = 0
    for batch in _batches(file, name):
        start, end = end, end + len(batch)
        values[start:end] = batch.column(0).to_numpy()
    return values


def _batches(file: Any, name: str) -> Iterator[Any]:
    num_rows = 0
    for batch in file.iter_batches(ROWS_AT_ONCE, columns=[name]):
        num_rows += len(batch)
        if batch.column(0).null_count or num_rows > file.metadata.num_rows:
            raise _LookAtRowsError
        yield batch
    if num_rows != file.metadata.num_rows:  # of a damaged file
        raise _LookAtRowsError


def _are_integers(ranks: np.ndarray) -> bool:
    """Whether the ranks are 64-bit integers."""
    if ranks.dtype.kind == "i":
        return True
    inside = np.abs(ranks.astype(np.float64)) < 2.0**63  # False for NaN
    return bool(inside.all()) and bool((ranks == np.floor(ranks)).all())


def read_rows(path: Path) -> Iterator[Row]:
    import pyarrow  # late: only Parquet needs it
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = column_names(file.schema_arrow, path)
            line = 0
            for batch in file.iter_batches(columns=list(names.values())):
                # Batches keep the file's column order, not the requested one.
                values = [_values(batch.column(found)) for found in names.values()]
                for row in zip(*values, strict=True):
                    line += 1
                    yield row_of(line, dict(zip(names, row, strict=True)), at(path, line))
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:  # of a column's name
        raise InputError(
            f"{path}: not a readable Parquet file ({quoted(str(error))}); fetch or write it again"
        ) from error


def _values(column: Any) -> list[Any]:
    # Texts as bytes, so that invalid UTF-8 is found row by row.
    import pyarrow

    return (
        column.cast(pyarrow.large_binary()) if _holds_texts(column.type) else column
    ).to_pylist()


def write_columns(path: Path, columns: Columns) -> None:
    import pyarrow
    import pyarrow.parquet

    lengths, rows = columns.lengths, columns.rows()
    lists = np.repeat(np.arange(len(lengths)), lengths)
    before = np.repeat(np.cumsum(lengths) - lengths, lengths)

    def strings(codes: np.ndarray, ids: np.ndarray) -> Any:
        return pyarrow.DictionaryArray.from_arrays(
            pyarrow.array(codes, pyarrow.int32()), pyarrow.array(ids, pyarrow.string())
        ).cast(pyarrow.string())

    table = pyarrow.table(
        {
            "query_id": strings(lists, columns.query_ids),
            "doc_id": strings(columns.docs[rows], columns.doc_ids),
            "rank": pyarrow.array((np.arange(len(lists)) - before + 1).astype(np.int32)),
            "score": pyarrow.array(columns.scores[rows].astype(np.float32)),
        }
    )
    pyarrow.parquet.write_table(table, path)
