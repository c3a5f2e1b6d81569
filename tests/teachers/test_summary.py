"""The closing table shows what applies to the kind of teacher, and nothing else."""

from collections import Counter

from rankdistillm.teachers.budget import Usage
from rankdistillm.teachers.summary import summary
from rankdistillm.teachers.tally import Tally


def rows(tally, **options):
    lines = summary(tally, **options).splitlines()
    return {name: value.strip() for name, value in (line.split("  ", 1) for line in lines)}


def test_a_teacher_that_writes():
    asked, stored = Usage(2, 30, 4), Usage(1, 15, 2)
    assert rows(Tally(asked, stored, read=3, seconds=1234.56), counts={"passages": 3}) == {
        "passages": "3",
        "answers": "2 now, 1 from the store",
        "seconds": "1,234.6",
        "input tokens": "30 now, 15 from the store",
        "output tokens": "4 now, 2 from the store",
        "cost": "unknown: the prices of a million tokens are not set",
        "repairs": "none",
    }
    assert rows(Tally(asked, repairs=Counter(tie=2), read=2))["repairs"] == "tie 2"


def test_a_teacher_that_scores_has_neither_tokens_nor_repairs():
    assert rows(Tally(Usage(12), seconds=0.25)) == {"answers": "12 now", "seconds": "0.2"}


def test_runs_and_recorded_answers_are_not_asked_for():
    assert rows(Tally(seconds=0.5)) == {"seconds": "0.5"}
    assert rows(Tally(repairs=Counter(missing=1), seconds=0.5)) == {
        "seconds": "0.5",
        "repairs": "missing 1",
    }
