"""The state of a training: everything it needs to resume exactly where it stopped."""

import logging
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from rankdistillm import distributed
from rankdistillm.data.outputs import replacing
from rankdistillm.errors import InputError

log = logging.getLogger(__name__)

# If the newest state cannot be read, the training resumes from the one before.
STATES_KEPT = 2
UNREADABLE = (
    OSError, RuntimeError, EOFError, ValueError, TypeError, LookupError, zipfile.BadZipFile,
    UnpicklingError,
)  # fmt: skip


@dataclass
class Progress:
    """How far a training has come.

    ``step`` optimiser steps are done. ``best`` is the best value of the validation metric so far,
    reached after ``best_step`` (both None before the first validation). ``validated_on`` holds the
    validation data and the metric: values measured on other data cannot be compared.
    """

    validated_on: dict[str, Any]
    step: int = 0
    best: float | None = None
    best_step: int | None = None
    validations_since_best: int = 0

    def note_validation(self, value: float) -> bool:
        """Record the value measured after ``step``; returns whether it is the best so far."""
        is_best = self.best is None or value > self.best
        if is_best:
            self.best, self.best_step, self.validations_since_best = value, self.step, 0
        else:
            self.validations_since_best += 1
        return is_best


class TrainingState:
    """Saves and loads the state of a training as ``folder/STEP.pt``; keeps the newest two.

    ``parts`` are the objects with a ``state_dict``: the model, the optimiser and so on.
    ``settings`` maps the names of the settings that decide the trajectory to their values: a state
    saved under other values is rejected.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], **parts: Any) -> None:
        self.folder = folder
        self.settings = dict(settings)
        self.parts = parts

    def save(self, progress: Progress) -> None:
        """Write the parts, the progress and the state of the random generators."""
        # torch's global generators only draw dropout; the data has generators of its own.
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
        random = distributed.all_gather({"cpu": torch.get_rng_state(), "cuda": cuda})
        if distributed.is_first():
            state = {name: part.state_dict() for name, part in self.parts.items()}
            state |= {"random": random, "progress": asdict(progress), "settings": self.settings}
            with replacing(self._file(progress.step)) as beside:
                try:
                    with open(beside, "wb") as file:
                        torch.save(state, file)
                except RuntimeError as error:  # torch blames its file format for a full disk
                    cause = error.__context__
                    raise cause if isinstance(cause, OSError) else OSError(str(error)) from error
            old = [self._file(step) for step in self._steps()[:-STATES_KEPT]]
            for path in (*old, *self._half_written()):
                path.unlink(missing_ok=True)
        distributed.barrier()

    def load(self) -> Progress | None:
        """Load the newest readable state into the parts; None if no state was saved.

        Raises `InputError` if states were saved but none is readable, or if the newest readable one
        was saved under other settings.
        """
        problems = []
        for step in reversed(self._steps()):
            file = self._file(step)
            try:
                state = self._read(file)
            except UNREADABLE as error:
                problems.append(f"{file}: cannot be read ({' '.join(str(error).split())[:120]})")
                log.warning("%s; trying the state before it", problems[-1])
                continue
            self.check_settings(state["settings"])
            for name, part in self.parts.items():
                if state[name]:  # empty for a disabled gradient scaler
                    part.load_state_dict(state[name])
            self._restore_random(state["random"])
            return state["progress"]
        if problems:
            raise InputError(f"{problems[0]}; remove {self.folder}")
        return None

    def _read(self, file: Path) -> dict[str, Any]:
        with zipfile.ZipFile(file) as archive:  # torch.load does not verify the checksums
            if (damaged := archive.testzip()) is not None:
                raise ValueError(f"the checksum of {damaged} is wrong")
        state = torch.load(file, map_location="cpu", weights_only=True)
        wanted = {*self.parts, "settings", "progress", "random"}
        if not isinstance(state, dict) or not state.keys() >= wanted:
            raise ValueError("not the state of a training")
        return state | {"progress": Progress(**state["progress"])}

    def remove(self) -> None:
        """Delete the saved states; other files in the folder stay."""
        steps = self._steps()
        if steps:
            log.info(
                "%s: deleting the state of step %d; the new training replaces student and metrics",
                self.folder.parent,
                steps[-1],
            )
        for file in (*map(self._file, steps), *self._half_written()):
            file.unlink(missing_ok=True)
        with suppress(OSError):  # not empty
            self.folder.rmdir()

    def check_settings(self, saved: Mapping[str, Any]) -> None:
        """Raises `InputError` if ``saved`` are the settings of a different training."""
        for name, value in self.settings.items():
            if saved.get(name) != value:
                name, before, now = _difference(name, saved.get(name), value)
                raise InputError(
                    f"{self.folder.parent}: holds a training with {name}={before}, not {now}; "
                    "choose another output folder"
                )

    def _restore_random(self, states: list[dict[str, Any]]) -> None:
        # If there are more processes than before, the new ones keep their seeds.
        if distributed.rank() < len(states):
            own = states[distributed.rank()]
            torch.set_rng_state(own["cpu"])
            if own["cuda"] is not None and torch.cuda.is_initialized():
                torch.cuda.set_rng_state(own["cuda"])

    def _file(self, step: int) -> Path:
        return self.folder / f"{step}.pt"

    def _half_written(self) -> Iterator[Path]:
        """Temporary files left by a process that was killed."""
        return self.folder.glob(".[0-9]*.pt.*.part")

    def _steps(self) -> list[int]:
        return sorted(
            int(file.stem)
            for file in self.folder.glob("*.pt")
            if re.fullmatch("[1-9][0-9]{0,17}", file.stem) and file.is_file()
        )


def _difference(name: str, before: Any, now: Any) -> tuple[str, Any, Any]:
    """The dotted name of the first setting that differs between two values, and both its values."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in {**now, **before}:
            if before.get(key) != now.get(key):
                return _difference(f"{name}.{key}", before.get(key), now.get(key))
    return name, before, now
