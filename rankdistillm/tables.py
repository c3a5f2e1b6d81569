"""A table of figures as plain text, Markdown, LaTeX or CSV."""

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

from rankdistillm.errors import InputError
from rankdistillm.names import Output, shown, width

MISSING = "—"


@dataclass(frozen=True)
class Table:
    """Runs as rows, measurements as columns.

    ``values`` maps (row, column) to a figure, higher is better; what it lacks is shown as missing.
    ``marks`` maps (row, column) to marks of significance; ``notes`` stand below.
    """

    rows: Sequence[str]
    columns: Sequence[str]
    values: Mapping[tuple[str, str], float]
    marks: Mapping[tuple[str, str], str] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def place(self, row: str, column: str) -> str:
        """``best`` or ``second`` of the column, as printed; else, and where all are equal, none."""
        printed = {self._printed(r, column) for r in self.rows if (r, column) in self.values}
        ranked = sorted(printed, key=float, reverse=True)
        index = ranked.index(self._printed(row, column))
        return ("best", "second")[index] if index < 2 and len(ranked) > 1 else ""

    def cells(self, show: Callable[[str, str, str], str]) -> list[list[str]]:
        """Rows of cells, ``show`` getting (figure, marks, place) of each that is not missing."""
        return [
            [
                show(
                    self._printed(row, column),
                    self.marks.get((row, column), ""),
                    self.place(row, column),
                )
                if (row, column) in self.values
                else MISSING
                for column in self.columns
            ]
            for row in self.rows
        ]

    def _printed(self, row: str, column: str) -> str:
        return f"{self.values[row, column]:.4f}"


def as_text(table: Table) -> str:
    """Aligned columns, with the notes below."""
    room = max(map(len, table.marks.values()), default=0) or 1
    cells = table.cells(lambda figure, marks, _: figure + marks.ljust(room))
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
    """Best in bold, the notes as a list."""
    cells = table.cells(
        lambda figure, marks, place: (f"**{figure}**" if place == "best" else figure) + _sup(marks)
    )
    lines = [["run", *_shown(table.columns, "markdown")], ["---", *("---:" for _ in table.columns)]]
    names = _shown(table.rows, "markdown")
    lines += [[name, *row] for name, row in zip(names, cells, strict=True)]
    notes = [f"- {note}" for note in _shown((n.strip(" ") for n in table.notes), "markdown")]
    return "\n".join(["| " + " | ".join(line) + " |" for line in lines] + ["", *notes])


def as_latex(table: Table) -> str:
    """Best in bold, second underlined, marks as superscripts, notes below in small print.

    Needs the package booktabs; names in other scripts than Latin need XeLaTeX or LuaLaTeX.
    """

    def show(figure: str, marks: str, place: str) -> str:
        styled = {"best": rf"\textbf{{{figure}}}", "second": rf"\underline{{{figure}}}"}
        return styled.get(place, figure) + (rf"\textsuperscript{{{marks}}}" if marks else "")

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
    """One line a figure: run, column, value in full precision, marks."""
    rows = [
        (row, column, table.values[row, column], table.marks.get((row, column), ""))
        for row in table.rows
        for column in table.columns
        if (row, column) in table.values
    ]
    return write_csv(("run", "measurement", "value", "marks"), rows)


def write_csv(header: Sequence[str], rows: Iterable[Sequence[str | float]]) -> str:
    """The text of a CSV file: numbers in full precision, names as `names.shown` has them."""
    lines: list[str] = []
    # With this end of a line, the csv module also quotes a carriage return inside a cell.
    writer = csv.writer(SimpleNamespace(write=lines.append), lineterminator="\r\n")
    for row in (header, *rows):
        writer.writerow([shown(c, "csv") if isinstance(c, str) else repr(c) for c in row])
    return "\n".join(line.removesuffix("\r\n") for line in lines)


FORMATS = {".txt": as_text, ".md": as_markdown, ".tex": as_latex, ".csv": as_csv}


def format_of(path: str) -> Callable[[Table], str]:
    """The writer for that suffix; `InputError` for another."""
    suffix = "." + path.rpartition(".")[2]
    if suffix not in FORMATS:
        raise InputError(f"table={path}: write one of {', '.join(FORMATS)}")
    return FORMATS[suffix]


def _sup(marks: str) -> str:
    return r"\*" if marks == "*" else f"<sup>{marks}</sup>" if marks else ""


def _shown(names: Iterable[str], output: Output) -> list[str]:
    return [shown(name, output) for name in names]
