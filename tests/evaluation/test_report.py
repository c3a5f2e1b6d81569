"""Tables in each format."""

from rankdistillm.evaluation.report import Table, as_csv, as_latex, as_markdown, as_text

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
