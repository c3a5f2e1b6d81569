"""Signals are recorded, then passed on to the handler that was installed before."""

import os
import signal

import pytest

from rankdistillm.training.signals import stop_requests


@pytest.fixture
def received():
    """The signals that a handler of SIGUSR2 received, such as the one submitit installs."""
    numbers: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, _: numbers.append(number))
    yield numbers
    signal.signal(signal.SIGUSR2, before)


def send(number):
    os.kill(os.getpid(), number)


def test_repeated_sigterm_only_requests_a_stop():
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
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with stop_requests() as stop:
        send(signal.SIGINT)
        assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def test_sigusr2_reaches_its_handler_in_the_end(received):
    with stop_requests() as stop:
        send(signal.SIGUSR2)
        assert stop.asked
        assert not received
        with pytest.raises(SystemExit):
            stop.end()
        assert received == [signal.SIGUSR2]
    send(signal.SIGUSR2)
    assert len(received) == 2


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_sigterm_before_or_after_does_not_keep_sigusr2_from_its_handler(order, received):
    signals = (signal.SIGUSR2, signal.SIGTERM)
    with stop_requests() as stop:
        for i in order:
            send(signals[i])
        with pytest.raises(SystemExit):
            stop.end()
    assert received == [signal.SIGUSR2]


def test_a_signal_to_another_process_ends_like_sigterm():
    with stop_requests() as stop, pytest.raises(SystemExit) as ended:
        stop.end()
    assert ended.value.code == 128 + signal.SIGTERM


def test_without_a_handler_sigusr2_is_left_alone():
    assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL
    with stop_requests():
        assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL
