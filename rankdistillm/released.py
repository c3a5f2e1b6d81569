"""The training runs of the Rank-DistiLLM release, as data sets of ir_datasets.

    msmarco-passage/train/rank-distillm-rankzephyr       RankZephyr over ColBERTv2, 10,000 queries
    msmarco-passage/train/rank-distillm-set-encoder      Set-Encoder over ColBERTv2, all queries
    msmarco-passage/train/rank-distillm-monoelectra      monoELECTRA over ColBERTv2, all queries
    msmarco-passage/train/rank-distillm-colbert          ColBERTv2 itself, all queries

Passages are those of ``msmarco-passage``, queries and judgements those of
``msmarco-passage/train``; the runs are Parquet files of the Hugging Face data set
webis/rank-distillm (Schlatt et al., ECIR 2025), fetched at first use into the folder of ir_datasets
(``IR_DATASETS_HOME``) from the hub (``HF_ENDPOINT``).
"""

import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rankdistillm.errors import InputError

log = logging.getLogger(__name__)

REPOSITORY = "webis/rank-distillm"
COLLECTION, SPLIT = "msmarco-passage", "msmarco-passage/train"


class ReleasedFile(NamedTuple):
    """A file of the release and the md5 that the authors publish for it."""

    name: str
    md5: str


_RANKZEPHYR = ReleasedFile(
    "__rankzephyr-colbert-10000-sampled-100__msmarco-passage-train-judged.parquet",
    "38f69a3c8a5ed21c639e882a6c2eff7c",
)
RELEASED = {
    "rank-distillm-rankzephyr": _RANKZEPHYR,
    "rank-distillm-rank-zephyr": _RANKZEPHYR,  # as the published configuration spells it
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
    """Make the data sets known to ir_datasets; what is registered already is left alone."""
    import ir_datasets
    from ir_datasets.datasets.base import Dataset
    from ir_datasets.formats import BaseScoredDocs, GenericScoredDoc

    class ReleasedRun(BaseScoredDocs):
        """``scoreddocs`` of a Parquet file, in the order of its rows."""

        def __init__(self, file: ReleasedFile) -> None:
            self.file = file

        def scoreddocs_path(self) -> str:
            return str(fetch(self.file))

        def scoreddocs_iter(self) -> Iterator[Any]:
            from rankdistillm.run_files import read_rows

            for row in read_rows(self.scoreddocs_path()):
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
    """The Parquet file of one of these data sets; None for any other id."""
    split, _, name = identifier.rpartition("/")
    return fetch(RELEASED[name]) if split == SPLIT and name in RELEASED else None


def fetch(file: ReleasedFile) -> Path:
    """Download a file of the release unless it is there, and check its md5; returns its path.

    An interrupted download goes on where it stopped when it is called again. Raises `InputError`
    where the file cannot be had, or is not the published one: then it is removed.
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
    except Exception as error:  # what a connection may raise has no common class
        reason = next((line for line in str(error).splitlines() if line.strip()), repr(error))
        raise InputError(
            f"{path}: could not be fetched from {REPOSITORY} ({reason}); call again to go on with "
            "what has arrived, or put the file there yourself"
        ) from error
    return path


def _download(name: str, part: Path) -> None:
    # huggingface_hub's own cache starts anew after a broken connection.
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
            f"{file.name}: the file in {REPOSITORY} has md5 {found}, not {file.md5}: damaged on "
            "the way, or not the published one; it was removed, call again to fetch it anew"
        )
