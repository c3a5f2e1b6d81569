"""Read plain or gzipped text files and parse their values; errors name file and line."""

import gzip
import json
import math
import re
import zlib
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, TextIO, TypeVar

import numpy as np

from rankdistillm.errors import InputError, quoted

# Scores become float32 targets and are written as float32.
LARGEST_SCORE = float(np.finfo(np.float32).max)
GZIP = b"\x1f\x8b"  # the first bytes of each gzip file
INTEGER = re.compile(r"[+-]?[0-9]+")
DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
N = TypeVar("N", int, float)
NUMBERS = (int, float, Decimal, np.integer, np.floating)


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield ``(line number from 1, line without its end)`` of a UTF-8 text file, plain or ``.gz``.

    Blank lines and a byte order mark are skipped. Raises `InputError` for a file that is missing,
    unreadable, cut off, not UTF-8 or empty.
    """
    number = 0
    is_empty = True
    try:
        with _open(path) as file:
            for number, line in enumerate(file, 1):
                line = line.rstrip("\r\n")
                if line.strip():
                    is_empty = False
                    yield number, line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(
            f"{path}, after line {number}: the gzip file is cut off or damaged ({error}); "
            "fetch or compress it again"
        ) from error
    except UnicodeDecodeError as error:
        if number == 0 and error.object.startswith(GZIP):
            raise InputError(f"{path}: a gzip file; rename it to end in .gz") from error
        where = f", after line {number}" if number else ""
        raise InputError(
            f"{path}{where}: not UTF-8 ({error.reason}); convert it, for example with iconv"
        ) from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    if is_empty:
        raise InputError(f"{path}: the file is empty; expected one entry a line")


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """`numbered_lines`, parsed as JSON. Raises `InputError` with file and line for invalid JSON."""
    for line, text in numbered_lines(path):
        try:
            yield line, json.loads(text)
        except (ValueError, RecursionError) as error:  # also huge numbers and deep nesting
            # The full message would add a position that always says line 1.
            said = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise InputError(
                f"{path}, line {line}: not JSON ({quoted(said)}); expected one object a line"
            ) from error


def text_of(value: Any, name: str, where: str) -> str:
    """Parse an id or text from a typed file (JSONL, Parquet): a string, UTF-8 bytes or an integer.

    Raises `InputError` for anything else, such as a list or 1.0 (an id that would match nothing),
    and for a lone surrogate, which JSON can spell but UTF-8 cannot.
    """
    try:
        if isinstance(value, bytes):
            return value.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: the {name} {quoted(value)} is not UTF-8; convert it") from error
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InputError(f"{where}: the {name} {quoted(value)} is not a text; write it as one")
    text = str(value)
    if not is_utf8(text):
        raise InputError(
            f"{where}: the {name} {quoted(text)} holds half of a surrogate pair, which is not "
            "a character; correct it"
        )
    return text


def is_utf8(text: str) -> bool:
    """Whether a text can be written as UTF-8: it holds no lone surrogate."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def integer_of(value: Any, name: str, where: str) -> int:
    """Parse a rank or relevance as a 64-bit integer.

    ``value`` is a whole number, or a string (or UTF-8 bytes) of digits 0 to 9 with an optional
    sign. Raises `InputError` for anything else.
    """
    if type(value) is int and -(2**63) <= value < 2**63:
        return value  # a shortcut for the usual case of JSONL and Parquet
    value = _decoded(value)
    number = _number(value, INTEGER, int)
    # int() would cut 2.5 to 2.
    if number is None or (number != value and not isinstance(value, str)):
        raise InputError(
            f"{where}: the {name} {quoted(repr(value))} is not a whole number; correct the line "
            "(an optional sign and the digits 0 to 9)"
        )
    if not -(2**63) <= number < 2**63:
        raise InputError(
            f"{where}: the {name} {quoted(repr(value))} is too large; correct the line"
        )
    return number


def score_of(value: Any, name: str, where: str) -> float:
    """Parse a score as float64; it must lie in the range of float32.

    ``value`` is a number, or a string (or UTF-8 bytes) of digits 0 to 9 with an optional sign,
    point and exponent. Raises `InputError` for anything else, infinity and NaN included.
    """
    if type(value) is float and abs(value) <= LARGEST_SCORE:
        return value  # the usual case, as in `integer_of`
    value = _decoded(value)
    number = _number(value, DECIMAL, float)
    if number is None:
        raise InputError(
            f"{where}: the {name} {quoted(repr(value))} is not a number; correct the line "
            "(a decimal number such as -1.5 or 2e3)"
        )
    if not abs(number) <= LARGEST_SCORE:
        fault = "too large for float32" if math.isfinite(number) else "not finite"
        raise InputError(f"{where}: the {name} {quoted(repr(value))} is {fault}; correct the line")
    return number


def _decoded(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _number(value: Any, pattern: re.Pattern[str], kind: Callable[[Any], N]) -> N | None:
    """``kind(value)``; None if it is not a number, or a string that does not match."""
    if isinstance(value, str):
        if not pattern.fullmatch(value):
            return None
    elif isinstance(value, bool) or not isinstance(value, NUMBERS):
        return None
    try:
        return kind(value)
    except (ValueError, OverflowError):  # infinite, or thousands of digits
        return None


def _open(path: Path) -> TextIO:
    # A lone carriage return may be part of a text; it does not end the line.
    how: Any = {"encoding": "utf-8-sig", "newline": "\n"}
    return gzip.open(path, "rt", **how) if path.suffix == ".gz" else open(path, **how)


def suffix_of(path: Path) -> str:
    """The suffix that names a file's format: ``.run`` for ``a.run`` and ``a.run.gz``."""
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
