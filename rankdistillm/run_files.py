"""The file formats of runs: rows out of and into TREC, JSONL, Parquet and ir_datasets."""

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rankdistillm.errors import InputError, quoted
from rankdistillm.files import (
    json_lines,
    load_ir_dataset,
    numbered_lines,
    replacing,
    score_of,
    suffix_of,
    text_of,
    whole_of,
)
from rankdistillm.released import fetch_run

# How the field spells the columns; the first spelling is ours.
SPELLINGS = {
    "query_id": ("query_id", "qid"),
    "doc_id": ("doc_id", "docid", "docno"),
    "rank": ("rank",),
    "score": ("score",),
    "query": ("query",),
    "text": ("text",),
}
_IDS, _NUMBERS = ("query_id", "doc_id"), ("rank", "score")
TREC_COLUMNS = "query_id Q0 doc_id rank score tag"


class Row(NamedTuple):
    """One ranked passage; ``line`` counts from 1 within the file."""

    line: int
    query_id: str
    doc_id: str
    rank: int | None
    score: float | None
    query: str | None = None
    text: str | None = None


def read_rows(source: str | Path) -> Iterator[Row]:
    """The rows of a run file (or of the ``scoreddocs`` of an ir_datasets id), as they stand there.

    Raises `InputError`, with file and line, for a row that is not one.
    """
    path = local_file(source)
    if not path.exists():
        yield from _ir_datasets_rows(str(source))
    elif suffix_of(path) == ".parquet":
        yield from _parquet_rows(path)
    elif suffix_of(path) in (".jsonl", ".json"):
        yield from _jsonl_rows(path)
    else:
        yield from _trec_rows(path)


def local_file(source: str | Path) -> Path:
    """The run file: ``source`` itself, or what a data set of the release is fetched into."""
    return fetch_run(str(source)) or Path(source)


def at(source: str | Path, line: int) -> str:
    """``file, line N``: how every message about a row begins."""
    return f"{source}, line {line}"


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
            yield _row(line, {name: values[i] for name, i in names.items()}, at(path, line))
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
            line, query_id, doc_id, whole_of(rank, "rank", where), score_of(score, "score", where)
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
        yield _row(line, {name: values[i] for name, i in names.items()}, at(path, line))


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow  # late: only Parquet needs it
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = parquet_columns(file.schema_arrow, path)
            line = 0
            for batch in file.iter_batches(columns=list(names.values())):
                # Batches keep the file's order of columns, not the order asked for.
                values = [_values(batch.column(found)) for found in names.values()]
                for row in zip(*values, strict=True):
                    line += 1
                    yield _row(line, dict(zip(names, row, strict=True)), at(path, line))
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:  # of a column's name
        raise InputError(
            f"{path}: not a readable Parquet file ({quoted(str(error))}); fetch or write it again"
        ) from error


def _values(column: Any) -> list[Any]:
    # Texts as bytes: whether they are UTF-8 is asked row by row.
    import pyarrow

    return (
        column.cast(pyarrow.large_binary()) if _holds_texts(column.type) else column
    ).to_pylist()


def parquet_columns(schema: Any, path: Path) -> dict[str, str]:
    """Our column names -> those of a Parquet file, given its schema of Arrow's.

    Raises `InputError` for a column that is missing and for one of a type that none of its rows
    could be read from.
    """
    names = {n: schema.names[i] for n, i in column_positions(schema.names, str(path)).items()}
    for name, found in names.items():
        kind = schema.field(found).type
        is_number = name in _NUMBERS
        if not (_holds_texts(kind) or _holds_numbers(kind, whole=not is_number)):
            raise InputError(
                f"{path}: the column {found} holds {quoted(str(kind))}; write it as "
                f"{'numbers' if is_number else 'texts'}"
            )
    return names


def _holds_texts(kind: Any) -> bool:
    """Whether values of this type of Arrow's are texts, or bytes that may hold them."""
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    # By name: views of texts came with pyarrow 16.
    name = str(kind).removeprefix("large_")
    return name in ("string", "string_view", "binary", "binary_view") or (
        types.is_fixed_size_binary(kind)
    )


def _holds_numbers(kind: Any, *, whole: bool) -> bool:
    """Whether it is a type of numbers (of whole ones); so is that of a column without values."""
    from pyarrow import types

    if types.is_null(kind) or types.is_integer(kind):
        return True
    return not whole and (types.is_floating(kind) or types.is_decimal(kind))


def _ir_datasets_rows(identifier: str) -> Iterator[Row]:
    dataset = load_ir_dataset(identifier, "a run file, or a data set with scoreddocs")
    if not dataset.has_scoreddocs():
        raise InputError(f"{identifier}: this ir_datasets id has no scoreddocs to read a run from")
    for line, entry in enumerate(dataset.scoreddocs_iter(), 1):
        found = {name: getattr(entry, name, None) for name in (*_IDS, *_NUMBERS)}
        yield _row(line, found, at(identifier, line))


def column_positions(found: list[str], where: str) -> dict[str, int]:
    """Our column names -> positions among ``found``, however the field spells them there.

    Raises `InputError` for a column that is missing and for one that stands there twice.
    """
    positions = {
        name: found.index(spelling)
        for name, spellings in SPELLINGS.items()
        for spelling in spellings
        if spelling in found
    }
    for name in _IDS:
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
            raise InputError(f"{where}: the column {found[i]} stands there twice; remove one")
    return positions


def _row(line: int, record: Mapping[str, Any], where: str) -> Row:
    for name in _IDS:
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
        None if rank is None else whole_of(rank, "rank", where),
        None if score is None else score_of(score, "score", where),
        None if query is None else text_of(query, "query", where),
        None if text is None else text_of(text, "text", where),
    )


def check_ids(path: Path, ids: Iterable[str]) -> None:
    """Raises `InputError` for an id that the format of ``path`` cannot hold: TREC's, no spaces."""
    if suffix_of(path) in (".parquet", ".jsonl", ".json"):
        return
    for identifier in ids:
        if len(identifier.split()) != 1:
            raise InputError(
                f"{path}: the id {quoted(repr(identifier))} cannot stand in a TREC run, whose "
                "columns are separated by white space; write a .jsonl"
            )


def write_rows(path: Path, rows: Iterable[tuple[str, str, int, float]], tag: str) -> None:
    """Write ``(query_id, doc_id, rank, score)`` rows in the format that the suffix names.

    Scores are rounded to float32 and written with the digits that give the same float32 back.
    """
    with replacing(path) as beside:
        if suffix_of(path) == ".parquet":
            _write_parquet(beside, rows)
            return
        is_json = suffix_of(path) in (".jsonl", ".json")
        open_ = gzip.open if path.suffix == ".gz" else open
        with open_(beside, "wt", encoding="utf-8") as file:
            for query_id, doc_id, rank, score in rows:
                short = str(np.float32(score))
                if is_json:
                    row = {
                        "query_id": query_id,
                        "doc_id": doc_id,
                        "rank": rank,
                        "score": float(short),
                    }
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                else:
                    file.write(f"{query_id} Q0 {doc_id} {rank} {short} {tag}\n")


def _write_parquet(path: Path, rows: Iterable[tuple[str, str, int, float]]) -> None:
    import pyarrow
    import pyarrow.parquet

    query_ids, doc_ids, ranks, scores = list(zip(*rows, strict=True)) or [()] * 4
    table = pyarrow.table(
        {
            "query_id": pyarrow.array(query_ids, pyarrow.string()),
            "doc_id": pyarrow.array(doc_ids, pyarrow.string()),
            "rank": pyarrow.array(ranks, pyarrow.int32()),
            "score": pyarrow.array(np.asarray(scores, dtype=np.float32)),
        }
    )
    pyarrow.parquet.write_table(table, path)
