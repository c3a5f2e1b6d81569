"""Ask a teacher about all queries side by side, and collect its rankings.

A ranking (`rankdistillm.teachers.rankings`) yields questions; here they become messages, go to the
store or to the backend, and come back as replies. Whatever goes wrong with one query ends that
query alone.
"""

import asyncio
import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any, TypeVar

import numpy as np

from rankdistillm.data.runs import Run
from rankdistillm.errors import InputError, check_count, check_number
from rankdistillm.progress import progress_bar
from rankdistillm.teachers.answers import (
    order_from_logprobs,
    read_choice,
    read_order,
    score_from_logprobs,
)
from rankdistillm.teachers.backends import (
    Backend,
    Completion,
    ContextTooLong,
    Messages,
    QueryFailed,
    ScoringBackend,
    estimated_tokens,
)
from rankdistillm.teachers.budget import Budget, BudgetSpent, Usage
from rankdistillm.teachers.prompts import Prompt, cut
from rankdistillm.teachers.rankings import Question, Ranking, Reply
from rankdistillm.teachers.store import AnswerStore, ReadOnlyStore, key_of

log = logging.getLogger(__name__)
T = TypeVar("T")

# A question that does not fit into the context is asked again with passages this much shorter.
SHORTER = 0.8
SHORTEST = 20  # characters; below, shorter passages would not help

# Repairs that leave the passages in their old order: the answer names none of them.
UNREADABLE = ("empty", "thinking_cut", "refusal")


@dataclass(frozen=True)
class AskOptions:
    """How each question is put.

    ``words`` and ``characters``: what passages are cut to (`rankdistillm.teachers.prompts.cut`).
    ``max_tokens`` (of the answer) and ``temperature`` go to the model. A prompt whose answer is
    read from log-probabilities asks for one token and its ``top_logprobs`` likeliest alternatives
    instead; OpenAI allows 20.
    """

    max_tokens: int = 200
    temperature: float = 0.0
    top_logprobs: int = 20
    words: int = 300
    characters: int = 600

    def __post_init__(self) -> None:
        for name in ("max_tokens", "top_logprobs", "words", "characters"):
            check_count(name, getattr(self, name))
        check_number("temperature", self.temperature, least=0)

    def of_answer(self, answer: str) -> dict[str, Any]:
        """The options sent to the model for answers of that kind (`Prompt.answer`)."""
        by_logprobs = answer in ("letters", "score")
        return {
            "max_tokens": 1 if by_logprobs else self.max_tokens,
            "temperature": self.temperature,
            "top_logprobs": self.top_logprobs if by_logprobs else None,
        }

    def cut(self, texts: Sequence[str]) -> Iterator[list[str]]:
        """The texts cut to the limits, then ever shorter, down to a few characters."""
        whole = [cut(text, words=self.words, characters=self.characters) for text in texts]
        yield whole
        length = max(map(len, whole), default=0)
        while length > SHORTEST:
            length = int(length * SHORTER)
            # At a space, if the script has some.
            yield [t if len(t) <= length else _beginning(t, length) for t in whole]


def _beginning(text: str, length: int) -> str:
    """At most ``length`` characters of a text, whole words if it has words."""
    start, space, _ = text[: length + 1].rpartition(" ")
    return start if space else text[:length]


@dataclass
class Report:
    """Counts of questions, answers and failures.

    ``asked`` counts the answers that the model gave now, ``stored`` those that it had given
    before; one that a query needs again, as a further pass may, counts once. ``repairs``: kind ->
    answers that needed it. ``read`` counts the answers that were read, ``unreadable`` those among
    them that named no passage. ``shortened``: questions whose passages were cut shorter for the
    context. ``failed``: query_id -> why it has no ranking. ``stopped``: why nothing more was asked,
    or None. ``cost`` is that of ``asked``, ``total_cost`` that of both at today's prices; None if
    the prices are unknown.
    """

    asked: Usage = field(default_factory=Usage)
    stored: Usage = field(default_factory=Usage)
    repairs: Counter[str] = field(default_factory=Counter)
    read: int = 0
    unreadable: int = 0
    shortened: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    stopped: str | None = None
    cost: float | None = None
    total_cost: float | None = None
    seconds: float = 0.0

    @property
    def calls(self) -> int:
        return self.asked.answers

    @property
    def cache_hits(self) -> int:
        return self.stored.answers


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
) -> tuple[Run, Report]:
    """Rank the candidates of every query; returns the complete rankings and the `Report`.

    At most ``concurrency`` questions are under way at once. Each answer is stored when it comes;
    a question that the store knows is not asked. Memory does not grow with the number of queries,
    but for one number per candidate.

    The scores of the returned run are the teacher's own if it scored every passage of the query by
    itself; else they count the passages that are ranked below.

    A query that fails is in ``report.failed`` and not in the run. Once the budget is spent, or
    many queries in a row failed without an answer, ``report.stopped`` says so, and queries that
    the store cannot complete are in ``report.failed`` as well.

    Args:
        queries, docs: the texts by id.
        candidates: the first-stage run.
        make_ranking: from doc_ids, best first, to a ranking (`rankdistillm.teachers.rankings`).
        prompt: None for a `ScoringBackend`, which has its own.
    """
    check_count("concurrency", concurrency)
    driver = Driver.of(prompt, backend, store, budget, options, concurrency)
    started = perf_counter()
    ends = np.cumsum(candidates.lengths)
    scores = np.zeros(int(ends[-1]) if len(ends) else 0)
    complete: set[str] = set()
    bar = progress_bar(shown=progress, total=len(candidates), desc="teach", unit="query")

    async def rank(query: tuple[str, int]) -> None:
        query_id, start = query
        doc_ids = candidates[query_id].doc_ids
        found = await driver.rank(query_id, queries[query_id], doc_ids, docs, make_ranking)
        if found is not None:
            scores[start : start + len(doc_ids)] = found
            complete.add(query_id)
        bar.update()
        bar.set_postfix(questions=driver.report.calls + driver.report.cache_hits, refresh=False)

    with bar:
        starts = (ends - candidates.lengths).tolist()
        await each(zip(candidates, starts, strict=True), rank, concurrency)
    report = driver.finished(perf_counter() - started)
    ranked = candidates.with_scores(scores, source=f"{candidates.source}, ranked by {backend.name}")
    return ranked.select(complete), report


def check_readable(report: Report, name: str) -> None:
    """Raises `InputError` if no answer of a teacher could be read; warns of more than a tenth.

    Such answers leave the first stage's order, which is no ranking of the teacher.
    """
    kinds = ", ".join(f"{kind} {n}" for kind, n in report.repairs.items() if kind in UNREADABLE)
    remedy = "choose another prompt, or allow longer answers"
    if report.read and report.unreadable == report.read:
        raise InputError(
            f"{name}: none of its {report.read} answers names a passage ({kinds}); {remedy}"
        )
    if report.unreadable > report.read / 10:
        log.warning(
            "%s: %d of %d answers name no passage (%s); %s",
            name, report.unreadable, report.read, kinds, remedy,
        )  # fmt: skip


async def each(
    items: Iterable[T], work: Callable[[T], Coroutine[Any, Any, None]], concurrency: int
) -> None:
    """Do ``work`` on all items, at most ``concurrency`` at once; the first error ends it."""
    waiting = iter(items)

    async def some() -> None:
        for item in waiting:
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(some())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


@dataclass
class Query:
    """The state that all questions about one query share."""

    text: str
    counted: set[bytes] = field(default_factory=set)  # keys of the answers that are in the report
    shortened: Counter[int] = field(default_factory=Counter)  # characters of passages -> questions
    failure: QueryFailed | BudgetSpent | None = None


@dataclass
class Driver:
    """The state that all queries share, here and in `rankdistillm.teachers.queries`."""

    prompt: Prompt | None
    backend: Backend | ScoringBackend
    store: AnswerStore | ReadOnlyStore
    budget: Budget
    ask: AskOptions
    free: asyncio.Semaphore
    most_failures: int
    report: Report = field(default_factory=Report)
    failures: int = 0  # queries that failed since the last answer
    scoring: asyncio.Lock = field(default_factory=asyncio.Lock)

    @classmethod
    def of(
        cls,
        prompt: Prompt | None,
        backend: Backend | ScoringBackend,
        store: AnswerStore | ReadOnlyStore,
        budget: Budget | None,
        options: AskOptions | None,
        concurrency: int,
    ) -> "Driver":
        """One with the default budget and options, where they are None."""
        return cls(
            prompt,
            backend,
            store,
            budget or Budget(),
            options or AskOptions(),
            asyncio.Semaphore(concurrency),
            most_failures=max(20, 2 * concurrency),
        )

    def finished(self, seconds: float) -> Report:
        """The report, with what all that has cost."""
        report = self.report
        report.cost = self.budget.cost
        report.total_cost = self.budget.prices.cost(report.asked + report.stored)
        report.seconds = seconds
        return report

    def note(self, identifier: str, error: QueryFailed | BudgetSpent) -> None:
        """Report what ended one query; too many failures in a row end all."""
        if isinstance(error, BudgetSpent):
            self.report.failed[identifier] = f"not asked: {error}"
            self.report.stopped = self.report.stopped or str(error)
            return
        self.report.failed[identifier] = str(error)
        self.failures += 1
        if self.failures >= self.most_failures and self.report.stopped is None:
            self.report.stopped = f"{self.failures} queries in a row failed: {error}"

    async def rank(
        self,
        query_id: str,
        query: str,
        doc_ids: Sequence[str],
        docs: Mapping[str, str],
        make_ranking: Callable[[Sequence[str]], Ranking],
    ) -> np.ndarray | None:
        """Scores ``[len(doc_ids)]`` of a query's candidates, or None if it failed."""
        own_scores: dict[str, float] = {}
        ranking = make_ranking(doc_ids)
        asked = Query(query)
        try:
            questions = next(ranking)
            while True:
                replies = await self._replies(asked, questions, docs)
                for question, reply in zip(questions, replies, strict=True):
                    if question.kind == "score":
                        own_scores[question.doc_ids[0]] = float(reply)  # type: ignore[arg-type]
                questions = ranking.send(replies)
        except StopIteration as finished:
            order: list[str] = finished.value
        except (QueryFailed, BudgetSpent) as error:
            self.note(query_id, error)
            return None
        finally:
            ranking.close()
            self._say_shortened(query_id, asked.shortened)
        if own_scores.keys() == set(doc_ids) and all(map(math.isfinite, own_scores.values())):
            return np.array([own_scores[doc_id] for doc_id in doc_ids])
        below = {doc_id: len(order) - rank for rank, doc_id in enumerate(order, 1)}
        return np.array([below[doc_id] for doc_id in doc_ids], dtype=np.float64)

    def _say_shortened(self, query_id: str, shortened: Counter[int]) -> None:
        if not shortened:
            return
        self.report.shortened += shortened.total()
        log.warning(
            "query %s: %d questions exceed the model's context; passages are cut to %d characters",
            query_id,
            shortened.total(),
            min(shortened),
        )

    async def _replies(
        self, query: Query, questions: Sequence[Question], docs: Mapping[str, str]
    ) -> list[Reply]:
        """The replies to independent questions, in their order."""
        backend = self.backend
        asks = self.prompt.kind if isinstance(backend, Backend) and self.prompt else "score"
        if wrong := next((q.kind for q in questions if q.kind != asks), None):
            asker = self.prompt.path if self.prompt else backend.name
            raise InputError(
                f"{asker} asks for {asks}, but this way of asking needs {wrong}; choose another "
                "ranking, or another prompt"
            )
        if not isinstance(backend, Backend):
            texts = [docs[question.doc_ids[0]] for question in questions]
            return list(await self._scores(backend, query, texts))
        tasks = [
            asyncio.ensure_future(self._reply(backend, query, [docs[d] for d in question.doc_ids]))
            for question in questions
        ]
        try:
            return list(await asyncio.gather(*tasks))
        except (QueryFailed, BudgetSpent):
            # Requests under way are paid for: wait for and store their answers. Send no others.
            await asyncio.gather(*tasks, return_exceptions=True)
            raise
        finally:
            for task in tasks:
                task.cancel()

    async def _reply(self, backend: Backend, query: Query, texts: Sequence[str]) -> Reply:
        try:
            completion = await self.completion(backend, query, texts)
        except (QueryFailed, BudgetSpent) as error:
            query.failure = error
            raise
        if completion.cut is not None:
            query.shortened[completion.cut] += 1
        return self._read(completion, len(texts))

    async def completion(self, backend: Backend, query: Query, texts: Sequence[str]) -> Completion:
        """The answer from the store, or else from the model, with passages that it takes."""
        assert self.prompt is not None
        sent = self.ask.of_answer(self.prompt.answer)
        key, refused = b"", None
        for passages in self.ask.cut(texts):
            messages = self.prompt.messages(query=query.text, passages=passages)
            if not key:
                # The answer to a shortened question is stored under the question as it first was,
                # so that neither is asked again.
                # The backend's options win, as they do in the request.
                key = key_of(backend.name, messages, {**sent, **backend.options})
                if (stored := self._known(query, key)) is not None:
                    return stored
            try:
                async with self.free:
                    if query.failure is not None:
                        raise query.failure
                    self._check_stopped()
                    with self.budget.request():
                        completion = await backend.complete(messages, **sent)
                        self.budget.used.add(completion)
            except ContextTooLong as error:
                refused = error
                continue
            if refused is not None:
                completion = replace(completion, cut=max(map(len, passages)))
            return self._stored(query, key, completion)
        raise self._too_long(refused)

    async def _scores(
        self, backend: ScoringBackend, query: Query, texts: Sequence[str]
    ) -> list[float]:
        """The model's scores of the passages; those that the store lacks in one call."""
        whole = next(self.ask.cut(texts))
        keys = [key_of(backend.name, [query.text, text], backend.options) for text in whole]
        found = {i: c for i, key in enumerate(keys) if (c := self._known(query, key)) is not None}
        missing = [i for i in range(len(texts)) if i not in found]
        refused = None
        for passages in self.ask.cut([whole[i] for i in missing]) if missing else ():
            try:
                async with self.free, self.scoring:
                    self._check_stopped()
                    with self.budget.request():
                        scores = await asyncio.to_thread(backend.score, query.text, passages)
            except ContextTooLong as error:
                refused = error
                continue
            used = None if refused is None else max(map(len, passages))
            for i, score in zip(missing, scores, strict=True):
                if not math.isfinite(score):
                    raise QueryFailed(f"{backend.name} scores a passage as {score}")
                answer = Completion(json.dumps(score), cut=used)
                found[i] = self._stored(query, keys[i], answer)
            break
        if len(found) < len(texts):
            raise self._too_long(refused)
        query.shortened.update(c.cut for c in found.values() if c.cut is not None)
        return [float(found[i].text) for i in range(len(texts))]

    def _too_long(self, refused: ContextTooLong | None) -> QueryFailed:
        return QueryFailed(f"too long even with passages of {SHORTEST} characters: {refused}")

    def _known(self, query: Query, key: bytes) -> Completion | None:
        completion = self.store.get(key)
        if completion is not None and key not in query.counted:
            query.counted.add(key)
            self.report.stored.add(completion)
        return completion

    def _stored(self, query: Query, key: bytes, completion: Completion) -> Completion:
        self.failures = 0
        query.counted.add(key)
        self.report.asked.add(completion)
        return self.store.put(key, completion, model=self.backend.name)

    def _check_stopped(self) -> None:
        if self.report.stopped is not None:
            raise BudgetSpent(self.report.stopped)

    def _read(self, completion: Completion, size: int) -> Reply:
        """The reply that a completion gives to a question; repairs are counted."""
        assert self.prompt is not None
        how = self.prompt.answer
        logprobs = (completion.top_logprobs or [{}])[0]
        answer: tuple[Reply, frozenset[str]]
        if how == "score":
            answer = score_from_logprobs(logprobs)
        elif how == "best":
            answer = read_choice(completion.text, size)
        elif how == "letters":
            answer = order_from_logprobs(logprobs, size)
        else:
            answer = read_order(completion.text, size)
        reply, repairs = answer
        self.report.repairs.update(repairs)
        self.report.read += 1
        self.report.unreadable += not repairs.isdisjoint(UNREADABLE)
        return reply


async def rehearse(
    queries: Mapping[str, str],
    candidates: Run,
    docs: Mapping[str, str],
    make_ranking: Callable[[Sequence[str]], Ranking],
    prompt: Prompt | None,
    backend: Backend | ScoringBackend,
    *,
    store: AnswerStore,
    budget: Budget | None = None,
    options: AskOptions | None = None,
    answer_tokens: int | None = None,
    progress: bool = True,
) -> Report:
    """Count what `rank_all` would ask, without asking: ``report.asked`` and its cost.

    Four characters count as a token and each answer as ``answer_tokens`` (None: the longest
    possible); a model that scores passages uses none. Orders are taken to be right as they are;
    other answers can lead to other questions, and with some ways of asking to more. Answers in the
    store count as stored.
    """
    options = options or AskOptions()
    silent: Backend | ScoringBackend
    if isinstance(backend, Backend):
        silent = Silent(backend, answer_tokens or options.max_tokens)
    else:
        silent = _SilentScorer(backend)
    prices = budget.prices if budget is not None else None
    _, report = await rank_all(
        queries, candidates, docs, make_ranking, prompt, silent,
        store=ReadOnlyStore(store), budget=Budget(prices=prices), options=options,
        progress=progress,
    )  # fmt: skip
    report.repairs.clear()
    return report


class _SilentScorer:
    """Stands in for a model that scores passages: all are equal."""

    def __init__(self, backend: ScoringBackend) -> None:
        self.name, self.options = backend.name, backend.options

    def score(self, query: str, passages: Sequence[str]) -> list[float]:
        return [0.0] * len(passages)


class Silent:
    """Stands in for a backend in a rehearsal: every order is right; says what that may cost."""

    def __init__(self, backend: Backend, answer_tokens: int) -> None:
        self.name, self.options = backend.name, backend.options
        self.answer_tokens = answer_tokens

    async def complete(
        self,
        messages: Messages,
        *,
        max_tokens: int,
        temperature: float,
        top_logprobs: int | None = None,
    ) -> Completion:
        tokens = min(max_tokens, self.answer_tokens)
        return Completion("", estimated_tokens(messages), tokens, [{"yes": 0.0, "no": 0.0}])

    async def close(self) -> None:
        pass
