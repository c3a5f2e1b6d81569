"""Read the folders of trainings: their options, what they measured, and how far they came.

Trainings may be running while they are read: a file that vanishes is no error, and one that is
damaged is named.
"""

import csv
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from rankdistillm.data.outputs import is_locked
from rankdistillm.errors import quoted

# Rows of the closing table of a training.
TEACHER = "teacher"
BEFORE = "student before"
STUDENT = "student after"

CONFIG = "config.yaml"
PER_QUERY = "per_query.csv"
# A config.yaml with these options is that of a training.
KEYS = frozenset({"stage", "queries_per_step", "loss"})
# Without these, it is damaged.
COMPLETE = KEYS | {"seed", "model", "data", "optim", "validation", "output"}
# Folders of a training, in which there are no others.
OWN_FOLDERS = {"checkpoint", "state", "wandb"}
TAIL = 2**16  # bytes at the end of metrics.jsonl that hold its last line
LARGEST = 2**53  # no measurement or count comes near; sums and means of larger ones may overflow

UNREADABLE = (
    OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, YAMLError,
    OmegaConfBaseException, csv.Error,
)  # fmt: skip


@dataclass(frozen=True)
class Summary:
    """The summary.json of a finished training.

    ``best`` is its best validation value. ``means`` maps the rows of the closing table, measured
    on ``queries`` queries, to their means; empty without one. ``measured_on``: test or validation.
    """

    step: int
    metric: str
    best: float | None
    measured_on: str | None
    queries: int
    means: Mapping[str, float]
    written_at: float


@dataclass(frozen=True)
class Training:
    """A training's folder.

    ``options`` maps dotted names to values; a list is one value. ``summary`` is None until the
    training is finished; until then, ``step`` is the last one that it logged.
    """

    folder: Path
    options: Mapping[str, Any]
    summary: Summary | None
    step: int
    is_running: bool


def is_training_config(tree: Any) -> bool:
    """Whether the content of a YAML file is the config of a training."""
    return isinstance(tree, Mapping) and set(tree) >= KEYS


def find_trainings(folders: Iterable[Path]) -> tuple[list[Training], list[str]]:
    """All trainings in and below ``folders``, and a line for each file that is damaged."""
    trainings: list[Training] = []
    problems: list[str] = []
    for folder in _walk(folders, problems):
        try:
            options = _read_options(folder)
        except FileNotFoundError:
            continue
        except UNREADABLE as error:
            problems.append(f"{_reason(folder / CONFIG, error)}; the training is left out")
            continue
        if options is not None:
            trainings.append(_read_training(folder, options, problems))
    return trainings, problems


def read_per_query(training: Training, metric: str) -> dict[str, float]:
    """Each query's value of the student, from per_query.csv: query_id -> value.

    Raises `FileNotFoundError` without the file, and `ValueError`, naming it, if it is damaged or
    disagrees with the training's summary.
    """
    file = training.folder / PER_QUERY
    summary = training.summary
    values = {}
    try:
        with open(file, encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                wanted = row["collection"], row["metric"], row["run"]
                if summary and wanted == (summary.measured_on, metric, STUDENT):
                    values[row["query_id"].removeprefix("'")] = _finite(float(row["value"]))
    except FileNotFoundError:
        raise
    except UNREADABLE as error:
        raise ValueError(_reason(file, error)) from error
    found = math.fsum(values.values()) / (len(values) or 1)
    if not summary or not math.isclose(found, summary.means.get(STUDENT, 0), abs_tol=1e-9):
        raise ValueError(f"{file}: not the queries of summary.json beside it")
    return values


def _walk(folders: Iterable[Path], problems: list[str]) -> Iterator[Path]:
    """Each folder with a config.yaml, once; follows links."""
    seen = set()

    def note(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            problems.append(f"{error.filename}: cannot be read ({error.strerror})")

    for root in folders:
        for path, names, files in os.walk(root, onerror=note, followlinks=True):
            real = os.path.realpath(path)
            is_training = CONFIG in files
            if real in seen:
                names.clear()
                continue
            seen.add(real)
            names[:] = sorted(n for n in names if not (is_training and n in OWN_FOLDERS))
            if is_training:
                yield Path(path)


def _read_options(folder: Path) -> dict[str, Any] | None:
    """The options in config.yaml; None if it is not a training's."""
    tree: Any = OmegaConf.to_container(OmegaConf.load(folder / CONFIG))
    if not is_training_config(tree):
        if (folder / "metrics.jsonl").exists():
            raise ValueError("not the config of a training")
        return None
    if missing := COMPLETE - set(tree):
        raise ValueError(f"without {', '.join(sorted(missing))}")
    return dict(_leaves(tree))


def flat_options(config: DictConfig) -> dict[str, Any]:
    """Dotted names and values of all options; a list is one value."""
    return dict(_leaves(OmegaConf.to_container(config, resolve=True)))


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _read_training(folder: Path, options: dict[str, Any], problems: list[str]) -> Training:
    summary = None
    try:
        summary = _read_summary(folder / "summary.json")
    except FileNotFoundError:
        pass
    except UNREADABLE as error:
        problems.append(_reason(folder / "summary.json", error))
    step = summary.step if summary else _last_step(folder / "metrics.jsonl")
    return Training(folder, options, summary, step, summary is None and is_locked(folder))


def _read_summary(file: Path) -> Summary:
    found = json.loads(file.read_bytes())
    best, means = found.get("best_validation"), found.get("means", {})
    if means and STUDENT not in means:
        raise ValueError(f"without means of the {STUDENT}")
    return Summary(
        step=_count(found["step"]),
        metric=_text(found["metric"]),
        best=None if best is None else _finite(best["value"]),
        measured_on=_text(found["measured_on"]) if means else None,
        queries=_count(found["queries"]) if means else 0,
        means={name: _finite(value) for name, value in means.items()},
        written_at=file.stat().st_mtime,
    )


def _last_step(file: Path) -> int:
    """The step of the last whole line; 0 without one."""
    try:
        with open(file, "rb") as content:
            content.seek(max(0, os.path.getsize(file) - TAIL))
            lines = content.read().split(b"\n")
    except OSError:
        return 0
    for line in reversed(lines[:-1]):
        try:
            return _count(json.loads(line)["step"])
        except UNREADABLE:
            continue
    return 0


def _finite(value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not -LARGEST < value < LARGEST:  # NaN, too
        raise ValueError(f"{quoted(value)} is not a number")
    return float(value)


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < LARGEST:
        raise ValueError(f"{quoted(value)} is not a count")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{quoted(value)} is not text")
    return value


def _reason(file: Path, error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{file}: cannot be read ({error.strerror or error})"
    said = f"no {error}" if isinstance(error, KeyError) else str(error)
    return f"{file}: damaged ({quoted(' '.join(said.split()))})"
