"""Find the run files and judgements of each collection."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from rankdistillm.data.catalogue import collection_of, load_ir_dataset
from rankdistillm.data.files import suffix_of
from rankdistillm.errors import InputError

log = logging.getLogger(__name__)

RUN_SUFFIXES = (".run", ".txt", ".tsv", ".jsonl", ".parquet")
EXAMPLE = "'runs={bm25: first.run, student: reranked.run}'"


@dataclass(frozen=True)
class JudgedFiles:
    """One collection: its judgements, and run name -> run, each a file or an ir_datasets id."""

    qrels: str
    runs: dict[str, str] = field(default_factory=dict)


def find_runs(runs: Any, qrels: Any) -> tuple[dict[str, JudgedFiles], list[str]]:
    """Collection -> its files, and notes on what was left out.

    ``runs``: run name -> file, all of one collection (then called ``""``), with its ``qrels``; or
    collection -> run name -> file; or a folder (`runs_of_folder`). ``qrels`` maps collections to
    their judgements; a collection that it lacks is looked up as an ir_datasets id. With a single
    collection, ``qrels`` may be its judgements directly.

    Raises `InputError` if ``runs`` or ``qrels`` is missing or has another form.
    """
    if not runs:
        raise InputError(f"runs is not set; add it, for example {EXAMPLE}")
    if isinstance(runs, str):
        named = runs_of_folder(Path(runs), qrels)
    elif not isinstance(runs, DictConfig):
        raise InputError(f"runs={runs}: give each run a name, as in {EXAMPLE}, or name a folder")
    elif all(isinstance(value, DictConfig) for value in runs.values()):
        named = {str(c): {str(n): str(f) for n, f in of.items()} for c, of in runs.items()}
    elif any(isinstance(value, DictConfig) for value in runs.values()):
        raise InputError(f"runs={runs}: give all runs by collection, or none, as in {EXAMPLE}")
    else:
        if not isinstance(qrels, str):
            raise InputError("qrels is not set; give the judgements, for example qrels=qrels.txt")
        return {"": JudgedFiles(qrels, {str(n): str(f) for n, f in runs.items()})}, []
    if isinstance(qrels, str):
        if len(named) > 1:
            wanted = ", ".join(f"{collection}: FILE" for collection in named)
            raise InputError(
                f"qrels={qrels} for {len(named)} collections: give 'qrels={{{wanted}}}'"
            )
        qrels = dict.fromkeys(named, qrels)
    found, notes = {}, []
    for collection, files in named.items():
        judgements = _judgements(collection, qrels)
        if judgements is None:
            notes.append(f"{collection}: no judgements, left out: {', '.join(files)}")
        else:
            found[collection] = JudgedFiles(judgements, files)
    if not found:
        raise InputError(f"no collection has judgements ({'; '.join(notes)}); give them in qrels")
    return found, notes


def check_baselines(files: Mapping[str, JudgedFiles], baselines: Sequence[str]) -> None:
    """Raises `InputError` for a baseline that is not among the runs of any collection."""
    runs = list(dict.fromkeys(name for judged in files.values() for name in judged.runs))
    for baseline in baselines:
        if baseline not in runs:
            raise InputError(f"baseline={baseline} is not among the runs: {', '.join(runs)}")


def runs_of_folder(folder: Path, qrels: Any = None) -> dict[str, dict[str, str]]:
    """Collection -> run name -> file, for the files ``RUN__COLLECTION.run`` in a folder.

    In a file name, dashes replace the slashes of a collection that ``qrels`` or ir_datasets has.
    If ``qrels`` is one file or id and no run names a collection, the collection is called ``""``.

    Raises `InputError` for a folder without runs and for two files of the same run.
    """
    if not folder.is_dir():
        raise InputError(f"runs={folder}: not a folder; give one, or name each run as in {EXAMPLE}")
    given = () if qrels is None or isinstance(qrels, str) else qrels
    known = {str(name).replace("/", "-"): str(name) for name in given}
    named: dict[str, dict[str, str]] = {}
    for file in sorted(folder.iterdir()):
        is_judgements = isinstance(qrels, str) and file.resolve() == Path(qrels).resolve()
        if suffix_of(file) not in RUN_SUFFIXES or is_judgements:
            continue
        run, marked, rest = file.name.rpartition("__")
        name = rest.removesuffix(".gz").rpartition(".")[0]
        if marked:
            collection, run = known.get(name) or collection_of(file) or name, run.strip("_")
        else:
            collection, run = "", name
        other = named.setdefault(collection, {}).setdefault(run, str(file))
        if other != str(file):
            of = f" of {collection}" if collection else ""
            raise InputError(f"{other} and {file} are both the run {run}{of}; rename one")
    if "" in named and (len(named) > 1 or not isinstance(qrels, str)):
        left_out = ", ".join(Path(file).name for file in named.pop("").values())
        log.warning("%s: without __COLLECTION, left out: %s", folder, left_out)
    if not named:
        raise InputError(
            f"runs={folder}: no file RUN__COLLECTION{'|'.join(RUN_SUFFIXES)} in it; runs without "
            "__COLLECTION need qrels that are one file, the judgements of their collection"
        )
    return named


def _judgements(collection: str, qrels: Any) -> str | None:
    if qrels and collection in qrels:
        return str(qrels[collection])
    try:
        dataset = load_ir_dataset(collection, "a collection with judgements")
    except InputError:
        return None
    return collection if dataset.has_qrels() else None
