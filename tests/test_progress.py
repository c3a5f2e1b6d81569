"""Progress is a bar on a terminal and lines in a log."""

import io
import sys

import pytest

from rankdistillm import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def stderr(monkeypatch):
    """Replace stderr with a stream; called in the test, because pytest replaces stderr too."""

    def put(stream: io.StringIO) -> io.StringIO:
        monkeypatch.setattr(sys, "stderr", stream)
        return stream

    return put


def test_a_log_has_a_line_per_interval(stderr, monkeypatch):
    log = stderr(io.StringIO())
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    with progress.progress_bar(total=3, desc="embed", unit="text", miniters=1) as bar:
        for _ in range(3):
            bar.update()
    lines = log.getvalue().splitlines()
    assert lines[0].startswith("embed:   0%")
    assert lines[-1].startswith("embed: 100%")
    assert len(lines) >= 4
    assert "\r" not in log.getvalue()


def test_short_work_writes_no_line(stderr):
    log = stderr(io.StringIO())
    assert list(progress.progress_bar(range(3), desc="step")) == [0, 1, 2]
    assert log.getvalue() == ""


def test_a_terminal_has_a_bar(stderr):
    terminal = stderr(Terminal())
    list(progress.progress_bar(range(3), desc="step"))
    assert terminal.getvalue().count("\r") >= 2


def test_a_hidden_bar_writes_nothing(stderr):
    terminal = stderr(Terminal())
    list(progress.progress_bar(range(3), shown=False))
    assert terminal.getvalue() == ""
