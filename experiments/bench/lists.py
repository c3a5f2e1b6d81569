"""The lists that every side of the comparison trains on and re-ranks; needs no library."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

LIST_SIZE, QUERIES_PER_STEP = 32, 4

Batch = list[tuple[str, str, list[tuple[str, str]]]]


def read_batches(data: str, steps: int) -> list[Batch]:
    """A warm-up step and ``steps`` timed ones; a list is (query_id, query, [(doc_id, text)])."""
    folder = Path(data)
    texts = {}
    for name in ("queries", "docs"):
        lines = (folder / f"{name}.tsv").read_text(encoding="utf-8").splitlines()
        texts[name] = dict(line.split("\t", 1) for line in lines)
    ranked: dict[str, list[str]] = {}
    for line in (folder / "teacher.run").read_text().splitlines():
        query_id, _, doc_id, *_ = line.split()
        ranked.setdefault(query_id, []).append(doc_id)
    lists = [
        (query_id, texts["queries"][query_id], [(d, texts["docs"][d]) for d in docs[:LIST_SIZE]])
        for query_id, docs in ranked.items()
        if len(docs) >= LIST_SIZE
    ]
    needed = (steps + 1) * QUERIES_PER_STEP
    if len(lists) < needed:
        raise SystemExit(
            f"{folder}: {len(lists)} lists of {LIST_SIZE}; {steps} steps need {needed}"
        )
    return [lists[i : i + QUERIES_PER_STEP] for i in range(0, needed, QUERIES_PER_STEP)]


def read_settings() -> SimpleNamespace:
    """What `experiments.bench.peers` gives a side: its one argument, JSON.

    ``data`` (folder), ``what`` (train or rerank), ``steps``, ``dropout``, ``precision`` (bf16 or
    fp32) and ``model`` (folder).
    """
    return SimpleNamespace(**json.loads(sys.argv[1]))


def set_dropout(model: Any, rate: float) -> None:
    """In all modules of a peer's model; transformers 4 keeps that of its attention as a number."""
    for module in model.modules():
        if type(module).__name__ == "Dropout":
            module.p = rate
        if hasattr(module, "dropout_prob"):
            module.dropout_prob = rate


def measure(
    batches: list[Batch],
    step: Callable[[Batch], Any],
    synchronise: Callable[[], Any] | None = None,
) -> None:
    """Time all but the first batch, and print pairs per second as one line of JSON.

    ``synchronise`` waits for a GPU. A step is short there, but for the first one of each shape: all
    batches are timed ten times, after three times that are not.
    """
    warm_up, timed = batches[:1], batches[1:]
    if synchronise is not None:
        warm_up, timed = batches * 3, batches * 10
    for batch in warm_up:
        step(batch)
    if synchronise is not None:
        synchronise()
    started = time.perf_counter()
    for batch in timed:
        step(batch)
    if synchronise is not None:
        synchronise()
    seconds = time.perf_counter() - started
    pairs = sum(len(docs) for batch in timed for _, _, docs in batch)
    print(json.dumps({"pairs_per_second": pairs / seconds}))
