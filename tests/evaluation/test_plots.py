"""Plots that are drawn: names, fonts and spread."""

import warnings

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.text import Text

from rankdistillm.errors import InputError
from rankdistillm.evaluation import plots
from rankdistillm.evaluation.metrics import RunMetrics
from rankdistillm.evaluation.plots import plot_amounts, plot_gains, plot_repeated
from rankdistillm.evaluation.significance import compare
from tests.helpers import HOSTILE_NAMES, random_names


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved."""
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
        "": {
            n: RunMetrics({"ndcg@10": {f"q{i}": float(rng.random()) for i in "abc"}}) for n in names
        }
    }


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_every_name_is_drawn_without_a_warning(suffix, tmp_path, drawn):
    names = [*HOSTILE_NAMES, *random_names(12, seed=2)][:: 1 if suffix == "png" else 6]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_gains(gains_of(names[::3]), "ndcg@10", [names[0]], tmp_path / f"gains.{suffix}")
        lines = {name: {1: [i], 10: [i, i + 1]} for i, name in enumerate(names)}
        path = tmp_path / f"amounts.{suffix}"
        plot_amounts(lines, path, amount="$a$", measurement=r"\b$", levels={"_level": 0.5})
        path = tmp_path / f"repeated.{suffix}"
        repeated = {name: [i, i + 1] for i, name in enumerate(names[:12])}
        plot_repeated(
            repeated, path, measurement="$m$", repetition="_one", baselines={names[0]: 0.5}
        )
    gains, amounts, repeated = drawn
    assert repeated.axes[0].get_yticklabels()[0].get_text() == names[0]
    assert len(gains.axes) == len(names[3::3])
    legend = [text.get_text() for text in amounts.legends[0].get_texts()]
    assert len(legend) == len(names) + 1
    assert legend[-1] == "_level"
    assert legend[0] == names[0]  # the dollars are shown


def titled(drawn, panel=0):
    return drawn[-1].axes[panel].get_title().split("\n")[0]


def test_dollars_are_drawn_and_not_parsed_as_formulas(tmp_path, drawn):
    plot_gains(gains_of(["$base$", "$x$"]), "ndcg@10", ["$base$"], tmp_path / "p.png")
    plot_amounts({"$x$": {1: [0]}}, tmp_path / "q.png", amount="$a$", measurement="$m$")
    texts = [text for figure in drawn for text in figure.findobj(Text) if "$" in text.get_text()]
    assert len(texts) == 5
    assert not any(text.get_parse_math() for text in texts)


def test_characters_come_from_a_font_that_has_them_or_are_escaped(tmp_path, drawn, caplog):
    # matplotlib ships STIX, which has the first character, and no font with the others.
    plot_gains(gains_of(["base", "\u1d81"]), "ndcg@10", ["base"], tmp_path / "p.png")
    assert titled(drawn) == "\u1d81"
    assert not caplog.records
    plot_gains(
        gains_of(["base", "\U0001318f\ufdd0x", "\ufdd0"]), "ndcg@10", ["base"], tmp_path / "p.png"
    )
    assert titled(drawn, 1) == r"\ufdd0"
    assert len(caplog.messages) == 1  # once, however many names
    assert "no installed font has" in caplog.text
    assert "install a font such as" in caplog.text


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_amounts_are_drawn_with_their_spread(suffix, tmp_path):
    lines = {"bm25": {10: [0.5, 0.6], 100: [0.6, 0.7]}, "colbert": {10: [0.7], 100: [0.8]}}
    path = tmp_path / f"p.{suffix}"
    levels = {name: 0.1 * i for i, name in enumerate("abcd")}
    plot_amounts(lines, path, amount="depth", measurement="nDCG@10", levels=levels)
    assert path.stat().st_size > 5000


def test_titles_of_gains_have_their_mean_and_its_test(tmp_path, drawn):
    measured = gains_of(["base", "other"])
    runs = measured[""]
    tested = compare(runs, ["base"], test="randomisation")
    plot_gains(measured, "ndcg@10", ["base"], tmp_path / "p.svg", tested)
    gain = runs["other"].means["ndcg@10"] - runs["base"].means["ndcg@10"]
    p = tested.p_values["base"]["other"]["ndcg@10"]
    title = drawn[0].axes[0].get_title().split("\n")
    assert title[1] == f"mean gain {gain:+.4f} (p = {p:.3f})"
    assert title[2].endswith("0 equal")
    assert drawn[0]._supxlabel.get_text().startswith("p: two-sided paired randomisation test, Holm")
    plot_gains(measured, "ndcg@10", ["base"], tmp_path / "p.svg")
    assert drawn[1].axes[0].get_title().split("\n")[1] == f"mean gain {gain:+.4f}"
    measured[""]["other"] = runs["base"]
    plot_gains(measured, "ndcg@10", ["base"], tmp_path / "p.svg")
    assert drawn[2].axes[0].get_title().endswith("\n0 better, 0 worse, 3 equal")


def test_repeated_runs_are_dots_with_their_mean_and_deviation(tmp_path, drawn):
    lines = {"loss=kl": [0.5, 0.6, 0.7], "loss=ranknet": [0.8]}
    options = {"measurement": "test ndcg@10", "repetition": "one seed"}
    for name in ("one", "two"):
        plot_repeated(lines, tmp_path / f"{name}.svg", **options, baselines={"loss=kl": 0.6})
    panel = drawn[0].axes[0]
    dots = [d.get_offsets().tolist() for d in panel.collections if isinstance(d, PathCollection)]
    assert dots == [[[0.5, 0], [0.6, 0], [0.7, 0]], [[0.8, 1]]]
    (first, second) = panel.containers
    assert first.lines[0].get_xdata()[0] == pytest.approx(0.6)
    (segment,) = first.lines[2][0].get_segments()
    assert [point[0] for point in segment] == pytest.approx([0.5, 0.7])
    assert second.lines[0].get_xdata()[0] == 0.8
    legend = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert legend == ["mean ± standard deviation", "one seed", "mean of loss=kl"]
    content = (tmp_path / "one.svg").read_bytes()
    assert content == (tmp_path / "two.svg").read_bytes()
    assert b"<dc:date>" not in content
    with pytest.raises(InputError, match="1001 lines are too many"):
        plot_repeated({str(i): [0] for i in range(1001)}, tmp_path / "p.png", **options)
