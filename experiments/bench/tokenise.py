"""Time and memory of tokenising many passages for the first and for the second time.

    python -m experiments.bench.tokenise WORK [--passages 1000000]

WORK gets the texts (generated, of the lengths of MS MARCO's) and the token cache. Each opening is a
process of its own; its peak is the resident memory of all: interpreter, texts and tokens.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from experiments.bench.generated import SPREAD, WORDS_A_DOC
from experiments.bench.memory import peak
from rankdistillm.cli import PACKAGE
from rankdistillm.data.outputs import replacing
from rankdistillm.data.texts import read_texts
from rankdistillm.model.cross_encoder import CrossEncoder

CPU = torch.device("cpu")


def write_texts(file: Path, number: int) -> None:
    """``id<TAB>text`` lines, each text made of the embedded collection's words."""
    draw = np.random.default_rng(0)
    words = np.array(" ".join(read_texts(PACKAGE / "mini/docs.tsv", "doc").values()).split())
    with replacing(file) as beside, open(beside, "w", encoding="utf-8") as lines:
        for i in tqdm(range(number), "generate", disable=None):
            length = max(1, round(draw.lognormal(np.log(WORDS_A_DOC), SPREAD)))
            text = " ".join(words[draw.integers(len(words), size=length)])
            lines.write(f"{i}\t{text}\n")


def open_once(file: Path) -> dict[str, float]:
    """Seconds of tokenising (or of finding that it was done), and MiB before and at the peak."""
    model = CrossEncoder.from_pretrained("sentence-transformers/all-MiniLM-L6-v2")
    empty = peak(CPU)
    texts = read_texts(file, "doc")
    read = peak(CPU)
    started = time.perf_counter()
    tokens = model.tokenise_docs(texts)
    seconds = time.perf_counter() - started
    assert len(tokens["0"])
    return {"seconds": seconds, "empty": empty, "read": read, "peak": peak(CPU)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--passages", type=int, default=1_000_000)
    parser.add_argument("--open", action="store_true", help="open them once, here; print JSON")
    arguments = parser.parse_args()
    file = arguments.work / f"docs-{arguments.passages}.tsv"
    if arguments.open:
        print(json.dumps(open_once(file)))
        return
    arguments.work.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        write_texts(file, arguments.passages)
    print(
        "| opening | seconds | MiB with the model | with the texts | at the peak |\n"
        "|---|---|---|---|---|"
    )
    for opening in ("first", "second"):
        done = subprocess.run(
            [sys.executable, "-m", "experiments.bench.tokenise", *sys.argv[1:], "--open"],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "RANKDISTILLM_CACHE": str(arguments.work / "cache")},
        )
        found = json.loads(done.stdout.splitlines()[-1])
        print(
            f"| {opening} | {found['seconds']:.1f} | {found['empty']:.0f} | {found['read']:.0f} | "
            f"{found['peak']:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
