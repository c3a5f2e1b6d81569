"""Read relevance judgements (qrels) from TREC files or ir_datasets."""

import hashlib
import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from rankdistillm.data.catalogue import load_ir_dataset
from rankdistillm.data.files import integer_of, numbered_lines
from rankdistillm.data.runs import Run
from rankdistillm.errors import InputError, quoted

Qrels = dict[str, dict[str, int]]  # query_id -> doc_id -> relevance


def read_qrels(source: str | Path) -> Qrels:
    """Read TREC qrels (``query_id 0 doc_id relevance``, also .gz) or those of an ir_datasets id.

    Raises `InputError` with file and line for a wrong number of columns, a relevance that is not a
    whole number, and a passage that is judged twice for a query.
    """
    qrels: Qrels = {}
    if not Path(source).exists():
        dataset = load_ir_dataset(str(source), "a qrels file, or a data set with qrels")
        if not dataset.has_qrels():
            raise InputError(f"{source}: this ir_datasets id has no qrels")
        for qrel in dataset.qrels_iter():
            qrels.setdefault(qrel.query_id, {})[qrel.doc_id] = qrel.relevance
        return qrels
    for line, text in numbered_lines(Path(source)):
        columns = text.split()
        if len(columns) != 4:
            raise InputError(
                f"{source}, line {line}: expected the 4 columns 'query_id 0 doc_id relevance', "
                f"found {len(columns)}; correct the line"
            )
        query_id, _, doc_id, relevance = columns
        judged = qrels.setdefault(query_id, {})
        if doc_id in judged:
            raise InputError(
                f"{source}, line {line}: passage {quoted(doc_id)} is judged twice for query "
                f"{quoted(query_id)}; keep one of the two lines"
            )
        judged[doc_id] = integer_of(relevance, "relevance", f"{source}, line {line}")
    return qrels


def digest_of(qrels: Qrels) -> str:
    """A hash of the judgements, whatever their order."""
    return hashlib.blake2b(json.dumps(qrels, sort_keys=True).encode(), digest_size=8).hexdigest()


def check_overlap(run: Run, qrels: Qrels) -> None:
    """Raises `InputError` if none of the run's queries is judged."""
    if any(query_id in qrels for query_id in run):
        return
    raise InputError(
        f"{run.source}: none of its {len(run)} queries ({_examples(run)}) is among the "
        f"{len(qrels)} judged ones ({_examples(qrels)}); give the qrels of the same queries"
    )


def _examples(query_ids: Iterable[str]) -> str:
    first = [quoted(query_id) for query_id in islice(query_ids, 4)]
    return ", ".join([*first[:3], "..."] if len(first) > 3 else first)
