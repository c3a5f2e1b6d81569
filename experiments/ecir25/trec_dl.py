"""Train the students of the paper's main table and set them beside the published figures.

    python -m experiments.ecir25.trec_dl WORK RUNS [--students NAME ...] [--override KEY=VALUE ...]

RUNS holds first-stage runs named RUN__COLLECTION.run (also .gz): bm25 and colbert for
msmarco-passage-trec-dl-2019-judged and -2020-judged. Everything else is fetched by id.
"""

import argparse
import json
from pathlib import Path

from experiments.ecir25.recipes import FIRST_STAGE, Study, add_options, study_of

TEACHER = "teacher"

FACTS = json.loads((Path(__file__).parent / "published.json").read_text())
PUBLISHED = FACTS["trec_dl"] | FACTS["losses"]
# name -> (model, stage 1 too?, overrides of stage 2 or None, name in the published table)
STUDENTS = {
    "base-stage-1": ("electra_base", True, None, "monoelectra-base"),
    "base-stage-2": (
        "electra_base", False, [], "monoelectra-base-single-rank-distillm-colbert"
    ),
    "base-both-bm25-lists": (
        "electra_base", True, ["data.train.run={bm25_lists}"],
        "monoelectra-base-dual-rank-distillm-bm25",
    ),
    "base-both-ranknet": (
        "electra_base", True, [], "monoelectra-base-dual-rank-distillm-colbert"
    ),
    "base-both-adr-mse": (
        "electra_base", True, ["loss=adr_mse"], "monoelectra-base-dual-rank-distillm-colbert-adrmse"
    ),
    "large-both": ("electra_large", True, [], "monoelectra-large"),
}  # fmt: skip


def make(study: Study, name: str, bm25_lists: str | None) -> Path:
    """Train one student, and its first stage if it has one; returns its folder."""
    model, prefinetuned, overrides, _ = STUDENTS[name]
    start = study.prefinetune(model) if prefinetuned else None
    if overrides is None:
        assert start is not None
        return start
    chosen = [override.format(bm25_lists=bm25_lists) for override in overrides]
    return study.distill(name, model, start, *chosen)


def published(name: str, first: str, collection: str) -> float | None:
    """The figure of the paper, None where it has none."""
    others = {FIRST_STAGE: "first_stage", TEACHER: "rankzephyr"}
    key = others[name] if name in others else STUDENTS[name][3]
    found = PUBLISHED.get(key, {}).get(f"{first} {collection}")
    return found and found["value"]


def print_table(report: Path) -> None:
    """Our figures beside the published ones, as Markdown."""
    print("\n| student | first stage | collection | nDCG@10 | published |\n|---|---|---|---|---|")
    for collection, measured in json.loads(report.read_text())["collections"].items():
        for run, figures in measured["runs"].items():
            name, _, first = run.rpartition("@")
            known = published(name, first, collection)
            ours = figures["means"]["ndcg@10"]
            shown = "" if known is None else f"{known:.3f}"
            print(f"| {name} | {first} | {collection} | {ours:.3f} | {shown} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_options(parser)
    parser.add_argument("--students", nargs="+", choices=STUDENTS, default=list(STUDENTS))
    parser.add_argument("--bm25-lists", help="RankZephyr over BM25 on the training queries")
    parser.add_argument("--teacher", type=Path, help="folder of RankZephyr's rankings of RUNS")
    arguments = parser.parse_args()
    study = study_of(arguments)
    study.copy_runs(FIRST_STAGE, study.runs)
    if arguments.teacher:
        study.copy_runs(TEACHER, arguments.teacher)
    for name in arguments.students:
        if name == "base-both-bm25-lists" and not arguments.bm25_lists:
            print(f"{name}: left out, it needs --bm25-lists")
            continue
        study.rerank_all(name, make(study, name, arguments.bm25_lists))
    report = arguments.work / "trec_dl.json"
    study.measure(
        report,
        f"table={arguments.work / 'trec_dl.tex'}",
        f"per_query={arguments.work / 'trec_dl_queries.csv'}",
    )
    print_table(report)


if __name__ == "__main__":
    main()
