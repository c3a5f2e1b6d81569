"""Compare with other libraries, each in its own environment.

    python -m experiments.parity.run WORK [--lightning-ir PYTHON]
        [--sentence-transformers PYTHON ...] [--modules PYTHON]

Prints the largest differences of losses, weights and scores for each library given. `--modules`
is the Python of a sentence-transformers from 5.5 on, which re-rankers made of modules need.
"""

import argparse
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from experiments.parity import ours
from rankdistillm.model.cross_encoder import CrossEncoder
from rankdistillm.model.formats.files import locate

HERE = Path(__file__).parent


def apart(ours_: list[float], theirs: list[float]) -> float:
    """Return the largest difference."""
    return max(abs(a - b) for a, b in zip(ours_, theirs, strict=True))


def relative(ours_: list[float], theirs: list[float]) -> float:
    """Return the largest difference, relative to theirs."""
    return max(abs(a - b) / abs(b) for a, b in zip(ours_, theirs, strict=True))


def other_side(script: str, python: str, *arguments: Any) -> None:
    environment = os.environ | {"PYTHONPATH": "", "HF_HUB_OFFLINE": "1"}
    command = [python, str(HERE / script), *map(str, arguments)]
    subprocess.run(command, env=environment, check=True)


def lightning_ir(work: Path, python: str) -> None:
    folder = work / "lightning_ir"
    student = ours.make_student(folder / "student", work / "encoder")
    for stage in ours.STAGES:
        ours.write_steps(stage, student, folder / f"{stage}.json")
    (folder / "pairs.json").write_text(json.dumps(ours.pairs()))
    (folder / "settings.json").write_text(json.dumps({"learning_rate": ours.LEARNING_RATE}))
    other_side("lightning_ir_side.py", python, folder)
    theirs = json.loads((folder / "lightning_ir.json").read_text())
    golden: dict[str, Any] = {"source": "lightning-ir 0.0.6, transformers 4, float32"}
    start = load_file(student / "model.safetensors")
    for stage in ours.STAGES:
        losses, weights = ours.train(stage, student)
        found = load_file(folder / f"{stage}.safetensors")
        compared = [n for n in weights if not n.endswith(ours.WITHOUT_GRADIENT)]
        far = max(float((found[name] - weights[name]).abs().max()) for name in compared)
        way = max(float((found[name] - start[name]).abs().max()) for name in compared)
        off = relative(losses, theirs["losses"][stage])
        print(
            f"lightning-ir, {stage}: {len(losses)} losses within {off:.1e} (relative), "
            f"final weights within {far:.1e} (they moved by up to {way:.1e})"
        )
        golden[stage] = {
            "losses": theirs["losses"][stage],
            "weights": {name: found[name].flatten()[:8].tolist() for name in compared},
        }
    print(
        f"lightning-ir, our student's scores there: within "
        f"{apart(ours.scores(student, retokenise=True), theirs['scores']):.1e}"
    )
    plain = ours.scores(student)
    differing = sum(abs(a - b) > 1e-5 for a, b in zip(plain, theirs["scores"], strict=True))
    print(f"lightning-ir, without retokenise: {differing} of {len(plain)} scores differ")
    (work / "upstream_trajectory.json").write_text(json.dumps(golden) + "\n")


def sentence_transformers(work: Path, python: str) -> None:
    folder = work / "sentence_transformers"
    ours.make_encoder(folder / "encoder", "bert")
    (folder / "pairs.json").write_text(json.dumps(ours.pairs()))
    other_side("sentence_transformers_side.py", python, folder)
    theirs = json.loads((folder / "sentence_transformers.json").read_text())
    for name, scores in theirs["scores"].items():
        found = ours.scores(folder / name)
        print(f"{theirs['version']}, {name}: {len(found)} scores within {apart(found, scores):.1e}")


def modules(work: Path, python: str) -> None:
    """A re-ranker made of modules comes from there, is trained here, and goes back."""
    folder = work / "modules"
    theirs, trained = folder / "theirs", folder / "trained"
    words = locate("sentence-transformers/all-MiniLM-L6-v2")
    other_side("sentence_transformers_modules.py", python, theirs, words)
    record = json.loads((theirs / "scores.json").read_text())["scores"]
    pairs = [(r["query"], r["passage"]) for r in record]
    there = [r["score"] for r in record]
    for packed in (True, False):
        found = ours.scores_of(theirs, pairs, packed=packed)
        way = "packed" if packed else "padded"
        print(f"modules, theirs here ({way}): {len(found)} scores within {apart(found, there):.1e}")
    model = CrossEncoder.from_pretrained(theirs, dropout=0.0, precision="fp32")
    losses = ours.take_steps("distill", model)
    model.save_pretrained(trained)
    moved = apart(ours.scores_of(trained, pairs), there)
    print(f"modules, {len(losses)} steps here: its scores moved by up to {moved:.1e}")
    (folder / "pairs.json").write_text(json.dumps(pairs))
    other_side("peer_scores.py", python, "sentence_transformers", folder, trained)
    back = json.loads((folder / "scores.json").read_text())["scores"][str(trained)]
    found = ours.scores_of(trained, pairs)
    print(f"modules, trained here, there: {len(found)} scores within {apart(found, back):.1e}")


def classifier(work: Path) -> None:
    folder = work / "sentence_transformers/identity"
    if not folder.exists():
        return
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    theirs = []
    with torch.no_grad():
        for query, docs in ours.pairs():
            inputs = tokenizer(
                [query] * len(docs), docs, padding=True, truncation=True, return_tensors="pt"
            )
            theirs += model(**inputs).logits[:, 0].tolist()
    found = ours.scores(folder)
    print(f"transformers, classifier: {len(found)} scores within {apart(found, theirs):.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--lightning-ir", metavar="PYTHON")
    parser.add_argument("--sentence-transformers", metavar="PYTHON", nargs="+", default=[])
    parser.add_argument("--modules", metavar="PYTHON")
    arguments = parser.parse_args()
    work = arguments.work
    ours.make_encoder(work / "encoder")
    if arguments.lightning_ir:
        lightning_ir(work, arguments.lightning_ir)
    for python in arguments.sentence_transformers:
        sentence_transformers(work, python)
    classifier(work)
    if arguments.modules:
        modules(work, arguments.modules)


if __name__ == "__main__":
    main()
