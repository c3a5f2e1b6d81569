"""The lists that every side of the comparison trains on and re-ranks; needs no library."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

LIST_SIZE = 32

Batch = list[tuple[str, str, list[tuple[str, str]]]]
Work = Callable[[list[Batch]], Any]


def read_batches(data: str, steps: int, queries_per_step: int) -> list[Batch]:
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
    needed = (steps + 1) * queries_per_step
    if len(lists) < needed:
        raise SystemExit(
            f"{folder}: {len(lists)} lists of {LIST_SIZE}; {steps} steps need {needed}"
        )
    return [lists[i : i + queries_per_step] for i in range(0, needed, queries_per_step)]


def read_settings() -> SimpleNamespace:
    """What `experiments.bench.peers` gives a side: its one argument, JSON.

    ``data`` (folder), ``steps``, ``queries_per_step``, ``precision`` (bf16 or fp32) and ``model``
    (folder).
    """
    return SimpleNamespace(**json.loads(sys.argv[1]))


def set_dropout(model: Any, rate: float) -> None:
    """In all modules of a model; transformers 4 keeps that of its attention as a number."""
    for module in model.modules():
        if type(module).__name__ == "Dropout":
            module.p = rate
        if hasattr(module, "dropout_prob"):
            module.dropout_prob = rate


def one_by_one(step: Callable[[Batch], Any]) -> Work:
    """``step`` for each batch."""
    return lambda batches: [step(batch) for batch in batches]


def answer(
    batches: list[Batch],
    work_of: Callable[[str, float], Work],
    cuda: Any = None,
    *,
    scored: bool = False,
) -> None:
    """Answer each line of the standard input by pairs per second and CPU second, both JSON.

    A line has ``what`` (train or rerank) and ``dropout``, for which ``work_of`` makes the model
    ready. All batches but the first are timed. ``cuda``: torch's module, if there is a GPU, whose
    first step of each shape does not count. If ``scored``, the work returns a list of scores for
    each batch, and those of the timed ones are answered, too.
    """
    for line in sys.stdin:
        asked = json.loads(line)
        work = work_of(asked["what"], asked["dropout"])
        work(batches if cuda else batches[:1])
        if cuda:
            cuda.synchronize()
        started, cpu_started = time.perf_counter(), time.process_time()
        found = work(batches[1:])
        if cuda:
            cuda.synchronize()
        seconds = time.perf_counter() - started
        cpu_seconds = time.process_time() - cpu_started
        if cuda:
            cuda.empty_cache()  # the other sides want memory, too
        pairs = sum(len(docs) for batch in batches[1:] for _, _, docs in batch)
        said = {
            "pairs_per_second": pairs / seconds,
            "pairs_per_cpu_second": pairs / cpu_seconds,
        }
        if scored:
            said["scores"] = [score for scores in found for score in scores]
        print(json.dumps(said), flush=True)
