"""What bf16 changes in a student's effectiveness: nDCG@10 of the same student in fp32 and in bf16.

    python -m experiments.bench.precision COLLECTION STUDENT [STUDENT ...]

COLLECTION is a folder with docs.tsv, queries.tsv, qrels.txt and runs/bm25.run; STUDENT what
``model.path=`` takes.
"""

import argparse
from pathlib import Path

from rankdistillm.metrics import evaluate_run
from rankdistillm.qrels import read_qrels
from rankdistillm.rerank import Reranker
from rankdistillm.runs import Run
from rankdistillm.texts import texts_of_run

METRIC = "ndcg@10"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("collection", type=Path)
    parser.add_argument("students", nargs="+")
    arguments = parser.parse_args()
    folder = arguments.collection
    run = Run.read(folder / "runs/bm25.run").truncate(100)
    texts = texts_of_run(run, folder / "queries.tsv", folder / "docs.tsv")
    qrels = read_qrels(folder / "qrels.txt")
    print(f"| student | {METRIC}, fp32 | bf16 | difference | largest difference of a score |")
    print("|---|---|---|---|---|")
    for path in arguments.students:
        found, scores = [], []
        for precision in ("fp32", "bf16"):
            reranked = Reranker.from_pretrained(path, precision=precision).rerank(run, *texts)
            found.append(evaluate_run(reranked, qrels, [METRIC]).means[METRIC])
            scores.append(
                {
                    (query_id, doc_id): score
                    for query_id, ranked in reranked.items()
                    for doc_id, score in zip(ranked.doc_ids, ranked.scores, strict=True)
                }
            )
        apart = max(abs(scores[1][pair] - score) for pair, score in scores[0].items())
        print(
            f"| {path} | {found[0]:.4f} | {found[1]:.4f} | {found[1] - found[0]:+.4f} | "
            f"{apart:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
