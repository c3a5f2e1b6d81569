"""Re-ranking on a CPU beside sentence-transformers' torch, OpenVINO and ONNX backends.

    python -m experiments.bench.backends STUDENT DATA WORK --openvino PYTHON --onnx PYTHON \
        [--threads 2] [--rounds 5] [--steps 3] [--queries-per-step 4] [--batch-size 32] \
        [--clock wall|cpu]

DATA is that of `experiments.bench.peers`. Each PYTHON has sentence-transformers with that extra,
and `datasets`. WORK receives the forms of the student, made once: in sentence-transformers' own
layout, from that as OpenVINO and ONNX by its own functions, and our own int8 export. In each round
every side runs in turn, in a process of its own. ``--clock cpu`` counts the seconds of the
processors, which other processes disturb less; with one thread only, since waiting threads count.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from scipy.stats import kendalltau
from tqdm import tqdm

from experiments.bench.lists import LIST_SIZE, Batch, read_batches
from experiments.bench.peers import HERE, Side, spread, write_data
from rankdistillm.data.outputs import replacing_folder
from rankdistillm.devices import autocast_dtype_of, device_of
from rankdistillm.exports import onnx
from rankdistillm.model.cross_encoder import CrossEncoder
from rankdistillm.model.reranker import Reranker

Form = tuple[str, str]  # side, precision

OURS, OUR_EXPORT = "rankdistillm", "our ONNX export"
REFERENCES = ((OURS, "fp32"), (OURS, "bf16"), (OUR_EXPORT, "int8"))

# Each side of sentence-transformers: its backend, its folder in WORK, and the weights in there.
PEERS: dict[Form, tuple[str, str, str | None]] = {
    ("torch", "fp32"): ("torch", "modules", None),
    ("torch", "bf16"): ("torch", "modules", None),
    ("OpenVINO", "fp32"): ("openvino", "openvino", "openvino_model.xml"),
    ("OpenVINO", "bf16"): ("openvino", "openvino", "openvino_model.xml"),
    ("OpenVINO", "int8"): ("openvino", "openvino", "openvino_model_qint8_quantized.xml"),
    ("ONNX", "fp32"): ("onnx", "onnx", "model.onnx"),
    ("ONNX, optimised", "fp32"): ("onnx", "onnx", "model_O2.onnx"),
    ("ONNX", "int8"): ("onnx", "onnx", "model_qint8_avx512_vnni.onnx"),
    (OUR_EXPORT, "int8"): ("onnx", "our_export", "model.onnx"),
}


def write_forms(student: str, work: Path, pythons: dict[str, str], calibration: list[str]) -> None:
    """Write what WORK lacks: the student made of modules, our int8, and each backend's forms.

    A classifier of BERT's kind would not do: its head holds the score in values near 2^-12, which
    OpenVINO's int8 rounds to nothing.
    """
    modules, export = work / "modules", work / "our_export"
    model = CrossEncoder.from_pretrained(student, packed=False, precision="fp32")
    if model.template.max_length is not None:
        model.tokenizer.model_max_length = model.template.max_length
    if not modules.exists():
        with replacing_folder(modules) as beside:
            model.save_pretrained(beside, layout="sentence_transformers")
    if not export.exists():
        with replacing_folder(export) as beside:
            onnx.write(model, beside, int8=True)
    for backend, python in pythons.items():
        if (work / backend).exists():
            continue
        with replacing_folder(work / backend) as beside:
            given = {"student": str(modules), "backend": backend, "output": str(beside)}
            done = subprocess.run(
                [python, str(HERE / "backend_forms.py")],
                input=json.dumps(given | {"texts": calibration}),
                env=os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
                stderr=subprocess.PIPE,
                text=True,
            )
            if done.returncode:
                raise SystemExit(f"{backend}: {done.stderr[-3000:]}")


def settings_of(form: Form, work: Path, threads: int, batch_size: int) -> dict[str, Any]:
    """The arguments of `backend_forms.load`."""
    backend, folder, name = PEERS[form]
    return {
        "model": str(work / folder),
        "backend": backend,
        "file": name and f"{backend}/{name}",
        "precision": form[1],
        "threads": threads,
        "batch_size": batch_size,
    }


def agreement(scores: np.ndarray, exact: np.ndarray) -> str:
    """The largest difference of a score, and Kendall's tau of the rankings (mean over lists).

    Both float ``[lists, passages]``.
    """
    taus = [kendalltau(*lists).statistic for lists in zip(scores, exact, strict=True)]
    return f"{np.abs(scores - exact).max():.2g} | {np.mean(taus):.3f}"


def table(rates: dict[Form, list[float]], agreements: dict[Form, str]) -> str:
    """Markdown: each side's median and range, and how much faster ours are, round by round."""
    references = [form for form in REFERENCES if form in rates]
    titles = [f"{side} in {precision} is" for side, precision in references]
    titles = ["", "pairs/s", "range", *titles, "largest difference of a score", "Kendall's tau"]
    lines = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    for (side, precision), found in rates.items():
        ratios = []
        for reference in references:
            pairs = zip(rates[reference], found, strict=True)
            own = [ours / theirs for ours, theirs in pairs]
            ratios.append(f"{median(own):.2f}x ({spread(own, '.2f')})")
        cells = [f"{side}, {precision}", f"{median(found):.1f}", spread(found, ".1f"), *ratios]
        lines.append(f"| {' | '.join(cells)} | {agreements[side, precision]} |")
    return "\n".join(lines)


def our_scores(student: str, precision: str, batches: list[Batch]) -> list[float]:
    """Our own scores, in the order of the lists."""
    reranker = Reranker.from_pretrained(student, precision=precision, device="cpu")
    lists = [own for batch in batches for own in batch]
    scores = [reranker.score(query, [text for _, text in docs]) for _, query, docs in lists]
    return np.concatenate(scores).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("student")
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--openvino", required=True, metavar="PYTHON")
    parser.add_argument("--onnx", required=True, metavar="PYTHON")
    parser.add_argument("--threads", type=int, default=2, help="of every side")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--queries-per-step", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=32, help="of sentence-transformers")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    arguments = parser.parse_args()
    if arguments.clock == "cpu" and arguments.threads > 1:
        parser.error("--clock cpu goes with --threads 1")
    work: Path = arguments.work
    # Set before the sides start; tokenisers read the second one.
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "RAYON_NUM_THREADS"), str(arguments.threads))
    work.mkdir(parents=True, exist_ok=True)
    if not arguments.data.exists():
        write_data(arguments.data, (arguments.steps + 1) * arguments.queries_per_step)
    batches = read_batches(str(arguments.data), arguments.steps, arguments.queries_per_step)
    pythons = {"openvino": arguments.openvino, "onnx": arguments.onnx}
    calibration = [f"{query} [SEP] {text}" for _, query, docs in batches[0] for _, text in docs]
    write_forms(arguments.student, work, pythons, calibration)

    has_bf16 = autocast_dtype_of("auto", device_of("cpu")) == torch.bfloat16
    forms = {
        form: (pythons.get(PEERS[form][0], arguments.openvino), settings)
        for form in PEERS
        if form[1] != "bf16" or has_bf16
        for settings in [settings_of(form, work, arguments.threads, arguments.batch_size)]
    }
    common = {
        "data": str(arguments.data),
        "steps": arguments.steps,
        "queries_per_step": arguments.queries_per_step,
    }
    sides = {}
    for side, precision in REFERENCES[: 1 + has_bf16]:
        settings = {"model": arguments.student, "precision": precision}
        sides[side, precision] = Side(sys.executable, HERE / "ours_side.py", common | settings)
    for form, (python, settings) in forms.items():
        sides[form] = Side(python, HERE / "backend_side.py", common | {"form": settings})
    clock = {"wall": "pairs_per_second", "cpu": "pairs_per_cpu_second"}[arguments.clock]
    rates: dict[Form, list[float]] = {form: [] for form in sides}
    scores = {}
    for _ in tqdm(range(arguments.rounds), desc="rounds", disable=None):
        for form, measured in sides.items():
            said = measured.measure("rerank", 0.0)
            measured.end()
            rates[form].append(said[clock])
            scores[form] = said.get("scores")
            (work / "rates.json").write_text(
                json.dumps({", ".join(form): found for form, found in rates.items()}, indent=2)
                + "\n"
            )
    for form in REFERENCES[: 1 + has_bf16]:
        scores[form] = our_scores(arguments.student, form[1], batches[1:])
    lists = {form: np.array(found).reshape(-1, LIST_SIZE) for form, found in scores.items()}
    agreements = {form: agreement(found, lists[OURS, "fp32"]) for form, found in lists.items()}
    print(table(rates, agreements))


if __name__ == "__main__":
    main()
