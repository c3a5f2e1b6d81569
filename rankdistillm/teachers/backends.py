"""The interface of all models that are asked: calls, answers and errors.

The models themselves: `rankdistillm.teachers.openai_endpoint` (a server), `local_chat` and
`local_scorers` (a language model in this process), `cross_encoder` (another re-ranker).
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from rankdistillm.data.runs import Run
from rankdistillm.teachers.rankings import Ranking

Messages = Sequence[Mapping[str, str]]  # {"role": system, user or assistant, "content": text}


@dataclass(frozen=True, slots=True)
class Completion:
    """A model's answer to one question.

    ``top_logprobs``: for each token of the answer, the likeliest tokens with their natural
    log-probabilities; None if they were not asked for. ``cut_to``: the characters that passages had
    to be cut to, so that the question fitted into the model's context; None for a question that was
    asked as it stood. ``cut_off``: the answer reached ``max_tokens`` and may lack its end.
    """

    text: str
    input_tokens: int = 0
    output_tokens: int = 0
    top_logprobs: list[dict[str, float]] | None = None
    cut_to: int | None = None
    cut_off: bool = False


def estimated_tokens(messages: Messages) -> int:
    """About how many tokens the messages have: four characters each."""
    return sum(-(-len(message["content"]) // 4) for message in messages)


class ContextTooLong(Exception):
    """The question does not fit into the model's context; shorter passages may."""


class QueryFailed(Exception):
    """This query gets no ranking; the message is one line that says why. Others may go on."""


@runtime_checkable
class Backend(Protocol):
    """A model that answers chat messages with text.

    ``name`` is for messages. ``identity`` says which model it is, ``options`` whatever else decides
    its answers; both are part of the key that an answer is stored under.
    """

    name: str
    identity: str
    options: Mapping[str, Any]

    async def complete(
        self,
        messages: Messages,
        *,
        max_tokens: int,
        temperature: float,
        top_logprobs: int | None = None,
        first_line: bool = False,
    ) -> Completion:
        """Answer the messages.

        ``first_line``: only the answer's first line is wanted, so that it may end there.

        Raises `ContextTooLong`, and `QueryFailed` for every other error that remains. An error is
        never an answer.
        """

    async def close(self) -> None:
        """Free what the backend holds: connections, waiting questions."""


@runtime_checkable
class ScoringBackend(Protocol):
    """A model that scores passages; ``name``, ``identity`` and ``options`` as above.

    ``cuts_passages``: whether it cuts long passages itself. If so, it gets them whole.
    """

    name: str
    identity: str
    options: Mapping[str, Any]
    cuts_passages: bool

    def score(self, query: str, passages: Sequence[str]) -> list[float]:
        """One score per passage, higher is better; raises as `Backend.complete` does."""


@runtime_checkable
class RecordedTeacher(Protocol):
    """A teacher that has ranked already and is not asked: runs, recorded answers."""

    @property
    def name(self) -> str: ...

    def rank(
        self,
        candidates: Run,
        docs: Mapping[str, str],
        make_ranking: Callable[[Sequence[str]], Ranking],
    ) -> tuple[Run, Counter[str]]:
        """Its ranking of the candidates, and how many answers needed each kind of repair.

        A query that it does not know is not in the run.
        """
