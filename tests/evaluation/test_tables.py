"""Tables in each format, and drawn on a terminal."""

import io
import os
import re
import sys
import termios

import pytest
from rich.cells import cell_len
from rich.console import Console

from rankdistillm.evaluation.names import shown
from rankdistillm.evaluation.tables import (
    Table,
    as_csv,
    as_latex,
    as_markdown,
    as_text,
    draw,
    print_table,
)
from tests.helpers import HOSTILE_NAMES

TABLE = Table(
    ["bm25", "a_b"],
    ["ndcg@10", "5%"],
    {("bm25", "ndcg@10"): 0.5, ("a_b", "ndcg@10"): 0.25, ("a_b", "5%"): 1.0},
    {("a_b", "ndcg@10"): "*", ("a_b", "5%"): "ab"},
    ["said & done"],
)


def test_latex_has_the_best_in_bold_and_the_second_underlined():
    lines = as_latex(TABLE).splitlines()
    assert lines[-3:] == [r"{\footnotesize", r"said \& done\par", "}"]
    assert r"run & ndcg@10 & 5\% \\" in lines
    assert r"bm25 & \textbf{0.5000} & -- \\" in lines
    second = r"a\_b & \underline{0.2500}\textsuperscript{*} & 1.0000\textsuperscript{ab}"
    assert rf"{second} \\" in lines


def test_markdown_has_the_best_in_bold_and_notes_as_a_list():
    lines = as_markdown(TABLE).splitlines()
    assert lines[0] == "| run | ndcg@10 | 5% |"
    assert lines[2] == "| bm25 | **0.5000** | — |"
    assert lines[3] == r"| a_b | 0.2500\* | 1.0000<sup>ab</sup> |"
    assert lines[-1] == r"- said \& done"


def test_text_is_aligned_with_notes_below():
    lines = as_text(TABLE).splitlines()
    assert lines[1].split() == ["bm25", "0.5000", "—"]
    assert lines[2].split() == ["a_b", "0.2500*", "1.0000ab"]
    assert lines[1].index("0.5000") == lines[2].index("0.2500")
    assert lines[-1] == "said & done"


def test_csv_has_full_precision():
    table = Table(["a"], ["m"], {("a", "m"): 1 / 3})
    assert as_csv(table).splitlines()[1] == f"a,m,{1 / 3!r},"


def test_values_that_print_equally_share_their_emphasis():
    values = {("a", "m"): 0.50001, ("b", "m"): 0.50002, ("c", "m"): 0.0}
    table = Table(["a", "b", "c"], ["m"], values)
    assert [table.emphasis(run, "m") for run in "abc"] == ["best", "best", "second"]


def test_no_value_is_the_best_if_all_are_equal():
    table = Table(["a", "b"], ["m"], {("a", "m"): 0.50001, ("b", "m"): 0.50002})
    assert "**" not in as_markdown(table)
    assert "textbf" not in as_latex(table)


SPREAD = Table(
    ["loss=kl", "loss=ranknet"],
    ["ndcg@10", "seeds"],
    {
        ("loss=kl", "ndcg@10"): 0.5, ("loss=ranknet", "ndcg@10"): 0.75,
        ("loss=kl", "seeds"): 1, ("loss=ranknet", "seeds"): 3,
    },
    {("loss=ranknet", "ndcg@10"): "*"},
    spreads={("loss=ranknet", "ndcg@10"): 0.0123},
    counted=["seeds"],
    head="options",
)  # fmt: skip


def test_means_have_their_spread_and_counts_are_whole_numbers_without_a_best():
    header, kl, ranknet, *_ = as_text(SPREAD).splitlines()
    assert header.split() == ["options", "ndcg@10", "seeds"]
    assert (kl.split(), ranknet.split()) == (
        ["loss=kl", "0.5000", "1"],
        ["loss=ranknet", "0.7500*", "±", "0.0123", "3"],
    )
    assert kl.index("0.5") == ranknet.index("0.7")
    assert as_markdown(SPREAD).splitlines()[3] == r"| loss=ranknet | **0.7500**\* ± 0.0123 | 3 |"
    latex = r"loss=ranknet & \textbf{0.7500}\textsuperscript{*} $\pm$ 0.0123 & 3 \\"
    assert latex in as_latex(SPREAD).splitlines()
    lines = as_csv(SPREAD).splitlines()
    assert lines[0] == "options,measurement,value,marks,sd"
    assert lines[1:4] == [
        "loss=kl,ndcg@10,0.5,,", "loss=kl,seeds,1,,", "loss=ranknet,ndcg@10,0.75,*,0.0123",
    ]  # fmt: skip


# ---- on a terminal

WIDE = Table(
    ["loss=ranknet, optim.learning_rate=1e-4", "日本語 モデルの長い名前がここにあります", "x"],
    [f"collection-{i} ndcg@10" for i in range(7)],
    {(row, f"collection-{i} ndcg@10"): (i + j) / 16 for i in range(7)
     for j, row in enumerate(
         ("loss=ranknet, optim.learning_rate=1e-4", "日本語 モデルの長い名前がここにあります")
     )},
    notes=["a note " * 20],
)  # fmt: skip


def drawn(table, columns):
    """The lines on a terminal of so many columns, without styles."""
    file = io.StringIO()
    draw(table, Console(file=file, width=columns, force_terminal=True, color_system=None))
    return re.sub(r"\x1b\[[0-9;]*m", "", file.getvalue()).splitlines()


@pytest.mark.parametrize("columns", [30, 60, 80, 200])
def test_no_number_is_cut_off_on_any_terminal(columns):
    lines = drawn(WIDE, columns)
    assert max(map(cell_len, lines)) <= columns
    numbers = re.findall(r"\d\.\d{4}", " ".join(lines))
    assert sorted(numbers) == sorted(f"{value:.4f}" for value in WIDE.values.values())
    assert "…" not in "".join(lines)
    letters = "".join(line.split("  ")[0].strip() for line in lines)
    for row in WIDE.rows:  # folded, and whole
        assert re.sub(r"\W", "", row) in re.sub(r"\W", "", letters)


def test_columns_that_do_not_fit_follow_below_with_the_names_again():
    lines = drawn(WIDE, 60)
    assert sum(line.startswith("run ") for line in lines) == 3
    assert sum(line.startswith("x ") for line in lines) == 3


@pytest.mark.parametrize("columns", [60, 200])
def test_hostile_names_cannot_steer_a_terminal(columns):
    names = [name for name in HOSTILE_NAMES if len(name) < 100]
    lines = drawn(Table(names, ["m"], {(name, "m"): 0.5 for name in names}), columns)
    assert all(line.isprintable() or "\u200d" in line for line in lines)
    assert max(map(cell_len, lines)) <= columns
    assert any(shown("\x1b[31mred\x1b[0m", "text") in line for line in lines)
    assert any("[link](x)" in line for line in lines)  # not rich's markup


@pytest.fixture
def terminal(monkeypatch):
    """``terminal(table, columns)``: the bytes that a terminal receives from `print_table`."""

    def show(table, columns):
        reader, writer = os.openpty()
        termios.tcsetwinsize(writer, (50, columns))
        monkeypatch.delenv("COLUMNS", raising=False)
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.delenv("NO_COLOR", raising=False)
        with open(writer, "w", encoding="utf-8") as file, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", file)
            print_table(table)
        found = b""
        try:
            while part := os.read(reader, 65536):
                found += part
        except OSError:  # Linux reports the closed end as an error
            pass
        os.close(reader)
        return found.decode()

    return show


def test_a_terminal_gets_a_drawn_table_and_a_pipe_the_plain_one(terminal, capsys):
    shown_there = terminal(SPREAD, 60)
    assert "\x1b[1m0.7500\x1b[0m" in shown_there  # the best is bold
    assert "\x1b[4m0.5000\x1b[0m" in shown_there  # the second is underlined
    assert "───" in shown_there
    assert not re.search(r"\x1b\[[0-9;]*(3[0-7]|4[0-7]|9[0-7])[0-9;]*m", shown_there)  # no colour
    assert max(map(cell_len, re.sub(r"\x1b\[[0-9;]*m", "", shown_there).splitlines())) <= 60
    assert "\x1b[2ma note" in terminal(WIDE, 60)  # notes are dim
    print_table(SPREAD)
    assert capsys.readouterr().out == as_text(SPREAD) + "\n"


def test_a_closed_stdout_gets_nothing(monkeypatch):
    monkeypatch.setattr("sys.stdout", None)  # as python starts with >&-
    print_table(Table(["a"], ["b"], {("a", "b"): 0.5}))
