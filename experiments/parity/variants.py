"""What bf16, and what tokenising again as lightning-ir does, change in a student's ranking.

    python -m experiments.parity.variants COLLECTION STUDENT [STUDENT ...]

COLLECTION is a folder with docs.tsv, queries.tsv, qrels.txt and runs/bm25.run; STUDENT what
``model.path=`` takes. Each variant is set beside float32.
"""

import argparse
from pathlib import Path

import numpy as np

from rankdistillm.data.qrels import read_qrels
from rankdistillm.data.runs import Run
from rankdistillm.data.texts import texts_of_run
from rankdistillm.evaluation.metrics import evaluate_run
from rankdistillm.model.reranker import Reranker

METRIC = "ndcg@10"
VARIANTS = {
    "fp32": {"precision": "fp32"},
    "bf16": {"precision": "bf16"},
    "fp32, retokenised": {"precision": "fp32", "retokenise": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("collection", type=Path)
    parser.add_argument("students", nargs="+")
    arguments = parser.parse_args()
    folder = arguments.collection
    run = Run.read(folder / "runs/bm25.run").truncate(100)
    texts = texts_of_run(run, folder / "queries.tsv", folder / "docs.tsv")
    qrels = read_qrels(folder / "qrels.txt")
    print(f"| student | variant | {METRIC} | difference | scores that differ | by at most |")
    print("|---|---|---|---|---|---|")
    for path in arguments.students:
        exact = np.empty(0)
        reference = 0.0
        for name, options in VARIANTS.items():
            reranked = Reranker.from_pretrained(path, **options).rerank(run, *texts)
            value = evaluate_run(reranked, qrels, [METRIC]).means[METRIC]
            scores = np.concatenate(
                [ranked.scores[np.argsort(ranked.doc_ids)] for ranked in reranked.values()]
            )
            if name == "fp32":
                exact, reference = scores, value
                print(f"| {path} | {name} | {value:.4f} | | | |")
                continue
            apart = np.abs(scores - exact)
            print(
                f"| {path} | {name} | {value:.4f} | {value - reference:+.4f} | "
                f"{(apart > 1e-5).sum()} of {len(apart)} | {apart.max():.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
