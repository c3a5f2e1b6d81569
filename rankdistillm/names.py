"""How a name is shown. Names of runs, collections and queries come from files and users.

`shown` decides it for every output; the other modules keep names as they are.
"""

import re
import unicodedata
from typing import Literal

from rich.cells import cell_len, chop_cells

Output = Literal["text", "markdown", "latex", "csv"]

LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}
JOINERS = "\u200c\u200d"  # of Persian, Indic scripts and emoji
NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")
# What Markdown reads as markup: anywhere, an underscore at the edge of a word, at the beginning.
MARKUP = re.compile(r"[\\`*\[\]<>~|&$]|(?<![^\W_])_|_(?![^\W_])|^[#+=-]")
NUMBERED = re.compile(r"^(\d+)([.)])")


def shown(name: str, output: Output) -> str:
    r"""A name as that output needs it.

    ``text`` (a terminal, a plot): control characters are escaped (``\n``, ``\x1b``), also those
    that turn the direction of writing. ``markdown``, ``latex``: the same, and markup is escaped.
    ``csv``: as it is, but a name that a spreadsheet would take for a formula has an apostrophe in
    front: one that begins with ``=``, ``+``, ``-``, ``@`` (of any width), a tab or an end of line
    and is not a number. So has one that begins with an apostrophe: a program gets every name back
    by dropping a first apostrophe.
    """
    if output == "csv":
        is_formula = name.startswith(
            tuple("=+-@\uff1d\uff0b\uff0d\uff20\t\r\n'")
        ) and not NUMBER.fullmatch(name)
        return f"'{name}" if is_formula else name
    text = "".join(escaped(c) if is_control(c) else c for c in name)
    if output == "markdown":
        return NUMBERED.sub(r"\1\\\2", MARKUP.sub(r"\\\g<0>", text))
    if output == "latex":
        # Two dashes would become one longer dash.
        text = "".join(LATEX.get(c, c) for c in text).replace("--", "-{}-").replace("--", "-{}-")
        # Behind the end of a row these would be an option of it.
        return f"{{}}{text}" if text.startswith(("[", "*")) else text
    return text


def is_control(character: str) -> bool:
    """Whether a character moves the cursor, ends a line, turns the direction, or is half a pair."""
    kinds = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return unicodedata.category(character) in kinds and character not in JOINERS


def escaped(text: str) -> str:
    r"""The characters as Python writes them in ASCII: ``\n``, ``\u4e2d``."""
    return text.encode("unicode_escape", "surrogatepass").decode("ascii")


def width(text: str) -> int:
    """How many columns of a terminal the text takes; East Asian characters and emoji take two."""
    return cell_len(text)


def wrapped(text: str, columns: int) -> str:
    """The text in one or two lines of so many columns; of a longer one the middle is left out."""
    if width(text) <= columns:  # and rich drops a text that has no width
        return text
    lines = chop_cells(text, columns)
    if len(lines) > 2:
        tail = text[-4 * columns :]
        end = next(tail[i:] for i in range(len(tail) + 1) if width(tail[i:]) < columns)
        lines = [lines[0], f"…{end}"]
    return "\n".join(lines)
