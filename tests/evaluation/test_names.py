"""Hostile names of files and users, read back from every output by other code."""

import csv
import io
import re

import pytest
from markdown_it import MarkdownIt
from rich.cells import cell_len

from rankdistillm.errors import JOINERS
from rankdistillm.evaluation.names import shown, wrapped
from rankdistillm.evaluation.tables import Table, as_csv, as_latex, as_markdown, as_text, write_csv
from tests.helpers import HOSTILE_NAMES, random_names

NAMES = tuple(dict.fromkeys((*HOSTILE_NAMES, *random_names(400))))
COLUMNS = ("ndcg@10", "a|b\n$c$ & d")
VALUES = {(n, c): i / 1000 + j for i, n in enumerate(NAMES) for j, c in enumerate(COLUMNS)}
TABLE = Table(NAMES, COLUMNS, VALUES, notes=[f"{name}: a note of {name}" for name in NAMES])
PRINTED = [[f"{VALUES[name, column]:.4f}" for column in COLUMNS] for name in NAMES]


def test_text_has_a_line_for_each_run_and_note_without_control_characters():
    lines = as_text(TABLE).split("\n")
    assert len(lines) == 1 + len(NAMES) + 1 + len(NAMES)
    assert all(c.isprintable() or c in JOINERS for line in lines for c in line)
    rows = lines[1 : 1 + len(NAMES)]
    assert [row.split()[-2:] for row in rows] == PRINTED
    assert len({cell_len(row) for row in rows}) == 1  # aligned, also on a terminal with CJK
    for row, name in zip(rows, NAMES, strict=True):
        assert row.startswith(shown(name, "text"))


def inline_text(token):
    """The text of an inline Markdown token; values may be bold, names are plain."""
    assert {child.type for child in token.children} <= {
        "text", "text_special", "strong_open", "strong_close",
    }  # fmt: skip
    return "".join(child.content for child in token.children)


def test_markdown_shows_every_name_literally_and_every_note_by_itself():
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    tokens = parser.parse(as_markdown(TABLE))
    in_table = next(i for i, token in enumerate(tokens) if token.type == "table_close")
    cells = [inline_text(token) for token in tokens[:in_table] if token.type == "inline"]
    rows = [cells[i : i + 3] for i in range(0, len(cells), 3)]
    expected = [["run", *(shown(c, "text") for c in COLUMNS)]]
    expected += [[shown(n, "text").strip(), *f] for n, f in zip(NAMES, PRINTED, strict=True)]
    assert rows == expected
    notes = tokens[in_table + 1 :]
    assert {t.type for t in notes if t.nesting == 1} == {
        "bullet_list_open", "list_item_open", "paragraph_open",
    }  # fmt: skip
    assert sum(t.type == "bullet_list_open" for t in notes) == 1
    said = [inline_text(token) for token in notes if token.type == "inline"]
    assert said == [shown(note, "text").strip() for note in TABLE.notes]


def read_latex(text):
    """The text that LaTeX typesets, from the commands used here; fails for others."""
    commands = {"textbackslash": "\\", "textasciitilde": "~", "textasciicircum": "^",
                "textless": "<", "textgreater": ">", "textbar": "|"}  # fmt: skip
    token = re.compile(r"\\([a-z]+)\{\}|\\([&%$#_{}])|(\{\})|(--)|([&%$#_{}~^\\<>|])|(.)", re.S)
    typeset = []
    for command, symbol, empty, dash, special, plain in token.findall(text):
        assert not special, f"{special} unescaped in {text}"
        assert not dash, f"a longer dash in {text}"
        typeset.append(commands[command] if command else "" if empty else symbol or plain)
    return "".join(typeset)


def test_latex_typesets_every_name_literally():
    lines = as_latex(TABLE).split("\n")
    body = lines[lines.index(r"\midrule") + 1 : lines.index(r"\bottomrule")]
    for row, name, printed in zip(body, NAMES, PRINTED, strict=True):
        assert row.endswith(r" \\")
        cells = re.split(r"(?<!\\) & |(?<=\\\\) & ", row.removesuffix(r" \\"))
        assert len(cells) == 1 + len(COLUMNS)
        assert not cells[0].startswith(("[", "*"))  # an option of the row above
        assert read_latex(cells[0]) == shown(name, "text")
        assert [re.sub(r"\\[a-z]+\{|\}", "", cell) for cell in cells[1:]] == printed
    notes = lines[lines.index(r"{\footnotesize") + 1 : -1]
    assert [read_latex(note.removesuffix(r"\par")) for note in notes] == [
        shown(note, "text") for note in TABLE.notes
    ]


def read_csv(text):
    return list(csv.reader(io.StringIO(text, newline="")))


def test_csv_restores_names_and_numbers_and_has_no_formula():
    rows = read_csv(as_csv(TABLE))[1:]
    assert [len(row) for row in rows] == [4] * len(VALUES)
    found = {
        (run.removeprefix("'"), column.removeprefix("'")): float(value)
        for run, column, value, _ in rows
    }
    assert found == VALUES
    for cell in (cell for row in rows for cell in row[:2]):
        if cell.startswith(("=", "+", "-", "@", "\uff1d", "\uff0b", "\t", "\r", "\n")):
            assert re.fullmatch(r"[+-]\d+", cell)


def test_negative_numbers_in_csv_stay_numbers():
    assert read_csv(write_csv(("a", "b"), [("-5", -0.25), ("-x", 1e-300)]))[1:] == [
        ["-5", "-0.25"],
        ["'-x", "1e-300"],
    ]


@pytest.mark.parametrize("columns", [2, 7, 38])
def test_labels_fit_into_two_lines_and_keep_both_ends(columns):
    for name in map(shown, NAMES, ["text"] * len(NAMES)):
        lines = wrapped(name, columns).split("\n")
        assert len(lines) <= 2
        assert all(cell_len(line) <= columns for line in lines)
        if "…" not in "".join(lines):
            assert "".join(lines) == name
        else:
            assert name.startswith(lines[0])
            assert name.endswith(lines[1].removeprefix("…"))
