"""Plots that are drawn: names, fonts and spread."""

import warnings

import numpy as np
import pytest
from matplotlib.text import Text

from rankdistillm.evaluation import plots
from rankdistillm.evaluation.metrics import RunMetrics
from rankdistillm.evaluation.plots import plot_amounts, plot_gains
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


@pytest.mark.parametrize("suffix", ["png", "pdf"])
def test_every_name_is_drawn_without_a_warning(suffix, tmp_path, drawn):
    names = [*HOSTILE_NAMES, *random_names(12, seed=2)][:: 1 if suffix == "png" else 6]
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


@pytest.mark.parametrize("suffix", ["png", "pdf"])
def test_amounts_are_drawn_with_their_spread(suffix, tmp_path):
    lines = {"bm25": {10: [0.5, 0.6], 100: [0.6, 0.7]}, "colbert": {10: [0.7], 100: [0.8]}}
    path = tmp_path / f"p.{suffix}"
    levels = {name: 0.1 * i for i, name in enumerate("abcd")}
    plot_amounts(lines, path, amount="depth", measurement="nDCG@10", levels=levels)
    assert path.stat().st_size > 5000
