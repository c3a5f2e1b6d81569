"""Limits stop before they are exceeded; a cost is known only with prices."""

import pytest

from rankdistillm.errors import InputError
from rankdistillm.teachers.backends import Completion
from rankdistillm.teachers.budget import Budget, BudgetSpent, Prices, Usage

ANSWER = Completion("", input_tokens=90, output_tokens=10)


def ask(budget, number):
    """How many of so many questions, one after the other, the budget lets through."""
    for done in range(number):
        try:
            with budget.request():
                budget.used.add(ANSWER)
        except BudgetSpent:
            return done
    return number


def test_prices_are_per_million_tokens():
    prices = Prices(input=2.0, output=10.0)
    assert prices.cost(Usage(3, 1_000_000, 100_000)) == pytest.approx(3.0)
    assert Prices().cost(Usage(3, 1_000_000, 100_000)) is None
    assert Prices(0, 0).cost(Usage(3, 5, 5)) == 0.0


def test_each_limit_stops_by_itself():
    prices = Prices(1.0, 1.0)
    assert ask(Budget(), 50) == 50
    assert ask(Budget(requests=7), 50) == 7
    assert ask(Budget(tokens=1000), 50) == 10
    assert ask(Budget(tokens=1001), 50) == 11
    assert ask(Budget(money=0.0005, prices=prices), 50) == 5
    budget = Budget(requests=7)
    ask(budget, 50)
    with pytest.raises(BudgetSpent, match="limit of 7 requests"), budget.request():
        pass


def test_questions_under_way_count_as_the_average_answer():
    budget = Budget(tokens=1000)
    ask(budget, 5)
    under_way = [budget.request() for _ in range(5)]
    for request in under_way:
        request.__enter__()
    with pytest.raises(BudgetSpent), budget.request():
        pass
    assert budget.used.tokens == 500
    for request in under_way:
        request.__exit__(None, None, None)
    assert ask(budget, 50) == 5  # they came back without an answer


def test_a_question_that_fails_takes_a_request_but_no_tokens():
    budget = Budget(requests=2)
    for _ in range(2):
        with pytest.raises(RuntimeError), budget.request():
            raise RuntimeError
    assert budget.used == Usage()
    with pytest.raises(BudgetSpent), budget.request():
        pass


def test_unsound_limits_and_prices_are_refused():
    for wrong in ({"requests": 0}, {"tokens": -1}, {"money": 0.0}, {"tokens": 1.5}):
        with pytest.raises(InputError, match=rf"budget\.{next(iter(wrong))}="):
            Budget(**wrong, prices=Prices(1, 1))
    with pytest.raises(InputError, match="limit on money needs the prices"):
        Budget(money=5.0)
    with pytest.raises(InputError, match="or neither"):
        Prices(input=1.0)
    with pytest.raises(InputError, match=r"prices\.output=-1"):
        Prices(input=1.0, output=-1)
