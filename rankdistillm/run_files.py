"""The file formats of runs: rows out of and into TREC, JSONL, Parquet and ir_datasets."""

import gzip
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rankdistillm.errors import InputError
from rankdistillm.files import (
    json_lines,
    load_ir_dataset,
    numbered_lines,
    replacing,
    suffix_of,
    text_of,
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
        yield Row(
            line, query_id, doc_id, _rank(rank, at(path, line)), _score(score, at(path, line))
        )


def _jsonl_rows(path: Path) -> Iterator[Row]:
    for line, record in json_lines(path):
        if not isinstance(record, dict):
            raise InputError(
                f"{at(path, line)}: expected a JSON object, found {json.dumps(record)[:40]!r}"
            )
        names = column_positions(list(record), at(path, line))
        values = list(record.values())
        yield _row(line, {name: values[i] for name, i in names.items()}, at(path, line))


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow  # late: only Parquet needs it
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = column_positions(file.schema_arrow.names, str(path))
            columns = [file.schema_arrow.names[i] for i in names.values()]
            line = 0
            for batch in file.iter_batches(columns=columns):
                # Batches keep the file's order of columns, not the order asked for.
                arrays = {n: batch.column(file.schema_arrow.names[i]) for n, i in names.items()}
                for values in zip(*(array.to_pylist() for array in arrays.values()), strict=True):
                    line += 1
                    yield _row(line, dict(zip(arrays, values, strict=True)), at(path, line))
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(
            f"{path}: not a readable Parquet file ({str(error).splitlines()[0]}); fetch or write "
            "it again"
        ) from error


def _ir_datasets_rows(identifier: str) -> Iterator[Row]:
    dataset = load_ir_dataset(identifier, "a run file, or a data set with scoreddocs")
    if not dataset.has_scoreddocs():
        raise InputError(f"{identifier}: this ir_datasets id has no scoreddocs to read a run from")
    for line, entry in enumerate(dataset.scoreddocs_iter(), 1):
        rank = getattr(entry, "rank", None)
        score = getattr(entry, "score", None)
        yield Row(line, entry.query_id, entry.doc_id, rank, score)


def column_positions(found: list[str], where: str) -> dict[str, int]:
    """Our column names -> positions among ``found``, however the field spells them there."""
    positions = {
        name: found.index(spelling)
        for name, spellings in SPELLINGS.items()
        for spelling in spellings
        if spelling in found
    }
    for name in ("query_id", "doc_id"):
        if name not in positions:
            raise InputError(
                f"{where}: no column {' or '.join(SPELLINGS[name])} among {', '.join(found)}; "
                "rename one"
            )
    if "rank" not in positions and "score" not in positions:
        raise InputError(f"{where}: neither a rank nor a score among {', '.join(found)}; add one")
    return positions


def _row(line: int, record: Mapping[str, Any], where: str) -> Row:
    for name in ("query_id", "doc_id"):
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
        None if rank is None else _rank(rank, where),
        None if score is None else _score(score, where),
        None if query is None else text_of(query, "query", where),
        None if text is None else text_of(text, "text", where),
    )


def _rank(value: Any, where: str) -> int:
    try:
        rank = int(value)
        if not isinstance(value, str) and rank != value:  # int() would cut 2.5 to 2
            raise ValueError
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"{where}: the rank {value!r} is not a whole number; correct the line"
        ) from error
    return rank


def _score(value: Any, where: str) -> float:
    try:
        score = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"{where}: the score {value!r} is not a number; correct the line"
        ) from error
    if not math.isfinite(score):
        raise InputError(f"{where}: the score {value!r} is not finite; correct the line")
    return score


def check_ids(path: Path, ids: Iterable[str]) -> None:
    """Raises `InputError` for an id that the format of ``path`` cannot hold: TREC's, no spaces."""
    if suffix_of(path) in (".parquet", ".jsonl", ".json"):
        return
    for identifier in ids:
        if len(identifier.split()) != 1:
            raise InputError(
                f"{path}: the id {identifier!r} cannot stand in a TREC run, whose columns are "
                "separated by white space; write a .jsonl"
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
