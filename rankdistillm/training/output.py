"""The output folder of a training: its files, and the protection of all other files in it."""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from rankdistillm import distributed
from rankdistillm.data.outputs import keep_apart, locked, replacing_folder, writable_folder
from rankdistillm.errors import InputError
from rankdistillm.evaluation.trainings import is_training_config
from rankdistillm.exports.card import is_written
from rankdistillm.model.formats import lightning_ir

# The files and folders that a training writes.
FILES = (
    "config.yaml", "metrics.jsonl", "before.run", "after.run", "validation.run", "wandb_run_id",
    "summary.json", "per_query.csv",
)  # fmt: skip
FOLDERS = ("checkpoint", "state", "tensorboard")

# Deleted when a student is replaced, or the new tokeniser would load files that the old one left,
# and the new student would be read by the old one's list of modules.
TOKENISER_FILES = {
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.txt", "vocab.json", "merges.txt", "spm.model", "spiece.model",
    "sentencepiece.bpe.model", "chat_template.jinja", "modules.json",
    "config_sentence_transformers.json", "sentence_bert_config.json",
}  # fmt: skip


@contextmanager
def training_folder(output: Path, inputs: Iterable[tuple[str, str | Path]]) -> Iterator[Path]:
    """Create the folder and lock it for this training inside the ``with`` block.

    ``inputs`` are pairs (name in messages, path or id) of what the training reads. Raises
    `InputError` if the training would overwrite one of them or files that no training wrote, if the
    folder cannot be written, or if another training holds the lock.
    """
    name = f"the output folder {output}"
    keep_apart([(name, output / written) for written in (*FILES, *FOLDERS)], inputs)
    check_ours(output)
    with writable_folder(output, name), locked(output):
        yield output


def check_ours(output: Path) -> None:
    """Raises `InputError` if a training in ``output`` would replace files that none wrote.

    The folder of a training is recognised by its config.yaml, a student by its config.json.
    """
    found = [name for name in (*FILES, *FOLDERS) if os.path.lexists(output / name)]
    remedy = "choose another output folder, or move it elsewhere"
    if found and not _is_config(output / "config.yaml"):
        raise InputError(
            f"{output / found[0]}: not written by a training (there is no config.yaml of one "
            f"beside it); {remedy}"
        )
    for name in found:
        if (output / name).is_dir() != (name in FOLDERS):
            kind = "folder" if name in FOLDERS else "file"
            raise InputError(f"{output / name}: not a {kind}, so no training wrote it; {remedy}")
    if "checkpoint" in found and not _is_student(output / "checkpoint/config.json"):
        raise InputError(f"{output / 'checkpoint'}: not a student that a training wrote; {remedy}")


def _is_config(file: Path) -> bool:
    try:
        config = OmegaConf.load(file)
    except (OSError, ValueError, YAMLError, OmegaConfBaseException):
        return False
    return OmegaConf.is_dict(config) and is_training_config(config)


def _is_student(file: Path) -> bool:
    try:
        config = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and (
        "rankdistillm" in config or config.get("model_type") in lightning_ir.MODEL_TYPES
    )


def save_student(model: Any, folder: Path) -> None:
    """Write the student as ``from_pretrained`` files; all processes can read them afterwards."""
    if distributed.is_first():
        with replacing_folder(folder, keep=_is_foreign) as beside:
            model.save_pretrained(beside)
    distributed.barrier()


def _is_foreign(path: Path) -> bool:
    """Whether a file in a student's folder belongs neither to the student nor to its card."""
    return path.name not in TOKENISER_FILES and not is_written(path)
