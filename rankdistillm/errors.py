"""The error for problems that the user can fix, and how its message quotes what was found."""

import math
from typing import Any

MOST_QUOTED = 60


class InputError(ValueError):
    """What the user gave cannot be used; the message names file, line and remedy in one line.

    The commands print it without a traceback and exit with a non-zero status. Characters that a
    terminal cannot show are escaped; `quoted` shortens what the message quotes.
    """

    def __init__(self, message: str) -> None:
        super().__init__(_printable(message))


def quoted(value: Any) -> str:
    """An id, a line or another value as a message quotes it: a long one without its middle."""
    text = _printable(value if isinstance(value, str) else repr(value))
    if len(text) <= MOST_QUOTED:
        return text
    return f"{text[: MOST_QUOTED - 20]}...{text[-17:]}"


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def check_number(
    name: str,
    value: Any,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    optional: bool = False,
) -> None:
    """Raises `InputError` for anything but a finite number that is so large (or None)."""
    if value is None and optional:
        return
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value < least or value <= above:
        wanted = f" from {least:g} on" if math.isfinite(least) else ""
        wanted = f" above {above:g}" if math.isfinite(above) else wanted
        raise InputError(f"{name}={value} is not a number{wanted}")


def check_count(name: str, value: Any, *, optional: bool = False) -> None:
    """Raises `InputError` for anything but a whole number from 1 on (or None, if ``optional``)."""
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name}={value} is not a whole number from 1 on")


def check_flag(name: str, value: Any) -> None:
    """Raises `InputError` for anything but true and false, such as the text "no"."""
    if not isinstance(value, bool):
        raise InputError(f"{name}={value} is neither true nor false")
