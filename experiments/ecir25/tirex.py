"""Re-rank BM25's top 100 of the 29 TIREx tasks and set the corpora beside the published figures.

    python -m experiments.ecir25.tirex WORK RUNS STUDENT [--name NAME] [--published KEY]

RUNS holds bm25__TASK.run (also .gz) with dashes for the slashes of the task's ir_datasets id;
STUDENT is a checkpoint. Tasks without a run are said and left out. The texts of some corpora come
with a licence of their own: ir_datasets says where to get them.
"""

import argparse
import json
from pathlib import Path
from statistics import fmean

from experiments.ecir25.recipes import FIRST_STAGE, add_options, study_of
from rankdistillm.evaluation.run_sets import runs_of_folder
from rankdistillm.evaluation.tables import geometric_mean

FACTS = json.loads((Path(__file__).parent / "published.json").read_text())
TASKS, PUBLISHED = FACTS["tirex_tasks"], FACTS["tirex_bm25_top100"]
# The corpora of the paper that are not what stands before the last slash of a task's id.
CORPORA = {"medline/2004": "medline", "medline/2017": "medline"}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_options(parser)
    parser.add_argument("student", type=Path)
    parser.add_argument("--name", default="student")
    parser.add_argument(
        "--published",
        choices=PUBLISHED,
        default="monoelectra-base-dual-rank-distillm-colbert",
        help="which of the published rows to print",
    )
    arguments = parser.parse_args()
    study = study_of(arguments)
    there = runs_of_folder(study.runs, study.qrels)
    for task in TASKS:
        if task not in there:
            print(f"{task}: no run in {arguments.runs}, left out")
    study.copy_runs(FIRST_STAGE, study.runs)
    study.rerank_all(arguments.name, arguments.student)
    report = arguments.work / "tirex.json"
    corpora = ", ".join(f"{long}: {short}" for long, short in CORPORA.items())
    study.measure(
        report,
        "by=corpus",
        f"corpora={{{corpora}}}",
        f"baseline={FIRST_STAGE}@bm25",
        f"table={arguments.work / 'tirex.tex'}",
    )
    print_table(report, f"{arguments.name}@bm25", PUBLISHED[arguments.published])


def corpus_of(task: str) -> str:
    """The corpus of a task, as the paper groups them."""
    corpus = task.rpartition("/")[0] or task
    return CORPORA.get(corpus, corpus)


def print_table(report: Path, run: str, published: dict) -> None:
    """Corpus by corpus as Markdown; both means over the corpora that are complete."""
    measured = json.loads(report.read_text())["collections"]
    ours, theirs = [], []
    print("\n| corpus | tasks | nDCG@10 | published |\n|---|---|---|---|")
    for corpus in dict.fromkeys(map(corpus_of, TASKS)):
        tasks = [task for task in TASKS if corpus_of(task) == corpus]
        values = [measured[t]["runs"][run]["means"]["ndcg@10"] for t in tasks if t in measured]
        known = published[corpus]["value"]
        if len(values) == len(tasks):
            ours.append(fmean(values))
            theirs.append(known)
        mean = f"{fmean(values):.3f}" if values else ""
        print(f"| {corpus} | {len(values)} of {len(tasks)} | {mean} | {known:.3f} |")
    for name, of in (("arithmetic mean", fmean), ("geometric mean", geometric_mean)):
        if ours:
            print(f"| {name} of {len(ours)} corpora | | {of(ours):.3f} | {of(theirs):.3f} |")


if __name__ == "__main__":
    main()
