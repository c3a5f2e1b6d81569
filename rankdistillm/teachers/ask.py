"""Ask a teacher about all queries side by side, and collect its rankings.

A ranking (`rankdistillm.teachers.rankings`) yields questions; an `Asker` gets the replies. Whatever
goes wrong with one query ends that query alone.
"""

import asyncio
import math
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from time import perf_counter
from typing import Any, TypeVar

import numpy as np

from rankdistillm.data.runs import Run
from rankdistillm.errors import InputError, quoted
from rankdistillm.progress import progress_bar
from rankdistillm.teachers.backends import Backend, QueryFailed, ScoringBackend
from rankdistillm.teachers.budget import Budget, BudgetSpent
from rankdistillm.teachers.prompts import Prompt
from rankdistillm.teachers.questions import Asker, AskOptions, Query
from rankdistillm.teachers.rankings import Question, Ranking
from rankdistillm.teachers.store import AnswerStore, ReadOnlyStore
from rankdistillm.teachers.tally import Tally
from rankdistillm.teachers.windows import Record, Window

T = TypeVar("T")


async def rank_all(
    queries: Mapping[str, str],
    candidates: Run,
    docs: Mapping[str, str],
    make_ranking: Callable[[Sequence[str]], Ranking],
    prompt: Prompt | None,
    backend: Backend | ScoringBackend,
    *,
    store: AnswerStore | ReadOnlyStore,
    budget: Budget | None = None,
    concurrency: int = 32,
    options: AskOptions | None = None,
    progress: bool = True,
    record: Record | None = None,
) -> tuple[Run, Tally]:
    """Rank the candidates of every query; returns the complete rankings and the `Tally`.

    At most ``concurrency`` questions are under way at once. Each answer is stored when it comes;
    a question that the store knows is not asked. Memory does not grow with the number of queries,
    but for one number per candidate.

    The scores of the returned run are the teacher's own if it scored every passage of the query by
    itself; else they count the passages that are ranked below.

    A query that fails is in ``tally.failed`` and not in the run. Once the budget is spent, or
    many queries in a row failed without an answer, ``tally.stopped`` says so, and queries that
    the store cannot complete are in ``tally.failed`` as well.

    Args:
        queries: query_id -> text.
        candidates: the first-stage run.
        docs: doc_id -> text.
        make_ranking: from doc_ids, best first, to a ranking (`rankdistillm.teachers.rankings`).
        prompt: None for a `ScoringBackend`, which has its own.
        record: called with the windows of each query that is ranked, once it is.

    Raises `InputError` before the first question if a query or candidate has no text.
    """
    asker = Asker(
        prompt, backend, store=store, budget=budget, options=options, concurrency=concurrency
    )
    _check_texts(queries, candidates, docs)
    started = perf_counter()
    ends = np.cumsum(candidates.lengths)
    scores = np.zeros(int(ends[-1]) if len(ends) else 0)
    complete: set[str] = set()
    bar = progress_bar(shown=progress, total=len(candidates), desc="teach", unit="query")

    async def rank(query: tuple[str, int]) -> None:
        query_id, start = query
        doc_ids = candidates[query_id].doc_ids
        try:
            found, windows = await _rank(
                asker, Query(queries[query_id]), doc_ids, docs, make_ranking
            )
        except (QueryFailed, BudgetSpent) as error:
            asker.record_failure(query_id, error)
        else:
            scores[start : start + len(doc_ids)] = found
            complete.add(query_id)
            if record is not None:
                record(query_id, windows)
        bar.update()
        bar.set_postfix(questions=asker.tally.calls + asker.tally.cache_hits, refresh=False)

    with bar:
        starts = (ends - candidates.lengths).tolist()
        await side_by_side(zip(candidates, starts, strict=True), rank, concurrency)
    tally = asker.finish(perf_counter() - started)
    ranked = candidates.with_scores(scores, source=f"{candidates.source}, ranked by {backend.name}")
    return ranked.select(complete), tally


def _check_texts(queries: Mapping[str, str], candidates: Run, docs: Mapping[str, str]) -> None:
    for name, ids, texts in (
        ("query_id", candidates, queries),
        ("doc_id", candidates.doc_ids(), docs),
    ):
        if (lacking := next((i for i in ids if i not in texts), None)) is not None:
            raise InputError(
                f"{candidates.source}: the {name} {quoted(lacking)} has no text; give the texts of "
                "all queries and candidates"
            )


async def side_by_side(
    items: Iterable[T], work: Callable[[T], Coroutine[Any, Any, None]], concurrency: int
) -> None:
    """Do ``work`` on all items, at most ``concurrency`` at once; the first error ends it."""
    waiting = iter(items)

    async def work_on_next() -> None:
        for item in waiting:
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(work_on_next())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def _rank(
    asker: Asker,
    query: Query,
    doc_ids: Sequence[str],
    docs: Mapping[str, str],
    make_ranking: Callable[[Sequence[str]], Ranking],
) -> tuple[np.ndarray, list[Window]]:
    """Scores ``[len(doc_ids)]`` of a query's candidates, and all windows in their order."""
    windows: list[Window] = []
    ranking = make_ranking(doc_ids)
    try:
        questions = next(ranking)
        while True:
            answered = await _answer(asker, query, questions, docs)
            windows += answered
            questions = ranking.send([window.reply for window in answered])
    except StopIteration as finished:
        order: list[str] = finished.value
    finally:
        ranking.close()
    own_scores = {
        question.doc_ids[0]: reply
        for question, reply, _ in windows
        if question.kind == "score" and not isinstance(reply, tuple)
    }
    if own_scores.keys() != set(doc_ids) or not all(map(math.isfinite, own_scores.values())):
        own_scores = {doc_id: len(order) - rank for rank, doc_id in enumerate(order, 1)}
    return np.array([own_scores[doc_id] for doc_id in doc_ids], dtype=np.float64), windows


async def _answer(
    asker: Asker, query: Query, questions: Sequence[Question], docs: Mapping[str, str]
) -> list[Window]:
    """Independent questions with their replies, in their order."""
    backend, prompt = asker.backend, asker.prompt
    kind = prompt.kind if isinstance(backend, Backend) and prompt else "score"
    if wrong := next((q.kind for q in questions if q.kind != kind), None):
        raise InputError(
            f"{prompt.path if prompt else backend.name} asks for {kind}, but this way of asking "
            f"needs {wrong}; choose another ranking, or another prompt"
        )
    if not isinstance(backend, Backend):
        scores = await asker.scores(query, [docs[q.doc_ids[0]] for q in questions])
        return [Window(q, score, ()) for q, score in zip(questions, scores, strict=True)]
    tasks = [
        asyncio.ensure_future(asker.reply(query, [docs[d] for d in question.doc_ids]))
        for question in questions
    ]
    try:
        replies = await asyncio.gather(*tasks)
    except (QueryFailed, BudgetSpent):
        # Requests under way are paid for: wait for and store their answers. Send no others.
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
    finally:
        for task in tasks:
            task.cancel()
    return [
        Window(question, reply, tuple(sorted(repairs)))
        for question, (reply, repairs) in zip(questions, replies, strict=True)
    ]
