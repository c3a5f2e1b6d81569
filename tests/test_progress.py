"""Bars on a terminal, lines in a log."""

import io
import sys

import pytest

from rankdistillm import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def stderr(monkeypatch):
    """Put a stream in the place of stderr, and give it back; in the test, not before it."""

    def put(stream: io.StringIO) -> io.StringIO:
        monkeypatch.setattr(sys, "stderr", stream)
        return stream

    return put


def test_a_log_has_a_line_now_and_then(stderr, monkeypatch):
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


def test_short_work_leaves_no_line(stderr):
    log = stderr(io.StringIO())
    assert list(progress.progress_bar(range(3), desc="step")) == [0, 1, 2]
    assert log.getvalue() == ""


def test_a_terminal_has_a_bar(stderr):
    terminal = stderr(Terminal())
    list(progress.progress_bar(range(3), desc="step"))
    assert terminal.getvalue().count("\r") >= 2


def test_what_is_not_to_be_shown_is_not(stderr):
    terminal = stderr(Terminal())
    list(progress.progress_bar(range(3), shown=False))
    assert terminal.getvalue() == ""
