"""Pairs per second, side by side with the peers: same model, texts, lists and precision.

    python -m experiments.bench.peers DATA WORK --peer sentence_transformers=PYTHON \
        --peer lightning_ir=PYTHON [--rounds 5] [--steps 3] [--what train rerank] \
        [--model minilm|electra_base|electra_large] [--dropout 0 0.1] [--precision bf16|fp32]

DATA holds docs.tsv, queries.tsv and teacher.run; where there is no such folder, it is filled with
generated texts of the lengths of MS MARCO's. Each PYTHON is the interpreter of the environment that
the peer is installed in. In each round every side runs with every dropout, in turn, in a process of
its own. The ELECTRA models have random weights and are meant for a GPU.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoTokenizer

from experiments.bench.device_rate import encoder
from experiments.bench.generated import collection
from experiments.bench.lists import LIST_SIZE, QUERIES_PER_STEP
from rankdistillm.checkpoint import replacing_folder
from rankdistillm.devices import autocast_dtype_of, device_of
from rankdistillm.pretrained import locate

HERE = Path(__file__).parent
OURS = "rankdistillm"


def run_side(python: str, script: str, settings: Mapping[str, Any]) -> float:
    """Pairs per second of one run of one side; ``settings``: `lists.read_settings`."""
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "PYTHONWARNINGS": "ignore",
        "TOKENIZERS_PARALLELISM": "true",
    }
    if python != sys.executable:
        environment.pop("PYTHONPATH", None)
    command = [python, str(HERE / script), json.dumps(settings)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{script} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])["pairs_per_second"]


def write_model(name: str, folder: Path) -> Path:
    """The folder that all sides load: MiniLM's weights, or random ones of another shape."""
    minilm = Path(locate("sentence-transformers/all-MiniLM-L6-v2"))
    if name == "minilm":
        return minilm
    if not folder.exists():
        tokenizer = AutoTokenizer.from_pretrained(minilm)
        torch.manual_seed(0)
        with replacing_folder(folder) as beside:
            encoder(name, len(tokenizer)).save_pretrained(beside)
            tokenizer.save_pretrained(beside)
    return folder


def write_data(folder: Path, num_lists: int) -> None:
    """The files of DATA with generated texts."""
    run, queries, docs = collection(num_lists, LIST_SIZE)
    with replacing_folder(folder) as beside:
        for name, texts in (("queries", queries), ("docs", docs)):
            lines = (f"{identifier}\t{text}\n" for identifier, text in texts.items())
            (beside / f"{name}.tsv").write_text("".join(lines), "utf-8")
        run.write(beside / "teacher.run")


def table(what: str, ours: list[float], theirs: dict[str, list[float]]) -> str:
    """Markdown: median and range of each side, and of the ratios ours / theirs round by round."""
    lines = [f"| {what} | pairs/s | range | ours is |", "|---|---|---|---|"]
    for side, rates in ({OURS: ours} | theirs).items():
        ratios = [our / their for our, their in zip(ours, rates, strict=True)]
        ratio = "" if side == OURS else f"**{median(ratios):.2f}x** ({spread(ratios, '.2f')})"
        lines.append(f"| {side} | {median(rates):.1f} | {spread(rates, '.1f')} | {ratio} |")
    return "\n".join(lines)


def tables(what: str, rates: dict[float, dict[str, list[float]]]) -> str:
    """A table for each dropout, on all sides; then ours at the least beside peers at the most."""
    peers = {
        dropout: {side: found for side, found in sides.items() if side != OURS}
        for dropout, sides in rates.items()
    }
    pairs = [(dropout, dropout) for dropout in rates]
    if len(rates) > 1:
        pairs.append((min(rates), max(rates)))
    return "\n\n".join(
        table(
            f"{what}, dropout {ours}" + (f", peers {theirs}" if theirs != ours else ""),
            rates[ours][OURS],
            peers[theirs],
        )
        for ours, theirs in pairs
    )


def spread(values: Sequence[float], form: str) -> str:
    return f"{min(values):{form}}-{max(values):{form}}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument(
        "--what", nargs="+", choices=("train", "rerank"), default=["train", "rerank"]
    )
    parser.add_argument(
        "--model", choices=("minilm", "electra_base", "electra_large"), default="minilm"
    )
    parser.add_argument(
        "--dropout", type=float, nargs="+", default=[0.0, 0.1], help="of every side, in training"
    )
    parser.add_argument(
        "--precision", choices=("bf16", "fp32"), help="of every side; bf16 where it is in hardware"
    )
    arguments = parser.parse_args()
    precision = arguments.precision or (
        "bf16" if autocast_dtype_of("auto", device_of("auto")) == torch.bfloat16 else "fp32"
    )
    peers = dict(peer.split("=", 1) for peer in arguments.peer)
    sides: dict[str, tuple[str, ...]] = {OURS: (sys.executable, "ours_side.py")}
    sides |= {name: (python, f"{name}_side.py") for name, python in peers.items()}
    arguments.work.mkdir(parents=True, exist_ok=True)
    name = arguments.model
    if name != "minilm" and not torch.cuda.is_available():
        print(
            f"no GPU: {name} in training and re-ranking beside the peers would be measured in "
            "pairs per second (the goal: 5 times the better peer); on a CPU that takes hours, and "
            "says little"
        )
    if not arguments.data.exists():
        write_data(arguments.data, (arguments.steps + 1) * QUERIES_PER_STEP)
    common = {
        "data": str(arguments.data),
        "steps": arguments.steps,
        "precision": precision,
        "model": str(write_model(name, arguments.work / name)),
    }
    for what in arguments.what:
        dropouts = arguments.dropout if what == "train" else [0.0]
        rates: dict[float, dict[str, list[float]]] = {
            dropout: {name: [] for name in sides} for dropout in dropouts
        }
        for _ in tqdm(range(arguments.rounds), desc=what, disable=None):
            for name, (python, script) in sides.items():
                for dropout in dropouts:
                    settings = common | {"what": what, "dropout": dropout}
                    rates[dropout][name].append(run_side(python, script, settings))
        (arguments.work / f"peers-{what}.json").write_text(json.dumps(rates, indent=2) + "\n")
        print(tables(what, rates), flush=True)


if __name__ == "__main__":
    main()
