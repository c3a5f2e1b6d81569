"""SIGTERM (Slurm preempts a job) and SIGINT (Ctrl-C) end a training after the step it is in."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """``asked`` is True once a signal came; ``number`` is that of the signal."""

    def __init__(self) -> None:
        self.number = 0

    @property
    def asked(self) -> bool:
        return bool(self.number)


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Note signals instead of dying of them inside the ``with`` block; a second one does kill."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # Python gives signals to the main thread alone
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, _: Any) -> None:
        request.number = number
        restore()

    for number in SIGNALS:
        signal.signal(number, note)
    try:
        yield request
    finally:
        restore()
