"""Make the BM25 first-stage runs of the embedded collection again.

    pip install bm25s PyStemmer
    python experiments/mini_collection/bm25.py

Queries for training and validation search the passages of the training and validation topics
only, so that no passage of a test topic is ever in a training list; test queries search all.
"""

from pathlib import Path

import bm25s
import Stemmer

from rankdistillm.data.runs import Run
from rankdistillm.data.texts import read_texts

MINI = Path(__file__).parents[2] / "rankdistillm" / "mini"
DEPTH = 20
TEST_TOPICS = {"earthquakes", "elevators", "knitting", "lighthouses"} | {
    "owls", "running", "salt", "teeth"
}  # fmt: skip


def search(queries: dict[str, str], docs: dict[str, str]) -> Run:
    """BM25 (Lucene's formula, k1 0.9, b 0.4, Porter stems, English stop words)."""
    stemmer = Stemmer.Stemmer("porter")

    def tokens(texts: list[str]) -> list[list[str]]:
        return bm25s.tokenize(
            texts, stopwords="en", stemmer=stemmer, return_ids=False, show_progress=False
        )

    index = bm25s.BM25(k1=0.9, b=0.4, method="lucene")
    index.index(tokens(list(docs.values())), show_progress=False)
    doc_ids = list(docs)
    scores = {}
    for query_id, words in zip(queries, tokens(list(queries.values())), strict=True):
        found = dict(zip(doc_ids, index.get_scores(words).round(4).tolist(), strict=True))
        scores[query_id] = found
    return Run.from_scores(scores).truncate(DEPTH)


if __name__ == "__main__":
    docs = read_texts(MINI / "docs.tsv", "doc")
    for split in ("train", "validation", "test"):
        searched = {
            doc_id: text
            for doc_id, text in docs.items()
            if split == "test" or doc_id.rsplit("-", 1)[0] not in TEST_TOPICS
        }
        queries = read_texts(MINI / split / "queries.tsv", "query")
        search(queries, searched).write(MINI / split / "bm25.run", tag="bm25")
