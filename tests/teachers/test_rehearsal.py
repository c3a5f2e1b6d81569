"""A dry run counts what is to come, and asks nothing."""

import asyncio

import pytest

from rankdistillm.teachers.budget import Budget, Prices
from rankdistillm.teachers.rankings import pointwise, setwise, sliding_window, tdpart
from rankdistillm.teachers.rehearsal import rehearse
from rankdistillm.teachers.store import AnswerStore
from rankdistillm.teachers.summary import rehearsal
from tests.endpoint import CALLS, ORDER, prompt_of, task, windows
from tests.teacher import BEST, SCORE, Model, ask


def test_a_rehearsal_asks_nothing_and_counts_what_is_to_come(tmp_path):
    given = task(6)
    prompt, model = prompt_of(tmp_path), Model()
    half = given[0], given[1].select(["q0", "q1", "q2"]), given[2]
    ask(tmp_path, half, Model())
    with AnswerStore(tmp_path / "answers") as store:
        before = len(store)
        tally = asyncio.run(
            rehearse(
                *given, windows, prompt, model, store=store, progress=False, answer_tokens=40,
                budget=Budget(requests=1, prices=Prices(1.0, 2.0)),
            )
        )  # fmt: skip
        assert len(store) == before
    assert not model.asked
    assert (tally.calls, tally.cache_hits) == (3 * CALLS, 3 * CALLS)
    assert tally.asked.output_tokens == 40 * 3 * CALLS
    assert tally.cost == pytest.approx(
        (tally.asked.input_tokens + 2 * tally.asked.output_tokens) / 1e6
    )


@pytest.mark.parametrize(
    ("ranking", "source", "depth", "is_minimum"),
    [
        (sliding_window, ORDER, 60, False),
        (tdpart, ORDER, 60, True),
        (tdpart, ORDER, 20, False),  # one window
        (setwise, BEST, 60, True),
        (setwise, BEST, 3, False),  # two, whatever the answers
        (pointwise, SCORE, 60, False),
    ],
)
def test_a_number_of_calls_that_depends_on_the_answers_is_a_minimum(
    ranking, source, depth, is_minimum, tmp_path
):
    prompt = prompt_of(tmp_path, source)
    with AnswerStore(tmp_path / "answers") as store:
        given = *task(1, depth), ranking, prompt, Model()
        tally = asyncio.run(rehearse(*given, store=store, progress=False))
    assert tally.is_minimum is is_minimum
    calls = rehearsal(tally).splitlines()[0]
    assert ("at least" in calls) is is_minimum
