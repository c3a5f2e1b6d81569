"""A table of figures as plain text, Markdown, LaTeX or CSV."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from rankdistillm.errors import InputError

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

    def place(self, row: str, column: str) -> int:
        """How many different figures of the column are higher, as printed; 0 is the best."""
        printed = {f"{self.values[r, column]:.4f}" for r in self.rows if (r, column) in self.values}
        return sum(float(p) > float(f"{self.values[row, column]:.4f}") for p in printed)

    def cells(self, show: Callable[[str, str, str], str]) -> list[list[str]]:
        """Rows of cells, ``show`` getting (figure, marks, place) of each that is not missing."""
        return [
            [
                show(
                    f"{self.values[row, column]:.4f}",
                    self.marks.get((row, column), ""),
                    ["best", "second"][place] if (place := self.place(row, column)) < 2 else "",
                )
                if (row, column) in self.values
                else MISSING
                for column in self.columns
            ]
            for row in self.rows
        ]


def as_text(table: Table) -> str:
    """Aligned columns, with the notes below."""
    width = max(map(len, table.marks.values()), default=0) or 1
    cells = table.cells(lambda figure, marks, _: figure + marks.ljust(width))
    cells = [[cell if cell != MISSING else MISSING + " " * width for cell in row] for row in cells]
    header = ["run", *(column + " " * width for column in table.columns)]
    lines = [header, *([name, *row] for name, row in zip(table.rows, cells, strict=True))]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join([name.ljust(widths[0]), *map(str.rjust, row, widths[1:])]).rstrip()
        for name, *row in lines
    ]
    return "\n".join([*text, "", *table.notes])


def as_markdown(table: Table) -> str:
    """Best in bold."""
    cells = table.cells(
        lambda figure, marks, place: (f"**{figure}**" if place == "best" else figure) + _sup(marks)
    )
    lines = [["run", *table.columns], ["---", *("---:" for _ in table.columns)]]
    lines += [[name, *row] for name, row in zip(table.rows, cells, strict=True)]
    return "\n".join(["| " + " | ".join(line) + " |" for line in lines] + ["", *table.notes])


def as_latex(table: Table) -> str:
    """Best in bold, second underlined, marks as superscripts, notes below in small print.

    Needs the package booktabs.
    """

    def show(figure: str, marks: str, place: str) -> str:
        styled = {"best": rf"\textbf{{{figure}}}", "second": rf"\underline{{{figure}}}"}
        return styled.get(place, figure) + (rf"\textsuperscript{{{_tex(marks)}}}" if marks else "")

    body = [
        " & ".join([_tex(name), *("--" if cell == MISSING else cell for cell in row)]) + r" \\"
        for name, row in zip(table.rows, table.cells(show), strict=True)
    ]
    return "\n".join(
        [
            rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
            r"\toprule",
            " & ".join(["run", *map(_tex, table.columns)]) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            *([r"\par\smallskip", r"{\footnotesize"] if table.notes else []),
            *(_tex(note) + r"\par" for note in table.notes),
            *(["}"] if table.notes else []),
        ]
    )


def as_csv(table: Table) -> str:
    """One line a figure: run, column, value in full precision, marks."""
    rows = [
        (row, column, repr(table.values[row, column]), table.marks.get((row, column), ""))
        for row in table.rows
        for column in table.columns
        if (row, column) in table.values
    ]
    return write_csv(("run", "measurement", "value", "marks"), rows)


def write_csv(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """The text of a CSV file."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().removesuffix("\n")


FORMATS = {".txt": as_text, ".md": as_markdown, ".tex": as_latex, ".csv": as_csv}


def format_of(path: str) -> Callable[[Table], str]:
    """The writer for that suffix; `InputError` for another."""
    suffix = "." + path.rpartition(".")[2]
    if suffix not in FORMATS:
        raise InputError(f"table={path}: write one of {', '.join(FORMATS)}")
    return FORMATS[suffix]


def _sup(marks: str) -> str:
    return r"\*" if marks == "*" else f"<sup>{marks}</sup>" if marks else ""


def _tex(text: str) -> str:
    escaped = {c: f"\\{c}" for c in "&%$#_{}"} | {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
    }
    return "".join(escaped.get(character, character) for character in text)
