import numpy as np
import pytest

from rankdistillm.data import columns
from rankdistillm.data.columns import Coded, Columns


@pytest.fixture
def lists(monkeypatch):
    """Three lists, of which no two fit into one block."""
    monkeypatch.setattr(columns, "ROWS_AT_ONCE", 3)
    docs = Coded.of(["a", "b", "c", "b", "d", "e", "a"])
    return Columns.from_lists(["q", "r", "s"], [3, 2, 2], docs, np.zeros(7))


def test_listed_passages_come_in_the_order_of_their_first_appearance(lists):
    def listed(columns):
        return columns.doc_ids[columns.listed()].tolist()

    assert listed(lists) == ["a", "b", "c", "d", "e"]
    assert listed(lists.lists(np.array([2, 1]))) == ["e", "a", "b", "d"]
    assert listed(lists.truncate(1)) == ["a", "b", "e"]
    assert listed(lists.lists(slice(0, 0))) == []


def test_a_list_holds_the_passages_of_its_own_rows_alone(lists):
    chosen = np.array([0, 0, 1, 2, 2, 1])
    docs = lists.encode(["c", "d", "d", "a", "b", "unknown"])
    assert lists.lists(chosen).holds(docs.codes).tolist() == [True, False, True, True, False, False]
    assert not lists.truncate(0).holds(np.zeros(3, dtype=np.int32)).any()


def test_unknown_passages_get_the_next_codes(lists):
    docs = lists.encode(["new", "e", "other", "new"])
    assert docs.codes.tolist() == [5, 4, 6, 5]
    assert docs.ids.tolist() == ["a", "b", "c", "d", "e", "new", "other"]
