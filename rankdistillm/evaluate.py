"""Measure runs: ``python -m rankdistillm.evaluate qrels=… 'runs={name: file, …}'``."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from omegaconf import DictConfig

from rankdistillm.cli import run_command
from rankdistillm.errors import InputError
from rankdistillm.files import replacing
from rankdistillm.metrics import Figures, evaluate_run
from rankdistillm.qrels import read_qrels
from rankdistillm.runs import Run

ALPHA = 0.05
EXAMPLE = "qrels=qrels.txt 'runs={bm25: first.run, student: reranked.run}'"


def paired_p_values(figures: Mapping[str, Figures], baseline: str, metric: str) -> dict[str, float]:
    """Holm-corrected p-values of every other run against ``baseline``: run name -> p.

    A two-sided paired t-test over the judged queries; Holm (Scandinavian Journal of Statistics,
    1979) corrects for the number of runs compared. Two runs that nowhere differ have p = 1.
    """
    import numpy as np
    from scipy.stats import ttest_rel

    base = figures[baseline].per_query[metric]
    p_values = {}
    for name, run_figures in figures.items():
        if name == baseline:
            continue
        differences = [
            run_figures.per_query[metric][query_id] - base[query_id] for query_id in base
        ]
        if len(differences) < 2 or np.ptp(differences) == 0:
            # No spread: the test is not defined. Only differences of zero say "the same".
            p_values[name] = 1.0 if not any(differences) or len(differences) < 2 else 0.0
        else:
            p_values[name] = float(ttest_rel(differences, np.zeros(len(differences))).pvalue)
    corrected, largest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        largest = max(largest, min(1.0, p_values[name] * (len(p_values) - rank)))
        corrected[name] = largest
    return corrected


def format_table(
    figures: Mapping[str, Figures], metrics: Sequence[str], *, baseline: str | None = None
) -> str:
    """A table for the terminal: a row a run, a column a metric, and what one must know below it."""
    marked: dict[tuple[str, str], str] = {}
    if baseline is not None:
        for metric in metrics:
            for name, p in paired_p_values(figures, baseline, metric).items():
                marked[name, metric] = "*" if p < ALPHA else ""
    width = max(len("run"), *map(len, figures))
    columns = [max(len(metric), len("0.0000*")) for metric in metrics]
    heads = (metric.rjust(column) for metric, column in zip(metrics, columns, strict=True))
    lines = ["  ".join(["run".ljust(width), *heads]).rstrip()]
    for name, run_figures in figures.items():
        cells = [
            f"{run_figures.means[metric]:.4f}{marked.get((name, metric), '') or ' '}".rjust(column)
            for metric, column in zip(metrics, columns, strict=True)
        ]
        lines.append("  ".join([name.ljust(width), *cells]).rstrip())
    return "\n".join([*lines, *_notes(figures, metrics, baseline)])


def _notes(
    figures: Mapping[str, Figures], metrics: Sequence[str], baseline: str | None
) -> list[str]:
    judged = len(next(iter(figures.values())).per_query[metrics[0]])
    notes = [f"{judged} judged queries"]
    if baseline is not None:
        notes.append(
            f"* differs from {baseline}: paired t-test, Holm-corrected for {len(figures) - 1} "
            f"comparison{'s' * (len(figures) != 2)} a metric, p < {ALPHA}"
        )
    for name, run_figures in figures.items():
        if run_figures.without_results:
            notes.append(
                f"{name}: {len(run_figures.without_results)} judged queries without results, "
                "counted as 0"
            )
        if run_figures.without_judgements:
            notes.append(
                f"{name}: {len(run_figures.without_judgements)} queries without judgements, "
                "left out"
            )
    return notes


def evaluate(config: DictConfig) -> dict[str, Figures]:
    """Measure ``config.runs`` on ``config.qrels``, print the table, write ``config.output``."""
    for name in ("qrels", "runs"):
        if not config[name]:
            raise InputError(f"{name} is not set; for example: {EXAMPLE}")
    if not isinstance(config.runs, DictConfig):
        raise InputError(f"runs={config.runs} does not name the runs; for example: {EXAMPLE}")
    if not config.metrics:
        raise InputError("metrics is empty; for example: 'metrics=[ndcg@10,mrr@10]'")
    if config.baseline is not None and config.baseline not in config.runs:
        raise InputError(
            f"baseline={config.baseline} is not one of the runs: {', '.join(map(str, config.runs))}"
        )
    qrels = read_qrels(config.qrels)
    figures = {
        str(name): evaluate_run(Run.read(path), qrels, config.metrics)
        for name, path in config.runs.items()
    }
    print(format_table(figures, config.metrics, baseline=config.baseline))
    if config.output is not None:
        _write(Path(config.output), figures, config)
    return figures


def _write(path: Path, figures: Mapping[str, Figures], config: DictConfig) -> None:
    p_values = {}
    if config.baseline is not None:
        p_values = {m: paired_p_values(figures, config.baseline, m) for m in config.metrics}
    contents = {
        "qrels": str(config.qrels),
        "baseline": config.baseline,
        "p_values": p_values,
        "runs": {
            name: {
                "means": run_figures.means,
                "per_query": run_figures.per_query,
                "without_results": run_figures.without_results,
                "without_judgements": run_figures.without_judgements,
            }
            for name, run_figures in figures.items()
        },
    }
    with replacing(path) as beside:
        beside.write_text(json.dumps(contents, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Entry point of ``python -m rankdistillm.evaluate``."""
    run_command(evaluate, "evaluate")


if __name__ == "__main__":
    main()
