"""Names as files and users give them, in every output: each is read back by other code."""

import csv
import io
import re
import warnings

import numpy as np
import pytest
from markdown_it import MarkdownIt
from matplotlib.text import Text
from rich.cells import cell_len

from rankdistillm import plots
from rankdistillm.metrics import Figures
from rankdistillm.names import is_control, shown, wrapped
from rankdistillm.plots import plot_amounts, plot_gains
from rankdistillm.tables import Table, as_csv, as_latex, as_markdown, as_text, write_csv

HOSTILE = (
    r"cost$\foo$", "$x$", "a|b", r"a\|b", "two\nlines", "two\r\nlines", "a\rb", "tab\there",
    "\x1b[31mred\x1b[0m", "\x07\x00", "\u202eright to left", "line\u2028separator", "\udc80half",
    "=1+1", "+1", "-cmd", "-5", "@SUM(A1)", "'quoted", "''", "=HYPERLINK(\"http://x\",\"y\")",
    "\uff1dwide", "a,b;c\"d", "**bold**", "_it_", "a_b", "__a__", "`code`", "[link](x)",
    "<b>html</b>", "<!-- c -->", "&amp;", "~~gone~~", "# head", "- item", "1. one", "2) two", "",
    "+ plus", "=", "---", "\\", "\\\\", "{", "}", "%comment", "a&b", "[opt]", "*star", "#", "x^2",
    "~", "a--b---c", "中文运行", "日本語 モデル", "한국어", "😀👩‍🔬", "e\u0301", "مرحبا", "x" * 300,
    "中" * 200, "a b  c", '"', "\\n", "run & $y$ | *z* \x1b]0;t\x07",
)  # fmt: skip
ALPHABET = "ab1 |\\*_`[]<>&$%#{}~^-+=@'\",;.!:()\n\r\t\x1b\u202e\u2028中😀é\u0301"


def random_names(number, seed=1):
    rng = np.random.default_rng(seed)
    for _ in range(number):
        yield "".join(ALPHABET[i] for i in rng.integers(0, len(ALPHABET), rng.integers(1, 12)))


NAMES = tuple(dict.fromkeys((*HOSTILE, *random_names(400))))
COLUMNS = ("ndcg@10", "a|b\n$c$ & d")
VALUES = {(n, c): i / 1000 + j for i, n in enumerate(NAMES) for j, c in enumerate(COLUMNS)}
TABLE = Table(NAMES, COLUMNS, VALUES, notes=[f"{name}: a note of {name}" for name in NAMES])
FIGURES = [[f"{VALUES[name, column]:.4f}" for column in COLUMNS] for name in NAMES]


def test_text_has_a_line_for_each_run_and_note_without_control_characters():
    lines = as_text(TABLE).split("\n")
    assert len(lines) == 1 + len(NAMES) + 1 + len(NAMES)
    assert not [c for line in lines for c in line if is_control(c)]
    rows = lines[1 : 1 + len(NAMES)]
    assert [row.split()[-2:] for row in rows] == FIGURES
    assert len({cell_len(row) for row in rows}) == 1  # aligned, also on a terminal with CJK
    for row, name in zip(rows, NAMES, strict=True):
        assert row.startswith(shown(name, "text"))


def inline_text(token):
    """The text that an inline token of Markdown shows; figures may be bold, names are plain."""
    assert {child.type for child in token.children} <= {
        "text", "text_special", "strong_open", "strong_close",
    }  # fmt: skip
    return "".join(child.content for child in token.children)


def test_markdown_shows_names_as_they_are_and_every_note_by_itself():
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    tokens = parser.parse(as_markdown(TABLE))
    in_table = next(i for i, token in enumerate(tokens) if token.type == "table_close")
    cells = [inline_text(token) for token in tokens[:in_table] if token.type == "inline"]
    rows = [cells[i : i + 3] for i in range(0, len(cells), 3)]
    expected = [["run", *(shown(c, "text") for c in COLUMNS)]]
    expected += [[shown(n, "text").strip(), *f] for n, f in zip(NAMES, FIGURES, strict=True)]
    assert rows == expected
    notes = tokens[in_table + 1 :]
    assert {t.type for t in notes if t.nesting == 1} == {
        "bullet_list_open", "list_item_open", "paragraph_open",
    }  # fmt: skip
    assert sum(t.type == "bullet_list_open" for t in notes) == 1
    said = [inline_text(token) for token in notes if token.type == "inline"]
    assert said == [shown(note, "text").strip() for note in TABLE.notes]


def read_latex(text):
    """What LaTeX typesets of text with the commands that are used here; fails for any others."""
    commands = {"textbackslash": "\\", "textasciitilde": "~", "textasciicircum": "^",
                "textless": "<", "textgreater": ">", "textbar": "|"}  # fmt: skip
    token = re.compile(r"\\([a-z]+)\{\}|\\([&%$#_{}])|(\{\})|(--)|([&%$#_{}~^\\<>|])|(.)", re.S)
    typeset = []
    for command, symbol, empty, dash, special, plain in token.findall(text):
        assert not special, f"{special} unescaped in {text}"
        assert not dash, f"a longer dash in {text}"
        typeset.append(commands[command] if command else "" if empty else symbol or plain)
    return "".join(typeset)


def test_latex_typesets_names_as_they_are():
    lines = as_latex(TABLE).split("\n")
    body = lines[lines.index(r"\midrule") + 1 : lines.index(r"\bottomrule")]
    for row, name, figures in zip(body, NAMES, FIGURES, strict=True):
        assert row.endswith(r" \\")
        cells = re.split(r"(?<!\\) & |(?<=\\\\) & ", row.removesuffix(r" \\"))
        assert len(cells) == 1 + len(COLUMNS)
        assert not cells[0].startswith(("[", "*"))  # an option of the row above
        assert read_latex(cells[0]) == shown(name, "text")
        assert [re.sub(r"\\[a-z]+\{|\}", "", cell) for cell in cells[1:]] == figures
    notes = lines[lines.index(r"{\footnotesize") + 1 : -1]
    assert [read_latex(note.removesuffix(r"\par")) for note in notes] == [
        shown(note, "text") for note in TABLE.notes
    ]


def read_csv(text):
    return list(csv.reader(io.StringIO(text, newline="")))


def test_csv_gives_names_and_numbers_back_and_holds_no_formula():
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


def test_numbers_of_a_csv_are_numbers_whatever_their_sign():
    assert read_csv(write_csv(("a", "b"), [("-5", -0.25), ("-x", 1e-300)]))[1:] == [
        ["-5", "-0.25"],
        ["'-x", "1e-300"],
    ]


@pytest.mark.parametrize("columns", [2, 7, 38])
def test_labels_have_two_lines_that_fit_and_keep_both_ends(columns):
    for name in map(shown, NAMES, ["text"] * len(NAMES)):
        lines = wrapped(name, columns).split("\n")
        assert len(lines) <= 2
        assert all(cell_len(line) <= columns for line in lines)
        if "…" not in "".join(lines):
            assert "".join(lines) == name
        else:
            assert name.startswith(lines[0])
            assert name.endswith(lines[1].removeprefix("…"))


# ---- plots


@pytest.fixture
def drawn(monkeypatch):
    """Figures that were saved, with what is drawn in them."""
    figures = []
    save = plots._save

    def note(figure, path):
        figures.append(figure)
        save(figure, path)

    monkeypatch.setattr(plots, "_save", note)
    return figures


def gains_of(names):
    rng = np.random.default_rng(1)
    return {
        "": {n: Figures({"ndcg@10": {f"q{i}": float(rng.random()) for i in "abc"}}) for n in names}
    }


@pytest.mark.parametrize("suffix", ["png", "pdf"])
def test_every_name_is_drawn_without_a_warning(suffix, tmp_path, drawn):
    names = [*HOSTILE, *random_names(12, seed=2)][:: 1 if suffix == "png" else 6]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_gains(gains_of(names[::3]), "ndcg@10", [names[0]], tmp_path / f"gains.{suffix}")
        lines = {name: {1: [i], 10: [i, i + 1]} for i, name in enumerate(names)}
        path = tmp_path / f"amounts.{suffix}"
        plot_amounts(lines, path, amount="$a$", measurement=r"\b$", levels={"_level": 0.5})
    gains, amounts = drawn
    assert len(gains.axes) == len(names[3::3])
    legend = [text.get_text() for text in amounts.legends[0].get_texts()]
    assert len(legend) == len(names) + 1
    assert legend[-1] == "_level"
    assert legend[0] == names[0]  # the dollars are shown


def titled(drawn, panel=0):
    return drawn[-1].axes[panel].get_title().split("\n")[0]


def test_dollars_are_drawn_and_not_read_as_a_formula(tmp_path, drawn):
    plot_gains(gains_of(["$base$", "$x$"]), "ndcg@10", ["$base$"], tmp_path / "p.png")
    plot_amounts({"$x$": {1: [0]}}, tmp_path / "q.png", amount="$a$", measurement="$m$")
    texts = [text for figure in drawn for text in figure.findobj(Text) if "$" in text.get_text()]
    assert len(texts) == 5
    assert not any(text.get_parse_math() for text in texts)


def test_a_character_comes_from_another_installed_font_or_is_escaped(tmp_path, drawn, caplog):
    # matplotlib brings STIX, which has the first one, and no font with the others.
    plot_gains(gains_of(["base", "\u1d81"]), "ndcg@10", ["base"], tmp_path / "p.png")
    assert titled(drawn) == "\u1d81"
    assert not caplog.records
    plot_gains(
        gains_of(["base", "\U0001318f\ufdd0x", "\ufdd0"]), "ndcg@10", ["base"], tmp_path / "p.png"
    )
    assert titled(drawn, 1) == r"\ufdd0"
    assert len(caplog.messages) == 1  # once, however many names
    assert "no installed font has" in caplog.text
    assert "package" in caplog.text
