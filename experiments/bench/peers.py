"""Pairs per second, side by side with the peers: same model, texts, lists and precision.

    python -m experiments.bench.peers DATA WORK --peer sentence_transformers=PYTHON \
        --peer lightning_ir=PYTHON [--rounds 5] [--steps 3] [--what train rerank]

DATA holds docs.tsv, queries.tsv and teacher.run; each PYTHON is the interpreter of the environment
that the peer is installed in. In each round every side runs once, in turn, in a process of its own.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from tqdm import tqdm

HERE = Path(__file__).parent
OURS = "rankdistillm"


def run_side(python: str, script: str, data: Path, what: str, steps: int, dropout: float) -> float:
    """Pairs per second of one run of one side."""
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "PYTHONWARNINGS": "ignore",
        "TOKENIZERS_PARALLELISM": "true",
    }
    if python != sys.executable:
        environment.pop("PYTHONPATH", None)
    command = [python, str(HERE / script), str(data), what, str(steps), str(dropout)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{script} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])["pairs_per_second"]


def table(what: str, rates: dict[str, list[float]]) -> str:
    """Markdown: median and range of each side, and of the ratios ours / theirs round by round."""
    lines = [f"| {what} | pairs/s | range | ours is |", "|---|---|---|---|"]
    for side, found in rates.items():
        ratios = [ours / theirs for ours, theirs in zip(rates[OURS], found, strict=True)]
        ratio = "" if side == OURS else f"**{median(ratios):.2f}x** ({spread(ratios, '.2f')})"
        lines.append(f"| {side} | {median(found):.1f} | {spread(found, '.1f')} | {ratio} |")
    return "\n".join(lines)


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
    parser.add_argument("--dropout", type=float, default=0.0, help="of every side's model")
    arguments = parser.parse_args()
    peers = dict(peer.split("=", 1) for peer in arguments.peer)
    sides: dict[str, tuple[str, ...]] = {OURS: (sys.executable, "ours_side.py")}
    sides |= {name: (python, f"{name}_side.py") for name, python in peers.items()}
    arguments.work.mkdir(parents=True, exist_ok=True)
    for what in arguments.what:
        rates: dict[str, list[float]] = {name: [] for name in sides}
        for _ in tqdm(range(arguments.rounds), desc=what, disable=None):
            for name, (python, script) in sides.items():
                rate = run_side(
                    python, script, arguments.data, what, arguments.steps, arguments.dropout
                )
                rates[name].append(rate)
        (arguments.work / f"peers-{what}.json").write_text(json.dumps(rates, indent=2) + "\n")
        print(table(what, rates), flush=True)


if __name__ == "__main__":
    main()
