"""Limits on requests, tokens and money, and the user's prices."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rankdistillm.errors import InputError, check_count, check_number
from rankdistillm.teachers.backends import Completion


class BudgetSpent(Exception):
    """A limit is reached: nothing more is asked. The message says which one."""


@dataclass
class Usage:
    """Answers and their tokens."""

    answers: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.output_tokens

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.answers + other.answers,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
        )

    def add(self, completion: Completion) -> None:
        self.answers += 1
        self.input_tokens += completion.input_tokens
        self.output_tokens += completion.output_tokens


@dataclass(frozen=True)
class Prices:
    """The price of a million tokens, in whatever currency the user thinks in; None: unknown.

    Raises `InputError` for a price that is not a number of at least 0, and for one price without
    the other.
    """

    input: float | None = None
    output: float | None = None

    def __post_init__(self) -> None:
        for name in ("input", "output"):
            check_number(f"prices.{name}", getattr(self, name), least=0, optional=True)
        if (self.input is None) != (self.output is None):
            raise InputError("prices: give those of input and output tokens, or neither")

    def cost(self, usage: Usage) -> float | None:
        """The price of these tokens; None if the prices are unknown."""
        if self.input is None or self.output is None:
            return None
        return (usage.input_tokens * self.input + usage.output_tokens * self.output) / 1e6


class Budget:
    """Counts what the calls of this process use, and stops them at the limits.

    The limits hold for this process: stored answers cost nothing, and the same command goes on
    with a new budget. A question that is retried is one request.

    The tokens of an answer are known when it is there. Questions under way are therefore expected
    to take as many as the average answer so far, and only the first ones, sent side by side, can
    exceed a limit.

    Raises `InputError` for a limit that is not positive, and for one on money without prices.
    """

    def __init__(
        self,
        *,
        requests: int | None = None,
        tokens: int | None = None,
        money: float | None = None,
        prices: Prices | None = None,
    ) -> None:
        check_count("budget.requests", requests, optional=True)
        check_count("budget.tokens", tokens, optional=True)
        check_number("budget.money", money, above=0, optional=True)
        self.requests, self.tokens, self.money = requests, tokens, money
        self.prices = prices or Prices()
        self.used = Usage()
        self.asked = 0
        self._under_way = 0
        if money is not None and self.cost is None:
            raise InputError(
                "budget.money: a limit on money needs the prices of a million input and output "
                "tokens"
            )

    @property
    def cost(self) -> float | None:
        """The money that this process has spent; None if the prices are unknown."""
        return self.prices.cost(self.used)

    @contextmanager
    def request(self) -> Iterator[None]:
        """Wrap one question to the model. Raises `BudgetSpent` instead, if a limit is reached."""
        self._check()
        self.asked += 1
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1

    def _check(self) -> None:
        expected = 1.0 + (self._under_way / self.used.answers if self.used.answers else 0.0)
        if self.requests is not None and self.asked >= self.requests:
            raise BudgetSpent(f"the limit of {self.requests} requests is reached")
        if self.tokens is not None and self.used.tokens * expected >= self.tokens:
            raise BudgetSpent(f"the limit of {self.tokens} tokens is reached")
        if self.money is not None and (self.cost or 0.0) * expected >= self.money:
            raise BudgetSpent(f"the limit of {self.money:g} on money is reached")
