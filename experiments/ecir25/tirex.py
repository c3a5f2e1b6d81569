"""Re-rank BM25's top 100 of the 29 TIREx tasks and set the corpora beside the published figures.

    python -m experiments.ecir25.tirex WORK RUNS STUDENT [--name NAME] [--published KEY]

RUNS holds bm25__TASK.run (also .gz) with dashes for the slashes of the task's ir_datasets id;
STUDENT is a checkpoint. Tasks without a run are said and left out. The texts of some corpora come
with a licence of their own: ir_datasets says where to get them.
"""

import argparse
import csv
import json
from pathlib import Path
from statistics import fmean, geometric_mean

from experiments.ecir25.recipes import FIRST_STAGE, Study
from rankdistillm.judged_runs import runs_of_folder

FACTS = json.loads((Path(__file__).parent / "published.json").read_text())
TASKS, PUBLISHED = FACTS["tirex_tasks"], FACTS["tirex_bm25_top100"]
# The corpora of the paper that are not what stands before the last slash of a task's id.
CORPORA = "{medline/2004: medline, medline/2017: medline}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("runs", type=Path)
    parser.add_argument("student", type=Path)
    parser.add_argument("--name", default="student")
    parser.add_argument(
        "--published",
        choices=PUBLISHED,
        default="monoelectra-base-dual-rank-distillm-colbert",
        help="which of the published rows to print",
    )
    arguments = parser.parse_args()
    there = runs_of_folder(arguments.runs)
    for task in TASKS:
        if task not in there:
            print(f"{task}: no run in {arguments.runs}, left out")
    study = Study(arguments.work, arguments.runs)
    study.copy_first_stages()
    study.rerank_all(arguments.name, arguments.student)
    table = arguments.work / "tirex.csv"
    study.measure(
        arguments.work / "tirex.json",
        "by=corpus",
        f"corpora={CORPORA}",
        f"baseline={FIRST_STAGE}@bm25",
        f"table={table}",
    )
    print_table(table, f"{arguments.name}@bm25", PUBLISHED[arguments.published])


def print_table(table: Path, run: str, published: dict) -> None:
    """Corpus by corpus as Markdown; both means over the corpora that are there."""
    with open(table, encoding="utf-8") as file:
        ours = {
            row["measurement"]: float(row["value"])
            for row in csv.DictReader(file)
            if row["run"] == run and row["measurement"] in published
        }
    print("\n| corpus | nDCG@10 | published |\n|---|---|---|")
    for corpus, value in ours.items():
        print(f"| {corpus} | {value:.3f} | {published[corpus]['value']:.3f} |")
    theirs = [published[corpus]["value"] for corpus in ours]
    for name, mean in (("arithmetic mean", fmean), ("geometric mean", geometric_mean)):
        print(f"| {name} of these | {mean(ours.values()):.3f} | {mean(theirs):.3f} |")


if __name__ == "__main__":
    main()
