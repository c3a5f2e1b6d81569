"""SIGTERM (a preempted job) and SIGINT (Ctrl-C) end a training after its current step.

So does SIGUSR2 if a handler for it is installed: submitit installs one, which requeues a Slurm job
that is preempted or out of time. It is called after the state is saved.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

SIGNALS = (signal.SIGTERM, signal.SIGINT)
FORWARDED = [getattr(signal, name) for name in ("SIGUSR2",) if hasattr(signal, name)]


class StopRequest:
    """``asked`` is True once a signal has arrived."""

    def __init__(self) -> None:
        self.number = 0
        self._handler: Callable[..., Any] | None = None

    @property
    def asked(self) -> bool:
        return bool(self.number)

    def note(self, number: int, handler: Any) -> None:
        """Record a signal and the handler to call in the end (None: exit).

        A later signal does not replace one that has a handler.
        """
        if self._handler is None:
            self.number = number
            self._handler = handler

    def end(self) -> NoReturn:
        """Call the handler of the signal, then exit with status 128 + its number.

        If only another process of the job received one, end as after SIGTERM.
        """
        if self._handler is not None:
            self._handler(self.number, None)
        raise SystemExit(128 + (self.number or signal.SIGTERM))


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Inside the ``with`` block, record signals instead of ending the process.

    A second Ctrl-C does end it. A second SIGTERM does not: Slurm sends one to all processes, and
    torchrun passes its own on to them.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # Python delivers signals to the main thread only
        return
    before = {number: signal.getsignal(number) for number in (*SIGNALS, *FORWARDED)}
    handlers = {number: before[number] for number in FORWARDED if callable(before[number])}

    def note(number: int, _: Any) -> None:
        request.note(number, handlers.get(number))
        if number == signal.SIGINT:
            signal.signal(number, before[number])

    for number in (*SIGNALS, *handlers):
        signal.signal(number, note)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
