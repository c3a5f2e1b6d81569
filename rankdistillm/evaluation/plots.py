"""Plots for papers (PNG, PDF, SVG): gains per query, effects of the amount of data, repeated runs.

Needs matplotlib: ``pip install rankdistillm[plots]``.
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from typing import Any
from unicodedata import east_asian_width

import numpy as np

from rankdistillm.data.outputs import replacing
from rankdistillm.errors import InputError, escaped, printable
from rankdistillm.evaluation.metrics import RunMetrics
from rankdistillm.evaluation.names import width, wrapped
from rankdistillm.evaluation.significance import Significance

log = logging.getLogger(__name__)

# Okabe & Ito's colours, which colour-blind readers can distinguish.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vX"
SUFFIXES = (".png", ".pdf", ".svg")
PANELS_ACROSS = 3
MOST_ROWS = 100  # of panels: a PNG of matplotlib has at most 65,535 pixels a side
MOST_LINES = 1000  # of `plot_repeated`
NAME_COLUMNS = 38  # the width of a panel, in characters of its title
LEGEND_COLUMNS = 24


def check_plot(path: Path) -> None:
    """Raises `InputError` if the suffix is not one of `SUFFIXES`, or if matplotlib is missing."""
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: the suffix is not one of {', '.join(SUFFIXES)}")
    if find_spec("matplotlib") is None:
        raise InputError("plots need matplotlib; install it with pip install 'rankdistillm[plots]'")


def plot_gains(
    measured: Mapping[str, Mapping[str, RunMetrics]],
    metric: str,
    baselines: Sequence[str],
    path: Path,
    tested: Significance | None = None,
) -> None:
    """Draw each query's gain over the first baseline, sorted, one panel per run, into ``path``.

    ``measured``: collection -> run -> metrics; a panel has the queries of all collections. With
    ``tested``, the comparisons over the same queries, each title has the p-value of the mean gain.

    Raises `InputError` as `check_gains` does.
    """
    gains: dict[str, list[float]] = {}
    for runs in measured.values():
        base = runs[baselines[0]].per_query[metric] if baselines[0] in runs else {}
        for name, found in runs.items():
            if name != baselines[0] and base:
                own = found.per_query[metric]
                gains.setdefault(name, []).extend(own[q] - v for q, v in base.items())
    check_gains(list(gains), path)
    limit = 1.05 * max((abs(gain) for values in gains.values() for gain in values), default=1) or 1
    p_values = tested.p_values.get(baselines[0], {}) if tested else {}
    with _fonts_for([*gains, baselines[0]]) as label:
        figure, panels = _panels(len(gains))
        for panel, colour, (name, values) in zip(
            panels, cycle(COLOURS), gains.items(), strict=False
        ):
            ordered = np.sort(values)[::-1]
            panel.bar(np.arange(1, len(ordered) + 1), ordered, width=1.0, color=colour)
            panel.axhline(0, color="black", linewidth=0.8)
            better, worse = int((ordered > 0).sum()), int((ordered < 0).sum())
            mean = f"mean gain {np.mean(ordered):+.4f}"
            if metric in p_values.get(name, {}):
                mean += f" ({_p_value(p_values[name][metric])})"
            counts = f"{better} better, {worse} worse, {len(ordered) - better - worse} equal"
            panel.set_title(f"{label(name, NAME_COLUMNS)}\n{mean}\n{counts}", fontsize=10)
            panel.set_xlabel("query, by gain")
            panel.set_ylim(-limit, limit)
        parts = f"gain in {metric} over", label(baselines[0], NAME_COLUMNS)
        is_short = width(" ".join(parts)) <= NAME_COLUMNS
        figure.supylabel((" " if is_short else "\n").join(parts), fontsize=10)
        if tested and p_values:
            figure.supxlabel(f"p: {tested.method}", fontsize=8)
        _save(figure, path)


def plot_amounts(
    lines: Mapping[str, Mapping[float, Sequence[float]]],
    path: Path,
    *,
    amount: str,
    measurement: str,
    levels: Mapping[str, float] | None = None,
) -> None:
    """Draw effectiveness against an amount of training data, on a logarithmic axis, into ``path``.

    ``lines``: line -> amount -> values of repeated runs, drawn as their mean and, if there are
    several, their standard deviation. ``levels``: horizontal lines, such as the teacher's.

    Raises `InputError` as `check_plot` does.
    """
    check_plot(path)
    labels: dict[Any, str] = {}
    with _fonts_for([*lines, *(levels or {}), amount, measurement]) as label:
        figure, (panel,) = _panels(1)
        for colour, marker, (name, points) in zip(
            cycle(COLOURS), cycle(MARKERS), lines.items(), strict=False
        ):
            amounts = sorted(points)
            means = [float(np.mean(points[a])) for a in amounts]
            spread = [
                float(np.std(points[a], ddof=1)) if len(points[a]) > 1 else 0 for a in amounts
            ]
            drawn = panel.errorbar(
                amounts, means, yerr=spread, color=colour, marker=marker, capsize=3
            )
            labels[drawn] = label(name, LEGEND_COLUMNS)
        for style, (name, level) in zip(
            cycle(("--", ":", "-.")), (levels or {}).items(), strict=False
        ):
            drawn = panel.axhline(level, color="grey", linestyle=style, linewidth=1)
            labels[drawn] = label(name, LEGEND_COLUMNS)
        every = sorted({a for points in lines.values() for a in points})
        panel.set_xscale("log")
        panel.set_xticks(every, [f"{a:g}" for a in every])
        panel.minorticks_off()
        panel.set_xlabel(label(amount, NAME_COLUMNS))
        panel.set_ylabel(label(measurement, NAME_COLUMNS))
        legend = figure.legend(
            list(labels),
            ["" for _ in labels],  # set below, because a legend drops labels that begin with "_"
            frameon=False,
            fontsize=9,
            loc="outside right upper",
        )
        for text, name in zip(legend.get_texts(), labels.values(), strict=True):
            text.set_text(name)
        _save(figure, path)


def plot_repeated(
    lines: Mapping[str, Sequence[float]],
    path: Path,
    *,
    measurement: str,
    repetition: str,
    baselines: Mapping[str, float] | None = None,
) -> None:
    """Draw the values of repeated runs, one line for each setting, into ``path``.

    ``lines``: setting -> its values, drawn as dots with their mean and, if there are several, their
    standard deviation. ``repetition`` says what a dot is, such as "one seed". ``baselines``:
    vertical lines.

    Raises `InputError` as `check_plot` does, and for more lines than a PNG can hold.
    """
    check_plot(path)
    if path.suffix == ".png" and len(lines) > MOST_LINES:
        raise InputError(
            f"{path}: {len(lines)} lines are too many for a .png; write a .pdf or an .svg"
        )
    with _fonts_for([*lines, *(baselines or {}), measurement, repetition]) as label:
        figure, (panel,) = _panels(1, size=(6.4, 1.6 + 0.42 * len(lines)))
        panel.grid(axis="y", visible=False)
        panel.grid(axis="x", linewidth=0.4, alpha=0.6)
        for y, values in enumerate(lines.values()):
            dots = panel.scatter(values, [y] * len(values), s=22, color=COLOURS[0], alpha=0.6)
            spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0
            mean = panel.errorbar(
                np.mean(values), y + 0.25, xerr=spread, color="black", marker="D", markersize=4,
                capsize=3,
            )  # fmt: skip
        labels = {"mean ± standard deviation": mean, label(repetition, LEGEND_COLUMNS): dots}
        for style, (name, value) in zip(
            cycle(("--", ":", "-.")), (baselines or {}).items(), strict=False
        ):
            drawn = panel.axvline(value, color="grey", linestyle=style, linewidth=1)
            labels[label(f"mean of {name}", NAME_COLUMNS)] = drawn
        panel.set_yticks(range(len(lines)), [label(name, NAME_COLUMNS) for name in lines])
        panel.set_ylim(len(lines) - 0.5, -0.5)
        panel.set_xlabel(label(measurement, NAME_COLUMNS))
        figure.legend(
            list(labels.values()), list(labels), frameon=False, fontsize=9,
            loc="outside lower center",
        )  # fmt: skip
        _save(figure, path)


def check_gains(compared: Sequence[str], path: Path) -> None:
    """Raises `InputError` if `plot_gains` cannot draw the runs ``compared`` with the baseline."""
    check_plot(path)
    if not compared:
        raise InputError(f"{path}: nothing to draw beside the baseline; add another run")
    if path.suffix == ".png" and len(compared) > MOST_ROWS * PANELS_ACROSS:
        raise InputError(
            f"{path}: {len(compared)} panels are too many for a .png; write a .pdf or an .svg, or "
            "draw fewer runs"
        )


def _p_value(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _panels(number: int, size: tuple[float, float] | None = None) -> tuple[Any, Sequence[Any]]:
    """A figure of panels; ``size``: width and height in inches, by default so much a panel."""
    from matplotlib.figure import Figure

    across = min(number, PANELS_ACROSS)
    rows = math.ceil(number / across)
    figure = Figure(figsize=size or (3.6 * across + 1.2, 3.6 * rows), layout="constrained")
    panels = list(figure.subplots(rows, across, sharey=True, squeeze=False).flat)
    for panel in panels[number:]:
        panel.remove()
    for panel in panels[:number]:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", linewidth=0.4, alpha=0.6)
        panel.set_axisbelow(True)
    return figure, panels[:number]


@contextmanager
def _fonts_for(names: Iterable[str]) -> Iterator[Callable[[str, int], str]]:
    """Use fonts that have the characters of these names; yields a function of (name, columns).

    It returns the label to draw: the name, with dollars taken literally, on at most two lines of
    that many columns. Characters that no installed font has are escaped.
    """
    import matplotlib
    from matplotlib.font_manager import FontProperties, findfont

    texts = [printable(name) for name in names]
    first = findfont(FontProperties(family=["sans-serif"]))
    families, lacking = _families({c for text in texts for c in text}, first)
    if lacking:
        log.warning(
            "no installed font has %s, so the plot shows escapes; install a font such as %s",
            "".join(sorted(lacking))[:20],
            " or ".join(sorted({_font_package(c) for c in lacking})),
        )

    def label(name: str, columns: int) -> str:
        text = "".join(escaped(c) if c in lacking else c for c in printable(name))
        return wrapped(text, columns)

    settings: Any = {"text.parse_math": False, "text.usetex": False, "svg.hashsalt": "rankdistillm"}
    settings["font.family"] = ["sans-serif", *families]
    with matplotlib.rc_context(settings):
        yield label


def _families(characters: set[str], first: str) -> tuple[list[str], set[str]]:
    """Font families for the characters that ``first`` lacks, and the characters that all lack."""
    from matplotlib.font_manager import fontManager, get_font

    def supported(file: str, wanted: set[str]) -> set[str]:
        font = get_font(file)
        return {c for c in wanted if font.get_char_index(ord(c))}

    families: list[str] = []
    lacking = characters - supported(first, characters)
    regular = {
        font.name: font.fname
        for font in fontManager.ttflist
        if font.style == "normal" and font.weight in (400, "normal", "regular", "book")
    }
    for family, file in sorted(regular.items()):
        if not lacking:
            break
        if family.startswith("Last Resort"):  # it draws a box for every character
            continue
        try:
            found = supported(file, lacking)
        except (OSError, RuntimeError):  # removed or damaged since matplotlib listed it
            continue
        if found:
            families.append(family)
            lacking -= found
    return families, lacking


def _font_package(character: str) -> str:
    """The Debian or Ubuntu package that most likely has a font with the character."""
    if 0x1F000 <= ord(character) < 0x20000:  # emoji
        return "fonts-symbola"
    return "fonts-noto-cjk" if east_asian_width(character) in "WF" else "fonts-noto-core"


def _save(figure: Any, path: Path) -> None:
    with replacing(path) as beside:
        # Without a date, so that equal metrics give an identical file.
        dates = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
        metadata = dates.get(path.suffix, {})
        figure.savefig(beside, format=path.suffix[1:], dpi=160, metadata=metadata)
