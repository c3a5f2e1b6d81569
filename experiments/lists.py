"""Training files for the studies: ranked lists of several teachers side by side, texts, qrels."""

from collections.abc import Mapping
from pathlib import Path

from rankdistillm.data.runs import RankedList, Run


def join_lists(
    teachers: Mapping[str, Run], queries: Mapping[str, str]
) -> tuple[Run, dict[str, str]]:
    """All lists of all teachers as one run, and its queries.

    A query that two teachers rank has two lists: each gets the id ``QUERY@TEACHER``.
    """
    lists: dict[str, RankedList] = {}
    texts: dict[str, str] = {}
    for name, teacher in teachers.items():
        for query_id, ranked in teacher.items():
            lists[f"{query_id}@{name}"] = ranked
            texts[f"{query_id}@{name}"] = queries[query_id]
    return Run(lists), texts


def write_texts(path: Path, texts: Mapping[str, str]) -> None:
    """Write ``id<TAB>text`` lines."""
    lines = "".join(f"{key}\t{text}\n" for key, text in texts.items())
    path.write_text(lines, encoding="utf-8")


def write_qrels(path: Path, judgements: Mapping[str, Mapping[str, int]]) -> None:
    """Write TREC qrels."""
    path.write_text(
        "".join(
            f"{query_id} 0 {doc_id} {relevance}\n"
            for query_id, grades in judgements.items()
            for doc_id, relevance in grades.items()
        ),
        encoding="utf-8",
    )
