"""Figures for papers (PNG, PDF): gains of each query, effectiveness against the amount of data.

Needs matplotlib: ``pip install rankdistillm[plots]``.
"""

import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from rankdistillm.errors import InputError
from rankdistillm.files import replacing
from rankdistillm.metrics import Figures

# Okabe & Ito's colours, which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vX"
PANELS_ACROSS = 3


def check_plot(path: Path) -> None:
    """Raises `InputError` where no figure can be written: a format not known, no matplotlib."""
    if path.suffix not in (".png", ".pdf"):
        raise InputError(f"{path}: write a .png or a .pdf")
    if find_spec("matplotlib") is None:
        raise InputError("plots need matplotlib; install it with pip install 'rankdistillm[plots]'")


def plot_gains(
    measured: Mapping[str, Mapping[str, Figures]],
    metric: str,
    baselines: Sequence[str],
    path: Path,
) -> None:
    """Each query's gain over the first baseline, sorted, one panel a run; written to ``path``.

    ``measured``: collection -> run -> figures; the queries of all collections stand together.
    """
    gains: dict[str, list[float]] = {}
    for figures in measured.values():
        base = figures[baselines[0]].per_query[metric] if baselines[0] in figures else {}
        for name, found in figures.items():
            if name != baselines[0] and base:
                of_run = found.per_query[metric]
                gains.setdefault(name, []).extend(of_run[q] - v for q, v in base.items())
    figure, panels = _panels(len(gains), path)
    limit = 1.05 * max((abs(gain) for values in gains.values() for gain in values), default=1) or 1
    for panel, colour, (name, values) in zip(panels, cycle(COLOURS), gains.items(), strict=False):
        ordered = np.sort(values)[::-1]
        panel.bar(np.arange(1, len(ordered) + 1), ordered, width=1.0, color=colour)
        panel.axhline(0, color="black", linewidth=0.8)
        better, worse = int((ordered > 0).sum()), int((ordered < 0).sum())
        panel.set_title(f"{name}: {better} better, {worse} worse", fontsize=10)
        panel.set_xlabel("query, by gain")
        panel.set_ylim(-limit, limit)
    figure.supylabel(f"gain in {metric} over {baselines[0]}", fontsize=10)
    _save(figure, path)


def plot_amounts(
    lines: Mapping[str, Mapping[float, Sequence[float]]],
    path: Path,
    *,
    amount: str,
    measurement: str,
    levels: Mapping[str, float] | None = None,
) -> None:
    """Effectiveness against an amount of training data on a logarithmic axis.

    ``lines``: line -> amount -> values of repeated runs, drawn as their mean and, where there are
    several, their standard deviation. ``levels``: horizontal lines, such as the teacher's.
    """
    figure, (panel,) = _panels(1, path)
    for colour, marker, (name, points) in zip(
        cycle(COLOURS), cycle(MARKERS), lines.items(), strict=False
    ):
        amounts = sorted(points)
        means = [float(np.mean(points[a])) for a in amounts]
        spread = [float(np.std(points[a], ddof=1)) if len(points[a]) > 1 else 0 for a in amounts]
        panel.errorbar(
            amounts, means, yerr=spread, color=colour, marker=marker, capsize=3, label=name
        )
    for style, (name, level) in zip(cycle(("--", ":", "-.")), (levels or {}).items(), strict=False):
        panel.axhline(level, color="grey", linestyle=style, linewidth=1, label=name)
    every = sorted({a for points in lines.values() for a in points})
    panel.set_xscale("log")
    panel.set_xticks(every, [f"{a:g}" for a in every])
    panel.minorticks_off()
    panel.set_xlabel(amount)
    panel.set_ylabel(measurement)
    figure.legend(frameon=False, fontsize=9, loc="outside right upper")
    _save(figure, path)


def _panels(number: int, path: Path) -> tuple[Any, Sequence[Any]]:
    check_plot(path)
    if number == 0:
        raise InputError(f"{path}: nothing to draw beside the baseline; add a run to runs=")
    from matplotlib.figure import Figure

    across = min(number, PANELS_ACROSS)
    rows = math.ceil(number / across)
    figure = Figure(figsize=(3.6 * across + 1.2, 3.4 * rows), layout="constrained")
    places = list(figure.subplots(rows, across, sharey=True, squeeze=False).flat)
    panels, empty = places[:number], places[number:]
    for place in empty:
        place.remove()
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", linewidth=0.4, alpha=0.6)
        panel.set_axisbelow(True)
    return figure, panels


def _save(figure: Any, path: Path) -> None:
    with replacing(path) as beside:
        # Without a date, so that the same figures give the same file.
        metadata = {"CreationDate": None} if path.suffix == ".pdf" else {}
        figure.savefig(beside, format=path.suffix[1:], dpi=160, metadata=metadata)
