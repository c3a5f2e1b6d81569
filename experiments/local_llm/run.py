"""A small language model on this machine, as teacher and as writer of queries.

    python -m experiments.local_llm.run DATA WORK MODEL

DATA holds the folders trec-dl-2019 and scifact (see README.md), MODEL is a causal language model:
a folder or hub id. Each step is a command of the README, printed before it runs; what stands in
WORK is not done again, and an interrupted step goes on.
"""

import argparse
from pathlib import Path

from experiments.breadth.run import mapping, value
from experiments.commands import command, generate_queries, retrieve, teach

DEPTH = 20
PASSAGES = 100
# Prompts of query likelihood: the default one, and those of this folder.
PROMPTS = {
    "instruction": "query_likelihood",
    "labels": str(Path(__file__).with_name("labels.jinja")),
    "examples": str(Path(__file__).with_name("examples.jinja")),
}
COLLECTIONS = ("trec-dl-2019", "scifact")


def rank(data: Path, work: Path, model: str) -> None:
    """Re-rank BM25's best for TREC DL 2019 by query likelihood, alone and fused with BM25."""
    collection = data / "trec-dl-2019"
    first, qrels = collection / "runs/bm25.run", collection / "qrels.txt"
    given = (
        "data=local", f"data.docs={value(collection / 'docs.tsv')}",
        f"data.queries={value(collection / 'queries.tsv')}", f"run={value(first)}",
        f"depth={DEPTH}",
    )  # fmt: skip
    runs = {"bm25": first}
    for name, prompt in PROMPTS.items():
        runs[name] = teach(
            work / f"{name}.run", *given, "teacher=query_likelihood",
            f"teacher.model.path={value(model)}", f"prompt={value(prompt)}",
            f"qrels={value(qrels)}",
        )  # fmt: skip
        fused = f"[{value(first)},{value(runs[name])}]"
        runs[f"{name}-fused"] = teach(
            work / f"{name}-fused.run", *given, "teacher=fused", f"teacher.runs={fused}"
        )
    command(
        "evaluate", f"qrels={value(qrels)}", f"runs={mapping(runs)}",
        "baseline=bm25", "metrics=[ndcg@10,mrr@10-l2]", f"table={value(work / 'ranking.md')}",
        f"output={value(work / 'ranking.json')}",
    )  # fmt: skip


def write(data: Path, work: Path, model: str, name: str) -> None:
    """Write queries for a sample of a collection; find out how BM25 ranks their passages."""
    docs = ("data=local", f"data.docs={value(data / name / 'docs.tsv')}")
    # The same answers, once without and once with the filter.
    asked = (
        "teacher=local", f"teacher.model.path={value(model)}", f"num_passages={PASSAGES}",
        f"store={value(work / f'{name}.answers.sqlite')}",
    )  # fmt: skip
    every = generate_queries(work / f"{name}.all.tsv", *docs, *asked, "filter.depth=null")
    generate_queries(work / f"{name}.tsv", *docs, *asked)
    first = retrieve(work / f"{name}.bm25.run", *docs, f"data.queries={value(every)}")
    command(
        "evaluate", f"qrels={value(every.with_suffix('.qrels'))}", f"runs={{bm25: {value(first)}}}",
        "metrics=[hit_rate@1,hit_rate@10,mrr@10]", f"table={value(work / f'{name}.md')}",
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("model", help="a folder or a hub id")
    arguments = parser.parse_args()
    data, work = arguments.data.resolve(), arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    rank(data, work, arguments.model)
    for name in COLLECTIONS:
        write(data, work, arguments.model, name)


if __name__ == "__main__":
    main()
