"""How a run or a file of queries was made, as JSON beside it.

The fields follow ir_metadata (Breuer, Keller and Schaer, SIGIR 2022) where it has some: method,
data, implementation, platform.
"""

import json
import logging
import platform
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rankdistillm import __version__
from rankdistillm.data.outputs import write_text
from rankdistillm.data.runs import Run
from rankdistillm.errors import InputError
from rankdistillm.teachers.tally import Tally

log = logging.getLogger(__name__)

PACKAGES = ("openai", "transformers", "torch", "jinja2", "bm25s", "ranx")


def provenance_of(file: str | Path) -> Path:
    """The JSON file that says how ``file`` was made."""
    return Path(f"{file}.json")


def windows_of(file: str | Path) -> Path:
    """The file of the windows (`rankdistillm.teachers.windows`) that a run was made from."""
    return Path(f"{file}.windows.jsonl")


def write_provenance(
    path: Path, *, method: Mapping[str, Any], data: Mapping[str, Any], tally: Tally
) -> None:
    """Write the JSON file ``path``.

    ``method`` says who was asked and how, ``data`` what about and what came of it; neither holds a
    key. The counts of ``tally`` follow.
    """
    content = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "method": dict(method),
        "data": dict(data),
        "answers": {
            "asked": asdict(tally.asked),
            "stored": asdict(tally.stored),
            "repairs": dict(sorted(tally.repairs.items())),
            "shortened_questions": tally.shortened,
            "cost": tally.cost,
            "total_cost": tally.total_cost,
            "seconds": round(tally.seconds, 3),
        },
        "missing": dict(tally.failed),
        "implementation": {"rankdistillm": __version__, "python": platform.python_version()}
        | {package: found for package in PACKAGES if (found := _version(package))},
        "platform": {"system": platform.system(), "machine": platform.machine()},
    }
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False))


def read_provenance(run: Run) -> dict[str, Any] | None:
    """Read the provenance that `write_provenance` wrote beside a teacher's run; None without one.

    A file that describes another run, which had the same name before, is ignored with a warning.
    Raises `InputError` for one that is not JSON.
    """
    path = provenance_of(run.source)
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text("utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}); remove it") from error
    try:
        digest = found["data"]["ranked"]["digest"]
        facts(found)
    except (TypeError, KeyError, AttributeError, ValueError, OverflowError):
        return None  # somebody else's
    if digest != run.digest():
        log.warning("%s describes another run than %s; it is ignored", path, run.source)
        return None
    return dict(found)


def facts(provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How a run was made, for people: (name, value) of whatever applies."""
    method, answers = provenance["method"], provenance["answers"]
    ranking = {k: v for k, v in (method.get("ranking") or {}).items() if v is not None}
    way = str(ranking.pop("_target_", "")).rpartition(".")[2].replace("_", " ")
    settings = [f"{name} {value}" for name, value in ranking.items() if name != "_partial_"]
    prompt = Path((method.get("prompt") or {}).get("file", "")).name
    asked, stored = answers["asked"], answers["stored"]
    count = {name: asked[name] + stored[name] for name in asked}
    repairs = [f"{kind.replace('_', ' ')} {n:,}" for kind, n in answers["repairs"].items()]
    cost, shortened = answers["total_cost"], answers["shortened_questions"]
    tokens = f"{count['input_tokens']:,} in, {count['output_tokens']:,} out"
    return [
        (name, value)
        for name, value in (
            ("model", str(method["model"])),
            ("asked by", ", ".join([way, *settings])),
            ("prompt", prompt),
            ("answers", f"{count['answers']:,}" if count["answers"] else ""),
            ("tokens", tokens if count["input_tokens"] else ""),
            ("cost", "" if cost is None else f"{cost:,.4f}"),
            ("repairs", ", ".join(repairs) or ("none" if count["answers"] else "")),
            ("cut for the context", f"{shortened:,} questions" if shortened else ""),
            ("made", str(provenance["created"])),
        )
        if value
    ]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
