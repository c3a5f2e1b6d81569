"""How a run or a file of queries was made, as JSON beside it.

The fields follow ir_metadata (Breuer, Keller and Schaer, SIGIR 2022) where it has some: method,
data, implementation, platform.
"""

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rankdistillm import __version__
from rankdistillm.data.outputs import replacing
from rankdistillm.teachers.report import Report

PACKAGES = ("openai", "transformers", "torch", "jinja2", "bm25s", "ranx")


def write_provenance(
    path: Path, *, method: Mapping[str, Any], data: Mapping[str, Any], report: Report
) -> None:
    """Write the JSON file ``path``.

    ``method`` says who was asked and how, ``data`` what about and what came of it; neither holds a
    key. The counts of ``report`` follow.
    """
    content = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "method": dict(method),
        "data": dict(data),
        "answers": {
            "asked": asdict(report.asked),
            "stored": asdict(report.stored),
            "repairs": dict(sorted(report.repairs.items())),
            "shortened_questions": report.shortened,
            "cost": report.cost,
            "total_cost": report.total_cost,
            "seconds": round(report.seconds, 3),
        },
        "missing": dict(report.failed),
        "implementation": {"rankdistillm": __version__, "python": platform.python_version()}
        | {package: found for package in PACKAGES if (found := _version(package))},
        "platform": {"system": platform.system(), "machine": platform.machine()},
    }
    with replacing(path) as beside:
        beside.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
