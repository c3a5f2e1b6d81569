"""How much of the teacher's rankings is needed: fewer queries, shallower lists.

    python -m experiments.ecir25.subsampling WORK RUNS [--matched] [--override KEY=VALUE ...]

1,000 to 10,000 queries at depth 100, and depth 10 to 100 at 10,000 queries, each a stage 2 from the
same stage 1; RUNS as for trec_dl.py. The published study trains three epochs, hence fewer steps on
fewer queries; --matched gives every training the steps of the largest, and table and plots names
of their own.
"""

import argparse
import json
from pathlib import Path
from statistics import fmean

from experiments.ecir25.recipes import add_options, study_of
from rankdistillm.evaluation.plots import plot_amounts

FACTS = json.loads((Path(__file__).parent / "published.json").read_text())
QUERIES, DEPTHS = (1000, 2000, 5000, 10000), (10, 20, 50, 100)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_options(parser)
    parser.add_argument("--matched", action="store_true", help="the same steps for all")
    parser.add_argument("--queries", type=int, nargs="+", default=QUERIES)
    parser.add_argument("--depths", type=int, nargs="+", default=DEPTHS)
    arguments = parser.parse_args()
    study = study_of(arguments)
    start = study.prefinetune("electra_base")
    most, deepest = max(arguments.queries), max(arguments.depths)
    sizes = [(number, deepest) for number in arguments.queries]
    sizes += [(most, depth) for depth in arguments.depths if depth != deepest]
    names = {}
    suffix = "-matched" if arguments.matched else ""
    for number, depth in sizes:
        fewer = arguments.matched and number < most  # the others have these steps anyway
        names[number, depth] = f"queries-{number}-depth-{depth}" + (suffix if fewer else "")
        student = study.distill(
            names[number, depth],
            "electra_base",
            start,
            f"data.train.num_queries={number}",
            # The depth counts in ColBERTv2's ranking, which the teacher re-ranked.
            "data.train.first_stage=msmarco-passage/train/rank-distillm-colbert",
            f"data.train.depth={depth}",
            f"data.train.list_size={depth}",
            *([f"max_steps={-(-3 * most // 32)}"] if fewer else []),
        )
        study.rerank_all(names[number, depth], student)
    report = arguments.work / f"subsampling{suffix}.json"
    study.measure(report)
    show(report, names, (most, deepest))


def show(report: Path, names: dict[tuple[int, int], str], full: tuple[int, int]) -> None:
    """A table beside the published figures, and a plot of each axis; means over collections.

    The published means are those of two collections, and of three epochs.
    """
    values: dict[tuple[str, int, int], list[float]] = {}
    for measured in json.loads(report.read_text())["collections"].values():
        for (number, depth), name in names.items():
            for run, figures in measured["runs"].items():
                if run.startswith(f"{name}@"):
                    first = run.rpartition("@")[2]
                    mean = figures["means"]["ndcg@10"]
                    values.setdefault((first, number, depth), []).append(mean)
    print("\n| first stage | queries | depth | collections | nDCG@10 | published |")
    print("|---|---|---|---|---|---|")
    for (first, number, depth), found in sorted(values.items()):
        known = FACTS["subsampling_queries_at_depth_100"].get(first, {}).get(str(number))
        if depth != full[1]:
            known = FACTS["subsampling_depth_at_10000_queries"].get(first, {}).get(str(depth))
        same = full == (10000, 100) and len(found) == 2 and "matched" not in names[number, depth]
        shown = f"{known:.3f}" if known and same else ""
        print(f"| {first} | {number} | {depth} | {len(found)} | {fmean(found):.3f} | {shown} |")
    firsts = sorted({first for first, _, _ in values})
    for axis, label in ((0, "queries"), (1, "depth")):
        lines = {
            first: {
                size[axis]: [fmean(found)]
                for (f, *size), found in values.items()
                if f == first and size[1 - axis] == full[1 - axis]
            }
            for first in firsts
        }
        plot = report.with_name(f"{report.stem}_{label}.pdf")
        plot_amounts(lines, plot, amount=label, measurement="nDCG@10")


if __name__ == "__main__":
    main()
