"""Render results as a table (text, Markdown, LaTeX, CSV, drawn on a terminal), as CSV, as JSON."""

import csv
import statistics
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
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
# Of a table on a terminal, in characters.
GAP = 2  # between two columns
MIN_NAME = 12  # the least width of the names, which are folded into it
# collection -> run -> its metrics
Measured = Mapping[str, Mapping[str, RunMetrics]]


@dataclass(frozen=True)
class Cell:
    """A printed value; ``marks`` of significance, ``spread`` around it, and ``emphasis``."""

    value: str
    marks: str
    spread: str
    emphasis: str


@dataclass(frozen=True)
class Table:
    """Runs as rows, measurements as columns.

    ``values`` maps (row, column) to a value, higher is better; absent cells are shown as missing.
    ``marks`` maps (row, column) to marks of significance; ``notes`` stand below the table.
    ``spreads`` maps (row, column) to the standard deviation of a value that is a mean. The columns
    ``counted`` are printed as whole numbers, and none is the best. ``head`` says what a row is.
    """

    rows: Sequence[str]
    columns: Sequence[str]
    values: Mapping[tuple[str, str], float]
    marks: Mapping[tuple[str, str], str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    spreads: Mapping[tuple[str, str], float] = field(default_factory=dict)
    counted: Collection[str] = ()
    head: str = "run"

    def emphasis(self, row: str, column: str) -> str:
        """``best`` or ``second`` in its column, as printed; ``""`` elsewhere.

        A column of equal values has no best one.
        """
        value, leaders = self._printed(row, column), self._leaders[column]
        return ("best", "second")[leaders.index(value)] if value in leaders else ""

    @cached_property
    def _leaders(self) -> dict[str, list[str]]:
        """Column -> its best and its second value, as printed; none where all are equal."""
        found = {}
        for column in self.columns:
            printed = {self._printed(r, column) for r in self.rows if (r, column) in self.values}
            is_ranked = column not in self.counted and len(printed) > 1
            found[column] = sorted(printed, key=float, reverse=True)[:2] if is_ranked else []
        return found

    def cells(self) -> list[list[Cell | None]]:
        """Rows of cells; None where there is no value."""
        return [[self._cell(row, column) for column in self.columns] for row in self.rows]

    def _cell(self, row: str, column: str) -> Cell | None:
        key = row, column
        if key not in self.values:
            return None
        spread = f"{self.spreads[key]:.4f}" if key in self.spreads else ""
        return Cell(
            self._printed(*key), self.marks.get(key, ""), spread, self.emphasis(row, column)
        )

    def _printed(self, row: str, column: str) -> str:
        return f"{self.values[row, column]:.{0 if column in self.counted else 4}f}"


# ---- contents of the table


def metrics_table(runs: Mapping[str, RunMetrics], metrics: Sequence[str]) -> Table:
    """The table of one collection: runs as rows, metric means as columns, counts below."""
    return comparison_table({"": runs}, metrics, {}, {"": [""]})


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
    notes += captions(significance, groups)
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


def captions(
    significance: Mapping[str, Significance], groups: Mapping[str, Sequence[str]]
) -> list[str]:
    """Explain the marks, once for all groups that share the explanation."""
    tested: dict[str, list[str]] = {}
    for group, found in significance.items():
        tested.setdefault(found.caption, []).append(group)
    explained = [
        (f"{', '.join(those)}: " if len(tested) > 1 else "") + caption
        for caption, those in tested.items()
    ]
    if any(len(groups[group]) > 1 for group in significance):
        explained.append(
            "metrics of a corpus are means over its collections; the tests pool their queries"
        )
    return explained


# ---- formats of the table


def print_table(table: Table) -> None:
    """Print the table to stdout: drawn on a terminal, as plain text into a pipe or file."""
    if sys.stdout is None or not sys.stdout.isatty():  # None: closed by the shell, as by >&-
        print(as_text(table))
        return
    from rich.console import Console

    draw(table, Console(file=sys.stdout, highlight=False))


def draw(table: Table, console: Any) -> None:
    """Draw the table on rich's ``console``: the best value bold, the second underlined, notes dim.

    Without colours, which some background would hide. Long names are folded, and numbers never
    cut: columns that do not fit side by side follow below, with the names again.
    """
    from rich import box
    from rich.table import Table as Grid
    from rich.text import Text

    styles = {"best": "bold", "second": "underline", "": ""}
    columns = []
    for (title, *_), *cells in _columns(table):
        wide = max(map(width, [*(value + beside for value, beside, _ in cells), *title.split()]))
        texts = [
            Text.assemble(" " * (wide - width(value + beside)), (value, styles[emphasis]), beside)
            for value, beside, emphasis in cells
        ]
        columns.append((wide, Text(title, justify="right", overflow="fold"), texts))
    head, *names = _shown([table.head, *table.rows], "text")
    room = console.width - sum(GAP + wide for wide, _, _ in columns)
    widest = max((wide for wide, _, _ in columns), default=0)
    names_width = min(
        max(map(width, [head, *names])),
        max(MIN_NAME, room),
        max(1, console.width - GAP - widest),
    )
    while columns:
        left, fitting = console.width - names_width, 0
        while fitting < len(columns) and (left := left - GAP - columns[fitting][0]) >= 0:
            fitting += 1
        drawn, columns = columns[: fitting or 1], columns[fitting or 1 :]
        # The box separates columns by one space, to which the padding adds the rest of the gap.
        grid = Grid(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, GAP - 1, 0, 0))
        grid.pad_edge = False
        grid.add_column(Text(head), width=names_width, overflow="fold")
        for wide, header, _ in drawn:
            grid.add_column(header, width=wide, no_wrap=False, overflow="fold")
        for i, name in enumerate(names):
            grid.add_row(Text(name), *(texts[i] for _, _, texts in drawn))
        console.print(grid)
        console.print()
    for note in _shown(table.notes, "text"):
        console.print(Text(note, style="dim"))


def as_text(table: Table) -> str:
    """Aligned columns, with the notes below."""
    columns = [[value + beside for value, beside, _ in cells] for cells in _columns(table)]
    lines = list(zip(_shown([table.head, *table.rows], "text"), *columns, strict=True))
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


def _columns(table: Table) -> Iterator[list[tuple[str, str, str]]]:
    """For each column its header and cells: (value, marks and spread, emphasis).

    The marks and spreads of a column are padded to one length, so that right-aligned values are
    aligned at their decimal points.
    """
    room = max(map(len, table.marks.values()), default=0) or 1
    rows = table.cells()
    for i, column in enumerate(table.columns):
        cells = [row[i] for row in rows]
        spread_room = max((len(_spread(cell)) for cell in cells if cell), default=0)
        blank = " " * (room + spread_room)
        yield [
            (shown(column, "text"), blank, ""),
            *(
                (
                    cell.value,
                    cell.marks.ljust(room) + _spread(cell).ljust(spread_room),
                    cell.emphasis,
                )
                if cell
                else (MISSING, blank, "")
                for cell in cells
            ),
        ]


def _spread(cell: Cell) -> str:
    return f" ± {cell.spread}" if cell.spread else ""


def as_markdown(table: Table) -> str:
    """The best value of a column in bold, the notes as a list."""

    def show(cell: Cell | None) -> str:
        if cell is None:
            return MISSING
        superscript = f"<sup>{cell.marks}</sup>" if cell.marks else ""
        superscript = r"\*" if cell.marks == "*" else superscript
        value = f"**{cell.value}**" if cell.emphasis == "best" else cell.value
        return value + superscript + _spread(cell)

    names = _shown(table.rows, "markdown")
    head, *columns = _shown([table.head, *table.columns], "markdown")
    lines = [[head, *columns], ["---", *("---:" for _ in columns)]]
    lines += [[name, *map(show, row)] for name, row in zip(names, table.cells(), strict=True)]
    notes = [f"- {note}" for note in _shown((n.strip(" ") for n in table.notes), "markdown")]
    return "\n".join(["| " + " | ".join(line) + " |" for line in lines] + ["", *notes])


def as_latex(table: Table) -> str:
    """The best value in bold, the second underlined, marks as superscripts, notes in small print.

    Needs the package booktabs; names in non-Latin scripts need XeLaTeX or LuaLaTeX.
    """

    def show(cell: Cell | None) -> str:
        if cell is None:
            return "--"
        styled = {"best": rf"\textbf{{{cell.value}}}", "second": rf"\underline{{{cell.value}}}"}
        marks = rf"\textsuperscript{{{cell.marks}}}" if cell.marks else ""
        spread = rf" $\pm$ {cell.spread}" if cell.spread else ""
        return styled.get(cell.emphasis, cell.value) + marks + spread

    head, *columns = _shown([table.head, *table.columns], "latex")
    body = [
        " & ".join([name, *map(show, row)]) + r" \\"
        for name, row in zip(_shown(table.rows, "latex"), table.cells(), strict=True)
    ]
    return "\n".join(
        [
            rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
            r"\toprule",
            " & ".join([head, *columns]) + r" \\",
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
    """One line per cell: row, column, value in full precision, marks; sd, if the table has any."""
    rows: list[tuple[str | float, ...]] = []
    for key in ((row, column) for row in table.rows for column in table.columns):
        if key in table.values:
            spread = (table.spreads.get(key, ""),) if table.spreads else ()
            rows.append((*key, table.values[key], table.marks.get(key, ""), *spread))
    header = (table.head, "measurement", "value", "marks", *(("sd",) if table.spreads else ()))
    return write_csv(header, rows)


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
