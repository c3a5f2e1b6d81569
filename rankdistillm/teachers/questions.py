"""Put one question to the teacher: texts -> messages -> answer -> reply.

The answer comes from the store, or else from the model; a new one is stored at once. Passages that
exceed the model's context are shortened.
"""

import asyncio
import json
import logging
import math
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from rankdistillm.errors import check_count, check_number
from rankdistillm.teachers.answers import (
    UNREADABLE,
    order_from_logprobs,
    read_choice,
    read_order,
    score_from_logprobs,
)
from rankdistillm.teachers.backends import (
    Backend,
    Completion,
    ContextTooLong,
    QueryFailed,
    ScoringBackend,
)
from rankdistillm.teachers.budget import Budget, BudgetSpent
from rankdistillm.teachers.prompts import Prompt, cut
from rankdistillm.teachers.rankings import Reply
from rankdistillm.teachers.store import AnswerStore, ReadOnlyStore, key_of
from rankdistillm.teachers.tally import Tally

log = logging.getLogger(__name__)
T = TypeVar("T")

# A question that does not fit into the context is asked again with passages this much shorter.
SHORTER = 0.8
SHORTEST = 20  # characters; below, shorter passages would not help


@dataclass(frozen=True)
class AskOptions:
    """How each question is put.

    ``words`` and ``characters``: what passages are cut to (`rankdistillm.teachers.prompts.cut`).
    ``max_tokens`` (of the answer; None: what the prompt says) and ``temperature`` go to the model.
    A prompt whose answer is read from log-probabilities always asks for one token and its
    ``top_logprobs`` likeliest alternatives; OpenAI allows 20.
    """

    max_tokens: int | None = None
    temperature: float = 0.0
    top_logprobs: int = 20
    words: int = 300
    characters: int = 600

    def __post_init__(self) -> None:
        check_count("max_tokens", self.max_tokens, optional=True)
        for name in ("top_logprobs", "words", "characters"):
            check_count(name, getattr(self, name))
        check_number("temperature", self.temperature, least=0)

    def request(self, prompt: Prompt, num: int) -> dict[str, Any]:
        """The options of `Backend.complete` for a question about ``num`` passages."""
        longest = prompt.longest_answer(num)
        by_logprobs = prompt.reads_logprobs
        return {
            "max_tokens": longest if by_logprobs else self.max_tokens or longest,
            "temperature": self.temperature,
            "top_logprobs": self.top_logprobs if by_logprobs else None,
            **({"first_line": True} if prompt.answer == "query" else {}),
        }

    def cut(self, texts: Sequence[str]) -> list[str]:
        """The texts, cut to ``words`` or ``characters``."""
        return [cut(text, words=self.words, characters=self.characters) for text in texts]


def shortenings(passages: Sequence[str]) -> Iterator[list[str]]:
    """The passages as they are, then ever shorter, down to a few characters."""
    yield list(passages)
    length = max(map(len, passages), default=0)
    while length > SHORTEST:
        length = int(length * SHORTER)
        # At a space, if the script has some.
        yield [p if len(p) <= length else _beginning(p, length) for p in passages]


def _beginning(text: str, length: int) -> str:
    """At most ``length`` characters of a text, whole words if it has words."""
    start, space, _ = text[: length + 1].rpartition(" ")
    return start if space else text[:length]


@dataclass
class Query:
    """The state that all questions about one query share."""

    text: str
    counted: set[bytes] = field(default_factory=set)  # keys of the answers that are in the tally
    failure: QueryFailed | BudgetSpent | None = None


class Asker:
    """Puts the questions of all queries to one teacher; ``tally`` counts what that takes.

    At most ``concurrency`` questions are under way at once. ``prompt`` is None for a
    `ScoringBackend`, which has its own.
    """

    def __init__(
        self,
        prompt: Prompt | None,
        backend: Backend | ScoringBackend,
        *,
        store: AnswerStore | ReadOnlyStore,
        budget: Budget | None = None,
        options: AskOptions | None = None,
        concurrency: int = 32,
    ) -> None:
        check_count("concurrency", concurrency)
        self.prompt, self.backend, self.store = prompt, backend, store
        self.budget = budget or Budget()
        self.options = options or AskOptions()
        self.tally = Tally()
        self._slots = asyncio.Semaphore(concurrency)
        self._scoring = asyncio.Lock()
        self._under_way: dict[bytes, asyncio.Event] = {}  # set when the question is answered
        self._refused_bytes = math.inf  # of the smallest question that exceeded the context
        self._failures = 0  # queries that failed since the last answer
        self._most_failures = max(20, 2 * concurrency)

    def finish(self, seconds: float) -> Tally:
        """The tally, with what all that has cost."""
        tally = self.tally
        tally.cost = self.budget.cost
        tally.total_cost = self.budget.prices.cost(tally.asked + tally.stored)
        tally.seconds = seconds
        return tally

    def record_failure(self, identifier: str, error: QueryFailed | BudgetSpent) -> None:
        """Note what ended one query; too many failures in a row end all."""
        if isinstance(error, BudgetSpent):
            self.tally.failed[identifier] = f"unfinished: {error}"
            self.tally.stopped = self.tally.stopped or str(error)
            return
        self.tally.failed[identifier] = str(error)
        self._failures += 1
        if self._failures >= self._most_failures and self.tally.stopped is None:
            self.tally.stopped = f"{self._failures} queries in a row failed: {error}"

    async def reply(self, query: Query, texts: Sequence[str]) -> tuple[Reply, frozenset[str]]:
        """The reply of a `Backend` to a question about these passages, and what was repaired."""
        try:
            completion = await self.completion(query, texts)
        except (QueryFailed, BudgetSpent) as error:
            query.failure = error
            raise
        return self._read_reply(completion, len(texts))

    async def completion(self, query: Query, texts: Sequence[str]) -> Completion:
        """The answer of a `Backend`: from the store, or else from the model."""
        prompt, backend = self.prompt, self.backend
        assert prompt is not None
        assert isinstance(backend, Backend)
        passages = self.options.cut(texts)
        request = self.options.request(prompt, len(passages))
        # The answer to a shortened question is stored under the question as it first was, so that
        # neither is asked again. The backend's options win, as they do in the request.
        messages = prompt.messages(query=query.text, passages=passages)
        key = key_of(backend.identity, messages, {**request, **backend.options})

        async def ask(shorter: list[str]) -> Completion:
            sent = messages
            if shorter != passages:
                sent = prompt.messages(query=query.text, passages=shorter)
            async with self._slots:
                if query.failure is not None:
                    raise query.failure
                self._check_stopped()
                with self.budget.request():
                    completion = await backend.complete(sent, **request)
                    self.budget.used.add(completion)
            return completion

        # A text or query that occurs twice gives the same question twice; the second one waits for
        # the first one's answer, and is asked if there is none.
        while (found := self._look_up(query, key)) is None:
            if (answered := self._under_way.get(key)) is not None:
                await answered.wait()
                continue
            self._under_way[key] = answered = asyncio.Event()
            try:
                new, shorter = await self._ask_shorter(query, passages, sum, ask)
                if shorter != passages:
                    new = replace(new, cut_to=max(map(len, shorter)))
                found = self._keep(query, key, new)
                break
            finally:
                del self._under_way[key]
                answered.set()
        self._count_shortened(found)
        return found

    async def scores(self, query: Query, texts: Sequence[str]) -> list[float]:
        """The scores of a `ScoringBackend`: from the store; those that it lacks in one call."""
        backend = self.backend
        assert not isinstance(backend, Backend)
        passages = list(texts) if backend.cuts_passages else self.options.cut(texts)
        keys = [key_of(backend.identity, [query.text, p], backend.options) for p in passages]

        async def score(shorter: list[str]) -> list[float]:
            self._check_stopped()
            with self.budget.request():
                return await asyncio.to_thread(backend.score, query.text, shorter)

        # One call at a time: what the one before has scored is not scored again.
        async with self._slots, self._scoring:
            found = {key: c for key in keys if (c := self._look_up(query, key)) is not None}
            lacking = {k: p for k, p in zip(keys, passages, strict=True) if k not in found}
            if lacking:
                whole = list(lacking.values())
                scores, shorter = await self._ask_shorter(query, whole, max, score)
                for key, text, passage, value in zip(lacking, whole, shorter, scores, strict=True):
                    if not math.isfinite(value):
                        raise QueryFailed(f"{backend.name} scores a passage as {value}")
                    cut_to = None if passage == text else len(passage)
                    answer = Completion(json.dumps(value), cut_to=cut_to)
                    found[key] = self._keep(query, key, answer)
        for key in keys:
            self._count_shortened(found[key])
        return [float(found[key].text) for key in keys]

    async def _ask_shorter(
        self,
        query: Query,
        passages: list[str],
        combine: Callable[[Iterable[int]], int],
        ask: Callable[[list[str]], Awaitable[T]],
    ) -> tuple[T, list[str]]:
        """Call ``ask`` on the passages, shortened until they fit; return its result and these.

        ``combine`` the lengths of the passages: their sum if they are asked about together.
        """
        refusal: ContextTooLong | None = None
        for shorter in shortenings(passages):
            # Bytes say more about tokens than characters do: a Chinese character has three.
            size = _bytes(query.text) + combine(_bytes(passage) for passage in shorter)
            is_shortest = max(map(len, shorter)) <= SHORTEST
            if size >= self._refused_bytes and not is_shortest:
                continue
            try:
                return await ask(shorter), shorter
            except ContextTooLong as error:
                refusal = error
                self._refused_bytes = min(self._refused_bytes, size)
        raise QueryFailed(f"too long even with passages of {SHORTEST} characters: {refusal}")

    def _look_up(self, query: Query, key: bytes) -> Completion | None:
        """The stored answer, which is counted; None if there is none."""
        completion = self.store.get(key)
        if completion is not None and key not in query.counted:
            query.counted.add(key)
            self.tally.stored.add(completion)
        return completion

    def _keep(self, query: Query, key: bytes, completion: Completion) -> Completion:
        """Store and count a new answer; returns the stored one."""
        self._failures = 0
        query.counted.add(key)
        self.tally.asked.add(completion)
        return self.store.put(key, completion, model=self.backend.name)

    def _count_shortened(self, completion: Completion) -> None:
        if completion.cut_to is None:
            return
        self.tally.shortened += 1
        if self.tally.shortened == 1:  # the tally has the total
            log.warning(
                "%s: a question exceeds the model's context; its passages are cut to %d "
                "characters, and so are those of others where necessary",
                self.backend.name,
                completion.cut_to,
            )

    def _check_stopped(self) -> None:
        if self.tally.stopped is not None:
            raise BudgetSpent(self.tally.stopped)

    def _read_reply(self, completion: Completion, size: int) -> tuple[Reply, frozenset[str]]:
        """The reply that a completion gives to a question, and the repairs, which are counted."""
        assert self.prompt is not None
        how = self.prompt.answer
        logprobs = (completion.top_logprobs or [{}])[0]
        answer: tuple[Reply, frozenset[str]]
        if how == "score":
            answer = score_from_logprobs(logprobs)
        elif how == "best":
            answer = read_choice(completion.text, size, cut_off=completion.cut_off)
        elif how == "letters":
            answer = order_from_logprobs(logprobs, size)
        else:
            answer = read_order(completion.text, size, cut_off=completion.cut_off)
        reply, repairs = answer
        self.tally.repairs.update(repairs)
        self.tally.read += 1
        self.tally.unreadable += not repairs.isdisjoint(UNREADABLE)
        return reply, repairs


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
