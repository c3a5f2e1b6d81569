"""A dry run: count what a teacher would be asked, and its price, without asking."""

from collections.abc import Callable, Mapping, Sequence

from rankdistillm.data.runs import Run
from rankdistillm.teachers.ask import rank_all
from rankdistillm.teachers.backends import (
    Backend,
    Completion,
    Messages,
    ScoringBackend,
    estimated_tokens,
)
from rankdistillm.teachers.budget import Budget
from rankdistillm.teachers.prompts import Prompt
from rankdistillm.teachers.questions import AskOptions
from rankdistillm.teachers.rankings import Question, Ranking, Reply, answer_all
from rankdistillm.teachers.store import AnswerStore, ReadOnlyStore
from rankdistillm.teachers.tally import Tally


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
) -> Tally:
    """Count what `rank_all` would ask, without asking: ``tally.asked`` and its cost.

    Four characters count as a token and each answer as ``answer_tokens`` (None: the longest
    possible); a model that scores passages uses none. Orders are taken to be right as they are.
    ``tally.is_minimum`` says whether other answers lead to more questions. Answers in the store
    count as stored.
    """
    silent: Backend | ScoringBackend
    if isinstance(backend, Backend):
        silent = SilentBackend(backend, answer_tokens)
    else:
        silent = _SilentScorer(backend)
    prices = budget.prices if budget is not None else None
    _, tally = await rank_all(
        queries, candidates, docs, make_ranking, prompt, silent,
        store=ReadOnlyStore(store), budget=Budget(prices=prices), options=options,
        progress=progress,
    )  # fmt: skip
    tally.repairs.clear()
    tally.is_minimum = _depends_on_answers(make_ranking, max(candidates.lengths, default=0))
    return tally


def _depends_on_answers(make_ranking: Callable[[Sequence[str]], Ranking], depth: int) -> bool:
    """Whether a list of ``depth`` passages takes more questions if all orders are wrong."""

    def count(answer: Callable[[Question], Reply]) -> int:
        asked = 0

        def counted(question: Question) -> Reply:
            nonlocal asked
            asked += 1
            return answer(question)

        answer_all(make_ranking([str(i) for i in range(depth)]), counted)
        return asked

    return count(_last_first) > count(_first_first)


def _first_first(question: Question) -> Reply:
    return tuple(range(len(question))) if question.kind == "order" else 0


def _last_first(question: Question) -> Reply:
    if question.kind == "order":
        return tuple(reversed(range(len(question))))
    return len(question) - 1


class _SilentScorer:
    """Stands in for a model that scores passages: all are equal."""

    def __init__(self, backend: ScoringBackend) -> None:
        self.name, self.identity, self.options = backend.name, backend.identity, backend.options
        self.cuts_passages = backend.cuts_passages

    def score(self, query: str, passages: Sequence[str]) -> list[float]:
        return [0.0] * len(passages)


class SilentBackend:
    """Stands in for a backend: every order is right.

    An answer has ``answer_tokens``; None: as many as it may have.
    """

    def __init__(self, backend: Backend, answer_tokens: int | None) -> None:
        self.name, self.identity, self.options = backend.name, backend.identity, backend.options
        self.answer_tokens = answer_tokens

    async def complete(
        self,
        messages: Messages,
        *,
        max_tokens: int,
        temperature: float,
        top_logprobs: int | None = None,
        first_line: bool = False,
    ) -> Completion:
        tokens = min(max_tokens, self.answer_tokens or max_tokens)
        return Completion("", estimated_tokens(messages), tokens, [{"yes": 0.0, "no": 0.0}])

    async def close(self) -> None:
        pass
