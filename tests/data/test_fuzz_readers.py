"""Damaged and odd files: each read ends in one `InputError`, or gives what the file says.

A seeded attack on the readers of runs, judgements and texts. Each input is a valid file with one to
three mutations. What a reader accepts is compared with a second reading, by a few lines of code
that share nothing with the package. More inputs: ``FUZZ_INPUTS=100000 FUZZ_SEED=7 pytest -m slow``.
"""

import gzip
import json
import math
import os
import random
from collections import Counter
from decimal import Decimal
from itertools import pairwise

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from rankdistillm.data import parquet as parquet_format
from rankdistillm.data.qrels import read_qrels
from rankdistillm.data.runs import Run
from rankdistillm.data.texts import read_texts
from rankdistillm.errors import InputError

pytestmark = pytest.mark.slow

INPUTS = int(os.environ.get("FUZZ_INPUTS", "6000"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))

LONG = "x" * 20_000
NUMBERS = [
    *("1", "2", "0", "-1", "+3", "1.5", ".5", "5.", "1e3", "-2E-3", "007", "1_000", "\u0967\u0968"),
    *("0x10", "nan", "NaN", "inf", "-Infinity", "infinity", "1e39", "1e400", "9" * 30, "9" * 5000),
    *(
        "9223372036854775807",
        "9223372036854775808",
        "\u00b2",
        "",
        " 1",
        "1,5",
        "true",
        "None",
        "--1",
    ),
]
TEXTS = [
    "",
    "q1",
    "d2",
    "a b",
    "\u00e4",
    "\u3000",
    "\x00",
    "\x1b[31m",
    "\ufeff",
    "\u2028",
    "\x85",
    LONG,
]
VALUES = [*NUMBERS, *TEXTS]
JSON_VALUES = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2.0,
        2.5,
        1e39,
        10**30,
        10**400,
        math.nan,
        math.inf,
        [],
        {},
        [1],
    ),
    *("\ud800", "a\udfff", {"a": "\ud800"}, *VALUES),
]


# ---- valid files


def make_rows(rng):
    rows = []
    for query in rng.sample(["q1", "q2", "7", "\u00e4"], rng.randint(1, 3)):
        score = rng.randint(5, 50) / 2
        for rank, doc in enumerate(rng.sample(range(20), rng.randint(1, 5)), 1):
            score -= rng.choice([0, 0.5, 1])
            rows.append((query, f"d{doc}", rank, score))
    if rng.random() < 0.3:
        rng.shuffle(rows)
    return rows


def make_trec(rng):
    rows = make_rows(rng)
    return [list(map(str, (q, "Q0", d, r, s, "tag"))) for q, d, r, s in rows], " "


def make_tsv(rng):
    names = rng.choice([["qid", "docno", "rank", "score"], ["query_id", "doc_id", "score", "text"]])
    rows = [
        [q, d, *([str(r), str(s)] if "rank" in names else [str(s), f"text of {d}"])]
        for q, d, r, s in make_rows(rng)
    ]
    return [names, *rows], "\t"


def make_qrels(rng):
    return [[q, "0", d, str(r % 4)] for q, d, r, _ in make_rows(rng)], " "


def make_text_lines(rng):
    return [[f"d{i}", f"text {i} \u00fc"] for i in range(rng.randint(1, 6))], "\t"


def make_jsonl(rng):
    names = rng.choice([("query_id", "doc_id"), ("qid", "docid"), ("qid", "docno")])
    kept = rng.choice([("rank",), ("score",), ("rank", "score"), ("rank", "score", "text")])
    objects = []
    for q, d, r, s in make_rows(rng):
        record = {names[0]: q, names[1]: d, "rank": r, "score": s, "text": f"text of {d}"}
        objects.append({k: v for k, v in record.items() if k in (*names, *kept)})
    return objects


def make_text_objects(rng):
    names = rng.choice([("doc_id", "text"), ("_id", "contents"), ("docno", "text")])
    objects = [{names[0]: f"d{i}", names[1]: f"text {i}"} for i in range(rng.randint(1, 6))]
    if rng.random() < 0.3:
        objects[0]["title"] = "A title"
    return objects


# ---- mutations


def mutate_columns(rng, lines):
    """Change, insert, duplicate or remove a value or a line of columns."""
    line = rng.choice(lines)
    place = rng.randrange(len(line)) if line else 0
    kind = rng.randrange(7)
    if kind <= 1 and line:
        line[place] = rng.choice(VALUES)
    elif kind == 2:
        line.insert(place, rng.choice(VALUES))
    elif kind == 3 and line:
        del line[place]
    elif kind == 4:
        lines.insert(rng.randrange(len(lines) + 1), list(line))
    elif kind == 5 and len(lines) > 1:
        lines.remove(line)
    else:
        for other in lines:  # a column that goes, or is there twice
            if place < len(other):
                other[place : place + 1] = rng.choice([[], [other[place]] * 2])


def mutate_objects(rng, objects):
    record = rng.choice(objects)
    name = rng.choice(list(record) or ["score"])
    kind = rng.randrange(6)
    if kind <= 1:
        record[name] = rng.choice(JSON_VALUES)
    elif kind == 2:
        record.pop(name, None)
    elif kind == 3:
        record[rng.choice(["docno", "qid", "score", "rank", "text", "title", "x", LONG])] = (
            rng.choice(JSON_VALUES)
        )
    elif kind == 4:
        objects.insert(rng.randrange(len(objects) + 1), dict(record))
    elif len(objects) > 1:
        objects.remove(record)


def flip_bits(rng, data):
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 5]) if changed else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def mutate_bytes(rng, data):
    """Flip, cut, insert or repeat bytes; another encoding, a byte order mark, other line ends."""
    kind, place = rng.randrange(10), rng.randrange(len(data) + 1)
    if kind <= 2:
        return flip_bits(rng, data)
    if kind == 3:
        return data[:place]
    if kind == 4:
        odd = [b"\x00", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\r", b"\n", b"\t", b" ", b"\\"]
        return data[:place] + rng.choice(odd) + data[place:]
    if kind == 5:
        stop = place + rng.randrange(30)
        return data[:stop] + data[place:stop] + data[stop:]
    if kind == 6:
        return b"\xef\xbb\xbf" + data
    if kind == 7:
        return data.replace(b"\n", b"\r\n")
    if kind == 8:
        return data + data
    encoding = rng.choice(["utf-16", "utf-32", "latin-1", "utf-8-sig", "utf-7"])
    return data.decode("utf-8", "replace").encode(encoding, "replace")


def joined(lines, separator):
    return "".join(separator.join(line) + "\n" for line in lines).encode("utf-8", "surrogatepass")


def dumped(rng, objects):
    ascii_only = rng.random() < 0.5
    lines = [json.dumps(record, ensure_ascii=ascii_only) for record in objects]
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogatepass")


def text_input(rng, make, *, as_json):
    content = make(rng)
    where = rng.random()
    for _ in range(rng.choice([0, 1, 1, 2, 3]) if where < 0.7 else 0):
        (mutate_objects if as_json else mutate_columns)(rng, content if as_json else content[0])
    data = dumped(rng, content) if as_json else joined(*content)
    for _ in range(rng.choice([1, 1, 2]) if where > 0.5 else 0):
        data = mutate_bytes(rng, data)
    return data


def compressed(rng, data):
    data = gzip.compress(data, mtime=0)
    return mutate_bytes(rng, data) if rng.random() < 0.4 else data


TYPES = [
    *(pyarrow.string(), pyarrow.large_string(), pyarrow.string_view(), pyarrow.binary()),
    *(pyarrow.int8(), pyarrow.uint8(), pyarrow.int32(), pyarrow.int64(), pyarrow.uint64()),
    *(pyarrow.float16(), pyarrow.float32(), pyarrow.float64(), pyarrow.decimal128(12, 2)),
    *(pyarrow.bool_(), pyarrow.date32(), pyarrow.date64(), pyarrow.timestamp("ns", "UTC")),
    *(pyarrow.timestamp("us"), pyarrow.time64("ns"), pyarrow.duration("s"), pyarrow.null()),
    *(pyarrow.list_(pyarrow.string()), pyarrow.struct([("a", pyarrow.int32())])),
    *(pyarrow.dictionary(pyarrow.int8(), t) for t in (pyarrow.string(), pyarrow.int64())),
    *(pyarrow.binary(2), pyarrow.decimal256(70, 0), pyarrow.map_(pyarrow.string(), pyarrow.int8())),
]


def arrow_column(rng, kind, values):
    """The values in that type; values of its own where they do not go into it."""
    types = pyarrow.types
    whole = [
        int(v) if isinstance(v, int | float) and math.isfinite(v) else i
        for i, v in enumerate(values)
    ]
    try:
        if types.is_list(kind):
            return pyarrow.array([[str(v)] for v in values], kind)
        if types.is_struct(kind):
            return pyarrow.array([{"a": i} for i in range(len(values))], kind)
        if types.is_map(kind):
            return pyarrow.array([[("a", 1)] for _ in values], kind)
        if types.is_null(kind):
            return pyarrow.nulls(len(values))
        if types.is_dictionary(kind):
            return arrow_column(rng, kind.value_type, values).dictionary_encode()
        if types.is_float16(kind):
            return pyarrow.array(np.float16(whole))
        if types.is_floating(kind):
            odd = [math.nan, math.inf, 1e39, 2.5, -0.0]
            return pyarrow.array(
                [rng.choice(odd) if rng.random() < 0.1 else v for v in whole], kind
            )
        if types.is_decimal(kind):
            return pyarrow.array([Decimal(v) for v in whole], kind)
        if types.is_fixed_size_binary(kind):
            return pyarrow.array([f"{v}".encode()[:2].ljust(2, b"0") for v in values], kind)
        if types.is_boolean(kind):
            return pyarrow.array([v % 2 == 0 for v in whole])
        if "string" in str(kind):
            return pyarrow.array(list(map(str, values)), kind)
        if "binary" in str(kind):
            odd = [b"\xff", b"\xed\xa0\x80", "\u00e4".encode()]
            return pyarrow.array(
                [rng.choice(odd) if rng.random() < 0.1 else str(v).encode() for v in values], kind
            )
        return pyarrow.array(whole, pyarrow.int64()).cast(kind)
    except (pyarrow.ArrowException, OverflowError):
        return pyarrow.array(list(map(str, values)))


def parquet_input(rng, path):
    rows = make_rows(rng)
    columns = dict(
        zip(("query_id", "docno", "rank", "score"), zip(*rows, strict=True), strict=True)
    )
    columns["query_id"] = list(columns["query_id"])
    kept = rng.choice([("rank",), ("score",), ("rank", "score"), ("rank", "score"), ("x",)])
    columns = {n: list(v) for n, v in columns.items() if n in ("query_id", "docno", *kept)}
    if rng.random() < 0.2:
        columns["text"] = [f"text of {doc}" for doc in columns["docno"]]
    names, arrays = list(columns), []
    for values in columns.values():
        if rng.random() < 0.15:
            values[rng.randrange(len(values))] = rng.choice([*VALUES, None, 1, 2.5, 2.0])
        try:
            array = pyarrow.array(values)
        except (pyarrow.ArrowException, OverflowError):
            array = pyarrow.array([None if v is None else str(v) for v in values])
        if rng.random() < 0.25:
            array = arrow_column(rng, rng.choice(TYPES), values)
        if pyarrow.types.is_string(array.type) and rng.random() < 0.05:  # not UTF-8
            raw = [v.as_py().encode() + b"\xff" if v.is_valid else None for v in array]
            array = pyarrow.array(raw, pyarrow.binary())
            array = pyarrow.Array.from_buffers(pyarrow.string(), len(array), array.buffers())
        arrays.append(array)
    if rng.random() < 0.05:
        place = rng.randrange(len(names))
        names.append(names[place])
        arrays.append(arrays[place])
    pyarrow.parquet.write_table(
        pyarrow.table(arrays, names),
        path,
        compression=rng.choice(["none", "snappy", "gzip"]),
        use_dictionary=rng.random() < 0.5,
        row_group_size=rng.choice([3, 1000]),
    )
    if rng.random() < 0.5:
        damage = rng.choice([flip_bits, flip_bits, mutate_bytes])
        path.write_bytes(damage(rng, path.read_bytes()))


# ---- the second reading


WANTED = {"query_id", "qid", "doc_id", "docid", "docno", "rank", "score", "query", "text"}


class NoRun(Exception):
    """The file is none, says the second reading."""


def demand(condition):
    if not condition:
        raise NoRun


def plain_lines(path):
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    text = data.decode("utf-8-sig")
    lines = [line.rstrip("\r\n") for line in text.split("\n")]
    return [(i, line) for i, line in enumerate(lines) if line.strip()]


def plain_number(value, *, whole):
    if isinstance(value, bytes):
        value = value.decode()
    demand(not isinstance(value, bool) and isinstance(value, str | int | float | Decimal))
    if isinstance(value, str):
        demand(value and set(value) <= set("+-0123456789" + ("" if whole else ".eE")))
        demand(len(value) < 4000)
    number = int(value) if whole else float(value)
    demand(isinstance(value, str) or number == value or not whole)
    demand(abs(number) < 2**63 + (number < 0) if whole else abs(number) <= 3.4028234663852886e38)
    return number


def plain_text(value):
    if isinstance(value, bytes):
        return value.decode()
    demand(isinstance(value, str | int) and not isinstance(value, bool))
    str(value).encode()
    return str(value)


def spelt(record, *names):
    return next((record[name] for name in names if name in record), None)


def plain_records(path, suffix):
    """The rows of a run, as dictionaries under the names that stand in the file."""
    if suffix == "parquet":
        with pyarrow.parquet.ParquetFile(path) as file:
            table = file.read()
        names = [name for name in table.column_names if name in WANTED]
        demand(len(set(names)) == len(names))
        return table.select(names).to_pylist()
    lines = plain_lines(path)
    if "jsonl" in suffix:
        records = [json.loads(line) for _, line in lines]
        demand(all(isinstance(record, dict) for record in records))
        return records
    if suffix.startswith("tsv") and lines and lines[0][0] == 0:
        header = lines[0][1].split("\t")
        if "query_id" in header or "qid" in header:
            rows = [line.split("\t") for _, line in lines[1:]]
            demand(all(len(row) == len(header) for row in rows))
            demand(all(header.count(name) == 1 for name in header if name in WANTED))
            return [dict(zip(header, row, strict=True)) for row in rows]
    names = ("query_id", "Q0", "doc_id", "rank", "score", "tag")
    return [dict(zip(names, line.split(), strict=True)) for _, line in lines]


def plain_run(path, suffix):
    lists = {}
    for record in plain_records(path, suffix):
        query, doc = spelt(record, "qid", "query_id"), spelt(record, "docno", "docid", "doc_id")
        rank, score = record.get("rank"), record.get("score")
        demand(query is not None and doc is not None and (rank is not None or score is not None))
        for name in ("query", "text"):
            if record.get(name) is not None:
                plain_text(record[name])
        entry = (
            None if rank is None else plain_number(rank, whole=True),
            None if score is None else plain_number(score, whole=False),
            plain_text(doc),
        )
        lists.setdefault(plain_text(query), []).append(entry)
    demand(lists)
    run = {}
    for query, entries in lists.items():
        ranked = all(rank is not None for rank, _, _ in entries)
        scored = all(score is not None for _, score, _ in entries)
        demand(ranked or scored)
        if ranked:
            entries = sorted(entries, key=lambda entry: entry[0])
        else:
            entries = sorted(entries, key=lambda entry: entry[1:], reverse=True)
        docs = [doc for _, _, doc in entries]
        demand(len(set(docs)) == len(docs))
        scores = [s for _, s, _ in entries] if scored else [-i - 1 for i in range(len(docs))]
        demand(sorted(scores, reverse=True) == scores)
        if ranked and scored:
            for (rank, score, _), (below, less, _) in pairwise(entries):
                demand(rank != below or score == less)
        run[query] = (docs, scores)
    return run


def plain_qrels(path):
    qrels = {}
    lines = plain_lines(path)
    demand(lines)
    for _, line in lines:
        demand(len(line.split()) == 4)
        query, _, doc, relevance = line.split()
        demand(doc not in qrels.setdefault(query, {}))
        qrels[query][doc] = plain_number(relevance, whole=True)
    return qrels


def plain_texts(path, suffix):
    texts = {}
    lines = plain_lines(path)
    demand(lines)
    for _, line in lines:
        if "jsonl" in suffix:
            record = json.loads(line)
            demand(isinstance(record, dict))
            identifier = plain_text(spelt(record, "doc_id", "docid", "docno", "id", "_id"))
            text = plain_text(spelt(record, "text", "contents"))
            if record.get("title") is not None and record["title"] != "":
                text = f"{plain_text(record['title'])} {text}"
        else:
            demand("\t" in line)
            identifier, text = line.split("\t", 1)
        demand(identifier not in texts)
        texts[identifier] = text
    return texts


# ---- the attack


def as_lists(run):
    for query_id, ranked in run.items():
        assert len(ranked.doc_ids) == len(ranked.scores) == len(set(ranked.doc_ids)) > 0
        assert ranked.scores.dtype == np.float64
        assert np.isfinite(ranked.scores.astype(np.float32)).all()
        assert (np.diff(ranked.scores) <= 0).all()
        "".join((query_id, *ranked.doc_ids)).encode()
    return {q: (list(ranked.doc_ids), ranked.scores.tolist()) for q, ranked in run.items()}


def row_by_row(path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(parquet_format, "read_columns", lambda path: None)
        return as_lists(Run.read(path))


def outcome(read, path):
    """What it gives, or None where it refuses the file as it should."""
    try:
        return read(path)
    except InputError as error:
        message = str(error)
        assert message.startswith(
            tuple(f"{path}{end}" for end in (":", ", line ", ", after line "))
        )
        assert message.isprintable(), message
        assert len(message) <= 500, message
        return None


def second(read):
    """What the second reading gives; None where it fails in any way."""
    try:
        return read()
    except Exception:  # its errors are not the point
        return None


def compare(rng, path, suffix, monkeypatch):
    """Make one input at the path, read it both ways; whether it was accepted."""
    kind, _, _ = suffix.partition(".")
    if kind == "parquet":
        parquet_input(rng, path)
    else:
        makers = {
            "run": make_trec,
            "tsv": make_tsv,
            "jsonl": make_jsonl,
            "qrels": make_qrels,
            "docs_tsv": make_text_lines,
            "docs_jsonl": make_text_objects,
        }
        data = text_input(rng, makers[kind], as_json="jsonl" in kind)
        path.write_bytes(compressed(rng, data) if suffix.endswith("gz") else data)
    if kind == "qrels":
        found, expected = outcome(read_qrels, path), second(lambda: plain_qrels(path))
    elif kind.startswith("docs"):
        found = outcome(lambda path: read_texts(path, "doc"), path)
        expected = second(lambda: plain_texts(path, suffix))
    else:
        found = outcome(lambda path: as_lists(Run.read(path)), path)
        expected = second(lambda: plain_run(path, suffix))
    if kind == "parquet":
        assert found == outcome(lambda path: row_by_row(path, monkeypatch), path)
    assert found == expected
    assert found is None or list(found) == list(expected)  # the order of the queries
    return found is not None


SUFFIXES = {  # share of the inputs
    "run": 2,
    "run.gz": 1,
    "tsv": 2,
    "jsonl": 2,
    "jsonl.gz": 1,
    "parquet": 4,
    "qrels": 1,
    "qrels.gz": 1,
    "docs_tsv": 1,
    "docs_tsv.gz": 1,
    "docs_jsonl": 1,
    "docs_jsonl.gz": 1,
}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damaged_files_are_refused_or_read_right(suffix, tmp_path, monkeypatch):
    name = suffix.replace("docs_", "docs.").replace("qrels", "qrels.txt")
    path = tmp_path / (name if name.startswith(("docs", "qrels")) else f"a.{name}")
    inputs = INPUTS * SUFFIXES[suffix] // sum(SUFFIXES.values()) + 1
    accepted = Counter()
    for number in range(inputs):
        rng = random.Random(f"{SEED} {suffix} {number}")
        try:
            accepted[compare(rng, path, suffix, monkeypatch)] += 1
        except Exception as error:
            error.add_note(f"input {number} of seed {SEED}: {path.read_bytes()[:600]!r}")
            raise
    print(f"{suffix}: {inputs} inputs, {accepted[True]} accepted, {accepted[False]} refused")
    assert min(accepted.values()) > inputs / 50  # both happen
