"""Measure runs: ``python -m rankdistillm.evaluate`` prints one table of runs and metrics.

Runs of one collection, or of many at once: then the table has a column for each collection (or
corpus) and their arithmetic and geometric means.
"""

import json
import logging
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from omegaconf import DictConfig, ListConfig

from rankdistillm.cli import numbers_as_text, run_command
from rankdistillm.errors import InputError
from rankdistillm.files import check_output, replacing
from rankdistillm.judged_runs import JudgedFiles, find_runs
from rankdistillm.metrics import Figures, evaluate_run, parse_metric
from rankdistillm.plots import check_plot, plot_gains
from rankdistillm.qrels import read_qrels
from rankdistillm.runs import Run
from rankdistillm.significance import Significance, check_settings, compare
from rankdistillm.tables import Table, as_text, format_of, write_csv

log = logging.getLogger(__name__)

MEAN, GEOMETRIC_MEAN = "mean", "geometric mean"
# collection -> run -> its figures
Measured = Mapping[str, Mapping[str, Figures]]


def format_table(figures: Mapping[str, Figures], metrics: Sequence[str]) -> str:
    """Runs of one collection as rows, means of metrics as columns; below it the counts."""
    return as_text(_table({"": figures}, metrics, {}, {"": [""]}))


def evaluate(config: DictConfig) -> None:
    """Measure the runs that ``config`` (conf/evaluate.yaml) names; print and write the table."""
    numbers_as_text(config, "output", "table", "per_query", "plot")
    metrics, baselines = _names(config.metrics), _names(config.baseline)
    _check_settings(config, metrics, baselines)
    files, notes = find_runs(config.runs, config.qrels)
    _check_baselines(files, baselines)
    groups = _groups(files, config)
    measured = {collection: _measure(judged, metrics) for collection, judged in files.items()}
    significance, untested = _tests(_pooled_by_group(measured, groups), baselines, config)
    notes += untested
    table = _table(measured, metrics, significance, groups, notes)
    print(as_text(table))
    if config.table:
        _write(config.table, format_of(config.table)(table))
    if config.per_query:
        _write(config.per_query, _per_query_csv(measured))
    if config.output:
        report = _report(files, measured, significance, notes)
        _write(config.output, json.dumps(report, indent=2, ensure_ascii=False))
    if config.plot:
        plot_gains(measured, metrics[0], baselines, Path(config.plot))
        log.info("wrote %s", config.plot)


def _check_settings(config: DictConfig, metrics: Sequence[str], baselines: Sequence[str]) -> None:
    """Whatever is wrong shows before anything is measured."""
    for metric in metrics:
        parse_metric(metric)
    check_settings(config.test, config.correction, config.alpha)
    for name in ("output", "table", "per_query", "plot"):
        if config[name] is not None:
            check_output(Path(config[name]), f"{name}={config[name]}")
    if config.table:
        format_of(config.table)
    if config.plot:
        check_plot(Path(config.plot))
        if not baselines:
            raise InputError(
                f"plot={config.plot} shows gains over a baseline; name one of the runs, baseline="
            )


def _tests(
    pooled: Measured, baselines: Sequence[str], config: DictConfig
) -> tuple[dict[str, Significance], list[str]]:
    """Group -> its comparisons with the baselines, and notes on groups that allow none."""
    if not baselines:
        return {}, []
    settings = {name: config[name] for name in ("test", "correction", "alpha")}
    found, errors = {}, {}
    for group, figures in pooled.items():
        try:
            found[group] = compare(figures, baselines, **settings)
        except InputError as error:
            errors[group] = error
    if not found:
        raise next(iter(errors.values()))
    return found, [f"{group}: not tested: {error}" for group, error in errors.items()]


def _measure(judged: JudgedFiles, metrics: Sequence[str]) -> dict[str, Figures]:
    qrels = read_qrels(judged.qrels)
    return {name: evaluate_run(Run.read(run), qrels, metrics) for name, run in judged.runs.items()}


def _names(given: Any) -> list[str]:
    if given is None:
        return []
    return [str(name) for name in (given if isinstance(given, ListConfig) else [given])]


def _check_baselines(files: Mapping[str, JudgedFiles], baselines: Sequence[str]) -> None:
    runs = list(dict.fromkeys(name for judged in files.values() for name in judged.runs))
    for baseline in baselines:
        if baseline not in runs:
            raise InputError(f"baseline={baseline} is not among the runs: {', '.join(runs)}")


def _groups(collections: Iterable[str], config: DictConfig) -> dict[str, list[str]]:
    """Corpus -> its collections; with ``by=collection`` each is a group of its own.

    A corpus is what stands before the last slash of a collection's id, unless
    ``config.corpora`` has another name for that.
    """
    if config.by not in ("collection", "corpus"):
        raise InputError(f"by={config.by} is not one of collection, corpus")
    groups: dict[str, list[str]] = {}
    for collection in collections:
        group = collection
        if config.by == "corpus":
            corpus = collection.rpartition("/")[0] or collection
            group = (config.corpora or {}).get(corpus, corpus)
        groups.setdefault(group, []).append(collection)
    return groups


def _pooled_by_group(
    measured: Measured, groups: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, Figures]]:
    """Group -> run -> figures of the queries of all its collections.

    A run that lacks one of them is left out.
    """
    return {
        group: {
            name: _pooled({c: measured[c][name] for c in collections})
            for name in measured[collections[0]]
            if all(name in measured[c] for c in collections)
        }
        for group, collections in groups.items()
    }


def _pooled(figures: Mapping[str, Figures]) -> Figures:
    per_query: dict[str, dict[str, float]] = {}
    for collection, measured in figures.items():
        for metric, values in measured.per_query.items():
            pooled = per_query.setdefault(metric, {})
            pooled.update({f"{collection} {query_id}": v for query_id, v in values.items()})
    return Figures(per_query)


def _table(
    measured: Measured,
    metrics: Sequence[str],
    significance: Mapping[str, Significance],
    groups: Mapping[str, Sequence[str]],
    notes: Sequence[str] = (),
) -> Table:
    """A column for each metric and, where there are several, each collection or corpus."""
    runs = list(dict.fromkeys(name for figures in measured.values() for name in figures))
    columns, values, marks = [], {}, {}
    lacking: dict[str, list[str]] = {}
    for metric in metrics:
        label = "" if len(metrics) == 1 and len(groups) > 1 else metric
        for group, collections in groups.items():
            column = " ".join(part for part in (label, group if len(groups) > 1 else "") if part)
            columns.append(column)
            for run in runs:
                if any(run not in measured[c] for c in collections):
                    lacking.setdefault(run, []).append(group)
                    continue
                values[run, column] = fmean(measured[c][run].means[metric] for c in collections)
                if group in significance:
                    marks[run, column] = significance[group].marks(run, metric)
        if len(groups) > 1:
            own = columns[-len(groups) :]
            for mean, function in ((MEAN, fmean), (GEOMETRIC_MEAN, geometric_mean)):
                column = f"{label} {mean}".strip()
                columns.append(column)
                for run in runs:
                    if run not in lacking:
                        values[run, column] = function([values[run, c] for c in own])
    notes = [*_counts(measured), *notes]
    for run, absent in lacking.items():
        notes.append(f"{run}: no run of {', '.join(dict.fromkeys(absent))}, hence no mean")
    notes += _captions(significance, groups)
    return Table(runs, columns, values, marks, notes)


def _captions(
    significance: Mapping[str, Significance], groups: Mapping[str, Sequence[str]]
) -> list[str]:
    """What the marks mean, for all groups at once where it is the same."""
    tested: dict[str, list[str]] = {}
    for group, found in significance.items():
        tested.setdefault(found.caption, []).append(group)
    captions = [
        (f"{', '.join(those)}: " if len(tested) > 1 else "") + caption
        for caption, those in tested.items()
    ]
    if any(len(groups[group]) > 1 for group in significance):
        captions.append(
            "figures of a corpus are means over its collections; the tests pool their queries"
        )
    return captions


def geometric_mean(values: Sequence[float]) -> float:
    """The geometric mean; 0 where one value is."""
    return statistics.geometric_mean(values) if all(value > 0 for value in values) else 0.0


def _counts(measured: Measured) -> list[str]:
    """How many queries were measured, and which could not be."""
    lines = []
    for collection, figures in measured.items():
        where = f"{collection}: " if len(measured) > 1 else ""
        lines.append(f"{where}judged queries: {next(iter(figures.values())).num_queries}")
        for name, found in figures.items():
            if lacking := len(found.without_results):
                lines.append(f"{where}{name}: {lacking} of them without results, counted as 0")
            if unjudged := len(found.without_judgements):
                lines.append(f"{where}{name}: queries without judgements, left out: {unjudged}")
    return lines


def _per_query_csv(measured: Measured) -> str:
    rows = [
        (collection, query_id, metric, name, repr(value))
        for collection, figures in measured.items()
        for name, found in figures.items()
        for metric, of_queries in found.per_query.items()
        for query_id, value in of_queries.items()
    ]
    return write_csv(("collection", "query_id", "metric", "run", "value"), rows)


def _report(
    files: Mapping[str, JudgedFiles],
    measured: Measured,
    significance: Mapping[str, Significance],
    notes: Sequence[str],
) -> dict[str, Any]:
    """Everything that the table sums up, for JSON."""
    collections = {
        collection: {
            "qrels": files[collection].qrels,
            "runs": {
                name: {
                    "run": files[collection].runs[name],
                    "means": found.means,
                    "without_results": found.without_results,
                    "without_judgements": found.without_judgements,
                    "per_query": found.per_query,
                }
                for name, found in figures.items()
            },
        }
        for collection, figures in measured.items()
    }
    tests = {
        group: {
            "test": found.test,
            "correction": found.correction,
            "alpha": found.alpha,
            "p_values": found.p_values,
        }
        for group, found in significance.items()
    }
    if list(collections) == [""]:  # one collection, without a name
        return {**collections[""], **({"significance": tests[""]} if tests else {})}
    return {"collections": collections, "significance": tests, "notes": list(notes)}


def _write(path: str, text: str) -> None:
    with replacing(Path(path)) as beside:
        beside.write_text(text + "\n", "utf-8")
    log.info("wrote %s", path)


def main() -> None:
    """Entry point of ``python -m rankdistillm.evaluate``."""
    run_command(evaluate, "evaluate")


if __name__ == "__main__":
    main()
