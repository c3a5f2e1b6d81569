"""Render a comparison of runs as one HTML page that needs no other file and no network.

The page is ``page.html`` with its style and script inlined. Everything about single
queries is data for the script: gzipped JSON in base64, so that no text in it can become markup and
a page of 200 queries stays small. The script makes the rows of a query when it is opened.
"""

import base64
import gzip
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rankdistillm.data.qrels import Qrels
from rankdistillm.data.runs import Run
from rankdistillm.errors import printable
from rankdistillm.evaluation.metrics import RunMetrics, parse_metric, trec_order
from rankdistillm.evaluation.significance import Significance
from rankdistillm.evaluation.tables import comparison_table

HERE = Path(__file__).parent


class Exchange(NamedTuple):
    """A window that a teacher was asked about: passages before and after, and what was repaired."""

    asked: Sequence[str]
    replied: Sequence[str]
    repairs: Sequence[str]


@dataclass(frozen=True)
class RunOrigin:
    """How a teacher's run was made: (name, value) of each fact, and query_id -> its windows."""

    facts: Sequence[tuple[str, str]] = ()
    windows: Mapping[str, Sequence[Exchange]] = field(default_factory=dict)


@dataclass(frozen=True)
class ReportedRuns:
    """Runs of one collection with their metrics; ``significance`` is None without ``baselines``.

    ``measured`` and ``significance`` are over all judged queries, ``runs`` hold what is shown. The
    first baseline is what gains are shown over at first.
    """

    runs: Mapping[str, Run]
    qrels: Qrels
    metrics: Sequence[str]
    measured: Mapping[str, RunMetrics]
    significance: Significance | None
    baselines: Sequence[str]


def queries_shown(
    runs: Mapping[str, Run], measured: Mapping[str, RunMetrics], metric: str, number: int | None
) -> list[str]:
    """The query_ids of all runs, in their order; at most ``number`` (None: all).

    Those stay where the runs differ most in the metric.
    """
    query_ids = list(dict.fromkeys(query_id for run in runs.values() for query_id in run))

    def spread(query_id: str) -> float:
        values = [found.per_query[metric].get(query_id, 0.0) for found in measured.values()]
        return max(values) - min(values)

    kept = set(sorted(query_ids, key=spread, reverse=True)[:number])
    return [query_id for query_id in query_ids if query_id in kept]


def report_page(
    comparison: ReportedRuns,
    query_ids: Sequence[str],
    queries: Mapping[str, str],
    docs: Mapping[str, str],
    *,
    origins: Mapping[str, RunOrigin],
    title: str,
    notes: Sequence[str] = (),
    characters: int | None = None,
) -> str:
    """The HTML of the page.

    Args:
        query_ids: the queries to show.
        queries, docs: the texts that are known, by id.
        origins: run -> how it was made.
        notes: stand below the table of means, with its own.
        characters: the length that passages are cut to; None: whole.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # imported late

    tests = {} if comparison.significance is None else {"": comparison.significance}
    table = comparison_table({"": comparison.measured}, comparison.metrics, tests, {"": [""]})
    style, script = ((HERE / name).read_text("utf-8") for name in ("page.css", "page.js"))
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        title=printable(title),
        columns=table.columns,
        rows=list(zip(map(printable, table.rows), table.cells(), strict=True)),
        notes=[printable(note) for note in (*table.notes, *notes)],
        origins={
            printable(run): [(name, printable(value)) for name, value in origin.facts]
            for run, origin in origins.items()
            if origin.facts
        },
        style=style,
        style_hash=_csp_hash(style),
        script=script,
        script_hash=_csp_hash(script),
        data=_packed(_page_data(comparison, query_ids, queries, docs, origins, characters)),
    )


def _csp_hash(text: str) -> str:
    """The expression by which a Content-Security-Policy allows this inline text alone."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _packed(data: Any) -> str:
    """Gzipped JSON in base64; equal data give the same text."""
    content = json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()
    return base64.b64encode(gzip.compress(content, mtime=0)).decode()


# ---- the data of the page's script


def _page_data(
    comparison: ReportedRuns,
    query_ids: Sequence[str],
    queries: Mapping[str, str],
    docs: Mapping[str, str],
    origins: Mapping[str, RunOrigin],
    characters: int | None,
) -> dict[str, Any]:
    """The data that ``page.js`` reads; runs, metrics and passages are indices."""
    runs, found = comparison.runs, comparison.measured
    numbers: dict[str, int] = {}  # doc_id -> index
    listed = [
        _query_data(comparison, query_id, queries.get(query_id), origins, numbers)
        for query_id in query_ids
    ]
    tests = comparison.significance
    return {
        "runs": list(map(printable, runs)),
        "metrics": comparison.metrics,
        "levels": [parse_metric(metric)[2] for metric in comparison.metrics],
        "means": [[found[name].means[metric] for name in runs] for metric in comparison.metrics],
        "judged": next(iter(found.values())).num_queries,
        "baseline": list(runs).index(comparison.baselines[0]) if comparison.baselines else 0,
        "p": [
            [
                [None if tests is None else _p_value(tests, base, name, m) for name in runs]
                for base in runs
            ]
            for m in comparison.metrics
        ],
        "docs": list(numbers),
        "texts": [_cut(docs.get(doc_id), characters) for doc_id in numbers],
        "queries": listed,
    }


def _query_data(
    comparison: ReportedRuns,
    query_id: str,
    text: str | None,
    origins: Mapping[str, RunOrigin],
    numbers: dict[str, int],
) -> dict[str, Any]:
    """One query; adds its passages to ``numbers``."""

    def indices(doc_ids: Sequence[str]) -> list[int]:
        return [numbers.setdefault(doc_id, len(numbers)) for doc_id in doc_ids]

    judged = comparison.qrels.get(query_id)
    lists: list[Any] = []
    for run in comparison.runs.values():
        if query_id not in run:
            lists.append(None)
            continue
        ranked = run[query_id]
        score_of = dict(zip(ranked.doc_ids, ranked.scores.tolist(), strict=True))
        doc_ids = trec_order(ranked)  # as the metrics take them
        lists.append([indices(doc_ids), [float(f"{score_of[d]:.6g}") for d in doc_ids]])
    windows = [
        [
            [indices(window.asked), indices(window.replied), list(window.repairs)]
            for window in (origins[name].windows if name in origins else {}).get(query_id, ())
        ]
        for name in comparison.runs
    ]
    return {
        "id": query_id,
        "text": text,
        "values": judged and [
            [found.per_query[metric][query_id] for found in comparison.measured.values()]
            for metric in comparison.metrics
        ],
        "lists": lists,
        "grades": {numbers[d]: grade for d, grade in (judged or {}).items() if d in numbers},
        "judged": dict(Counter((judged or {}).values())),
        "windows": windows if any(windows) else None,
    }  # fmt: skip


def _p_value(tests: Significance, base: str, name: str, metric: str) -> float | None:
    """The corrected p-value of two runs, whichever is the baseline; None if they are not tested."""
    for baseline, other in ((base, name), (name, base)):
        p = tests.p_values.get(baseline, {}).get(other, {}).get(metric)
        if p is not None:
            return p
    return None


def _cut(text: str | None, characters: int | None) -> str | None:
    """The text, or its beginning up to the last space within ``characters``."""
    if text is None or characters is None or len(text) <= characters:
        return text
    start, space, _ = text[: characters + 1].rpartition(" ")
    return f"{start if space else text[:characters]} …"
