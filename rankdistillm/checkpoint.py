"""Save and load: the student's folder, and all that a run needs to go on where it stopped."""

import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
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
    state["rng"] = _rng_state()
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
    _set_rng_state(state.pop("rng"))
    return state


def _rng_state() -> dict[str, Any]:
    version, keys, gauss = random.getstate()
    kind, words, position, has_gauss, cached = np.random.get_state()
    return {
        "python": (version, list(keys), gauss),
        "numpy": (kind, torch.from_numpy(words.astype(np.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all(),
    }


def _set_rng_state(state: dict[str, Any]) -> None:
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    kind, words, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, words.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
