"""Compare with other libraries, each in its own environment.

    python experiments/parity/run.py WORK [--lightning-ir PYTHON] [--sentence-transformers PYTHON]
        [--modules PYTHON] [--student DIR]

Prints the largest differences of losses, weights and scores for each library given. `--modules`
is the Python of a sentence-transformers from 5.5 on, which re-rankers made of modules need.
"""

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

import ours
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rankdistillm.model.cross_encoder import CrossEncoder
from rankdistillm.model.formats.files import locate

HERE = Path(__file__).parent
ARCHITECTURES = ("bert", "electra", "roberta", "modernbert")


def apart(ours_: list[float], theirs: list[float]) -> float:
    """Return the largest difference."""
    return max(abs(a - b) for a, b in zip(ours_, theirs, strict=True))


def relative(ours_: list[float], theirs: list[float]) -> float:
    """Return the largest difference, relative to theirs."""
    return max(abs(a - b) / abs(b) for a, b in zip(ours_, theirs, strict=True))


def other_side(script: str, python: str, *arguments: Any) -> None:
    subprocess.run([python, str(HERE / script), *map(str, arguments)], check=True)


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
    for name, theirs in json.loads((folder / "sentence_transformers.json").read_text()).items():
        found = ours.scores(folder / name)
        print(f"sentence-transformers, {name}: scores within {apart(found, theirs):.1e}")


def modules(work: Path, python: str, student: Path | None) -> None:
    """Re-rankers made of modules, to here and back; and our students, there."""
    folder = work / "modules"
    theirs = folder / "theirs"
    script = "sentence_transformers_modules.py"
    other_side(script, python, "make", theirs, locate("sentence-transformers/all-MiniLM-L6-v2"))
    record = json.loads((theirs / "scores.json").read_text())["scores"]
    pairs = [(r["query"], r["passage"]) for r in record]
    there = [r["score"] for r in record]
    for packed in (True, False):
        found = ours.scores_of(theirs, pairs, packed=packed)
        way = "packed" if packed else "padded"
        print(f"modules, theirs here ({way}): {len(found)} scores within {apart(found, there):.1e}")
    model = CrossEncoder.from_pretrained(theirs, dropout=0.0, precision="fp32")
    losses = ours.take_steps("distill", model)
    model.save_pretrained(folder / "trained")
    moved = apart(ours.scores_of(folder / "trained", pairs), there)
    print(f"modules, {len(losses)} steps here: its scores moved by up to {moved:.1e}")
    written = {"trained here": folder / "trained"}
    written |= students(work, "sentence_transformers", student, ARCHITECTURES)
    compare_there(folder, written, script, python, "score")


def mono(work: Path, python: str, student: Path | None) -> None:
    """Our students in lightning-ir, which knows the tokenisers of BERT and ELECTRA only."""
    written = students(work, "mono", student, ARCHITECTURES[:2])
    compare_there(work / "mono", written, "lightning_ir_scores.py", python)


def classifiers(work: Path, python: str, student: Path | None) -> None:
    """Our students as sequence classifiers, in any sentence-transformers."""
    written = students(work, "classifier", student, ARCHITECTURES[:3])
    script = "sentence_transformers_modules.py"
    compare_there(work / "classifier", written, script, python, "score")


def students(
    work: Path, layout: str, student: Path | None, architectures: tuple[str, ...]
) -> dict[str, Path]:
    """Write a random student of each architecture, and the trained one, in a layout."""
    folder = work / layout
    written = {}
    for architecture in architectures:
        encoder = ours.make_encoder(work / f"encoder-{architecture}", architecture)
        written[architecture] = ours.make_student(folder / architecture, encoder, layout, (32, 256))
    if student is not None:
        written["a trained student"] = folder / "student"
        model = CrossEncoder.from_pretrained(student, precision="fp32")
        model.save_pretrained(folder / "student", layout=layout)
    return written


def compare_there(folder: Path, written: dict[str, Path], script: str, *command: str) -> None:
    """Print how far the scores of the other library are from ours, for texts that are not cut."""
    chosen = ours.uncut_pairs()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pairs.json").write_text(json.dumps(chosen))
    other_side(script, *command, folder, *written.values())
    scores = json.loads((folder / "scores.json").read_text())
    for name, path in written.items():
        found = ours.scores_of(path, chosen)
        print(
            f"{script}, {name}: {len(found)} scores within {apart(found, scores[str(path)]):.1e} "
            f"(they spread over {max(found) - min(found):.2g})"
        )


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
    print(f"transformers, classifier: scores within {apart(ours.scores(folder), theirs):.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--lightning-ir", metavar="PYTHON")
    parser.add_argument("--sentence-transformers", metavar="PYTHON")
    parser.add_argument("--modules", metavar="PYTHON")
    parser.add_argument("--student", metavar="DIR", type=Path)
    arguments = parser.parse_args()
    work = arguments.work
    ours.make_encoder(work / "encoder")
    if arguments.lightning_ir:
        lightning_ir(work, arguments.lightning_ir)
        mono(work, arguments.lightning_ir, arguments.student)
    if arguments.sentence_transformers:
        sentence_transformers(work, arguments.sentence_transformers)
        classifier(work)
        classifiers(work, arguments.sentence_transformers, arguments.student)
    if arguments.modules:
        modules(work, arguments.modules, arguments.student)


if __name__ == "__main__":
    main()
