"""SIGTERM (a job is preempted) and SIGINT (Ctrl-C) end a training after the step it is in.

So does SIGUSR2 where somebody listens to it: submitit's, which queues a Slurm job again that is
preempted or runs out of time. It is handed on once the checkpoint is written.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

SIGNALS = (signal.SIGTERM, signal.SIGINT)
HANDED_ON = [getattr(signal, name) for name in ("SIGUSR2",) if hasattr(signal, name)]


class StopRequest:
    """``asked`` is True once a signal came."""

    def __init__(self) -> None:
        self.number = 0
        self._listener: Callable[..., Any] | None = None

    @property
    def asked(self) -> bool:
        return bool(self.number)

    def note(self, number: int, listener: Any) -> None:
        """Take in a signal, and whom it is to be handed on to; such a one is not forgotten."""
        if self._listener is None:
            self.number = number
            self._listener = listener

    def end(self) -> NoReturn:
        """Leave as the signal asks: call its listener, or exit with 128 + its number.

        Without a signal (it came to another process of the job): as for SIGTERM.
        """
        if self._listener is not None:
            self._listener(self.number, None)
        raise SystemExit(128 + (self.number or signal.SIGTERM))


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Note signals instead of dying of them inside the ``with`` block.

    A second Ctrl-C does kill. A second SIGTERM does not: torchrun passes on to its processes the
    one that Slurm has sent to all.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # Python gives signals to the main thread alone
        return
    before = {number: signal.getsignal(number) for number in (*SIGNALS, *HANDED_ON)}
    listeners = {number: before[number] for number in HANDED_ON if callable(before[number])}

    def note(number: int, _: Any) -> None:
        request.note(number, listeners.get(number))
        if number == signal.SIGINT:
            signal.signal(number, before[number])

    for number in (*SIGNALS, *listeners):
        signal.signal(number, note)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
