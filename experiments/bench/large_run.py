"""Time and memory of a run as large as stage 1 of Rank-DistiLLM reads: 503,000 queries x 200.

    python -m experiments.bench.large_run WORK [--queries 503000] [--depth 200]

WORK gets a generated Parquet file with ids as strings, ranks and scores, and its qrels. The run
is read and used in a process of its own; the peak is that process's resident memory. Texts and
tokens are left out: every text has the same few tokens.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from experiments.bench.memory import peak
from rankdistillm.data.outputs import replacing
from rankdistillm.data.qrels import read_qrels
from rankdistillm.data.runs import Run

COLLECTION = 8_841_823  # passages of MS MARCO
QUERIES_AT_ONCE = 5_000
CPU = torch.device("cpu")


def write_run(file: Path, qrels: Path, num_queries: int, depth: int) -> None:
    """Lists of distinct random passages, and one judged positive in nine of ten lists."""
    import pyarrow
    import pyarrow.parquet

    draw = np.random.default_rng(1)
    names = {"query_id": "string", "doc_id": "string", "rank": "int32", "score": "float32"}
    schema = pyarrow.schema([(name, getattr(pyarrow, kind)()) for name, kind in names.items()])
    with (
        replacing(file) as beside,
        replacing(qrels) as judged,
        pyarrow.parquet.ParquetWriter(beside, schema) as writer,
        open(judged, "w") as lines,
    ):
        for first in tqdm(range(0, num_queries, QUERIES_AT_ONCE), "generate", disable=None):
            queries = np.arange(first, min(first + QUERIES_AT_ONCE, num_queries))
            start = draw.integers(0, COLLECTION, (len(queries), 1))
            stride = draw.integers(1, COLLECTION // depth, (len(queries), 1))
            docs = (start + np.arange(depth) * stride) % COLLECTION
            scores = -np.sort(-draw.normal(20, 5, docs.shape), axis=1).astype(np.float32)
            columns = (
                pyarrow.array(np.repeat(queries, depth)).cast(pyarrow.string()),
                pyarrow.array(docs.ravel()).cast(pyarrow.string()),
                pyarrow.array(np.tile(np.arange(1, depth + 1, dtype=np.int32), len(queries))),
                pyarrow.array(scores.ravel()),
            )
            table = pyarrow.table(dict(zip(names, columns, strict=True)), schema)
            writer.write_table(table, row_group_size=1_000_000)
            for query, row in zip(queries, docs, strict=True):
                relevant = row[draw.integers(depth)] if draw.random() < 0.9 else COLLECTION
                lines.write(f"{query} 0 {relevant} 1\n")


class SameTokens:
    """Stands in for tokenised texts."""

    def __getitem__(self, identifier: str) -> np.ndarray:
        return np.arange(8, dtype=np.uint16)


def first_batch(file: Path, qrels: Path) -> None:
    """What stage 1 does from its start to its first batch, texts and tokens apart."""
    from rankdistillm.data.batches import TrainingData, read_training_run
    from rankdistillm.model.pairs import PairTemplate

    config: dict[str, Any] = {
        "run": str(file), "first_stage": None, "qrels": str(qrels), "depth": 200,
        "num_queries": None, "add_docs_not_in_ranking": False, "sampling": "single_relevant",
        "list_size": 8, "targets": "relevance", "transform": None,
    }  # fmt: skip
    run, judged = read_training_run(config, seed=42)
    run.doc_ids()
    none = np.empty(0, dtype=np.int32)
    template = PairTemplate(none, none, none, none, none, none, 0, 1, True)
    data = TrainingData(
        run,
        judged,
        SameTokens(),  # type: ignore[arg-type]
        SameTokens(),  # type: ignore[arg-type]
        template,
        config,
        queries_per_step=32,
        epochs=1,
        seed=42,
    )
    run.digest()
    assert len(data.batch(0)) == 32


def measure(file: Path, qrels: Path, what: str) -> dict[str, Any]:
    """Seconds of each part, and GiB at the peak after it."""
    rows: list[tuple[str, float, float]] = []

    def timed(name: str, job: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = job()
        rows.append((name, time.perf_counter() - started, peak(CPU) / 1024))
        return result

    if what == "recipe":
        timed("stage 1, start to first batch", lambda: first_batch(file, qrels))
    else:
        run = timed("read", lambda: Run.read(file))
        timed("truncate(200)", lambda: run.truncate(200))
        timed("10,000 queries x 50", lambda: run.sample_queries(10_000, 1).truncate(50))
        small = run.sample_queries(10_000, 1)
        timed("10,000 queries within the first 50", lambda: small.within(run, 50))
        timed("distinct doc_ids", run.doc_ids)
        timed("digest", run.digest)
        judged = read_qrels(qrels)
        timed("relevance of the judged passages", lambda: run.listed_relevance(judged))
        timed("judged passages appended", lambda: run.with_relevant(judged))
    return {"rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--queries", type=int, default=503_000)
    parser.add_argument("--depth", type=int, default=200)
    parser.add_argument("--measure", choices=["run", "recipe"], help="here, once; print JSON")
    arguments = parser.parse_args()
    file = arguments.work / f"run-{arguments.queries}x{arguments.depth}.parquet"
    qrels = file.with_suffix(".qrels")
    if arguments.measure:
        print(json.dumps(measure(file, qrels, arguments.measure)))
        return
    arguments.work.mkdir(parents=True, exist_ok=True)
    if not file.exists() or not qrels.exists():
        write_run(file, qrels, arguments.queries, arguments.depth)
    print("| | seconds | GiB at the peak |\n|---|---|---|")
    for what in ("run", "recipe"):
        done = subprocess.run(
            [sys.executable, "-m", "experiments.bench.large_run", *sys.argv[1:], "--measure", what],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name, seconds, peaked in json.loads(done.stdout.splitlines()[-1])["rows"]:
            print(f"| {name} | {seconds:.1f} | {peaked:.2f} |", flush=True)


if __name__ == "__main__":
    main()
