"""The effect of int8 in ONNX Runtime on a student's ranking and on its time on one core.

    OMP_NUM_THREADS=1 python -m experiments.parity.onnx_int8 COLLECTION STUDENT WORK

COLLECTION is a folder with docs.tsv, queries.tsv, qrels.txt and runs/bm25.run; WORK receives the
exports. Each query's passages are scored by every variant in turn, with the same tokens. Times are
processor seconds, which other processes disturb less than the clock.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from rankdistillm.data.qrels import read_qrels
from rankdistillm.data.runs import Run
from rankdistillm.data.texts import texts_of_run
from rankdistillm.evaluation.metrics import evaluate_run
from rankdistillm.exports import onnx
from rankdistillm.model.cross_encoder import CrossEncoder
from rankdistillm.model.heads import padded_inputs
from rankdistillm.model.reranker import Reranker

METRIC = "ndcg@10"
TIMED = 6  # queries that the variants without a ranking of their own are timed on
# Padded pairs at once; ONNX Runtime is fastest with few, of similar length.
BATCH = 16


def onnx_scorer(model: CrossEncoder, folder: Path) -> Callable[[str, list[str]], np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(folder / onnx.MODEL, options)

    def score(query: str, docs: list[str]) -> np.ndarray:
        tokens = model.tokenise_docs({str(i): doc for i, doc in enumerate(docs)})
        own = model.tokenise_queries({"query": query})["query"]
        pairs = model.template.pack([(own, tokens[str(i)]) for i in range(len(docs))])
        scores = np.zeros(len(docs), np.float32)
        order = np.argsort(-pairs.lengths, kind="stable")
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            inputs = padded_inputs(pairs.select(chosen), model.network.config, torch.device("cpu"))
            (logits,) = session.run(None, {name: t.numpy() for name, t in inputs.items()})
            scores[chosen] = logits[:, 0]
        return scores

    return score


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("collection", type=Path)
    parser.add_argument("student")
    parser.add_argument("work", type=Path)
    arguments = parser.parse_args()
    run = Run.read(arguments.collection / "runs/bm25.run").truncate(100)
    queries, docs = texts_of_run(
        run, arguments.collection / "queries.tsv", arguments.collection / "docs.tsv"
    )
    qrels = read_qrels(arguments.collection / "qrels.txt")
    padded = CrossEncoder.from_pretrained(arguments.student, packed=False, precision="fp32")
    variants = {
        f"ours, {p}": Reranker.from_pretrained(arguments.student, precision=p, device="cpu").score
        for p in ("fp32", "bf16")
    }
    for name, int8 in (("fp32", False), ("int8", True)):
        folder = arguments.work / name
        if not folder.exists():
            folder.mkdir(parents=True)
            onnx.write(padded, folder, int8=int8)
        variants[f"onnx, {name}"] = onnx_scorer(padded, folder)
    ranked = ("ours, fp32", "onnx, int8")
    scores: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
    seconds: dict[str, float] = defaultdict(float)
    for i, query_id in enumerate(run):
        ids = list(run[query_id].doc_ids)
        texts = [docs[doc_id] for doc_id in ids]
        for name, score in variants.items():
            if name not in ranked and i > TIMED:
                continue
            start = time.process_time()
            found = score(queries[query_id], texts)
            if 1 <= i <= TIMED:  # the first one warms up
                seconds[name] += time.process_time() - start
            scores[name][query_id] = dict(zip(ids, map(float, found), strict=True))
        print(i, dict(seconds), flush=True)
    exact = scores[ranked[0]]
    for name in variants:
        by = np.concatenate(
            [[s - exact[q][d] for d, s in of.items()] for q, of in scores[name].items()]
        )
        line = f"{name}: {seconds[name]:.1f} s, scores differ by at most {np.abs(by).max():.6f}"
        if name in ranked:
            means = evaluate_run(Run.from_scores(scores[name]), qrels, [METRIC]).means
            line += f", {METRIC} {means[METRIC]:.4f}"
        print(line)


if __name__ == "__main__":
    main()
