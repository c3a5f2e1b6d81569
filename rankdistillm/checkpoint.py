"""Save and load: the student's folder, and all that a run needs to go on where it stopped."""

import json
import logging
import os
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from rankdistillm import processes
from rankdistillm.errors import InputError
from rankdistillm.files import replacing, to_disk, unwritable
from rankdistillm.layouts import mono

log = logging.getLogger(__name__)

# Two, so that there is one to go back to where the newest cannot be read.
STATES_KEPT = 2
UNREADABLE = (
    OSError, RuntimeError, EOFError, ValueError, LookupError, zipfile.BadZipFile, UnpicklingError,
)  # fmt: skip


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Give a folder beside to write into, and put it in the place of ``folder`` when all is there.

    What stood under ``folder`` before is kept until then; nothing half-written is left under its
    name. Files of others that lay in it lie in the new one.
    """
    beside = folder.with_name(f".{folder.name}.part")
    old = folder.with_name(f".{folder.name}.old")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        yield beside
        for file in beside.rglob("*"):
            if file.is_file():
                to_disk(file)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.replace(folder, old)
        os.replace(beside, folder)
        if old.exists():
            _keep_foreign(old, folder)
    except OSError as error:
        raise unwritable(folder, error) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)


# Left by a tokeniser of another kind, they would mislead the reader of the new one.
TOKENISER_FILES = {
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.txt", "vocab.json", "merges.txt", "spm.model", "spiece.model",
    "sentencepiece.bpe.model", "chat_template.jinja",
}  # fmt: skip


def _keep_foreign(old: Path, new: Path) -> None:
    for path in old.iterdir():
        if path.name not in TOKENISER_FILES and not (new / path.name).exists():
            os.replace(path, new / path.name)


# What a training writes into its folder, beside the folders `checkpoint` and `state`.
FILES = (
    "config.yaml", "metrics.jsonl", "before.run", "after.run", "validation.run", "wandb_run_id",
)  # fmt: skip
FOLDERS = ("checkpoint", "state")


def check_ours(output: Path) -> None:
    """Raises `InputError` where a training in ``output`` would replace what is not of a training.

    A folder is known by its config.yaml, a student by its config.json.
    """
    found = [name for name in (*FILES, *FOLDERS) if os.path.lexists(output / name)]
    kept = "choose another output, or move it elsewhere"
    if found and not _is_config(output / "config.yaml"):
        raise InputError(
            f"{output / found[0]}: not written by a training (no config.yaml of one beside it); "
            + kept
        )
    for name in found:
        if (output / name).is_dir() != (name in FOLDERS):
            kind = "folder" if name in FOLDERS else "file"
            raise InputError(f"{output / name}: not a {kind}, as a training writes it; {kept}")
    if "checkpoint" in found and not _is_student(output / "checkpoint/config.json"):
        raise InputError(f"{output / 'checkpoint'}: not a student that a training wrote; {kept}")


def _is_config(file: Path) -> bool:
    try:
        config = OmegaConf.load(file)
    except (OSError, ValueError, YAMLError, OmegaConfBaseException):
        return False
    return OmegaConf.is_dict(config) and {"stage", "queries_per_step", "loss"} <= set(config)


def _is_student(file: Path) -> bool:
    try:
        config = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    ours = isinstance(config, dict) and ("rankdistillm" in config)
    return ours or (isinstance(config, dict) and config.get("model_type") in mono.MODEL_TYPES)


def restore_folder(folder: Path) -> None:
    """Undo a `replacing_folder` that was killed between its two renames."""
    old = folder.with_name(f".{folder.name}.old")
    if old.exists() and not folder.exists():
        os.replace(old, folder)


def save_student(model: Any, folder: Path) -> None:
    """Write the student as ``from_pretrained`` files; all processes can read them afterwards."""
    if processes.is_first():
        with replacing_folder(folder) as beside:
            model.save_pretrained(beside)
    processes.wait()


class TrainingState:
    """All that a training needs to go on: files ``folder/STEP.pt``, of which the last two are kept.

    ``parts`` are the objects with a ``state_dict``. ``setting`` is the part of the configuration
    that decides the trajectory: a state saved under another one is refused.
    """

    def __init__(self, folder: Path, setting: Mapping[str, Any], **parts: Any) -> None:
        self.folder = folder
        self.setting = dict(setting)
        self.parts = parts

    def save(self, place: Mapping[str, Any]) -> None:
        """Write the parts, the random generators and ``place``, plain data with its ``step``."""
        # Data are drawn from generators of their own; only dropout uses these.
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
        states = processes.of_all({"cpu": torch.get_rng_state(), "cuda": cuda})
        if processes.is_first():
            state = {name: part.state_dict() for name, part in self.parts.items()}
            state |= {"random": states, "place": dict(place), "setting": self.setting}
            with replacing(self._file(place["step"])) as beside:
                try:
                    with open(beside, "wb") as file:
                        torch.save(state, file)
                except RuntimeError as error:  # its words are about its own format
                    cause = error.__context__
                    raise cause if isinstance(cause, OSError) else OSError(str(error)) from error
            old = [self._file(step) for step in self._steps()[:-STATES_KEPT]]
            for done in (*old, *self._half_written()):
                done.unlink(missing_ok=True)
        processes.wait()

    def load(self) -> dict[str, Any]:
        """Load the newest state that can be read into the parts; returns its ``place``.

        Empty if none was saved. Raises `InputError` where none of those saved can be read, or the
        training was another one.
        """
        problems = []
        for step in reversed(self._steps()):
            file = self._file(step)
            try:
                state = self._read(file)
            except UNREADABLE as error:
                problems.append(f"{file}: cannot be read ({' '.join(str(error).split())[:120]})")
                log.warning("%s; going back to the state before", problems[-1])
                continue
            self.check(state["setting"])
            for name, part in self.parts.items():
                if state[name]:  # a gradient scaler that was off has none
                    part.load_state_dict(state[name])
            self._set_random(state["random"])
            return state["place"]
        if problems:
            raise InputError(f"{problems[0]}; remove {self.folder} or start anew: resume=never")
        return {}

    def _read(self, file: Path) -> dict[str, Any]:
        with zipfile.ZipFile(file) as parts:  # torch's own reader does not look at the checksums
            if (damaged := parts.testzip()) is not None:
                raise ValueError(f"the checksum of {damaged} is wrong")
        state = torch.load(file, map_location="cpu", weights_only=True)
        wanted = {*self.parts, "setting", "place", "random"}
        if not isinstance(state, dict) or not state.keys() >= wanted:
            raise ValueError("not the state of a training")
        return state

    def remove(self) -> None:
        """Forget what was saved; what others put into the folder stays."""
        steps = self._steps()
        if steps:
            log.info(
                "resume=never: the state of step %d is removed, its student and figures are "
                "replaced: %s", steps[-1], self.folder.parent,
            )  # fmt: skip
        for file in (*map(self._file, steps), *self._half_written()):
            file.unlink(missing_ok=True)
        with suppress(OSError):  # not empty
            self.folder.rmdir()

    def check(self, saved: Mapping[str, Any]) -> None:
        """Raises `InputError` where the setting ``saved`` is that of another training."""
        for name, value in self.setting.items():
            if saved.get(name) != value:
                name, before, now = _difference(name, saved.get(name), value)
                raise InputError(
                    f"{self.folder.parent}: holds a training with {name}={before}, not {now}; "
                    "choose another output, or start anew with resume=never"
                )

    def _set_random(self, states: list[dict[str, Any]]) -> None:
        # With more processes than before the new ones keep the seed that they have.
        if processes.rank() < len(states):
            own = states[processes.rank()]
            torch.set_rng_state(own["cpu"])
            if own["cuda"] is not None and torch.cuda.is_initialized():
                torch.cuda.set_rng_state(own["cuda"])

    def _file(self, step: int) -> Path:
        return self.folder / f"{step}.pt"

    def _half_written(self) -> Iterator[Path]:
        """Files of a process that was killed."""
        return self.folder.glob(".[0-9]*.pt.*.part")

    def _steps(self) -> list[int]:
        return sorted(
            int(file.stem)
            for file in self.folder.glob("*.pt")
            if re.fullmatch("[1-9][0-9]{0,17}", file.stem) and file.is_file()
        )


def _difference(name: str, before: Any, now: Any) -> tuple[str, Any, Any]:
    """Where two values that differ do so: the dotted name of the option, and the two there."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in now.keys() | before.keys():
            if before.get(key) != now.get(key):
                return _difference(f"{name}.{key}", before.get(key), now.get(key))
    return name, before, now
