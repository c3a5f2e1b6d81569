"""Ways of asking a teacher: which passages are compared, and what follows from the answers.

A way of asking is a generator. It yields lists of independent questions, which may be asked side by
side, is sent one reply per question in the same order, and returns the passages, best first: each
of them once, whatever the replies. It knows neither texts nor models, so an oracle can take the
model's place:

>>> def oracle(question):  # the numbers are relevances
...     return tuple(sorted(range(len(question)), key=lambda i: -int(question.doc_ids[i])))
>>> answer_all(sliding_window(["1", "3", "2"]), oracle)
['3', '2', '1']

Lists of no or one passage are returned at once, without a question.
"""

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, TypeVar

from rankdistillm.errors import InputError, check_count

Kind = Literal["order", "best", "score"]
Reply = tuple[int, ...] | int | float
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Question:
    """One call of the model: a query, which the asker knows, and these passages in this order.

    | kind | reply |
    |---|---|
    | ``order`` | all indices into ``doc_ids``, best passage first |
    | ``best`` | the index of the best passage |
    | ``score`` | the score of the only passage, higher is better |
    """

    kind: Kind
    doc_ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.doc_ids)


Asking = Generator[list[Question], list[Reply], T]
Ranking = Asking[list[str]]


def answer_all(ranking: Asking[T], answer: Callable[[Question], Reply]) -> T:
    """Run a way of asking to its end; ``answer`` gives the reply to each question."""
    try:
        questions = next(ranking)
        while True:
            questions = ranking.send([answer(question) for question in questions])
    except StopIteration as end:
        return end.value


def sliding_window(
    doc_ids: Sequence[str],
    *,
    window: int = 20,
    stride: int = 10,
    passes: int = 1,
    depth: int | None = None,
) -> Ranking:
    """Order windows from the bottom of the list to its top; the best of each reach the next one.

    The first window holds the last ``window`` passages, each further one begins ``stride`` ranks
    higher, the last one at rank 1. A further pass starts from the result of the one before.
    Passages below ``depth`` keep their ranks and are not asked about.

    With a perfect teacher, the top ``passes * (window - stride)`` are exact, and the whole list if
    it fits into one window. One pass over n passages takes ``1 + ceil((n - window) / stride)``
    calls, one after the other: 9 for 100.

    Source: Sun et al., *Is ChatGPT Good at Search?*, EMNLP 2023. The windows are those of rank_llm.

    Raises `InputError` unless ``2 <= window``, ``1 <= stride <= window`` and ``1 <= passes``.
    """
    _check_size("window", window, 2)
    check_count("stride", stride)
    check_count("passes", passes)
    check_count("depth", depth, optional=True)
    if stride > window:
        raise InputError(
            f"stride={stride} is above window={window}, so that some passages would be in no "
            "window; set it to window or less"
        )
    return _slide(list(doc_ids), window, stride, passes, depth)


def _slide(ranked: list[str], window: int, stride: int, passes: int, depth: int | None) -> Ranking:
    depth = len(ranked) if depth is None else min(depth, len(ranked))
    for _ in range(passes):
        stop, start = depth, depth
        while start > 0:
            start = max(0, stop - window)
            ranked[start:stop] = yield from _order(ranked[start:stop])
            stop -= stride
    return ranked


def tdpart(
    doc_ids: Sequence[str], *, window: int = 20, buffer: int | None = 20, pivot: int = 10
) -> Ranking:
    """Top-down partitioning: compare all windows with one passage of the first, side by side.

    The first ``window`` passages are ordered; the one that comes out at rank ``pivot`` joins every
    further window. The passages that beat it are candidates. If any were found, the first
    ``buffer`` of them (None: all), those of the best initial ranks, are partitioned again, which
    is one more call if they fit into a window. The other candidates follow, then the pivot, then
    the rest.

    With a perfect teacher, the pivot comes out at its true rank, and the top ``pivot`` are exact if
    at most ``buffer`` passages beat the pivot. 100 passages take 6 calls, 5 of them side by side,
    and a 7th if there are new candidates.

    Source: Parry, MacAvaney and Ganguly, *Top-Down Partitioning for Efficient List-Wise Ranking*,
    2024. There, windows are no longer asked for once the buffer is full.

    Raises `InputError` unless ``2 <= pivot <= window`` and ``pivot <= buffer``.
    """
    _check_size("window", window, 2)
    _check_size("pivot", pivot, 2)
    check_count("buffer", buffer, optional=True)
    if pivot > window:
        raise InputError(f"pivot={pivot} is above window={window}; set a rank inside the window")
    if buffer is not None and buffer < pivot:
        raise InputError(
            f"buffer={buffer} is below pivot={pivot}, which that many candidates precede; set "
            "buffer to pivot or more"
        )
    return _partition(list(doc_ids), window, buffer, pivot)


def _partition(ranked: list[str], window: int, buffer: int | None, pivot: int) -> Ranking:
    below: list[str] = []  # the passages that are known to follow those still to be ranked
    while True:
        first = yield from _order(ranked[:window])
        if len(ranked) <= window:
            return first + below
        better, pivot_id, worse = first[: pivot - 1], first[pivot - 1], first[pivot:]
        questions = [
            Question("order", (pivot_id, *ranked[start : start + window - 1]))
            for start in range(window, len(ranked), window - 1)
        ]
        replies = yield questions
        for question, reply in zip(questions, replies, strict=True):
            ordered = _by_reply(question, reply)
            split = ordered.index(pivot_id)
            better += ordered[:split]
            worse += ordered[split + 1 :]
        if len(better) < pivot:  # no new candidates: they are in order
            return [*better, pivot_id, *worse, *below]
        kept = len(better) if buffer is None else buffer
        below = [*better[kept:], pivot_id, *worse, *below]
        ranked = better[:kept]


def setwise(doc_ids: Sequence[str], *, children: int = 3, top: int = 10) -> Ranking:
    """Heap sort: the model chooses the best of a passage and its ``children`` in a heap.

    The best ``top`` passages are taken from the heap; the others keep their initial order, so that
    deeper ranks teach nothing. With a perfect teacher, the top ``top`` are exact. While the heap is
    built, the subtrees of a level are asked about side by side.

    Source: Zhuang et al., *A Setwise Approach for Effective and Highly Efficient Zero-Shot Ranking
    with Large Language Models*, SIGIR 2024.

    Raises `InputError` unless ``2 <= children`` and ``1 <= top``.
    """
    _check_size("children", children, 2)
    check_count("top", top)
    return _heap_sort(list(doc_ids), children, top)


def _heap_sort(doc_ids: list[str], children: int, top: int) -> Ranking:
    heap = list(doc_ids)
    levels = [0]
    while (below := levels[-1] * children + 1) < len(heap):
        levels.append(below)
    for start, stop in zip(levels[-2::-1], levels[:0:-1], strict=True):
        yield from _side_by_side([_sift(heap, node, children) for node in range(start, stop)])
    best: list[str] = []
    while heap:
        best.append(heap[0])
        last = heap.pop()
        if not heap or len(best) == top:
            break
        heap[0] = last
        yield from _sift(heap, 0, children)
    chosen = set(best)
    return best + [doc_id for doc_id in doc_ids if doc_id not in chosen]


def _sift(heap: list[str], node: int, children: int) -> Asking[None]:
    """Move the passage at ``node`` down until it is better than its children."""
    while (first := node * children + 1) < len(heap):
        members = [node, *range(first, min(first + children, len(heap)))]
        (reply,) = yield [Question("best", tuple(heap[member] for member in members))]
        assert isinstance(reply, int)
        best = members[reply]
        if best == node:
            return
        heap[node], heap[best] = heap[best], heap[node]
        node = best


def pointwise(doc_ids: Sequence[str]) -> Ranking:
    """Score each passage by itself, all side by side; equal scores keep the initial order.

    Raises ValueError for a score that is NaN.
    """
    if len(doc_ids) < 2:
        return list(doc_ids)
    scores = yield [Question("score", (doc_id,)) for doc_id in doc_ids]
    scored = list(zip(doc_ids, scores, strict=True))
    for doc_id, score in scored:
        assert not isinstance(score, tuple)
        if math.isnan(score):
            raise ValueError(f"the score of passage {doc_id} is not a number")
    return [doc_id for doc_id, _ in sorted(scored, key=lambda pair: pair[1], reverse=True)]


def _order(doc_ids: list[str]) -> Ranking:
    """Ask for the order of one window."""
    if len(doc_ids) < 2:
        return doc_ids
    question = Question("order", tuple(doc_ids))
    (reply,) = yield [question]
    return _by_reply(question, reply)


def _by_reply(question: Question, reply: Reply) -> list[str]:
    assert isinstance(reply, tuple)
    return [question.doc_ids[index] for index in reply]


def _side_by_side(askings: Sequence[Asking[None]]) -> Asking[None]:
    """Ask the next questions of all that still have some at once."""
    asked = [(asking, next(asking, None)) for asking in askings]
    while running := [(asking, questions) for asking, questions in asked if questions]:
        replies = iter((yield [question for _, questions in running for question in questions]))
        asked = [
            (asking, _send(asking, list(islice(replies, len(questions)))))
            for asking, questions in running
        ]


def _send(asking: Asking[None], replies: list[Reply]) -> list[Question] | None:
    """The next questions; None if there are none."""
    try:
        return asking.send(replies)
    except StopIteration:
        return None


def _check_size(name: str, value: int, least: int) -> None:
    check_count(name, value)
    if value < least:
        raise InputError(f"{name}={value} is not a whole number of at least {least}")
