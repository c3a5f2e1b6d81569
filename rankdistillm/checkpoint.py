"""Save and load: the student's folder, and all that a run needs to go on where it stopped."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from rankdistillm.errors import InputError

STATE = "state.pt"


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Give a folder beside to write into, and put it in the place of ``folder`` when all is there.

    What stood under ``folder`` before is kept until then; nothing half-written is left under its
    name.
    """
    beside = folder.with_name(f".{folder.name}.part")
    old = folder.with_name(f".{folder.name}.old")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        yield beside
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.replace(folder, old)
        os.replace(beside, folder)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be written ({error.strerror or error}); choose another place"
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)


def save_student(model: Any, folder: Path) -> None:
    """Write the student as ``from_pretrained`` files."""
    with replacing_folder(folder) as beside:
        model.save_pretrained(beside)


def save_state(folder: Path, **parts: Any) -> None:
    """Write everything that has a ``state_dict`` (or is plain data), and the random generators."""
    state = {
        name: part.state_dict() if hasattr(part, "state_dict") else part
        for name, part in parts.items()
    }
    # Data are drawn from generators of their own; only dropout uses these.
    state["rng"] = {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}
    with replacing_folder(folder) as beside:
        torch.save(state, beside / STATE)


def load_state(folder: Path, **parts: Any) -> dict[str, Any] | None:
    """Load what `save_state` wrote into ``parts``; returns the plain data, None if none was saved.

    A process that died between the two renames of a save left the state under its old name.
    """
    old = folder.with_name(f".{folder.name}.old")
    if not folder.exists() and old.exists():
        os.replace(old, folder)
    if not folder.exists():
        return None
    try:
        state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError) as error:
        raise InputError(
            f"{folder / STATE}: cannot be read ({' '.join(str(error).split())[:120]}); remove "
            f"{folder}, or start anew with resume=never"
        ) from error
    for name, part in parts.items():
        part.load_state_dict(state.pop(name))
    rng = state.pop("rng")
    torch.set_rng_state(rng["cpu"])
    if rng["cuda"]:
        torch.cuda.set_rng_state_all(rng["cuda"])
    return state
