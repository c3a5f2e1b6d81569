"""Scores of exported students in transformers, sentence-transformers and ONNX Runtime.

    python -m experiments.parity.exports WORK STUDENT --old-sentence-transformers PYTHON

WORK receives random students of several encoders and all exports; STUDENT is a trained one.
PYTHON has sentence-transformers 4. Needs the extras ``onnx`` and ``test``.
"""

import argparse
import json
import subprocess
from pathlib import Path

import numpy as np
import torch

from rankdistillm.errors import InputError
from rankdistillm.exports import check, onnx
from rankdistillm.model.cross_encoder import CrossEncoder
from tests.helpers import write_encoder

OLD = """
import json, sys
from sentence_transformers import CrossEncoder
pairs = [tuple(pair) for pair in json.load(open(sys.argv[2]))]
scores = CrossEncoder(sys.argv[1], device="cpu").predict(pairs, show_progress_bar=False)
json.dump([float(score) for score in scores], open(sys.argv[3], "w"))
"""


def student_of(work: Path, name: str) -> CrossEncoder:
    """A random student whose scores spread over some units, or the trained one."""
    if name.startswith("/"):
        return CrossEncoder.from_pretrained(name, packed=False, precision="fp32")
    write_encoder(work / name, name)
    torch.manual_seed(3)
    model = CrossEncoder.from_pretrained(work / name, packed=False, precision="fp32")
    model.network.linear.weight.data.mul_(20)
    model.tokenizer.model_max_length = model.template.max_length
    return model


def compare_with_old(model: CrossEncoder, folder: Path, python: str) -> str:
    pairs = [pair for pair in check.sample_pairs() if not check.is_cut(model, pair)]
    given, result = folder.with_suffix(".pairs"), folder.with_suffix(".scores")
    given.write_text(json.dumps(pairs))
    subprocess.run([python, "-c", OLD, folder, given, result], check=True, env={})
    expected = check.scores_here(model, pairs)
    apart = np.abs(np.array(json.loads(result.read_text())) - expected).max()
    spread = np.ptp(expected)
    return f"older sentence-transformers: {len(pairs)} pairs, {apart:.1e}; spread {spread:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("student", type=Path)
    parser.add_argument("--old-sentence-transformers", required=True)
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    for name in ("electra", "bert", "roberta", "modernbert", str(arguments.student.resolve())):
        model = student_of(work, name)
        for kind in ("classifier", "onnx"):
            folder = work / f"{Path(name).name}-{kind}"
            folder.mkdir(parents=True, exist_ok=True)
            try:
                if kind == "onnx":
                    onnx.write(model, folder)
                else:
                    model.save_pretrained(folder, layout=kind)
            except InputError as error:
                print(f"{name}, {kind}: {error}", flush=True)
                continue
            for line in check.compare(model, folder, kind):
                print(f"{name}, {kind}: {line}", flush=True)
            if kind == "classifier":
                line = compare_with_old(model, folder, arguments.old_sentence_transformers)
                print(f"{name}, {kind}: {line}", flush=True)


if __name__ == "__main__":
    main()
