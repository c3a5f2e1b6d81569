"""Progress of long work, on stderr: a bar on a terminal, a line a minute in a log."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from rankdistillm import distributed

SECONDS = 60.0  # between two lines of a log


def progress_bar(
    iterable: Iterable[Any] | None = None, *, shown: bool = True, **options: Any
) -> tqdm:
    """tqdm's bar with its ``options``; only the first process of a job shows one.

    In a log, such as a Slurm job's, tqdm would redraw the bar endlessly on a single line. There,
    a line is written every `SECONDS`, and none for work that takes less time.
    """
    if not sys.stderr.isatty():
        options |= {"file": _Lines(), "mininterval": SECONDS, "delay": SECONDS}
    return tqdm(iterable, disable=not (shown and distributed.is_first()), **options)


class _Lines:
    """stderr, with each redrawn bar on a line of its own."""

    def write(self, text: str) -> None:
        if text := text.strip():
            sys.stderr.write(f"{text}\n")

    def flush(self) -> None:
        sys.stderr.flush()
