"""What measured runs are told as: the table of all, a CSV of each query, everything in JSON."""

import statistics
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from rankdistillm.judged_runs import JudgedFiles
from rankdistillm.metrics import Figures
from rankdistillm.significance import Significance
from rankdistillm.tables import Table, as_text, write_csv

MEAN, GEOMETRIC_MEAN = "mean", "geometric mean"
# collection -> run -> its figures
Measured = Mapping[str, Mapping[str, Figures]]


def format_table(figures: Mapping[str, Figures], metrics: Sequence[str]) -> str:
    """Runs of one collection as rows, means of metrics as columns; below it the counts."""
    return as_text(comparison_table({"": figures}, metrics, {}, {"": [""]}))


def comparison_table(
    measured: Measured,
    metrics: Sequence[str],
    significance: Mapping[str, Significance],
    groups: Mapping[str, Sequence[str]],
    notes: Sequence[str] = (),
) -> Table:
    """A column for each metric and, where there are several, each collection or corpus."""
    runs = list(dict.fromkeys(name for figures in measured.values() for name in figures))
    columns, values, marks = [], {}, {}
    lacking: dict[str, list[str]] = {}
    for metric in metrics:
        label = "" if len(metrics) == 1 and len(groups) > 1 else metric
        for group, collections in groups.items():
            column = " ".join(part for part in (label, group if len(groups) > 1 else "") if part)
            columns.append(column)
            for run in runs:
                if any(run not in measured[c] for c in collections):
                    lacking.setdefault(run, []).append(group)
                    continue
                values[run, column] = fmean(measured[c][run].means[metric] for c in collections)
                if group in significance:
                    marks[run, column] = significance[group].marks(run, metric)
        if len(groups) > 1:
            own = columns[-len(groups) :]
            for mean, function in ((MEAN, fmean), (GEOMETRIC_MEAN, geometric_mean)):
                column = f"{label} {mean}".strip()
                columns.append(column)
                for run in runs:
                    if run not in lacking:
                        values[run, column] = function([values[run, c] for c in own])
    notes = [*_counts(measured), *notes]
    for run, absent in lacking.items():
        notes.append(f"{run}: no run of {', '.join(dict.fromkeys(absent))}, hence no mean")
    notes += _captions(significance, groups)
    return Table(runs, columns, values, marks, notes)


def _captions(
    significance: Mapping[str, Significance], groups: Mapping[str, Sequence[str]]
) -> list[str]:
    """What the marks mean, for all groups at once where it is the same."""
    tested: dict[str, list[str]] = {}
    for group, found in significance.items():
        tested.setdefault(found.caption, []).append(group)
    captions = [
        (f"{', '.join(those)}: " if len(tested) > 1 else "") + caption
        for caption, those in tested.items()
    ]
    if any(len(groups[group]) > 1 for group in significance):
        captions.append(
            "figures of a corpus are means over its collections; the tests pool their queries"
        )
    return captions


def geometric_mean(values: Sequence[float]) -> float:
    """The geometric mean; 0 where one value is."""
    return statistics.geometric_mean(values) if all(value > 0 for value in values) else 0.0


def _counts(measured: Measured) -> list[str]:
    """How many queries were measured, and which could not be."""
    lines = []
    for collection, figures in measured.items():
        where = f"{collection}: " if len(measured) > 1 else ""
        lines.append(f"{where}judged queries: {next(iter(figures.values())).num_queries}")
        for name, found in figures.items():
            if lacking := len(found.without_results):
                own = ", ".join(f"{m} {v:.4f}" for m, v in found.means_with_results.items())
                lines.append(
                    f"{where}{name}: {lacking} of them without results, counted as 0; over the "
                    f"{found.num_queries - lacking} with results: {own}"
                )
            if unjudged := len(found.without_judgements):
                lines.append(f"{where}{name}: queries without judgements, left out: {unjudged}")
    return lines


def per_query_csv(measured: Measured) -> str:
    """A line for each query, metric and run."""
    rows = [
        (collection, query_id, metric, name, value)
        for collection, figures in measured.items()
        for name, found in figures.items()
        for metric, of_queries in found.per_query.items()
        for query_id, value in of_queries.items()
    ]
    return write_csv(("collection", "query_id", "metric", "run", "value"), rows)


def json_report(
    files: Mapping[str, JudgedFiles],
    measured: Measured,
    significance: Mapping[str, Significance],
    notes: Sequence[str],
) -> dict[str, Any]:
    """Everything that the table sums up, for JSON."""
    collections = {
        collection: {
            "qrels": files[collection].qrels,
            "runs": {
                name: {
                    "run": files[collection].runs[name],
                    "means": found.means,
                    "judged_queries": found.num_queries,
                    "means_over_queries_with_results": found.means_with_results,
                    "without_results": found.without_results,
                    "without_judgements": found.without_judgements,
                    "per_query": found.per_query,
                }
                for name, found in figures.items()
            },
        }
        for collection, figures in measured.items()
    }
    tests = {
        group: {
            "test": found.test,
            "correction": found.correction,
            "alpha": found.alpha,
            "p_values": found.p_values,
        }
        for group, found in significance.items()
    }
    if list(collections) == [""]:  # one collection, without a name
        return {**collections[""], **({"significance": tests[""]} if tests else {})}
    return {"collections": collections, "significance": tests, "notes": list(notes)}
