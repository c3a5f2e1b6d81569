"""The error for problems that the user can fix, and text that is safe to print."""

import math
from typing import Any

MOST_QUOTED = 60
JOINERS = "\u200c\u200d"  # Persian, Indic scripts and emoji need them


class InputError(ValueError):
    """The user gave something unusable; the message names file, line and remedy in one line.

    The commands print it without a traceback and exit with a non-zero status. The message is made
    `printable`; `quoted` shortens the values in it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def quoted(value: Any) -> str:
    """Shorten an id, a line or another value for a message: a long one loses its middle."""
    text = printable(value if isinstance(value, str) else repr(value))
    if len(text) <= MOST_QUOTED:
        return text
    return f"{text[: MOST_QUOTED - 20]}...{text[-17:]}"


def printable(text: str) -> str:
    r"""Escape every character that a terminal cannot show or would act on: ``\n``, ``\x1b``.

    These are control characters, changes of writing direction, line separators, halves of
    surrogate pairs, unassigned characters and all spaces except U+0020.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in JOINERS else escaped(c) for c in text)


def escaped(text: str) -> str:
    r"""The characters as Python writes them in ASCII: ``\n``, ``\u4e2d``."""
    return text.encode("unicode_escape", "surrogatepass").decode("ascii")


def check_number(
    name: str,
    value: Any,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    optional: bool = False,
) -> None:
    """Raises `InputError` unless the value is finite, at least ``least`` and above ``above``.

    None passes if ``optional``.
    """
    if value is None and optional:
        return
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value < least or value <= above:
        wanted = f" of at least {least:g}" if math.isfinite(least) else ""
        wanted = f" above {above:g}" if math.isfinite(above) else wanted
        raise InputError(f"{name}={value} is not a number{wanted}")


def check_count(name: str, value: Any, *, optional: bool = False) -> None:
    """Raises `InputError` unless the value is a whole number above 0, or None if ``optional``."""
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name}={value} is not a whole number above 0")


def check_flag(name: str, value: Any) -> None:
    """Raises `InputError` unless the value is true or false; the text "no" is neither."""
    if not isinstance(value, bool):
        raise InputError(f"{name}={value} is neither true nor false")
