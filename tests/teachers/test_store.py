"""The store of answers: what it keeps, what it refuses, and several processes at once."""

import sqlite3
import subprocess
import sys
import threading

import pytest

from rankdistillm.errors import InputError
from rankdistillm.teachers.backends import Completion
from rankdistillm.teachers.store import AnswerStore, ReadOnlyStore, key_of

MESSAGES = [{"role": "user", "content": "order these"}]


def test_an_answer_comes_back_whole_also_in_another_process(tmp_path):
    answers = {
        key_of("m", [i], {}): answer
        for i, answer in enumerate(
            [
                Completion("[2] > [1]", 120, 9),
                Completion("", 0, 0, [{"A": -0.1, " B": -2.5}, {}], cut_to=40),
                Completion("café 潮汐 \0 \u2028", 1, 2),
                Completion("x" * 100_000, 1, 2, cut_off=True),
            ]
        )
    }
    with AnswerStore(tmp_path / "new" / "answers.sqlite") as store:
        for key, answer in answers.items():
            assert store.get(key) is None
            assert store.put(key, answer, model="m") == answer
    with AnswerStore(tmp_path / "new" / "answers.sqlite") as store:
        assert {key: store.get(key) for key in answers} == answers
        assert len(store) == len(answers)


def test_whatever_decides_an_answer_is_part_of_its_key():
    options = {"max_tokens": 10, "temperature": 0.0}
    keys = {
        key_of("m", MESSAGES, options),
        key_of("n", MESSAGES, options),
        key_of("m", [{"role": "system", "content": "order these"}], options),
        key_of("m", [{"role": "user", "content": "order these "}], options),
        key_of("m", MESSAGES, options | {"temperature": 0.5}),
        key_of("m", MESSAGES, options | {"seed": 1}),
        key_of("m", ["query", "passage"], options),
    }
    assert len(keys) == 7
    # The order in which options were given decides nothing.
    assert key_of("m", MESSAGES, dict(reversed(options.items()))) in keys


def test_the_first_answer_counts(tmp_path):
    with AnswerStore(tmp_path / "a") as store, AnswerStore(tmp_path / "a") as other:
        assert store.put(b"key", Completion("first")).text == "first"
        assert other.put(b"key", Completion("second")).text == "first"
        assert other.get(b"key") == Completion("first")


def test_a_rehearsal_writes_nothing(tmp_path):
    with AnswerStore(tmp_path / "a") as store:
        store.put(b"known", Completion("known"))
        reading = ReadOnlyStore(store)
        assert reading.put(b"new", Completion("new")) == Completion("new")
        assert reading.get(b"known") == Completion("known")
        assert store.get(b"new") is None


WRITER = """
import sys
from rankdistillm.teachers.backends import Completion
from rankdistillm.teachers.store import AnswerStore
with AnswerStore(sys.argv[1]) as store:
    for i in range(int(sys.argv[2]), int(sys.argv[3])):
        store.put(b"%d" % i, Completion(f"answer {i}"))
"""


def test_processes_share_a_store_from_its_making_on(tmp_path):
    path = str(tmp_path / "answers.sqlite")
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, path, str(first), str(first + 200)])
        for first in (0, 100, 200)
    ]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    with AnswerStore(path) as store:
        assert len(store) == 400
        assert all(store.get(b"%d" % i) == Completion(f"answer {i}") for i in range(400))


def test_a_new_store_waits_for_a_process_that_writes_the_file(tmp_path):
    """SQLite's own timeout does not cover the switch to a write-ahead log."""
    other = sqlite3.connect(tmp_path / "a", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    ending = threading.Timer(0.2, other.execute, ["COMMIT"])
    ending.start()
    with AnswerStore(tmp_path / "a") as store:
        assert not other.in_transaction
        store.put(b"key", Completion("answer"))
    ending.join()
    other.close()


def test_answers_of_the_first_version_are_kept(tmp_path):
    with sqlite3.connect(tmp_path / "old") as database:
        database.execute(
            "CREATE TABLE answers (key BLOB PRIMARY KEY, model TEXT NOT NULL, text TEXT NOT NULL, "
            "input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL, top_logprobs TEXT, "
            "cut INTEGER)"
        )
        database.execute("INSERT INTO answers VALUES (?, 'm', '[1]', 3, 4, NULL, 20)", (b"old",))
        database.execute("PRAGMA user_version = 1")
    database.close()
    for _ in range(2):
        with AnswerStore(tmp_path / "old") as store:
            store.put(b"new", Completion("[2", cut_off=True))
            assert store.get(b"old") == Completion("[1]", 3, 4, cut_to=20)
            assert store.get(b"new") == Completion("[2", cut_off=True)


def test_other_files_are_refused_and_left_alone(tmp_path):
    (tmp_path / "text").write_text("no database " * 100)
    with sqlite3.connect(tmp_path / "other") as database:
        database.execute("CREATE TABLE mine (x)")
    database.close()
    with sqlite3.connect(tmp_path / "newer") as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    names = ("text", "other", "newer")
    before = {name: (tmp_path / name).read_bytes() for name in names}
    for name in names:
        with pytest.raises(InputError, match=rf"{name}: .*another file"):
            AnswerStore(tmp_path / name)
        assert (tmp_path / name).read_bytes() == before[name]
    with pytest.raises(InputError, match="text"):
        AnswerStore(tmp_path / "text" / "inside")
    with pytest.raises(InputError, match="store of answers"):
        AnswerStore(tmp_path)


def test_a_database_that_breaks_later_ends_in_one_line(tmp_path):
    with AnswerStore(tmp_path / "a") as store:
        store._database.execute("DROP TABLE answers")
        with pytest.raises(InputError, match=r"a: the store of answers cannot be used"):
            store.put(b"key", Completion("x"))
