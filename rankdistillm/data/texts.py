"""Read the texts of queries and passages from TSV and JSONL files or from ir_datasets."""

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from rankdistillm.data.catalogue import collection_of, load_ir_dataset
from rankdistillm.data.files import json_lines, numbered_lines, suffix_of, text_of
from rankdistillm.data.runs import Run
from rankdistillm.errors import InputError, quoted

Kind = Literal["query", "doc"]
ID_FIELDS = {
    "query": ("query_id", "qid", "id", "_id"),
    "doc": ("doc_id", "docid", "docno", "id", "_id"),
}
TEXT_FIELDS = {"query": ("query", "text"), "doc": ("text", "contents")}


def read_texts(
    source: str | Path, kind: Kind, *, wanted: Collection[str] | None = None
) -> dict[str, str]:
    """Read ``id -> text`` of queries or passages.

    ``source`` is a TSV file (``id<TAB>text``), a JSONL file (an id, ``text`` and optionally
    ``title``; for queries also ``query``), both also as .gz, or an ir_datasets id. ``wanted`` keeps
    only these ids, so that a large collection needs memory only for them.

    Raises `InputError` with file and line for a malformed line and for a repeated id.
    """
    if not Path(source).exists():
        return _from_ir_datasets(str(source), kind, wanted)
    texts: dict[str, str] = {}
    for line, identifier, text in _file_entries(Path(source), kind):
        if wanted is not None and identifier not in wanted:
            continue
        if identifier in texts:
            raise _repeated(source, line, kind, identifier)
        texts[identifier] = text
    return texts


def iterate_texts(source: str | Path, kind: Kind) -> Iterator[tuple[str, str]]:
    """Yield ``(id, text)`` from a source of `read_texts`, which would hold all texts in memory.

    Raises `InputError` as `read_texts` does.
    """
    if not Path(source).exists():
        yield from _iterate_ir_datasets(str(source), kind)
        return
    seen: set[str] = set()
    for line, identifier, text in _file_entries(Path(source), kind):
        if identifier in seen:
            raise _repeated(source, line, kind, identifier)
        seen.add(identifier)
        yield identifier, text


def _file_entries(path: Path, kind: Kind) -> Iterator[tuple[int, str, str]]:
    is_json = suffix_of(path) in (".jsonl", ".json")
    return _jsonl_entries(path, kind) if is_json else _tsv_entries(path)


def _repeated(source: str | Path, line: int, kind: Kind, identifier: str) -> InputError:
    return InputError(
        f"{source}, line {line}: the {kind}_id {quoted(identifier)} appears twice; keep one of the "
        "two"
    )


def texts_of_run(
    run: Run, queries: str | Path | None, docs: str | Path | None
) -> tuple[dict[str, str], dict[str, str]]:
    """The texts of all queries and passages of a run: (query_id -> text, doc_id -> text).

    ``queries`` and ``docs`` are sources for `read_texts`, or None if the run file carries the
    texts or names their collection (`rankdistillm.data.catalogue.collection_of`). Raises
    `InputError`, naming the line in the run, for an id without a text.
    """
    queries = queries or (None if run.queries else collection_of(run.source))
    docs = docs or (None if run.docs else collection_of(run.source))
    doc_ids = set(run.doc_ids())
    query_texts = read_texts(queries, "query", wanted=set(run)) if queries else run.queries
    doc_texts = read_texts(docs, "doc", wanted=doc_ids) if docs else run.docs
    if without_text := [query_id for query_id in run if query_id not in query_texts]:
        raise InputError(
            f"{run.where(without_text[0])}: the query_id {quoted(without_text[0])} has no text in "
            f"{queries or 'the run itself'}; {_remedy('queries', queries)}"
        )
    if missing := doc_ids - doc_texts.keys():
        query_id, doc_id = next(pair for pair in run.pairs() if pair[1] in missing)
        raise InputError(
            f"{run.where(query_id, doc_id)}: the doc_id {quoted(doc_id)} has no text in "
            f"{docs or 'the run itself'}; {_remedy('docs', docs)}"
        )
    return query_texts, doc_texts


def known_texts(
    runs: Iterable[Run], source: str | Path | None, kind: Kind, wanted: Collection[str]
) -> dict[str, str]:
    """The texts of those ids of ``wanted`` that have one: from ``source``, or the runs' own.

    Raises `InputError` for a source without any of them.
    """
    if source is None:
        carried = [run.queries if kind == "query" else run.docs for run in runs]
        return {i: text for texts in carried for i, text in texts.items() if i in wanted}
    found = read_texts(source, kind, wanted=wanted)
    if wanted and not found:
        some = quoted(next(iter(wanted)))
        raise InputError(
            f"{source}: none of the {len(wanted)} texts that are wanted, such as that of the "
            f"{kind}_id {some}; give the texts of the collection that the runs rank"
        )
    return found


def _remedy(name: str, given: object) -> str:
    if given:
        return f"add it there, or set {name} to those of the collection that the run ranks"
    return f"set {name} to a file or an ir_datasets id"


def _tsv_entries(path: Path) -> Iterator[tuple[int, str, str]]:
    for line, content in numbered_lines(path):
        identifier, tab, text = content.partition("\t")
        if not tab:
            raise InputError(
                f"{path}, line {line}: expected 'id<TAB>text', found no tab; write a tab "
                "between the two, and one entry a line"
            )
        yield line, identifier, text


def _jsonl_entries(path: Path, kind: Kind) -> Iterator[tuple[int, str, str]]:
    for line, record in json_lines(path):
        where = f"{path}, line {line}"
        fields = record if isinstance(record, dict) else {}
        identifier = next((fields[f] for f in ID_FIELDS[kind] if f in fields), None)
        text = next((fields[f] for f in TEXT_FIELDS[kind] if f in fields), None)
        if identifier is None or text is None:
            raise InputError(
                f"{where}: expected an object with {kind}_id and text, found "
                f"{quoted(', '.join(fields)) or 'no object'}; rename the fields"
            )
        text = text_of(text, "text", where)
        if (title := fields.get("title")) not in (None, ""):
            text = f"{text_of(title, 'title', where)} {text}"
        yield line, text_of(identifier, f"{kind}_id", where), text


def _from_ir_datasets(
    identifier: str, kind: Kind, wanted: Collection[str] | None
) -> dict[str, str]:
    if kind == "doc" and wanted is not None:
        try:
            docs = _ir_dataset(identifier, kind).docs_store().get_many(list(wanted))
        except ValueError as error:  # ir_datasets' word for a disk without room for its index
            raise InputError(f"{identifier}: {' '.join(str(error).split())}") from error
        return {doc_id: doc.default_text() for doc_id, doc in docs.items()}
    entries = _iterate_ir_datasets(identifier, kind)
    return {i: text for i, text in entries if wanted is None or i in wanted}


def _iterate_ir_datasets(identifier: str, kind: Kind) -> Iterator[tuple[str, str]]:
    dataset = _ir_dataset(identifier, kind)
    entries = dataset.queries_iter() if kind == "query" else dataset.docs_iter()
    for entry in entries:
        yield getattr(entry, f"{kind}_id"), entry.default_text()


def _ir_dataset(identifier: str, kind: Kind) -> Any:
    dataset = load_ir_dataset(identifier, f"a file of {kind} texts, or a data set with them")
    if not (dataset.has_queries() if kind == "query" else dataset.has_docs()):
        plural = "queries" if kind == "query" else "docs"
        raise InputError(f"{identifier}: this ir_datasets id has no {plural}")
    return dataset
