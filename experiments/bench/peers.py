"""Pairs per second, side by side with the peers: same model, texts, lists and precision.

    python -m experiments.bench.peers DATA WORK --peer sentence_transformers=PYTHON \
        --peer lightning_ir=PYTHON [--rounds 5] [--steps 3] [--what train rerank] \
        [--model minilm|electra_base|electra_large] [--queries-per-step 4] [--dropout 0 0.1] \
        [--precision bf16|fp32]

DATA holds docs.tsv, queries.tsv and teacher.run; where there is no such folder, it is filled with
generated texts of the lengths of MS MARCO's. Each PYTHON is the interpreter of the environment that
the peer is installed in. In each round every side runs with every dropout, in turn, in a process of
its own; on a GPU a side has one process for all rounds. The ELECTRA models have random weights and
are meant for a GPU.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from statistics import median
from typing import IO, Any

import torch
from tqdm import tqdm
from transformers import AutoTokenizer

from experiments.bench.device_rate import MINILM, encoder
from experiments.bench.generated import collection
from experiments.bench.lists import LIST_SIZE
from rankdistillm.data.outputs import replacing_folder
from rankdistillm.devices import autocast_dtype_of, device_of
from rankdistillm.model.formats.files import locate

HERE = Path(__file__).parent
OURS = "rankdistillm"


class Side:
    """A process that answers as `lists.answer` says, in the environment of ``python``."""

    def __init__(self, python: str, script: Path, settings: Mapping[str, Any]) -> None:
        self._command = [python, str(script), json.dumps(settings)]
        self._running: tuple[subprocess.Popen[str], IO[str]] | None = None

    def measure(self, what: str, dropout: float) -> dict[str, Any]:
        """Measure it once: ``pairs_per_second``, ``pairs_per_cpu_second``, and maybe ``scores``.

        Raises `RuntimeError` with what the process said where it fails.
        """
        process, errors = self.start()
        assert process.stdin
        assert process.stdout
        with suppress(BrokenPipeError):
            process.stdin.write(json.dumps({"what": what, "dropout": dropout}) + "\n")
            process.stdin.flush()
        for line in process.stdout:
            if line.startswith("{"):  # not what a library prints
                return json.loads(line)
        errors.seek(0)
        said = errors.read()[-2000:]
        self.end()
        raise RuntimeError(f"{self._command[1]} failed:\n{said}")

    def start(self) -> tuple[subprocess.Popen[str], IO[str]]:
        """Start the process, if it does not run; it loads the model before it is asked.

        Returns it and the file of its errors.
        """
        if self._running:
            return self._running
        environment = os.environ | {
            "HF_HUB_OFFLINE": "1",
            "PYTHONWARNINGS": "ignore",
            "TOKENIZERS_PARALLELISM": "true",
        }
        if self._command[0] != sys.executable:
            environment.pop("PYTHONPATH", None)
        errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        process = subprocess.Popen(
            self._command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        self._running = process, errors
        return self._running

    def end(self) -> None:
        """Stop the process; the next question starts another one."""
        if self._running:
            process, errors = self._running
            process.kill()
            with suppress(BrokenPipeError):
                process.communicate()
            errors.close()
        self._running = None


def write_model(name: str, folder: Path, tokenizer_path: str) -> Path:
    """The folder that all sides load: MiniLM's weights, or random ones of another shape."""
    if name == "minilm":
        return Path(locate(MINILM))
    if not folder.exists():
        tokenizer = AutoTokenizer.from_pretrained(locate(tokenizer_path))
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
    parser.add_argument("--tokenizer", default=MINILM, help="of the models with random weights")
    parser.add_argument("--queries-per-step", type=int, default=4)
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
    scripts = {OURS: (sys.executable, "ours_side.py")}
    scripts |= {name: (python, f"{name}_side.py") for name, python in peers.items()}
    arguments.work.mkdir(parents=True, exist_ok=True)
    name = arguments.model
    if name != "minilm" and not torch.cuda.is_available():
        print(
            f"no GPU: {name} in training and re-ranking beside the peers would be measured in "
            "pairs per second (the goal: 5 times the better peer); on a CPU that takes hours, and "
            "says little"
        )
    if not arguments.data.exists():
        write_data(arguments.data, (arguments.steps + 1) * arguments.queries_per_step)
    settings = {
        "data": str(arguments.data),
        "steps": arguments.steps,
        "queries_per_step": arguments.queries_per_step,
        "precision": precision,
        "model": str(write_model(name, arguments.work / name, arguments.tokenizer)),
    }
    with ExitStack() as stack:
        sides = {}
        for name, (python, script) in scripts.items():
            sides[name] = Side(python, HERE / script, settings)
            stack.callback(sides[name].end)
            if torch.cuda.is_available():
                sides[name].start()
        compare(sides, arguments)


def ask(side: Side, what: str, dropout: float) -> float:
    """Measure a side once, on a CPU in a process of its own."""
    found = side.measure(what, dropout)["pairs_per_second"]
    if not torch.cuda.is_available():
        # A product of a new shape costs a CPU more than the next of that shape; in one process all
        # rounds but the first would have the shapes of the first.
        side.end()
    return found


def compare(sides: dict[str, Side], arguments: argparse.Namespace) -> None:
    """Measure all sides in turns; print the tables and write the rates beside.

    A peer that fails is left out from then on, and what it said is printed.
    """
    for what in arguments.what:
        dropouts = arguments.dropout if what == "train" else [0.0]
        rates: dict[float, dict[str, list[float]]] = {
            dropout: {name: [] for name in sides} for dropout in dropouts
        }
        for _ in tqdm(range(arguments.rounds), desc=what, disable=None):
            for name in list(sides):
                try:
                    for dropout in dropouts:
                        rates[dropout][name].append(ask(sides[name], what, dropout))
                except RuntimeError as error:
                    if name == OURS:
                        raise
                    print(f"{name} is left out: {error}", file=sys.stderr)
                    del sides[name]
        rates = {dropout: {name: found[name] for name in sides} for dropout, found in rates.items()}
        (arguments.work / f"peers-{what}.json").write_text(json.dumps(rates, indent=2) + "\n")
        print(tables(what, rates), flush=True)


if __name__ == "__main__":
    main()
