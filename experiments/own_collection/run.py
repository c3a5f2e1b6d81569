"""From a collection of texts to an evaluated student, with a teacher that is asked.

    python -m experiments.own_collection.run WORK --docs docs.tsv \
        --teacher teacher=openai teacher.model=NAME teacher.base_url=http://localhost:8000/v1

Without --queries and --qrels, the teacher writes the queries. Every fifth query is held out to
test on. Each step is a command of the README, printed before it runs; what stands in WORK is not
done again, and an interrupted step goes on.
"""

import argparse
from pathlib import Path

from experiments.breadth.run import mapping, value
from experiments.commands import command, generate_queries, rerank, retrieve, teach, train
from rankdistillm.data.qrels import Qrels, read_qrels
from rankdistillm.data.runs import Run
from rankdistillm.errors import InputError

HELD_OUT = 5  # every fifth query


def split(first: Run, qrels: Qrels, work: Path) -> None:
    """Write the first-stage runs and judgements of the training and the test queries.

    Queries without judgements or candidates are in neither. Raises `InputError` if a part is empty.
    """
    judged = sorted(query_id for query_id in first if query_id in qrels)
    parts = {"test": judged[::HELD_OUT]}
    parts["train"] = sorted(set(judged) - set(parts["test"]))
    for part, query_ids in parts.items():
        if not query_ids:
            raise InputError(f"{len(judged)} judged queries are too few; give at least two")
        first.select(query_ids).write(work / f"{part}.bm25.run", tag="bm25")
        lines = [f"{q} 0 {d} {grade}\n" for q in query_ids for d, grade in qrels[q].items()]
        (work / f"{part}.qrels").write_text("".join(lines), "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--docs", required=True, help="a file or an ir_datasets id")
    parser.add_argument("--queries", help="with --qrels; without both, the teacher writes some")
    parser.add_argument("--qrels")
    parser.add_argument("--teacher", nargs="+", required=True, metavar="NAME=VALUE")
    parser.add_argument("--generate", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--teach", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--train", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--depth", type=int, default=20, help="passages that the teacher ranks")
    arguments = parser.parse_args()
    if (arguments.queries is None) != (arguments.qrels is None):
        parser.error("give both --queries and --qrels, or neither")
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    docs = Path(arguments.docs)
    docs_option = f"data.docs={value(docs.resolve() if docs.exists() else arguments.docs)}"

    queries, qrels = arguments.queries, arguments.qrels
    if queries is None:
        queries = generate_queries(
            work / "queries.tsv", "data=local", docs_option, *arguments.teacher, *arguments.generate
        )
        qrels = queries.with_suffix(".qrels")
    elif Path(queries).exists():
        queries = Path(queries).resolve()
    texts = ["data=local", docs_option, f"data.queries={value(queries)}"]
    depth = f"depth={arguments.depth}"

    first = retrieve(work / "bm25.run", *texts)
    try:
        split(Run.read(first), read_qrels(qrels), work)
    except InputError as error:
        parser.error(str(error))
    bm25 = {part: work / f"{part}.bm25.run" for part in ("train", "test")}
    teacher = teach(
        work / "teacher.run", *texts, f"run={value(bm25['train'])}", depth,
        *arguments.teacher, *arguments.teach,
    )  # fmt: skip
    prefinetuned = train(
        work / "prefinetuned", "+stage=prefinetune", *texts,
        f"data.train.run={value(bm25['train'])}", f"data.train.qrels={value(work / 'train.qrels')}",
        *arguments.train,
    )  # fmt: skip
    distilled = train(
        work / "distilled", "+stage=distill", *texts, f"data.train.run={value(teacher)}",
        *arguments.train, f"model.path={value(prefinetuned)}",
    )  # fmt: skip
    runs = {"bm25": bm25["test"]}
    for name, student in (("prefinetuned", prefinetuned), ("distilled", distilled)):
        runs[name] = rerank(
            work / f"test.{name}.run", *texts, f"run={value(bm25['test'])}",
            f"model.path={value(student)}",
        )  # fmt: skip
    command(
        "evaluate", f"qrels={value(work / 'test.qrels')}", f"runs={mapping(runs)}",
        "baseline=bm25", "metrics=[ndcg@10,mrr@10]", f"table={value(work / 'table.md')}",
    )  # fmt: skip


if __name__ == "__main__":
    main()
