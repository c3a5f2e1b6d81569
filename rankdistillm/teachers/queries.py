"""Write a search query for each passage of a collection: sample, ask, clean, filter."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from rankdistillm.data.files import numbered_lines
from rankdistillm.errors import InputError, check_count
from rankdistillm.progress import progress_bar
from rankdistillm.teachers.answers import read_query
from rankdistillm.teachers.ask import side_by_side
from rankdistillm.teachers.backends import Backend, QueryFailed
from rankdistillm.teachers.budget import Budget, BudgetSpent
from rankdistillm.teachers.prompts import Example, Prompt
from rankdistillm.teachers.questions import Asker, AskOptions, Query
from rankdistillm.teachers.rehearsal import SilentBackend
from rankdistillm.teachers.store import AnswerStore, ReadOnlyStore
from rankdistillm.teachers.tally import Tally

_WORD = re.compile(r"\w+")


def sample_passages(
    passages: Iterable[tuple[str, str]], number: int | None, seed: int
) -> dict[str, str]:
    """``number`` passages (None: all) with text, drawn without replacement, in their own order.

    Reads the collection once and holds no more than the sample.
    """
    check_count("num_passages", number, optional=True)
    rng = np.random.default_rng(seed)
    sample: list[tuple[int, str, str]] = []
    with_text = ((doc_id, text) for doc_id, text in passages if text.strip())
    for i, (doc_id, text) in enumerate(with_text):
        if number is None or i < number:
            sample.append((i, doc_id, text))
        elif (replaced := int(rng.integers(i + 1))) < number:
            sample[replaced] = (i, doc_id, text)
    return {doc_id: text for _, doc_id, text in sorted(sample)}


def read_examples(path: str | Path) -> tuple[Example, ...]:
    """Read ``passage<TAB>query`` lines. Raises `InputError` with file and line for others."""
    examples = []
    for line, text in numbered_lines(Path(path)):
        passage, *query = (part.strip() for part in text.split("\t"))
        if len(query) != 1 or not passage or not query[0]:
            raise InputError(
                f"{path}, line {line}: expected 'passage<TAB>query'; write one example a line"
            )
        examples.append(Example(passage, query[0]))
    return tuple(examples)


async def write_queries(
    passages: Mapping[str, str],
    prompt: Prompt,
    backend: Backend,
    *,
    store: AnswerStore | ReadOnlyStore,
    budget: Budget | None = None,
    concurrency: int = 32,
    options: AskOptions | None = None,
    progress: bool = True,
) -> tuple[dict[str, str], Tally]:
    """Ask for a query for each passage; returns doc_id -> query, in the order of the passages.

    Stored answers, limits and errors are treated as in `rankdistillm.teachers.ask.rank_all`. A
    passage whose answer holds no query is neither in the result nor in ``tally.failed``; the
    repairs count it.
    """
    asker = Asker(
        prompt, backend, store=store, budget=budget, options=options, concurrency=concurrency
    )
    if prompt.answer != "query":
        raise InputError(
            f"{prompt.path}: asks for {prompt.answer}, not for a query; choose another"
        )
    found: dict[str, str] = {}
    started = perf_counter()
    bar = progress_bar(shown=progress, total=len(passages), desc="write", unit="query")

    async def write(passage: tuple[str, str]) -> None:
        doc_id, text = passage
        try:
            completion = await asker.completion(Query(""), [text])
        except (QueryFailed, BudgetSpent) as error:
            asker.record_failure(doc_id, error)
        else:
            query, repairs = read_query(completion.text, cut_off=completion.cut_off)
            asker.tally.read += 1
            asker.tally.repairs.update(repairs)
            if query:
                found[doc_id] = query
        bar.update()

    with bar:
        await side_by_side(passages.items(), write, concurrency)
    tally = asker.finish(perf_counter() - started)
    return {doc_id: found[doc_id] for doc_id in passages if doc_id in found}, tally


async def rehearse_queries(
    passages: Mapping[str, str],
    prompt: Prompt,
    backend: Backend,
    *,
    store: AnswerStore,
    budget: Budget,
    options: AskOptions,
    answer_tokens: int | None = None,
) -> Tally:
    """Count what `write_queries` would ask; see `rankdistillm.teachers.rehearsal.rehearse`."""
    silent = SilentBackend(backend, answer_tokens)
    shared: dict[str, Any] = {"budget": Budget(prices=budget.prices), "options": options}
    _, tally = await write_queries(passages, prompt, silent, store=ReadOnlyStore(store), **shared)
    tally.repairs.clear()
    return tally


def without_duplicates(queries: Mapping[str, str]) -> dict[str, str]:
    """The first of those queries that have the same words, whatever their case and punctuation."""
    first: dict[tuple[str, ...], str] = {}
    for doc_id, query in queries.items():
        first.setdefault(tuple(_WORD.findall(query.casefold())) or (query,), doc_id)
    return {doc_id: queries[doc_id] for doc_id in first.values()}
