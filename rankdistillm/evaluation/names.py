"""Show the names of runs, collections and queries, which come from files and users.

`shown` escapes a name for each kind of output; all other modules keep names as they are.
"""

import re
from typing import Literal

from rich.cells import cell_len, chop_cells

from rankdistillm.errors import printable

Output = Literal["text", "markdown", "latex", "csv"]

LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}
NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")
FORMULA_STARTS = tuple("=+-@\uff1d\uff0b\uff0d\uff20\t\r\n'")
# Markdown's markup: some characters anywhere, underscores at the edge of a word, some at the start.
MARKUP = re.compile(r"[\\`*\[\]<>~|&$]|(?<![^\W_])_|_(?![^\W_])|^[#+=-]")
NUMBERED = re.compile(r"^(\d+)([.)])")


def shown(name: str, output: Output) -> str:
    r"""The name, escaped for an output.

    ``text`` (a terminal, a plot): made `printable`. ``markdown``, ``latex``: the same, with markup
    escaped. ``csv``: unchanged, but an apostrophe is put before a name that a spreadsheet would
    read as a formula: one that starts with ``=``, ``+``, ``-``, ``@`` (of any width), a tab or an
    end of line and is not a number. Names that start with an apostrophe get another one, so that
    a program restores every name by dropping the first apostrophe.
    """
    if output == "csv":
        is_formula = name.startswith(FORMULA_STARTS) and not NUMBER.fullmatch(name)
        return f"'{name}" if is_formula else name
    text = printable(name)
    if output == "markdown":
        return NUMBERED.sub(r"\1\\\2", MARKUP.sub(r"\\\g<0>", text))
    if output == "latex":
        # LaTeX joins two dashes into a longer one.
        text = "".join(LATEX.get(c, c) for c in text).replace("--", "-{}-").replace("--", "-{}-")
        # After the end of a row, LaTeX reads these as an option of the row.
        return f"{{}}{text}" if text.startswith(("[", "*")) else text
    return text


def width(text: str) -> int:
    """The number of terminal columns; East Asian characters and emoji take two each."""
    return cell_len(text)


def wrapped(text: str, columns: int) -> str:
    """The text on one or two lines of at most ``columns``; longer text loses its middle."""
    if width(text) <= columns:  # rich drops text without width
        return text
    lines = chop_cells(text, columns)
    if len(lines) > 2:
        tail = text[-4 * columns :]
        end = next(tail[i:] for i in range(len(tail) + 1) if width(tail[i:]) < columns)
        lines = [lines[0], f"…{end}"]
    return "\n".join(lines)
