"""Texts of queries and passages: id -> text, from local TSV / JSONL files or ir_datasets."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Literal

from rankdistillm.errors import InputError, quoted
from rankdistillm.files import (
    collection_of,
    json_lines,
    load_ir_dataset,
    numbered_lines,
    suffix_of,
    text_of,
)
from rankdistillm.runs import Run

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

    ``source`` is a TSV file (``id<TAB>text``), a JSONL file (an id, ``text`` and maybe ``title``;
    for queries also ``query``), either also as .gz, or an ir_datasets id. ``wanted`` keeps only
    these ids, so that a large collection costs no more memory than what is asked of it.

    Raises `InputError` with file and line for a line that is none of these and for an id that
    stands twice.
    """
    path = Path(source)
    if not path.exists():
        return _from_ir_datasets(str(source), kind, wanted)
    is_json = suffix_of(path) in (".jsonl", ".json")
    entries = _jsonl_entries(path, kind) if is_json else _tsv_entries(path)
    texts: dict[str, str] = {}
    for line, identifier, text in entries:
        if wanted is not None and identifier not in wanted:
            continue
        if identifier in texts:
            raise InputError(
                f"{path}, line {line}: the {kind}_id {quoted(identifier)} stands twice; keep one "
                "of the two"
            )
        texts[identifier] = text
    return texts


def texts_of_run(
    run: Run, queries: str | Path | None, docs: str | Path | None
) -> tuple[dict[str, str], dict[str, str]]:
    """The texts of all queries and passages of a run: (query_id -> text, doc_id -> text).

    ``queries`` and ``docs`` are what `read_texts` takes, or None where the run file itself carries
    the texts or names their collection (`rankdistillm.files.collection_of`). An id of the run
    without a text is an `InputError` that names its line in the run.
    """
    queries = queries or (None if run.queries else collection_of(run.source))
    docs = docs or (None if run.docs else collection_of(run.source))
    doc_ids = {doc_id for ranked in run.values() for doc_id in ranked.doc_ids}
    query_texts = read_texts(queries, "query", wanted=set(run)) if queries else run.queries
    doc_texts = read_texts(docs, "doc", wanted=doc_ids) if docs else run.docs
    for query_id, ranked in run.items():
        if query_id not in query_texts:
            raise InputError(
                f"{run.where(query_id)}: the query_id {quoted(query_id)} has no text in "
                f"{queries or 'the run itself'}; {_remedy('queries', queries)}"
            )
        for doc_id in ranked.doc_ids:
            if doc_id not in doc_texts:
                raise InputError(
                    f"{run.where(query_id, doc_id)}: the doc_id {quoted(doc_id)} has no text in "
                    f"{docs or 'the run itself'}; {_remedy('docs', docs)}"
                )
    return query_texts, doc_texts


def _remedy(option: str, given: object) -> str:
    if given:
        return f"add it there, or point data.{option} to the collection that the run ranks"
    return f"set data.{option}=FILE_OR_IR_DATASETS_ID"


def _tsv_entries(path: Path) -> Iterator[tuple[int, str, str]]:
    for line, content in numbered_lines(path):
        identifier, tab, text = content.partition("\t")
        if not tab:
            raise InputError(
                f"{path}, line {line}: expected 'id<TAB>text', found no tab; write one entry a line"
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
    dataset = load_ir_dataset(identifier, f"a file of {kind} texts, or a data set with them")
    if kind == "query":
        if not dataset.has_queries():
            raise InputError(f"{identifier}: this ir_datasets id has no queries")
        return {
            query.query_id: query.default_text()
            for query in dataset.queries_iter()
            if wanted is None or query.query_id in wanted
        }
    if not dataset.has_docs():
        raise InputError(f"{identifier}: this ir_datasets id has no docs")
    if wanted is None:
        return {doc.doc_id: doc.default_text() for doc in dataset.docs_iter()}
    return {i: d.default_text() for i, d in dataset.docs_store().get_many(list(wanted)).items()}
