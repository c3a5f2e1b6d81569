"""Computed folders are made once, checked, made again if damaged, and never seen half-made."""

import logging
import threading

import filelock
import pytest

from rankdistillm.data import cache
from rankdistillm.data.cache import cache_folder, cached

MESSAGES = {"damaged": "damaged; made again", "waiting": "another process makes it"}


class Writer:
    """Writes one file; counts how often."""

    def __init__(self, before=lambda: None):
        self.calls, self.before = 0, before

    def __call__(self, folder):
        self.calls += 1
        self.before()
        (folder / "numbers.bin").write_bytes(b"12345")


def test_the_folder_is_that_of_the_environment(monkeypatch, tmp_path):
    for name in ("RANKDISTILLM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "rankdistillm"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache_folder() == tmp_path / "x" / "rankdistillm"
    monkeypatch.setenv("RANKDISTILLM_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"


def test_an_entry_is_made_once(tmp_path):
    writer = Writer()
    for _ in range(3):
        entry = cached(tmp_path / "new" / "entry", writer, **MESSAGES)
        assert (entry / "numbers.bin").read_bytes() == b"12345"
    assert writer.calls == 1


@pytest.mark.parametrize("damage", ["changed", "shorter", "missing", "no checksums"])
def test_a_damaged_entry_is_made_again(damage, tmp_path, caplog):
    writer = Writer()
    entry = cached(tmp_path / "entry", writer, **MESSAGES)
    file = entry / ("meta.json" if damage == "no checksums" else "numbers.bin")
    if damage in ("missing", "no checksums"):
        file.unlink()
    else:
        file.write_bytes(b"12346" if damage == "changed" else b"1234")
    cached(entry, writer, **MESSAGES)
    assert (entry / "numbers.bin").read_bytes() == b"12345"
    assert writer.calls == 2
    assert "damaged; made again" in caplog.text


def test_what_fails_leaves_nothing(tmp_path):
    def fail():
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        cached(tmp_path / "entry", Writer(fail), **MESSAGES)
    assert {path.name for path in tmp_path.iterdir()} <= {"entry.lock"}
    (tmp_path / ".entry.killed").mkdir()  # as a killed process leaves it
    cached(tmp_path / "entry", Writer(), **MESSAGES)
    assert not (tmp_path / ".entry.killed").exists()


def test_one_writes_while_another_waits(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(cache, "SECONDS", 0.01)
    begun, go_on = threading.Event(), threading.Event()

    def write_slowly():
        begun.set()
        go_on.wait()

    first, second = Writer(write_slowly), Writer()
    threads = [
        threading.Thread(target=cached, args=(tmp_path / "entry", writer), kwargs=MESSAGES)
        for writer in (first, second)
    ]
    threads[0].start()
    begun.wait()
    threads[1].start()
    while "another process makes it" not in caplog.text:
        assert threads[1].is_alive()
    go_on.set()
    for thread in threads:
        thread.join()
    assert (first.calls, second.calls) == (1, 0)


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def acquire(*_, **__):
        raise NotImplementedError

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    entry = cached(tmp_path / "entry", Writer(), **MESSAGES)
    assert (entry / "numbers.bin").exists()
