"""The file of a teacher's windows."""

import json
import math

import pytest

from rankdistillm.errors import InputError
from rankdistillm.teachers.backends import Completion
from rankdistillm.teachers.rankings import Question, answer_all, pointwise, setwise, sliding_window
from rankdistillm.teachers.windows import Window, read_windows, recording
from tests.endpoint import CALLS, task, windows
from tests.teacher import BEST, Model, Scorer, ask, by_relevance

WINDOWS = {
    "q 1": [
        Window(Question("order", ("a", "ü", "c")), (2, 0, 1), ("missing",)),
        Window(Question("best", ("a", "c")), 1, ()),
        Window(Question("score", ("a",)), -1.5, ()),
        Window(Question("score", ("b",)), -math.inf, ("refusal",)),
    ],
    "q2": [],
}


def write(path, found):
    with recording(path) as record:
        for query_id, asked in found.items():
            record(query_id, asked)


def test_what_is_recorded_is_read(tmp_path):
    write(tmp_path / "a.jsonl", WINDOWS)
    assert read_windows(tmp_path / "a.jsonl", {"q 1", "q2", "q3"}) == WINDOWS
    assert read_windows(tmp_path / "a.jsonl", {"q2"}) == {"q2": []}
    assert [window.doc_ids_replied() for window in WINDOWS["q 1"]] == [
        ("c", "a", "ü"), ("c",), ("a",), ("b",),
    ]  # fmt: skip


def test_an_error_leaves_no_file(tmp_path):
    with pytest.raises(AttributeError):
        write(tmp_path / "a.jsonl", {"q": [], "unsound": [Window(None, 1, ())]})
    assert not list(tmp_path.iterdir())


WINDOW = {"kind": "order", "doc_ids": ["a", "b"], "reply": [1, 0], "repairs": []}


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "other"}, {"reply": [0, 0]}, {"reply": [0]}, {"reply": "10"}, {"reply": None},
        {"doc_ids": "ab"}, {"doc_ids": [1, 2]}, {"repairs": [3]}, {"repairs": None}, {"more": 1},
        {"kind": "best", "reply": 2}, {"kind": "score", "reply": 1.0}, {"doc_ids": ["a", "\ud800"]},
    ],
)  # fmt: skip
def test_other_lines_are_refused_by_number(tmp_path, change):
    lines = [WINDOW, WINDOW | change]
    text = [json.dumps({"query_id": f"q{i}", "windows": [w]}) for i, w in enumerate(lines)]
    (tmp_path / "a.jsonl").write_text("\n".join(text))
    assert read_windows(tmp_path / "a.jsonl", {"q0"})
    with pytest.raises(InputError, match=r"a\.jsonl, line 2: not the windows of a query"):
        read_windows(tmp_path / "a.jsonl", {"q0", "q1"})


def test_every_window_of_a_complete_query_is_recorded(tmp_path):
    queries, candidates, docs = given = task(5)
    found = {}
    ranked, tally = ask(tmp_path, given, Model(), record=found.__setitem__)
    assert found.keys() == set(queries)
    assert sum(map(len, found.values())) == tally.read == 5 * CALLS
    for query_id, asked in found.items():
        for window in asked:
            assert list(window.doc_ids_replied()) == by_relevance(window.question.doc_ids, docs)
        answers = {window.question: window.reply for window in asked}
        order = answer_all(windows(candidates[query_id].doc_ids), answers.pop)
        assert tuple(order) == ranked[query_id].doc_ids
        assert not answers


def test_repairs_stand_with_the_window_that_needed_them(tmp_path):
    texts = iter(["[3] > [3]", "no", *["[1] > [2]"] * 9])
    model = Model(lambda _: Completion(next(texts), 1, 1))
    found = {}
    ask(
        tmp_path, task(1, 6), model, record=found.__setitem__, concurrency=1,
        ranking=lambda doc_ids: sliding_window(doc_ids, window=4, stride=2),
    )  # fmt: skip
    assert [window.repairs for window in found["q0"]] == [
        ("missing", "repetition"),
        ("refusal",),
    ]


def test_a_query_that_fails_is_not_recorded(tmp_path):
    class Broken(Scorer):
        def score(self, query, passages):
            return [float("nan") if query == "query 1" else 1.0 for _ in passages]

    found = {}
    _, tally = ask(tmp_path, task(3), Broken(), ranking=pointwise, record=found.__setitem__)
    assert set(tally.failed) == {"q1"}
    assert found.keys() == {"q0", "q2"}
    assert {window.question.kind for window in found["q0"]} == {"score"}


def test_choices_are_recorded(tmp_path):
    found = {}
    model = Model(lambda _: Completion("B", 1, 1))
    ask(
        tmp_path, task(1, 4), model, source=BEST, record=found.__setitem__,
        ranking=lambda doc_ids: setwise(doc_ids, children=3, top=1),
    )  # fmt: skip
    (window,) = found["q0"]
    assert window.doc_ids_replied() == ("q0_1",)
