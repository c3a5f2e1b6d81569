"""Write a page to look at runs query by query: ``python -m rankdistillm.report``."""

import logging
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from rankdistillm.cli import run_command
from rankdistillm.data.outputs import check_output, keep_apart, replacing
from rankdistillm.data.qrels import read_qrels
from rankdistillm.data.runs import Run
from rankdistillm.data.texts import known_texts
from rankdistillm.errors import InputError
from rankdistillm.evaluation.metrics import evaluate_run, parse_metric
from rankdistillm.evaluation.report_page import (
    Exchange,
    ReportedRuns,
    RunOrigin,
    queries_shown,
    report_page,
)
from rankdistillm.evaluation.run_sets import JudgedFiles, check_baselines, find_runs
from rankdistillm.evaluation.significance import check_settings, compare
from rankdistillm.options import REPORT, TEXTS, check_options, files_read, texts_in
from rankdistillm.teachers.provenance import facts, provenance_of, read_provenance, windows_of
from rankdistillm.teachers.windows import read_windows

log = logging.getLogger(__name__)


def report(config: DictConfig) -> None:
    """Compare the runs that ``config`` (conf/report.yaml) names on one page, ``config.output``."""
    if config.get("output", "") is None:
        raise InputError("output is not set; add output=FILE.html to the command line")
    check_options(config, REPORT)
    metrics, baselines = texts_in(config.metrics), texts_in(config.baseline)
    for metric in metrics:
        parse_metric(metric)
    check_settings(config.test, config.correction, config.alpha)
    judged = _files(config, baselines)
    output = Path(config.output)
    _check_output(output, judged, config)

    qrels = read_qrels(judged.qrels)
    runs = {name: Run.read(file) for name, file in judged.runs.items()}
    measured = {name: evaluate_run(run, qrels, metrics) for name, run in runs.items()}
    tested = {name: config[name] for name in ("test", "correction", "alpha")}
    significance = compare(measured, baselines, **tested) if baselines else None
    query_ids = queries_shown(runs, measured, metrics[0], config.num_queries)
    number = len(set().union(*runs.values()))
    notes = []
    if len(query_ids) < number:
        notes.append(
            f"below, {len(query_ids)} of {number} queries: those where the runs differ most in "
            f"{metrics[0]}"
        )
    origins = {name: _origin(run, set(query_ids)) for name, run in runs.items()}
    shown = {name: run.select(query_ids).truncate(config.depth) for name, run in runs.items()}
    doc_ids = {doc_id for run in shown.values() for doc_id in run.doc_ids()}
    queries = known_texts(runs.values(), config.data.queries, "query", set(query_ids))
    docs = known_texts(runs.values(), config.data.docs, "doc", doc_ids)
    for name, texts, ids in (("queries", queries, query_ids), ("docs", docs, doc_ids)):
        if lacking := len(ids) - len(texts):
            source = config.data[name] or f"data.{name} is not set"
            notes.append(f"no text for {lacking:,} of {len(ids):,} {name} ({source})")
    for note in notes:
        log.warning(note)
    page = report_page(
        ReportedRuns(shown, qrels, metrics, measured, significance, baselines),
        query_ids,
        queries,
        docs,
        origins=origins,
        title=config.title or " / ".join(runs),
        notes=notes,
        characters=config.characters,
    )
    with replacing(output) as beside:
        beside.write_text(page, "utf-8", newline="")
    size = output.stat().st_size / 1e6
    log.info("wrote %s: %d queries, %.1f MB; open it in a browser", output, len(query_ids), size)


def _files(config: DictConfig, baselines: Sequence[str]) -> JudgedFiles:
    """The runs and judgements of the one collection that a page shows."""
    files, _ = find_runs(config.runs, config.qrels)
    check_baselines(files, baselines)
    if len(files) > 1:
        raise InputError(
            f"runs are those of {len(files)} collections ({', '.join(files)}), and a page shows "
            "one; name its runs, as in 'runs={bm25: first.run, student: reranked.run}'"
        )
    (judged,) = files.values()
    return judged


def _check_output(output: Path, judged: JudgedFiles, config: DictConfig) -> None:
    """Raises `InputError` if the page could not be written, or would replace a file it reads."""
    check_output(output, f"output={output}")
    read = [(f"qrels={judged.qrels}", judged.qrels), *files_read(config, TEXTS)]
    for run in judged.runs.values():
        made_with = (provenance_of(run), windows_of(run))
        read += [(f"the run {run}", run), *((f"{file} (beside {run})", file) for file in made_with)]
    keep_apart([(f"output={output}", output)], read)


def _origin(run: Run, query_ids: set[str]) -> RunOrigin:
    """The facts and windows that `teach` wrote beside a run."""
    provenance = read_provenance(run)
    if provenance is None:
        return RunOrigin()
    file = windows_of(run.source)
    if not provenance["data"].get("windows") or not file.is_file():
        later = "not kept; the same teach command with windows=true asks nothing again"
        return RunOrigin([*facts(provenance), ("windows", later)])
    windows = {
        query_id: [
            Exchange(window.question.doc_ids, window.doc_ids_replied(), window.repairs)
            for window in asked
            if window.question.kind != "score"  # the scores are those of the run
        ]
        for query_id, asked in read_windows(file, query_ids).items()
    }
    return RunOrigin(facts(provenance), windows)


def main() -> None:
    """Entry point of ``python -m rankdistillm.report``."""
    run_command(report, "report")


if __name__ == "__main__":
    main()
