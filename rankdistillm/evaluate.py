"""Measure runs: ``python -m rankdistillm.evaluate`` prints one table of runs and metrics.

Measures runs of one collection or of many; with many, the table has a column for each collection
(or corpus) and for their arithmetic and geometric means.
"""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from omegaconf import DictConfig

from rankdistillm.cli import run_command
from rankdistillm.data.outputs import check_output, keep_apart, write_text
from rankdistillm.data.qrels import read_qrels
from rankdistillm.data.runs import Run
from rankdistillm.errors import InputError
from rankdistillm.evaluation.metrics import RunMetrics, evaluate_run, parse_metric
from rankdistillm.evaluation.plots import check_gains, check_plot, plot_gains
from rankdistillm.evaluation.run_sets import JudgedFiles, check_baselines, find_runs
from rankdistillm.evaluation.significance import Significance, check_settings, compare
from rankdistillm.evaluation.tables import (
    Measured,
    comparison_table,
    format_of,
    json_report,
    per_query_csv,
    print_table,
)
from rankdistillm.options import EVALUATE, check_options, texts_in

log = logging.getLogger(__name__)


def evaluate(config: DictConfig) -> None:
    """Measure the runs that ``config`` (conf/evaluate.yaml) names; print and write the table."""
    check_options(config, EVALUATE)
    metrics, baselines = texts_in(config.metrics), texts_in(config.baseline)
    _check_settings(config, metrics, baselines)
    files, notes = find_runs(config.runs, config.qrels)
    _check_outputs(config, files)
    check_baselines(files, baselines)
    if config.plot:
        compared = [
            judged.runs.keys() - {baselines[0]}
            for judged in files.values()
            if baselines[0] in judged.runs
        ]
        check_gains(list(set().union(*compared)), Path(config.plot))
    groups = _groups(files, config)
    measured = {collection: _measure(judged, metrics) for collection, judged in files.items()}
    significance, untested = _tests(_pooled_by_group(measured, groups), baselines, config)
    notes += untested
    table = comparison_table(measured, metrics, significance, groups, notes)
    print_table(table)
    if config.table:
        _write(config.table, format_of(config.table)(table))
    if config.per_query:
        _write(config.per_query, per_query_csv(measured))
    if config.output:
        report = json_report(files, measured, significance, notes)
        _write(config.output, json.dumps(report, indent=2, ensure_ascii=False))
    if config.plot:
        tested = _over_all(measured, significance, baselines, config)
        plot_gains(measured, metrics[0], baselines, Path(config.plot), tested)
        log.info("wrote %s", config.plot)


def _check_settings(config: DictConfig, metrics: Sequence[str], baselines: Sequence[str]) -> None:
    """Raises `InputError` before anything is measured."""
    for metric in metrics:
        parse_metric(metric)
    check_settings(config.test, config.correction, config.alpha)
    if config.table:
        format_of(config.table)
    if config.plot:
        check_plot(Path(config.plot))
        if not baselines:
            raise InputError(
                f"plot={config.plot} shows gains over a baseline; add baseline=RUN, one of the runs"
            )


def _check_outputs(config: DictConfig, files: Mapping[str, JudgedFiles]) -> None:
    outputs = [
        (f"{name}={config[name]}", config[name])
        for name in ("output", "table", "per_query", "plot")
        if config[name] is not None
    ]
    read = [(f"qrels={judged.qrels}", judged.qrels) for judged in files.values()]
    read += [(f"the run {run}", run) for judged in files.values() for run in judged.runs.values()]
    keep_apart(outputs, read)
    for wanted, path in outputs:
        check_output(Path(path), wanted)


def _tests(
    pooled: Measured, baselines: Sequence[str], config: DictConfig
) -> tuple[dict[str, Significance], list[str]]:
    """Group -> its comparisons with the baselines, and notes on groups that cannot be tested."""
    if not baselines:
        return {}, []
    settings = {name: config[name] for name in ("test", "correction", "alpha")}
    found, errors = {}, {}
    for group, runs in pooled.items():
        try:
            found[group] = compare(runs, baselines, **settings)
        except InputError as error:
            errors[group] = error
    if not found:
        raise next(iter(errors.values()))
    return found, [f"{group}: not tested: {error}" for group, error in errors.items()]


def _over_all(
    measured: Measured,
    significance: Mapping[str, Significance],
    baselines: Sequence[str],
    config: DictConfig,
) -> Significance | None:
    """The comparisons over the queries of all collections, as a plot shows them."""
    if len(measured) == 1:
        return next(iter(significance.values()))
    pooled = _pooled_by_group(measured, {"": list(measured)})
    try:
        return _tests(pooled, baselines, config)[0][""]
    except InputError:  # every other run lacks a collection
        return None


def _measure(judged: JudgedFiles, metrics: Sequence[str]) -> dict[str, RunMetrics]:
    qrels = read_qrels(judged.qrels)
    return {name: evaluate_run(Run.read(run), qrels, metrics) for name, run in judged.runs.items()}


def _groups(collections: Iterable[str], config: DictConfig) -> dict[str, list[str]]:
    """Corpus -> its collections; with ``by=collection``, each collection is its own group.

    The corpus is the part of a collection's id before the last slash; ``config.corpora`` may
    rename it.
    """
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
) -> dict[str, dict[str, RunMetrics]]:
    """Group -> run -> metrics over the queries of all collections of the group.

    A run that lacks one of the collections is left out.
    """
    return {
        group: {
            name: _pooled({c: measured[c][name] for c in collections})
            for name in measured[collections[0]]
            if all(name in measured[c] for c in collections)
        }
        for group, collections in groups.items()
    }


def _pooled(by_collection: Mapping[str, RunMetrics]) -> RunMetrics:
    per_query: dict[str, dict[str, float]] = {}
    for collection, found in by_collection.items():
        for metric, values in found.per_query.items():
            pooled = per_query.setdefault(metric, {})
            pooled.update({f"{collection} {query_id}": v for query_id, v in values.items()})
    return RunMetrics(per_query)


def _write(path: str, text: str) -> None:
    write_text(Path(path), text)
    log.info("wrote %s", path)


def main() -> None:
    """Entry point of ``python -m rankdistillm.evaluate``."""
    run_command(evaluate, "evaluate")


if __name__ == "__main__":
    main()
