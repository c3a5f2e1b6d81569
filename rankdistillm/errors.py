"""The one exception that is the user's to mend."""

from typing import Any


class InputError(ValueError):
    """What the user gave cannot be used; the message names file, line and remedy in one line.

    The commands print it without a traceback and exit with a non-zero status.
    """


def check_count(name: str, value: Any, *, optional: bool = False) -> None:
    """Raises `InputError` for anything but a whole number from 1 on (or None, if ``optional``)."""
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name}={value} is not a whole number from 1 on")
