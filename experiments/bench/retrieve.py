"""Time and memory of BM25: indexing many passages, opening the index again, and searching it.

    python -m experiments.bench.retrieve WORK [--passages 1000000] [--queries 1000]

WORK gets the texts and the index. The texts are generated: lengths as MS MARCO's, words by Zipf's
law, the most frequent of them English stop words; a query is words of a passage. Indexing and
searching are processes of their own; the peak is the resident memory of all, mapped pages of the
index included.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from rankdistillm.data.outputs import replacing
from rankdistillm.data.texts import read_texts
from rankdistillm.retrieval.analysis import stop_words
from rankdistillm.retrieval.bm25 import Bm25

WORDS_A_DOC, SPREAD = 51, 0.4  # log-normal: median, standard deviation; 55 on average
WORDS_A_QUERY = 6
VOCABULARY = 1_000_000
PASSAGES_AT_ONCE = 10_000


def vocabulary(size: int = VOCABULARY) -> np.ndarray:
    """Words by falling frequency: the stop words, then syllables."""
    syllables = [c + v for c in "bcdfghjklmnprtvw" for v in "aeiou"]
    words = sorted(stop_words("english"))
    for number in range(size - len(words)):
        word = ""
        while number or not word:
            number, digit = divmod(number, len(syllables))
            word += syllables[digit]
        words.append(word + "x")  # no stop word, and a stem of its own
    return np.array(words, dtype=object)


def write_texts(docs: Path, queries: Path, passages: int, num_queries: int) -> None:
    """``id<TAB>text`` lines of passages and queries."""
    draw = np.random.default_rng(0)
    words = vocabulary()
    cumulated = np.cumsum(1 / np.arange(1, len(words) + 1))
    cumulated /= cumulated[-1]
    asked = set(draw.choice(passages, min(num_queries, passages), replace=False).tolist())
    with (
        replacing(docs) as docs_beside,
        replacing(queries) as queries_beside,
        open(docs_beside, "w") as doc_lines,
        open(queries_beside, "w") as query_lines,
    ):
        for first in tqdm(range(0, passages, PASSAGES_AT_ONCE), "generate", disable=None):
            number = min(PASSAGES_AT_ONCE, passages - first)
            lengths = np.ceil(draw.lognormal(np.log(WORDS_A_DOC), SPREAD, number)).astype(int)
            drawn = words[np.searchsorted(cumulated, draw.random(lengths.sum()))]
            for i, text in enumerate(np.split(drawn, np.cumsum(lengths)[:-1]), first):
                doc_lines.write(f"{i}\t{' '.join(text)}\n")
                if i in asked:
                    query = draw.permutation(text)[:WORDS_A_QUERY]
                    query_lines.write(f"{i}\t{' '.join(query)}\n")


def peak() -> float:
    """MiB of this process at its peak."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def open_once(docs: Path, queries: Path, index: Path) -> dict[str, float]:
    """Seconds of making or opening the index, queries per second, MiB at the peak after each."""
    started = time.perf_counter()
    bm25 = Bm25(docs, index=index)
    found = {"seconds": time.perf_counter() - started, "opened": peak()}
    texts = read_texts(queries, "query")
    started = time.perf_counter()
    bm25.search(texts)
    found["rate"] = len(texts) / (time.perf_counter() - started)
    return found | {"searched": peak()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--passages", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--open", action="store_true", help="open the index here; print JSON")
    arguments = parser.parse_args()
    size = f"{arguments.passages}-{arguments.queries}"
    docs, queries = (arguments.work / f"{name}-{size}.tsv" for name in ("docs", "queries"))
    index = arguments.work / f"index-{size}"
    if arguments.open:
        print(json.dumps(open_once(docs, queries, index)))
        return
    arguments.work.mkdir(parents=True, exist_ok=True)
    if not docs.exists() or not queries.exists():
        write_texts(docs, queries, arguments.passages, arguments.queries)
    print(
        "| index | seconds | MiB at the peak | queries per second | MiB at the peak |\n"
        "|---|---|---|---|---|"
    )
    for opening in ("open again" if index.exists() else "make", "open again"):
        done = subprocess.run(
            [sys.executable, "-m", "experiments.bench.retrieve", *sys.argv[1:], "--open"],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        found = json.loads(done.stdout.splitlines()[-1])
        print(
            f"| {opening} | {found['seconds']:.1f} | {found['opened']:.0f} | "
            f"{found['rate']:.0f} | {found['searched']:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
