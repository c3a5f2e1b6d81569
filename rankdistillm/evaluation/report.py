"""Render results as a table (text, Markdown, LaTeX, CSV), as a CSV of each query, and as JSON."""

import csv
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from types import SimpleNamespace
from typing import Any

from rankdistillm.errors import InputError
from rankdistillm.evaluation.metrics import RunMetrics
from rankdistillm.evaluation.names import Output, shown, width
from rankdistillm.evaluation.run_sets import JudgedFiles
from rankdistillm.evaluation.significance import Significance

MEAN, GEOMETRIC_MEAN = "mean", "geometric mean"
MISSING = "—"
# collection -> run -> its metrics
Measured = Mapping[str, Mapping[str, RunMetrics]]


@dataclass(frozen=True)
class Table:
    """Runs as rows, measurements as columns.

    ``values`` maps (row, column) to a value, higher is better; absent cells are shown as missing.
    ``marks`` maps (row, column) to marks of significance; ``notes`` stand below the table.
    """

    rows: Sequence[str]
    columns: Sequence[str]
    values: Mapping[tuple[str, str], float]
    marks: Mapping[tuple[str, str], str] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def emphasis(self, row: str, column: str) -> str:
        """``best`` or ``second`` in its column, as printed; ``""`` elsewhere.

        A column of equal values has no best one.
        """
        printed = {self._printed(r, column) for r in self.rows if (r, column) in self.values}
        ranked = sorted(printed, key=float, reverse=True)
        index = ranked.index(self._printed(row, column))
        return ("best", "second")[index] if index < 2 and len(ranked) > 1 else ""

    def cells(self, show: Callable[[str, str, str], str]) -> list[list[str]]:
        """Rows of cells; ``show`` renders (value, marks, emphasis) of each that is present."""
        return [
            [
                show(
                    self._printed(row, column),
                    self.marks.get((row, column), ""),
                    self.emphasis(row, column),
                )
                if (row, column) in self.values
                else MISSING
                for column in self.columns
            ]
            for row in self.rows
        ]

    def _printed(self, row: str, column: str) -> str:
        return f"{self.values[row, column]:.4f}"


# ---- contents of the table


def format_table(runs: Mapping[str, RunMetrics], metrics: Sequence[str]) -> str:
    """A text table of one collection: runs as rows, metric means as columns, counts below."""
    return as_text(comparison_table({"": runs}, metrics, {}, {"": [""]}))


def comparison_table(
    measured: Measured,
    metrics: Sequence[str],
    significance: Mapping[str, Significance],
    groups: Mapping[str, Sequence[str]],
    notes: Sequence[str] = (),
) -> Table:
    """A row per run and a column per metric.

    With several groups of collections, each metric has a column per group and two for their means.

    ``groups`` maps a group, such as a corpus, to its collections; ``significance`` is by group.
    """
    names = list(dict.fromkeys(name for runs in measured.values() for name in runs))
    columns, values, marks = [], {}, {}
    lacking: dict[str, list[str]] = {}
    for metric in metrics:
        label = "" if len(metrics) == 1 and len(groups) > 1 else metric
        for group, collections in groups.items():
            column = " ".join(part for part in (label, group if len(groups) > 1 else "") if part)
            columns.append(column)
            for name in names:
                if any(name not in measured[c] for c in collections):
                    lacking.setdefault(name, []).append(group)
                    continue
                values[name, column] = fmean(measured[c][name].means[metric] for c in collections)
                if group in significance:
                    marks[name, column] = significance[group].marks(name, metric)
        if len(groups) > 1:
            own = columns[-len(groups) :]
            for mean, function in ((MEAN, fmean), (GEOMETRIC_MEAN, geometric_mean)):
                column = f"{label} {mean}".strip()
                columns.append(column)
                for name in names:
                    if name not in lacking:
                        values[name, column] = function([values[name, c] for c in own])
    notes = [*_counts(measured), *notes]
    for name, absent in lacking.items():
        notes.append(f"{name}: no run of {', '.join(dict.fromkeys(absent))}, so no mean")
    notes += _captions(significance, groups)
    return Table(names, columns, values, marks, notes)


def geometric_mean(values: Sequence[float]) -> float:
    """The geometric mean; 0 if any value is 0."""
    return statistics.geometric_mean(values) if all(value > 0 for value in values) else 0.0


def _counts(measured: Measured) -> list[str]:
    """How many queries are judged, and how many have no results or no judgements."""
    lines = []
    for collection, runs in measured.items():
        where = f"{collection}: " if len(measured) > 1 else ""
        lines.append(f"{where}judged queries: {next(iter(runs.values())).num_queries}")
        for name, found in runs.items():
            if lacking := len(found.without_results):
                own = ", ".join(f"{m} {v:.4f}" for m, v in found.means_with_results.items())
                lines.append(
                    f"{where}{name}: no results for {lacking} judged queries, which count 0; mean "
                    f"over the other {found.num_queries - lacking}: {own}"
                )
            if unjudged := len(found.without_judgements):
                lines.append(f"{where}{name}: queries without judgements, left out: {unjudged}")
    return lines


def _captions(
    significance: Mapping[str, Significance], groups: Mapping[str, Sequence[str]]
) -> list[str]:
    """Explain the marks, once for all groups that share the explanation."""
    tested: dict[str, list[str]] = {}
    for group, found in significance.items():
        tested.setdefault(found.caption, []).append(group)
    captions = [
        (f"{', '.join(those)}: " if len(tested) > 1 else "") + caption
        for caption, those in tested.items()
    ]
    if any(len(groups[group]) > 1 for group in significance):
        captions.append(
            "metrics of a corpus are means over its collections; the tests pool their queries"
        )
    return captions


# ---- formats of the table


def as_text(table: Table) -> str:
    """Aligned columns, with the notes below."""
    room = max(map(len, table.marks.values()), default=0) or 1
    cells = table.cells(lambda value, marks, _: value + marks.ljust(room))
    cells = [[cell if cell != MISSING else MISSING + " " * room for cell in row] for row in cells]
    names, columns = _shown(table.rows, "text"), _shown(table.columns, "text")
    header = ["run", *(column + " " * room for column in columns)]
    lines = [header, *([name, *row] for name, row in zip(names, cells, strict=True))]
    widths = [max(map(width, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(
            [
                name + " " * (widths[0] - width(name)),
                *(" " * (w - width(c)) + c for c, w in zip(row, widths[1:], strict=True)),
            ]
        ).rstrip()
        for name, *row in lines
    ]
    return "\n".join([*text, "", *_shown(table.notes, "text")])


def as_markdown(table: Table) -> str:
    """The best value of a column in bold, the notes as a list."""

    def show(value: str, marks: str, emphasis: str) -> str:
        superscript = r"\*" if marks == "*" else f"<sup>{marks}</sup>" if marks else ""
        return (f"**{value}**" if emphasis == "best" else value) + superscript

    names = _shown(table.rows, "markdown")
    lines = [["run", *_shown(table.columns, "markdown")], ["---", *("---:" for _ in table.columns)]]
    lines += [[name, *row] for name, row in zip(names, table.cells(show), strict=True)]
    notes = [f"- {note}" for note in _shown((n.strip(" ") for n in table.notes), "markdown")]
    return "\n".join(["| " + " | ".join(line) + " |" for line in lines] + ["", *notes])


def as_latex(table: Table) -> str:
    """The best value in bold, the second underlined, marks as superscripts, notes in small print.

    Needs the package booktabs; names in non-Latin scripts need XeLaTeX or LuaLaTeX.
    """

    def show(value: str, marks: str, emphasis: str) -> str:
        styled = {"best": rf"\textbf{{{value}}}", "second": rf"\underline{{{value}}}"}
        return styled.get(emphasis, value) + (rf"\textsuperscript{{{marks}}}" if marks else "")

    body = [
        " & ".join([name, *("--" if cell == MISSING else cell for cell in row)]) + r" \\"
        for name, row in zip(_shown(table.rows, "latex"), table.cells(show), strict=True)
    ]
    return "\n".join(
        [
            rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
            r"\toprule",
            " & ".join(["run", *_shown(table.columns, "latex")]) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            *([r"\par\smallskip", r"{\footnotesize"] if table.notes else []),
            *(note + r"\par" for note in _shown(table.notes, "latex")),
            *(["}"] if table.notes else []),
        ]
    )


def as_csv(table: Table) -> str:
    """One line per cell: run, column, value in full precision, marks."""
    rows = [
        (row, column, table.values[row, column], table.marks.get((row, column), ""))
        for row in table.rows
        for column in table.columns
        if (row, column) in table.values
    ]
    return write_csv(("run", "measurement", "value", "marks"), rows)


FORMATS = {".txt": as_text, ".md": as_markdown, ".tex": as_latex, ".csv": as_csv}


def format_of(path: str) -> Callable[[Table], str]:
    """The format for the file's suffix; raises `InputError` for an unknown one."""
    suffix = "." + path.rpartition(".")[2]
    if suffix not in FORMATS:
        raise InputError(f"{path}: the suffix is not one of {', '.join(FORMATS)}")
    return FORMATS[suffix]


def _shown(names: Iterable[str], output: Output) -> list[str]:
    return [shown(name, output) for name in names]


# ---- the full results


def per_query_csv(measured: Measured) -> str:
    """One line per query, metric and run."""
    rows = [
        (collection, query_id, metric, name, value)
        for collection, runs in measured.items()
        for name, found in runs.items()
        for metric, values in found.per_query.items()
        for query_id, value in values.items()
    ]
    return write_csv(("collection", "query_id", "metric", "run", "value"), rows)


def write_csv(header: Sequence[str], rows: Iterable[Sequence[str | float]]) -> str:
    """The text of a CSV file: numbers in full precision, names as `names.shown` escapes them."""
    lines: list[str] = []
    # With this line terminator, the csv module also quotes a carriage return inside a cell.
    writer = csv.writer(SimpleNamespace(write=lines.append), lineterminator="\r\n")
    for row in (header, *rows):
        writer.writerow([shown(c, "csv") if isinstance(c, str) else repr(c) for c in row])
    return "\n".join(line.removesuffix("\r\n") for line in lines)


def json_report(
    files: Mapping[str, JudgedFiles],
    measured: Measured,
    significance: Mapping[str, Significance],
    notes: Sequence[str],
) -> dict[str, Any]:
    """Everything behind the table, ready for JSON."""
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
                for name, found in runs.items()
            },
        }
        for collection, runs in measured.items()
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
    if list(collections) == [""]:  # a single collection without a name
        return {**collections[""], **({"significance": tests[""]} if tests else {})}
    return {"collections": collections, "significance": tests, "notes": list(notes)}
