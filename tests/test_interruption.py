"""Signals are noted, and handed on to whoever listened before."""

import os
import signal

import pytest

from rankdistillm.interruption import stop_requests


@pytest.fixture
def heard():
    """What a listener to SIGUSR2 heard, as submitit's is one."""
    numbers: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, _: numbers.append(number))
    yield numbers
    signal.signal(signal.SIGUSR2, before)


def send(number):
    os.kill(os.getpid(), number)


def test_sigterm_is_noted_as_often_as_it_comes():
    before = signal.getsignal(signal.SIGTERM)
    with stop_requests() as stop:
        assert not stop.asked
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        assert stop.asked
    assert signal.getsignal(signal.SIGTERM) is before
    with pytest.raises(SystemExit) as ended:
        stop.end()
    assert ended.value.code == 128 + signal.SIGTERM


def test_a_second_ctrl_c_interrupts():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & ignores it
    with stop_requests() as stop:
        send(signal.SIGINT)
        assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def test_sigusr2_reaches_its_listener_when_all_is_saved(heard):
    with stop_requests() as stop:
        send(signal.SIGUSR2)
        assert stop.asked
        assert not heard
        with pytest.raises(SystemExit):
            stop.end()
        assert heard == [signal.SIGUSR2]
    send(signal.SIGUSR2)
    assert len(heard) == 2


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_sigterm_before_or_after_does_not_keep_sigusr2_from_its_listener(order, heard):
    signals = (signal.SIGUSR2, signal.SIGTERM)
    with stop_requests() as stop:
        for i in order:
            send(signals[i])
        with pytest.raises(SystemExit):
            stop.end()
    assert heard == [signal.SIGUSR2]


def test_a_signal_of_another_process_ends_as_sigterm():
    with stop_requests() as stop, pytest.raises(SystemExit) as ended:
        stop.end()
    assert ended.value.code == 128 + signal.SIGTERM


def test_without_a_listener_sigusr2_is_left_alone():
    assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL
    with stop_requests():
        assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL
