"""Retrieve by BM25, re-rank by students and evaluate, on any set of collections.

    python -m experiments.breadth.run WORK --collections scifact beir/nfcorpus/test \
        --students NAME=CHECKPOINT ... [--depth 100] [--metrics ndcg@10] [--language english]

A collection is an ir_datasets id with docs, queries and judgements, or a folder with qrels.txt and
the files docs and queries (.tsv or .jsonl, also .gz). Every retrieval and re-ranking is one of the
commands of the README, printed before it runs; what already stands in WORK is not done again.
"""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from experiments.commands import command, rerank, retrieve
from rankdistillm.errors import InputError

FIRST_STAGE = "bm25"


class Collection(NamedTuple):
    """A name for tables, and files or ids."""

    name: str
    docs: str
    queries: str
    qrels: str


def collection(source: str) -> Collection:
    """The files of a folder, or an id. Raises `InputError` for a folder that lacks a file."""
    folder = Path(source)
    if not folder.is_dir():
        return Collection(source, source, source, source)
    texts = (".tsv", ".tsv.gz", ".jsonl", ".jsonl.gz")
    docs, queries, qrels = (
        _file(folder, name, suffixes)
        for name, suffixes in (("docs", texts), ("queries", texts), ("qrels", (".txt",)))
    )
    return Collection(folder.resolve().name, docs, queries, qrels)


def _file(folder: Path, name: str, suffixes: tuple[str, ...]) -> str:
    for suffix in suffixes:
        if (file := folder / f"{name}{suffix}").exists():
            return str(file.resolve())
    raise InputError(f"{folder}: no {' or '.join(name + suffix for suffix in suffixes)} in it")


def value(text: str | Path) -> str:
    """A path or id as the command line takes it."""
    text = str(text)
    return text if re.fullmatch(r"[\w./-]+|{.*}", text) else "'" + text.replace("'", r"\'") + "'"


def mapping(entries: Mapping[str, str | Path]) -> str:
    """Entries as the command line takes them."""
    return "{" + ", ".join(f"{key}: {value(found)}" for key, found in entries.items()) + "}"


def make_runs(
    runs: Path,
    collections: list[Collection],
    students: dict[str, str],
    depth: int,
    language: str,
) -> None:
    """Write ``RUN__COLLECTION.run`` of the first stage and of each student."""
    for name, docs, queries, _ in collections:
        file = f"{name.replace('/', '-')}.run"
        texts = ("data=local", f"data.docs={value(docs)}", f"data.queries={value(queries)}")
        first = retrieve(
            runs / f"{FIRST_STAGE}__{file}", *texts, f"depth={depth}", f"language={language}"
        )
        for student, checkpoint in students.items():
            rerank(
                runs / f"{student}__{file}",
                *texts,
                f"model.path={value(checkpoint)}",
                f"run={value(first)}",
                f"depth={depth}",
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--collections", nargs="+", required=True, metavar="ID_OR_FOLDER")
    parser.add_argument("--students", nargs="*", default=[], metavar="NAME=CHECKPOINT")
    parser.add_argument("--depth", type=int, default=100)
    parser.add_argument("--metrics", nargs="+", default=["ndcg@10"])
    parser.add_argument("--language", default="english")
    arguments = parser.parse_args()
    try:
        collections = [collection(source) for source in arguments.collections]
    except InputError as error:
        parser.error(str(error))
    students = {}
    for student in arguments.students:
        name, named, checkpoint = student.partition("=")
        if not named or "__" in name or name in ("", FIRST_STAGE, *students):
            parser.error(f"{student}: give each student a name of its own, as NAME=CHECKPOINT")
        students[name] = checkpoint
    names = [name for name, *_ in collections]
    if len({name.replace("/", "-") for name in names}) < len(names):
        parser.error(f"two collections have one name: {', '.join(names)}")
    runs = arguments.work.resolve() / "runs"
    make_runs(runs, collections, students, arguments.depth, arguments.language)
    # Only these runs: others may lie in WORK from an earlier command.
    files = {
        name: {
            run: runs / f"{run}__{name.replace('/', '-')}.run" for run in (FIRST_STAGE, *students)
        }
        for name in names
    }
    command(
        "evaluate",
        f"runs={mapping({name: mapping(found) for name, found in files.items()})}",
        f"qrels={mapping({name: qrels for name, *_, qrels in collections})}",
        *([f"baseline={FIRST_STAGE}"] if students else []),
        f"metrics=[{','.join(arguments.metrics)}]",
        f"table={value(arguments.work / 'table.md')}",
        f"output={value(arguments.work / 'results.json')}",
    )


if __name__ == "__main__":
    main()
