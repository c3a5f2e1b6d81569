"""Measure runs: ``python -m rankdistillm.evaluate`` prints one table of runs and metrics."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, ListConfig

from rankdistillm.cli import run_command
from rankdistillm.errors import InputError
from rankdistillm.files import replacing
from rankdistillm.metrics import Figures, evaluate_run
from rankdistillm.qrels import read_qrels
from rankdistillm.runs import Run

TEST = "two-sided paired t-test"
CORRECTION = "Holm"
EXAMPLES = {
    "qrels": "qrels=qrels.txt",
    "runs": "'runs={bm25: first.run, student: reranked.run}'",
}


@dataclass(frozen=True)
class Significance:
    """Corrected p-values of the comparisons with ``baseline``: run -> metric -> p."""

    baseline: str
    alpha: float
    p_values: Mapping[str, Mapping[str, float]]

    def mark(self, name: str, metric: str) -> str:
        """``*`` where the run differs significantly from the baseline."""
        return "*" if self.p_values.get(name, {}).get(metric, 1.0) < self.alpha else ""

    @property
    def caption(self) -> str:
        """What the mark means: baseline, test, correction, alpha."""
        return (
            f"* differs from {self.baseline}: {TEST}, {CORRECTION} correction over the compared "
            f"runs ({len(self.p_values)}) per metric, alpha = {self.alpha:g}"
        )


def compare(figures: Mapping[str, Figures], baseline: str, alpha: float = 0.05) -> Significance:
    """Test every run against ``baseline``, query by query, for each metric.

    All runs must have been measured on the same judgements.
    """
    base = figures[baseline]
    others = [name for name in figures if name != baseline]
    if not others:
        raise InputError(f"nothing to compare with the baseline {baseline}; add a run to runs=")
    if base.num_queries < 2:
        raise InputError("a paired test needs two judged queries or more; leave out baseline=")
    p_values: dict[str, dict[str, float]] = {name: {} for name in others}
    for metric, values in base.per_query.items():
        raw = [
            paired_t_test([figures[name].per_query[metric][q] - v for q, v in values.items()])
            for name in others
        ]
        for name, p in zip(others, holm(raw), strict=True):
            p_values[name][metric] = p
    return Significance(baseline, alpha, p_values)


def paired_t_test(differences: Sequence[float]) -> float:
    """The p-value of the two-sided paired t-test; 1 where no query differs."""
    from scipy import stats  # late: it takes a noticeable part of a second

    if np.ptp(differences) < 1e-12:  # no spread, and so no t: the same difference everywhere
        return 1.0 if abs(differences[0]) < 1e-12 else 0.0
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number, step by step from the smallest (Holm, 1979)."""
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for step, i in enumerate(np.argsort(p_values)):
        largest = max(largest, min(1.0, (len(p_values) - step) * p_values[i]))
        corrected[i] = largest
    return corrected


def format_table(
    figures: Mapping[str, Figures],
    metrics: Sequence[str],
    significance: Significance | None = None,
) -> str:
    """Runs as rows, means of metrics as columns; below it the counts and what the marks mean."""
    rows = [["run", *(f"{metric} " for metric in metrics)]]
    for name, measured in figures.items():
        means = measured.means
        marks = [significance.mark(name, m) if significance else "" for m in metrics]
        cells = (f"{means[m]:.4f}{mark or ' '}" for m, mark in zip(metrics, marks, strict=True))
        rows.append([name, *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([name.ljust(widths[0]), *map(str.rjust, cells, widths[1:])]).rstrip()
        for name, *cells in rows
    ]
    lines += ["", f"judged queries: {next(iter(figures.values())).num_queries}"]
    for name, measured in figures.items():
        if lacking := len(measured.without_results):
            lines.append(f"{name}: {lacking} of them without results, counted as 0")
        if unjudged := len(measured.without_judgements):
            lines.append(f"{name}: queries without judgements, left out: {unjudged}")
    if significance:
        lines.append(significance.caption)
    return "\n".join(lines)


def evaluate(config: DictConfig) -> None:
    """Measure the runs that ``config`` (conf/evaluate.yaml) names and print the table."""
    runs, metrics, baseline = _checked(config)
    qrels = read_qrels(config.qrels)
    figures = {name: evaluate_run(Run.read(run), qrels, metrics) for name, run in runs.items()}
    significance = compare(figures, baseline, config.alpha) if baseline is not None else None
    print(format_table(figures, metrics, significance))
    if config.output:
        report = _report(config, runs, figures, significance)
        with replacing(Path(config.output)) as beside:
            beside.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _checked(config: DictConfig) -> tuple[dict[str, str], list[str], str | None]:
    """The runs (name -> file), metrics and baseline, or an error before anything is read."""
    for name, example in EXAMPLES.items():
        if not config[name]:
            raise InputError(f"{name} is not set; add it, for example {example}")
    if not isinstance(config.runs, DictConfig):
        raise InputError(f"runs={config.runs}: give each run a name, as in {EXAMPLES['runs']}")
    runs = {str(name): str(run) for name, run in config.runs.items()}
    baseline = None if config.baseline is None else str(config.baseline)
    if baseline is not None and baseline not in runs:
        raise InputError(f"baseline={baseline} is not among the runs: {', '.join(runs)}")
    metrics = config.metrics if isinstance(config.metrics, ListConfig) else [config.metrics]
    return runs, [str(metric) for metric in metrics], baseline


def _report(
    config: DictConfig,
    runs: Mapping[str, str],
    figures: Mapping[str, Figures],
    significance: Significance | None,
) -> dict[str, Any]:
    """Everything that the table sums up, for JSON."""
    report: dict[str, Any] = {"qrels": str(config.qrels), "runs": {}}
    if significance:
        report |= {
            "baseline": significance.baseline,
            "test": TEST,
            "correction": CORRECTION,
            "alpha": significance.alpha,
        }
    for name, measured in figures.items():
        report["runs"][name] = {
            "run": runs[name],
            "means": measured.means,
            "without_results": measured.without_results,
            "without_judgements": measured.without_judgements,
            "per_query": measured.per_query,
        }
        if significance and name in significance.p_values:
            report["runs"][name]["p_values"] = significance.p_values[name]
    return report


def main() -> None:
    """Entry point of ``python -m rankdistillm.evaluate``."""
    run_command(evaluate, "evaluate")


if __name__ == "__main__":
    main()
