"""Read the history files of rank_llm: the questions that it asked a model, and the answers.

A history lacks the ids of the passages. `replay` finds them: it puts the questions again to the
candidates that rank_llm re-ranked, and takes the recorded answers in their order.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankdistillm.data.files import numbered_lines, text_of
from rankdistillm.data.runs import Run
from rankdistillm.errors import InputError, quoted
from rankdistillm.teachers.answers import UNREADABLE, read_order
from rankdistillm.teachers.rankings import Question, Ranking, Reply, answer_all

# Passages are compared by the letters and digits of their beginning: rank_llm mends characters.
COMPARED = 40
_NOT_BLANK = re.compile(r"\S")
_NUMBERED = re.compile(r"^\[(\d+)\] ?(.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Call:
    """One recorded question. ``passages``: those of the prompt, in order; empty if it has none."""

    response: str
    passages: tuple[str, ...]


@dataclass(frozen=True)
class History:
    """The calls for one query, in their order; ``where`` names file and entry."""

    query_id: str
    query: str
    calls: tuple[Call, ...]
    where: str


@dataclass(frozen=True)
class Recorded:
    """A history file as a `rankdistillm.teachers.backends.RecordedTeacher`."""

    path: str | Path

    @property
    def name(self) -> str:
        return str(self.path)

    def rank(
        self,
        candidates: Run,
        docs: Mapping[str, str],
        make_ranking: Callable[[Sequence[str]], Ranking],
    ) -> tuple[Run, Counter[str]]:
        """The recorded rankings of those candidates that the history has; see `replay`."""
        histories = [h for h in read_history(self.path) if h.query_id in candidates]
        lists = {h.query_id: candidates[h.query_id].doc_ids for h in histories}
        orders, repairs = replay(histories, lists, make_ranking, docs=docs)
        scores = {
            query_id: {doc_id: float(len(order) - rank) for rank, doc_id in enumerate(order, 1)}
            for query_id, order in orders.items()
        }
        return Run.from_scores(scores, source=self.name), repairs


def read_history(path: str | Path) -> list[History]:
    """Read ``[{"query": {"text", "qid"}, "invocations_history": [{"prompt", "response", …}]}]``.

    The file holds one such list or, if it was appended to, several; also one object a line, and
    .gz. Raises `InputError` with file and entry for anything else, and for a repeated query.
    """
    path = Path(path)
    histories: dict[str, History] = {}
    for number, entry in enumerate(_entries(path), 1):
        history = _history(entry, f"{path}, entry {number}")
        if history.query_id in histories:
            raise InputError(
                f"{history.where}: the qid {quoted(history.query_id)} stands twice; keep one of "
                "the two"
            )
        histories[history.query_id] = history
    if not histories:
        raise InputError(f"{path}: no query; expected a history file of rank_llm")
    return list(histories.values())


def replay(
    histories: Sequence[History],
    candidates: Mapping[str, Sequence[str]],
    make_ranking: Callable[[Sequence[str]], Ranking],
    *,
    docs: Mapping[str, str] | None = None,
) -> tuple[dict[str, list[str]], Counter[str]]:
    """The rankings that the recorded answers give.

    Args:
        histories: from `read_history`.
        candidates: query_id -> doc_ids, best first: the run that rank_llm re-ranked, cut to the
            same depth.
        make_ranking: doc_ids -> the way that rank_llm asked, such as `rankings.sliding_window` with
            the same window and stride.
        docs: doc_id -> text. With them, most passages of each prompt must be those that are asked
            about, so that wrong candidates are refused.

    Returns:
        query_id -> doc_ids, best first, and how many answers needed each kind of repair.

    Raises `InputError` for a query without candidates, for calls that do not fit the way of asking
    in number, size or passages, and if no answer names a passage by a number.
    """
    orders: dict[str, list[str]] = {}
    repairs: Counter[str] = Counter()
    readable = 0
    for history in histories:
        if history.query_id not in candidates:
            raise InputError(
                f"{history.where}: the run has no candidates for query "
                f"{quoted(history.query_id)}; give the run that rank_llm re-ranked"
            )
        calls = iter(history.calls)

        def answer(question: Question, history: History = history, calls: Any = calls) -> Reply:
            nonlocal readable
            call = next(calls, None)
            if call is None:
                raise _misfit(history, f"has only {len(history.calls)} calls")
            _check_passages(history, call, question, docs)
            order, needed = read_order(call.response, len(question))
            repairs.update(needed)
            readable += needed.isdisjoint(UNREADABLE)
            return order

        orders[history.query_id] = answer_all(make_ranking(candidates[history.query_id]), answer)
        if left := sum(1 for _ in calls):
            raise _misfit(history, f"has {left} calls too many")
    if not readable and any(history.calls for history in histories):
        raise InputError(
            f"{histories[0].where}: no answer of this file names a passage by a number, such as "
            "[1]; give a history of a listwise model with numbers"
        )
    return orders, repairs


def _check_passages(
    history: History, call: Call, question: Question, docs: Mapping[str, str] | None
) -> None:
    if not call.passages:
        return
    if len(call.passages) != len(question):
        raise _misfit(
            history, f"has a call with {len(call.passages)} passages instead of {len(question)}"
        )
    if docs is None:
        return
    pairs = zip(question.doc_ids, call.passages, strict=True)
    same = sum(_beginning(docs.get(doc_id, "")) == _beginning(shown) for doc_id, shown in pairs)
    if 2 * same < len(question):
        raise _misfit(history, "shows other passages")


def _misfit(history: History, fault: str) -> InputError:
    return InputError(
        f"{history.where}: query {quoted(history.query_id)} {fault}; give the run, depth, window "
        "and stride that rank_llm used"
    )


def _beginning(text: str) -> str:
    return "".join(filter(str.isalnum, text[: 4 * COMPARED].casefold()))[:COMPARED]


def _entries(path: Path) -> Iterator[Any]:
    text = "\n".join(line for _, line in numbered_lines(path))
    decoder, at = json.JSONDecoder(), 0
    while found := _NOT_BLANK.search(text, at):
        at = found.start()
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            line = text.count("\n", 0, getattr(error, "pos", at)) + 1
            raise InputError(
                f"{path}, line {line}: not JSON ({quoted(getattr(error, 'msg', str(error)))}); "
                "expected a history file of rank_llm"
            ) from error
        yield from value if isinstance(value, list) else [value]


def _history(entry: Any, where: str) -> History:
    try:
        query, recorded = entry["query"], entry["invocations_history"]
        query_id, text = query["qid"], query["text"]
        calls = tuple(_call(call, where) for call in recorded)
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{where}: expected query (text, qid) and invocations_history (prompt, response); give "
            "a history file of rank_llm"
        ) from error
    return History(text_of(query_id, "qid", where), text_of(text, "text", where), calls, where)


def _call(recorded: Any, where: str) -> Call:
    return Call(text_of(recorded["response"], "response", where), _passages(recorded.get("prompt")))


def _passages(prompt: Any) -> tuple[str, ...]:
    """The passages of a prompt, a text or messages: lines that begin with [1], [2], [3], …"""
    messages = prompt if isinstance(prompt, list) else [{"content": prompt}]
    contents = [message.get("content") for message in messages if isinstance(message, dict)]
    passages: list[str] = []
    for content in contents:
        for number, passage in _NUMBERED.findall(content if isinstance(content, str) else ""):
            if number == str(len(passages) + 1):
                passages.append(passage)
    return tuple(passages)
