"""Scores of exported students in the software that serves them, against ours.

    python -m experiments.parity.exports WORK STUDENT --old-sentence-transformers PYTHON
        --onnx-sentence-transformers PYTHON --lightning-ir PYTHON

WORK receives random students of several encoders and all exports; STUDENT is a trained one. This
Python needs the extras ``onnx`` and ``test``; README.md says what the others have. Prints a table.
"""

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from experiments.parity import ours
from experiments.parity.students import ARCHITECTURES, random_student
from rankdistillm.data.outputs import replacing_folder
from rankdistillm.errors import InputError
from rankdistillm.exports import check, onnx
from rankdistillm.model.cross_encoder import CrossEncoder

INT8 = "onnx, int8"
FORMATS = ("sentence_transformers", "classifier", "mono", "tei", "onnx", INT8)
# Software of this environment, by format; sentence-transformers runs as a peer here, too.
HERE = {
    "classifier": "transformers",
    "tei": "transformers",
    "onnx": "onnxruntime",
    INT8: "onnxruntime",
}
TRAINED = "trained MiniLM"

Scores = dict[str, np.ndarray]  # of each student
Rows = dict[tuple[str, str], Scores]  # by format and software


def load_students(work: Path, trained: Path) -> dict[str, CrossEncoder]:
    students = {name: random_student(work / name, name) for name in ARCHITECTURES}
    students[TRAINED] = CrossEncoder.from_pretrained(str(trained), packed=False, precision="fp32")
    for model in students.values():  # as `rankdistillm.export` does
        model.tokenizer.model_max_length = model.template.max_length
    return students


def write_exports(students: dict[str, CrossEncoder], work: Path) -> dict[tuple[str, str], Path]:
    """Write every format of every student; returns the folders, by format and student."""
    folders = {}
    for kind in FORMATS:
        for name, model in students.items():
            folder = work / f"{name}, {kind}".replace(", ", "-").replace(" ", "-")
            try:
                with replacing_folder(folder) as beside:
                    if kind.startswith("onnx"):
                        onnx.write(model, beside, int8=kind == INT8)
                    else:
                        model.save_pretrained(beside, layout=kind)
            except InputError as error:
                print(f"{name}, {kind}: {error}", flush=True)
            else:
                folders[kind, name] = folder
    return folders


def score_here(folders: dict[tuple[str, str], Path], pairs: list[check.Pair]) -> Rows:
    rows: Rows = defaultdict(dict)
    for (kind, name), folder in folders.items():
        if package := HERE.get(kind):
            scorer = dict(check.SOFTWARE["onnx" if kind == INT8 else kind])[package]
            title = f"{package} {importlib.metadata.version(package)}"
            rows[kind, title][name] = scorer(folder)(pairs)
    return rows


def score_by(
    library: str,
    python: str,
    formats: tuple[str, ...],
    folders: dict[tuple[str, str], Path],
    pairs: list[check.Pair],
    work: Path,
) -> Rows:
    """Score the exports of these formats by a library of `peer_scores`, in its environment."""
    chosen = {key: folder for key, folder in folders.items() if key[0] in formats}
    (work / "pairs.json").write_text(json.dumps(pairs))
    script = Path(__file__).with_name("peer_scores.py")
    subprocess.run(
        [python, script, library, work, *chosen.values()],
        env=os.environ | {"PYTHONPATH": "", "HF_HUB_OFFLINE": "1"},
        check=True,
    )
    found: dict[str, Any] = json.loads((work / "scores.json").read_text())
    title = ", ".join(f"{package} {version}" for package, version in found["versions"].items())
    rows: Rows = defaultdict(dict)
    for (kind, name), folder in chosen.items():
        rows[kind, title][name] = np.array(found["scores"][str(folder)])
    return rows


def table(rows: Rows, exact: Scores) -> str:
    """Markdown: the largest difference of a score from ours."""
    lines = [f"| format | software | {' | '.join(exact)} |", "|---" * (2 + len(exact)) + "|"]
    for kind, title in sorted(rows, key=lambda row: FORMATS.index(row[0])):
        scores = rows[kind, title]
        cells = [
            f"{np.abs(scores[name] - own).max():.1e}" if name in scores else "refused"
            for name, own in exact.items()
        ]
        lines.append(f"| {kind} | {title} | {' | '.join(cells)} |")
    spreads = " | ".join(f"{np.ptp(own):.1f}" for own in exact.values())
    return "\n".join([*lines, f"| spread of the scores | | {spreads} |"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("student", type=Path)
    for library in ("old-sentence-transformers", "onnx-sentence-transformers", "lightning-ir"):
        parser.add_argument(f"--{library}", required=True, metavar="PYTHON")
    arguments = parser.parse_args()
    work: Path = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    students = load_students(work, arguments.student)
    folders = write_exports(students, work)
    pairs = [
        (query, doc)
        for query, docs in ours.pairs()
        for doc in docs
        if not any(check.is_cut(model, (query, doc)) for model in students.values())
    ]
    exact = {name: check.scores_here(model, pairs) for name, model in students.items()}
    peers = (
        ("sentence_transformers", sys.executable, ("sentence_transformers", "classifier")),
        (
            "sentence_transformers",
            arguments.onnx_sentence_transformers,
            ("sentence_transformers", "classifier"),
        ),
        ("sentence_transformers", arguments.old_sentence_transformers, ("classifier",)),
        ("lightning_ir", arguments.lightning_ir, ("mono",)),
        ("sentence_transformers_onnx", arguments.onnx_sentence_transformers, ("onnx", INT8)),
    )
    rows = score_here(folders, pairs)
    for library, python, formats in peers:
        rows |= score_by(library, python, formats, folders, pairs, work)
    print(f"{len(pairs)} pairs")
    print(table(rows, exact))


if __name__ == "__main__":
    main()
