"""Look up collections by id: those of ir_datasets and the runs of the Rank-DistiLLM release.

This module adds the data sets of the release to ir_datasets:

    msmarco-passage/train/rank-distillm-rankzephyr       RankZephyr over ColBERTv2, 10,000 queries
    msmarco-passage/train/rank-distillm-set-encoder      Set-Encoder over ColBERTv2, all queries
    msmarco-passage/train/rank-distillm-monoelectra      monoELECTRA over ColBERTv2, all queries
    msmarco-passage/train/rank-distillm-colbert          ColBERTv2 itself, all queries

They use the passages of ``msmarco-passage`` and the queries and judgements of
``msmarco-passage/train``. The runs are Parquet files of the Hugging Face data set
webis/rank-distillm (Schlatt et al., ECIR 2025). They are downloaded at first use from the hub
(``HF_ENDPOINT``) into the folder of ir_datasets (``IR_DATASETS_HOME``).
"""

import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rankdistillm.data.formats import read_rows
from rankdistillm.data.rows import Row, at, row_of
from rankdistillm.errors import InputError

log = logging.getLogger(__name__)

REPOSITORY = "webis/rank-distillm"
COLLECTION, SPLIT = "msmarco-passage", "msmarco-passage/train"


class ReleasedFile(NamedTuple):
    """A file of the release and the md5 that its authors publish."""

    name: str
    md5: str


_RANKZEPHYR = ReleasedFile(
    "__rankzephyr-colbert-10000-sampled-100__msmarco-passage-train-judged.parquet",
    "38f69a3c8a5ed21c639e882a6c2eff7c",
)
RELEASED = {
    "rank-distillm-rankzephyr": _RANKZEPHYR,
    "rank-distillm-rank-zephyr": _RANKZEPHYR,  # the spelling of the published configuration
    "rank-distillm-set-encoder": ReleasedFile(
        "__set-encoder-colbert-all-100__msmarco-passage-train-judged.parquet",
        "a47206da7dc551e3ebd4e5b6866be78a",
    ),
    "rank-distillm-monoelectra": ReleasedFile(
        "__monoelectra-colbert-all-100__msmarco-passage-train-judged.parquet",
        "6561f33476a6c8408737f38ea85c848f",
    ),
    "rank-distillm-colbert": ReleasedFile(
        "__colbert__msmarco-passage-train-judged.parquet",
        "1e927d52af085516bf5a3de2865809d5",
    ),
}


def register() -> None:
    """Register the release's data sets with ir_datasets, unless they are registered already."""
    import ir_datasets
    from ir_datasets.datasets.base import Dataset
    from ir_datasets.formats import BaseScoredDocs, GenericScoredDoc

    class ReleasedRun(BaseScoredDocs):
        """The ``scoreddocs`` of a Parquet file, in row order."""

        def __init__(self, file: ReleasedFile) -> None:
            self.file = file

        def scoreddocs_path(self) -> str:
            return str(fetch(self.file))

        def scoreddocs_iter(self) -> Iterator[Any]:
            for row in read_rows(Path(self.scoreddocs_path())):
                yield GenericScoredDoc(row.query_id, row.doc_id, row.score)

        def scoreddocs_cls(self) -> type:
            return GenericScoredDoc

    for name, file in RELEASED.items():
        if f"{SPLIT}/{name}" in ir_datasets.registry._registered:
            continue
        collection, split = ir_datasets.load(COLLECTION), ir_datasets.load(SPLIT)
        dataset = Dataset(
            collection.docs_handler(),
            split.queries_handler(),
            split.qrels_handler(),
            ReleasedRun(file),
        )
        ir_datasets.registry.register(f"{SPLIT}/{name}", dataset)


def fetch_run(identifier: str) -> Path | None:
    """The Parquet file of one of the release's data sets; None for any other id."""
    split, _, name = identifier.rpartition("/")
    return fetch(RELEASED[name]) if split == SPLIT and name in RELEASED else None


def fetch(file: ReleasedFile) -> Path:
    """Download a file of the release unless it exists, and check its md5; returns its path.

    An interrupted download resumes with the next call. Raises `InputError` if the file cannot be
    downloaded, or if its md5 is wrong; a wrong file is removed.
    """
    from filelock import FileLock
    from ir_datasets.util import home_path

    path = home_path() / COLLECTION / "rank-distillm" / file.name
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{part}.lock"):
            if not path.exists():
                _download(file.name, part)
                _check(file, part)
                os.replace(part, path)
    except InputError:
        raise
    except Exception as error:  # connection errors have no common class
        reason = next((line for line in str(error).splitlines() if line.strip()), repr(error))
        raise InputError(
            f"{path}: could not be fetched from {REPOSITORY} ({reason}); run again to resume the "
            "download, or put the file there yourself"
        ) from error
    return path


def _download(name: str, part: Path) -> None:
    # huggingface_hub's own cache restarts after a broken connection.
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get

    metadata = get_hf_file_metadata(hf_hub_url(REPOSITORY, name, repo_type="dataset"))
    with open(part, "ab") as content:
        http_get(
            metadata.location,
            content,
            resume_size=content.tell(),
            expected_size=metadata.size,
            displayed_filename=name,
        )


def _check(file: ReleasedFile, part: Path) -> None:
    with open(part, "rb") as content:
        found = hashlib.file_digest(content, "md5").hexdigest()
    if found != file.md5:
        part.unlink()
        raise InputError(
            f"{file.name}: the file in {REPOSITORY} has md5 {found}, not {file.md5}: it is damaged "
            "or not the published file; it was removed, run again to download it anew"
        )


def local_run(source: str | Path) -> Path:
    """The path of a run file: ``source`` itself, or the downloaded file of a release id."""
    return fetch_run(str(source)) or Path(source)


def scored_docs(identifier: str) -> Iterator[Row]:
    """The rows of an ir_datasets id's run, its ``scoreddocs``. Raises `InputError` without one."""
    dataset = load_ir_dataset(identifier, "a run file, or a data set with scoreddocs")
    if not dataset.has_scoreddocs():
        raise InputError(f"{identifier}: this ir_datasets id has no scoreddocs to read a run from")
    for line, entry in enumerate(dataset.scoreddocs_iter(), 1):
        names = ("query_id", "doc_id", "rank", "score")
        found = {name: getattr(entry, name, None) for name in names}
        yield row_of(line, found, at(identifier, line))


def load_ir_dataset(identifier: str, what: str) -> Any:
    """The ir_datasets data set of that id. Raises `InputError` for an unknown id."""
    try:
        return _catalogue()[identifier]
    except KeyError as error:
        raise InputError(
            f"{identifier}: neither a file nor an ir_datasets id (wanted: {what})"
        ) from error


def collection_of(source: str | Path) -> str | None:
    """The ir_datasets id of the collection that a run ranks, from its name; None if unknown.

    An ir_datasets id names its own texts. A file may name them after the last ``__``, with dashes
    for slashes, as the files of the Rank-DistiLLM release do: ``__bm25__cranfield.run.gz``.
    """
    _, marked, name = Path(source).name.rpartition("__")
    name = name.removesuffix(".gz").rpartition(".")[0]
    for known in _catalogue():
        if known == str(source) or (marked and known.replace("/", "-") == name):
            return known
    return None


def _catalogue() -> Any:
    import ir_datasets  # imported late: it takes a noticeable part of a second

    register()
    return ir_datasets.registry
