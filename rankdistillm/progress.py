"""Progress of long work, on stderr: a bar on a terminal, elsewhere a line a minute."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from rankdistillm import processes

SECONDS = 60.0  # between two lines


def progress_bar(
    iterable: Iterable[Any] | None = None, *, shown: bool = True, **options: Any
) -> tqdm:
    """tqdm's bar with its ``options``, of the first process of a job alone.

    In a log, as a job of Slurm leaves, tqdm would draw the bar over and over in one line without
    end. There it is a line every `SECONDS`, and none for work that takes less.
    """
    if not sys.stderr.isatty():
        options |= {"file": _Lines(), "mininterval": SECONDS, "delay": SECONDS}
    return tqdm(iterable, disable=not (shown and processes.is_first()), **options)


class _Lines:
    """stderr, on which a bar that is drawn anew is a new line."""

    def write(self, text: str) -> None:
        if text := text.strip():
            sys.stderr.write(f"{text}\n")

    def flush(self) -> None:
        sys.stderr.flush()
