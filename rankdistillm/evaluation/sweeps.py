"""Trainings side by side: a row for what varies between them, and the mean over their seeds."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev
from typing import Any

from rankdistillm.errors import InputError
from rankdistillm.evaluation.metrics import RunMetrics
from rankdistillm.evaluation.significance import Significance, compare
from rankdistillm.evaluation.sweep_rows import Choices, name_rows, typed
from rankdistillm.evaluation.tables import Table, captions
from rankdistillm.evaluation.trainings import BEFORE, STUDENT, Training, read_per_query

MEASURED_DATA = ("run", "qrels", "depth")


@dataclass
class Column:
    """One measurement: the same metric on the same queries.

    ``values`` maps a row to its trainings and their values. ``data``: "test" or "validation".
    """

    metric: str
    data: str
    values: dict[str, list[tuple[Training, float]]] = field(default_factory=dict)

    def with_table(self, row: str | None = None) -> list[Training]:
        """The trainings (of a row) whose closing table was measured here."""
        measured = self.values[row] if row else [m for row in self.values.values() for m in row]
        return [t for t, _ in measured if t.summary and t.summary.measured_on == self.data]


@dataclass
class Sweep:
    """Trainings in rows; ``columns`` are the measurements of the finished ones."""

    rows: dict[str, list[Training]]
    columns: dict[str, Column]
    over: Sequence[str]
    notes: list[str]

    @property
    def repetitions(self) -> str:
        """The noun for the trainings of a row: ``seeds`` if they differ in nothing else."""
        return "seeds" if list(self.over) == ["seed"] else "trainings"


def arrange(
    trainings: Sequence[Training],
    *,
    over: Sequence[str] = ("seed",),
    choices: Choices | None = None,
    metric: str | None = None,
) -> Sweep:
    """Arrange trainings in rows, each with the same options but for those of ``over``.

    ``choices`` are the known choices of groups of options: a row is then named ``loss=ranknet``
    instead of by the options inside. With ``metric``, others are left out.

    Raises `InputError` if no finished training measured ``metric``.
    """
    named, notes = name_rows([training.options for training in trainings], over, choices or {})
    rows: dict[str, list[Training]] = {}
    for name, training in sorted(zip(named, trainings, strict=True), key=lambda p: p[0].order):
        rows.setdefault(name.text, []).append(training)
    for row, alike in rows.items():
        newest, repeated = _newest(alike, over)
        rows[row] = newest + [training for training in alike if training.summary is None]
        notes += repeated
    columns, separated = _columns(rows, metric)
    return Sweep(rows, columns, over, notes + separated)


def sweep_table(
    sweep: Sweep,
    baselines: Sequence[str] = (),
    *,
    test: str = "t",
    correction: str = "holm",
    alpha: float = 0.05,
) -> Table:
    """The table of a sweep: mean and standard deviation of each row, and how many it is over.

    With ``baselines``, which are rows, the others are tested against them, paired by query: a
    query's value is its mean over the trainings of a row.
    """
    rows, repetitions = list(sweep.rows), sweep.repetitions
    values: dict[tuple[str, str], float] = {}
    spreads, marks, notes = {}, {}, []
    significance: dict[str, Significance] = {}
    finished = {
        name: [training for training in alike if training.summary]
        for name, alike in sweep.rows.items()
    }
    for label, column in sweep.columns.items():
        for row, measured in column.values.items():
            found = [value for _, value in measured]
            values[row, label] = fmean(found)
            if len(found) > 1:
                spreads[row, label] = stdev(found)
        if baselines and column.with_table():
            pooled, untested = _per_query(column, baselines)
            try:
                tested = compare(pooled, baselines, test=test, correction=correction, alpha=alpha)
            except InputError as error:
                notes += [f"{label}: not tested: {reason}" for reason in untested or [str(error)]]
                continue
            significance[label] = tested
            notes += [f"{label}: not tested: {reason}" for reason in untested]
            for row in column.values:
                marks[row, label] = tested.marks(row, column.metric)
    counted = [repetitions]
    steps = {training.step for alike in finished.values() for training in alike}
    if len(steps) > 1:
        counted.append("steps")
    for row, alike in finished.items():
        values[row, repetitions] = len(alike)
        if "steps" in counted and alike:
            values[row, "steps"] = fmean(training.step for training in alike)
    table = Table(rows, [*sweep.columns, *counted], values, marks, (), spreads, counted, "options")
    about = [
        *_best(table, sweep),
        *_about_measurements(sweep),
        *([f"steps: {min(steps)}"] if len(steps) == 1 else []),
        *([f"± standard deviation over the {repetitions} of a row"] if spreads else []),
        *captions(significance, {label: [label] for label in significance}),
        *(["tested: each query's mean over the trainings of a row"] if significance else []),
    ]
    notes = [*about, *notes, *sweep.notes, *_unfinished(sweep)]
    return replace(table, notes=notes)


def check_baselines(sweep: Sweep, baselines: Sequence[str]) -> list[str]:
    """The rows that ``baselines`` name, in any spelling of spaces; raises `InputError`."""
    rows = {row.replace(" ", ""): row for row in sweep.rows}
    for baseline in baselines:
        if baseline.replace(" ", "") not in rows:
            raise InputError(f"baseline={baseline} is not one of: {'; '.join(sweep.rows)}")
    return [rows[baseline.replace(" ", "")] for baseline in baselines]


# ---- measurements


def _newest(alike: Sequence[Training], over: Sequence[str]) -> tuple[list[Training], list[str]]:
    """The finished trainings of a row; of two that are the same, the newer one."""
    kept: dict[str, Training] = {}
    notes = []
    for training in alike:
        if training.summary is None:
            continue
        tested_on = (f"data.test.{name}" for name in MEASURED_DATA)
        key = typed([training.options.get(option) for option in (*over, *tested_on)])
        other = kept.setdefault(key, training)
        if other is training or other.summary is None:
            continue
        newer, older = training, other
        if training.summary.written_at < other.summary.written_at:
            newer, older = other, training
        kept[key] = newer
        notes.append(f"left out: {older.folder}: {newer.folder} has the same options and is newer")
    return list(kept.values()), notes


def _columns(
    rows: Mapping[str, Sequence[Training]], metric: str | None
) -> tuple[dict[str, Column], list[str]]:
    """Label -> column, for each metric and set of queries; notes on those that were separated."""
    found: dict[tuple[Any, ...], Column] = {}
    for row, trainings in rows.items():
        for training in trainings:
            for data, identity, value in _measurements(training):
                own = training.summary.metric if training.summary else ""
                column = found.setdefault((data, own, *identity), Column(own, data))
                column.values.setdefault(row, []).append((training, value))
    measured = sorted({column.metric for column in found.values()})
    if metric and measured and metric not in measured:
        raise InputError(f"metric={metric} is not one that was measured: {', '.join(measured)}")
    columns, notes = {}, []
    chosen = [column for column in found.values() if metric in (None, column.metric)]
    chosen.sort(key=lambda column: (column.data, column.metric))
    for column in chosen:
        label = f"{column.data} {column.metric}"
        alike = [c for c in chosen if (c.data, c.metric) == (column.data, column.metric)]
        if len(alike) > 1:
            label += f" ({alike.index(column) + 1})"
            if column is alike[-1]:
                notes.append(
                    f"{column.data} {column.metric}: measured on {len(alike)} different sets of "
                    "queries or judgements, which are not averaged together"
                )
        columns[label] = column
    return columns, notes


def _measurements(training: Training) -> Iterator[tuple[str, tuple[Any, ...], float]]:
    """(test or validation, what identifies the queries, value of the student) of a training."""
    summary, options = training.summary, training.options
    if summary is None:
        return
    first_stage = next(iter(summary.means.items())) if summary.means else ("", 0.0)
    queries = summary.queries, round(first_stage[1], 6)

    def data(part: str) -> list[str]:
        return [typed(options.get(f"data.{part}.{name}")) for name in MEASURED_DATA]

    if summary.measured_on == "test":
        yield "test", (*data("test"), *queries), summary.means[STUDENT]
    value = summary.means[STUDENT] if summary.measured_on == "validation" else summary.best
    if value is not None:
        # Which training queries are held out depends on the seed.
        is_held_out = options.get("data.validation.run") is None
        of_table = () if is_held_out or summary.measured_on != "validation" else queries
        share = options.get("validation.from_train") if is_held_out else None
        yield "validation", (*data("validation"), share, *of_table), value


def _per_query(column: Column, baselines: Sequence[str]) -> tuple[dict[str, RunMetrics], list[str]]:
    """Row -> each query's mean over its trainings; reasons for the rows that are left out."""
    pooled: dict[str, RunMetrics] = {}
    reasons = []
    queries: set[str] = set()
    for row in sorted(column.values, key=lambda row: row not in baselines):
        try:
            read = [read_per_query(t, column.metric) for t in column.with_table(row)]
        except FileNotFoundError as error:
            reasons.append(f"{row}: there is no {error.filename}")
            continue
        except ValueError as error:
            reasons.append(f"{row}: {error}")
            continue
        queries = queries or set(next(iter(read), ()))
        if not read or any(set(values) != queries for values in read):
            reasons.append(f"{row}: not measured on the same queries in each training")
            continue
        means = {query_id: fmean(values[query_id] for values in read) for query_id in read[0]}
        pooled[row] = RunMetrics({column.metric: means})
    return {row: pooled[row] for row in column.values if row in pooled}, reasons


# ---- notes


def _best(table: Table, sweep: Sweep) -> Iterator[str]:
    for label in sweep.columns:
        best = [
            row
            for row in table.rows
            if (row, label) in table.values and table.emphasis(row, label) == "best"
        ]
        if best:
            yield f"best {label}: {'; '.join(best)}"


def _about_measurements(sweep: Sweep) -> Iterator[str]:
    """The queries of each column, and the other rows of the trainings' closing tables."""
    for label, column in sweep.columns.items():
        trainings = column.with_table()
        summaries = [t.summary for t in trainings if t.summary]
        said = [f"{summaries[0].queries} judged queries"] if summaries else []
        first = next(iter(column.values.values()))[0][0]
        if label.endswith(")"):  # one of several
            said.append(f"of {typed(first.options.get(f'data.{column.data}.run'))}")
        for row in dict.fromkeys(row for s in summaries for row in s.means if row != STUDENT):
            found = sorted({f"{s.means[row]:.4f}" for s in summaries if row in s.means}, key=float)
            if len(found) == 1 or row == BEFORE:
                said.append(f"{row} {' to '.join(dict.fromkeys((found[0], found[-1])))}")
        if column.data == "validation" and not summaries:
            said.append("the best value of each training")
        if column.data == "validation" and first.options.get("data.validation.run") is None:
            said.append("training queries that the seed draws: compare rows of the same seeds")
        if said:
            yield f"{label}: {', '.join(said)}"
        for row, measured in column.values.items():
            number = sum(t.summary is not None for t in sweep.rows[row])
            if len(measured) < number:
                yield f"{label}: {row}: over {len(measured)} of {number} {sweep.repetitions}"


def _unfinished(sweep: Sweep) -> Iterator[str]:
    trainings = [training for alike in sweep.rows.values() for training in alike]
    totals: dict[str, int] = {}
    for training in trainings:
        if training.summary:
            length = _length(training)
            totals[length] = max(training.step, totals.get(length, 0))
    for training in trainings:
        if training.summary is None:
            most = training.options.get("max_steps")
            total = most if isinstance(most, int) else totals.get(_length(training))
            step = f"step {training.step}" + (f" of {total}" if total else "")
            if training.is_running:
                state = "still running"
            elif (training.folder / "state").exists():
                state = "stopped; the same command with its output folder resumes it"
            else:
                state = "stopped, without a state to resume from"
            yield f"not finished: {training.folder}: {step}, {state}"


# These and the training lists decide the number of steps.
LENGTH = ("stage", "epochs", "max_steps", "queries_per_step", "validation.from_train")


def _length(training: Training) -> str:
    """Equal for trainings that take as many steps."""
    options = training.options
    lists = sorted((k, typed(v)) for k, v in options.items() if k.startswith("data.train."))
    return repr([*(options.get(option) for option in LENGTH), lists])
