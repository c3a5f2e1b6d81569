"""Rank a first-stage run by a teacher: ``python -m rankdistillm.teach``."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rankdistillm.asking import (
    Outputs,
    ask_all,
    budget_of,
    check_teacher,
    files_of_teacher,
    instantiate_group,
    prompt_file,
    say_missing,
)
from rankdistillm.cli import run_command
from rankdistillm.data.qrels import Qrels, check_overlap, read_qrels
from rankdistillm.data.runs import Run
from rankdistillm.data.texts import texts_of_run
from rankdistillm.errors import InputError
from rankdistillm.evaluation.agreement import agreement
from rankdistillm.evaluation.metrics import evaluate_run, prepare_metrics
from rankdistillm.evaluation.tables import metrics_table, print_table
from rankdistillm.options import ASKED, TEACH, check_options, files_read
from rankdistillm.teachers.ask import rank_all
from rankdistillm.teachers.backends import Backend, RecordedTeacher, ScoringBackend
from rankdistillm.teachers.prompts import Prompt
from rankdistillm.teachers.provenance import provenance_of, write_provenance
from rankdistillm.teachers.rankings import Ranking
from rankdistillm.teachers.rehearsal import rehearse
from rankdistillm.teachers.summary import rehearsal, summary
from rankdistillm.teachers.tally import Tally, check_readable
from rankdistillm.teachers.windows import Record, recording

log = logging.getLogger(__name__)

METRIC = "ndcg@10"


def teach(config: DictConfig) -> None:
    """Let a teacher rank ``config.run`` and write its run to ``config.output``.

    The options are those of conf/teach.yaml.

    Raises `InputError` if queries have no ranking at the end; those of the others are then in a
    file whose name says that it is partial.
    """
    for name in ("run", "output"):
        if config.get(name, "") is None:
            raise InputError(f"{name} is not set; add {name}=FILE to the command line")
    check_options(config, TEACH)
    check_teacher(config)
    budget_of(config)
    outputs = Outputs(config)
    written = [outputs.windows] if config.windows else []
    outputs.check(iter([*files_read(config, ASKED), *files_of_teacher(config)]), *written)
    make_ranking = instantiate_group(config, "ranking")
    try:
        make_ranking([])
    except (InputError, TypeError) as error:
        raise InputError(f"ranking: {error}") from error
    prompt = None if (file := prompt_file(config)) is None else Prompt.load(file)
    # The teacher may need the prompt as well.
    config.prompt = None if file is None else str(file)

    candidates = Run.read(config.run).truncate(config.depth)
    candidates.check_writable(outputs.file)
    queries, docs = texts_of_run(candidates, config.data.queries, config.data.docs)
    qrels = _judgements(config.qrels, candidates)
    teacher = instantiate_group(config, "teacher")
    if not isinstance(teacher, Backend | ScoringBackend | RecordedTeacher):
        raise InputError(f"teacher: {config.teacher._target_} makes no teacher; give one that does")
    log.info("%s: %d queries, ranked by %s", config.run, len(candidates), teacher.name)
    wants_windows = config.windows and not config.dry_run
    with recording(outputs.windows) if wants_windows else nullcontext() as record:
        ranked, tally = _rank(
            config, teacher, prompt, outputs, queries, candidates, docs, make_ranking, record
        )
        if ranked is None:
            print(rehearsal(tally))
            return
        check_readable(tally, teacher.name)
        method = {
            "teacher": OmegaConf.to_container(config.teacher, resolve=True),
            "model": teacher.name,
            "ranking": OmegaConf.to_container(config.ranking),
            "prompt": None if prompt is None else {"file": str(file), "sha256": prompt.digest()},
            "ask": OmegaConf.to_container(config.ask),
        }
        file = outputs.partial if tally.failed else outputs.file
        if wants_windows and not tally.failed:
            outputs.windows.unlink(missing_ok=True)  # of an earlier run, if a kill comes next
        if len(ranked):
            ranked.write(file, tag="teacher")
            _write_provenance(config, provenance_of(file), method, candidates, ranked, tally)
            log.info("wrote %s", file)
            _print_closing(tally, ranked, candidates, qrels)
        if tally.failed:
            lacking = say_missing(tally, len(candidates), "queries have no ranking")
            rest = f"the others are in {file}; " if len(ranked) else ""
            raise InputError(
                f"{lacking}; {rest}run the same "
                "command again for the missing ones: no answer is asked for twice"
            )
    if wants_windows:
        log.info("wrote %s", outputs.windows)
    outputs.remove_partial()


def _rank(
    config: DictConfig,
    teacher: Backend | ScoringBackend | RecordedTeacher,
    prompt: Prompt | None,
    outputs: Outputs,
    queries: Mapping[str, str],
    candidates: Run,
    docs: Mapping[str, str],
    make_ranking: Callable[[Sequence[str]], Ranking],
    record: Record | None,
) -> tuple[Run | None, Tally]:
    """The teacher's run and a tally; no run for a dry run."""
    if isinstance(teacher, RecordedTeacher):
        if record is not None:
            raise InputError(
                f"windows=true: {teacher.name} has ranked already and is not asked; leave it out"
            )
        started = perf_counter()
        ranked, repairs = teacher.rank(candidates, docs, make_ranking)
        lacking = {q: "the teacher does not know it" for q in candidates if q not in ranked}
        seconds = perf_counter() - started
        tally = Tally(repairs=repairs, failed=lacking, seconds=seconds)
        return (None if config.dry_run else ranked), tally
    if isinstance(teacher, Backend) and prompt is None:
        raise InputError("prompt is not set; add prompt=NAME to the command line")

    given = (queries, candidates, docs, make_ranking, prompt, teacher)
    ask = partial(rank_all, record=record)
    return ask_all(config, outputs, teacher, ask, rehearse, *given)


def _judgements(source: str | None, candidates: Run) -> Qrels | None:
    """Read them before anything is asked, so that a failure costs nothing."""
    if source is None:
        return None
    qrels = read_qrels(source)
    check_overlap(candidates, qrels)
    prepare_metrics([METRIC])
    return qrels


def _write_provenance(
    config: DictConfig,
    about: Path,
    method: Mapping[str, Any],
    candidates: Run,
    ranked: Run,
    tally: Tally,
) -> None:
    data = {
        "run": config.run,
        "depth": config.depth,
        "docs": config.data.docs,
        "queries": config.data.queries,
        "candidates": {"queries": len(candidates), "digest": candidates.digest()},
        "ranked": {"queries": len(ranked), "digest": ranked.digest()},
        "windows": bool(config.windows),
    }
    write_provenance(about, method=method, data=data, tally=tally)


def _print_closing(tally: Tally, ranked: Run, candidates: Run, qrels: Qrels | None) -> None:
    comparable = any(length > 1 for length in ranked.lengths)
    print(summary(tally, agreement(ranked, candidates) if comparable else None))
    if qrels is not None and any(query_id in qrels for query_id in ranked):
        runs = {"first stage": candidates.select(ranked), "teacher": ranked}
        judged = {query_id: qrels[query_id] for query_id in ranked if query_id in qrels}
        measured = {name: evaluate_run(run, judged, [METRIC]) for name, run in runs.items()}
        print_table(metrics_table(measured, [METRIC]))


def main() -> None:
    """Entry point of ``python -m rankdistillm.teach``."""
    run_command(teach, "teach")


if __name__ == "__main__":
    main()
