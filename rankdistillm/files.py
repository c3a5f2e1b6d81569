"""Open plain or gzipped text with errors that name the file; write beside, then rename."""

import errno
import gzip
import json
import math
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, TextIO, TypeVar

import numpy as np
from filelock import FileLock, Timeout

from rankdistillm.errors import InputError, quoted

# Scores are targets, and are written, in float32.
LARGEST_SCORE = float(np.finfo(np.float32).max)
WHOLE = re.compile(r"[+-]?[0-9]+")
DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
N = TypeVar("N", int, float)
NUMBERS = (int, float, Decimal, np.integer, np.floating)


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield ``(line number from 1, line without its end)`` of a UTF-8 text file, plain or ``.gz``.

    Blank lines and a byte order mark are passed over. Raises `InputError` for a file that is
    missing, unreadable, cut off, not UTF-8 or without any line.
    """
    number = 0
    anything = False
    try:
        with _open(path) as file:
            for number, line in enumerate(file, 1):
                line = line.rstrip("\r\n")
                if line.strip():
                    anything = True
                    yield number, line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(
            f"{path}, after line {number}: the gzip file is cut off or damaged ({error}); "
            "fetch or compress it again"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}, after line {number}: not UTF-8 ({error.reason}); convert it, for example "
            "with iconv"
        ) from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    if not anything:
        raise InputError(f"{path}: the file is empty; expected one entry a line")


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """`numbered_lines`, each read as JSON; `InputError`, with file and line, where it is none."""
    for line, text in numbered_lines(path):
        try:
            yield line, json.loads(text)
        except (ValueError, RecursionError) as error:  # numbers and nesting beyond all measure, too
            # Without the place inside the line, which JSON calls line 1.
            said = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise InputError(
                f"{path}, line {line}: not JSON ({quoted(said)}); expected one object a line"
            ) from error


def text_of(value: Any, name: str, where: str) -> str:
    """An id or text out of a file that has types: a text, UTF-8 in bytes, or a whole number.

    Raises `InputError` for anything else, such as a list or 1.0 (an id that would match nothing),
    and for half of a surrogate pair, which JSON can spell but no file can hold.
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
            f"{where}: the {name} {quoted(text)} holds half of a surrogate pair, which is no "
            "character; correct it"
        )
    return text


def is_utf8(text: str) -> bool:
    """Whether a text can be written: it holds no half of a surrogate pair."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def whole_of(value: Any, name: str, where: str) -> int:
    """A rank or relevance out of a file: a whole number of 64 bits.

    In a text (or UTF-8 in bytes) it is a sign or none and the digits 0 to 9, nothing else. Raises
    `InputError` for anything else.
    """
    if type(value) is int and -(2**63) <= value < 2**63:
        return value  # at once: JSONL and Parquet have nothing else
    value = _decoded(value)
    number = _number(value, WHOLE, int)
    # int() would cut 2.5 to 2.
    if number is None or (number != value and not isinstance(value, str)):
        raise InputError(
            f"{where}: the {name} {quoted(repr(value))} is not a whole number; correct the line "
            "(a sign or none, and the digits 0 to 9)"
        )
    if not -(2**63) <= number < 2**63:
        raise InputError(
            f"{where}: the {name} {quoted(repr(value))} is too large; correct the line"
        )
    return number


def score_of(value: Any, name: str, where: str) -> float:
    """A score out of a file, as float64: a number in the range of float32.

    In a text (or UTF-8 in bytes) it is a decimal number in the digits 0 to 9, maybe with a sign,
    a point and an exponent. Raises `InputError` for anything else, infinity and NaN included.
    """
    if type(value) is float and abs(value) <= LARGEST_SCORE:
        return value  # at once, as in `whole_of`
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
    """``kind(value)``; None for what is no number, or a text that the pattern does not match."""
    if isinstance(value, str):
        if not pattern.fullmatch(value):
            return None
    elif isinstance(value, bool) or not isinstance(value, NUMBERS):
        return None
    try:
        return kind(value)
    except (ValueError, OverflowError):  # no whole number is infinite; thousands of digits
        return None


def _open(path: Path) -> TextIO:
    # A carriage return alone ends no line: it may stand in a text.
    how: Any = {"encoding": "utf-8-sig", "newline": "\n"}
    return gzip.open(path, "rt", **how) if path.suffix == ".gz" else open(path, **how)


def suffix_of(path: Path) -> str:
    """The suffix that tells a file's format: ``.run`` for ``a.run`` and for ``a.run.gz``."""
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def to_disk(path: Path) -> None:
    """Wait until the content is on the disk: else a power failure may leave a name without it."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


# Errors of the disk itself, which another name in the same place does not mend.
FULL = {errno.ENOSPC, errno.EDQUOT}


def unwritable(name: str | Path, error: OSError) -> InputError:
    """The `InputError` for a file or folder that could not be written."""
    number = error.errno
    # safetensors and tokenizers give the number of the system's error in words alone.
    if number is None and (said := re.search(r"os error (\d+)", str(error))):
        number = int(said[1])
    if number in FULL:
        return InputError(
            f"{name}: the disk is full or its quota used up ({os.strerror(number)}); free some "
            "space, then run the same command again"
        )
    return InputError(
        f"{name}: cannot be written ({error.strerror or error}); choose another place"
    )


@contextmanager
def writable_folder(folder: Path, wanted: str) -> Iterator[Path]:
    """Make the folder, if need be; what is still empty after the ``with`` block is removed again.

    Raises `InputError` for ``wanted`` where no file can be written.
    """
    made: list[Path] = []
    try:
        made = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder) as file:
            file.write(b"0")  # on a full disk an empty file can be made
    except OSError as error:
        _remove_empty(made)
        raise unwritable(wanted, error) from error
    try:
        yield folder
    finally:
        _remove_empty(made)


def _remove_empty(folders: Iterable[Path]) -> None:
    with suppress(OSError):  # not empty, or never made
        for folder in folders:
            folder.rmdir()


def check_output(file: Path, wanted: str) -> None:
    """Raises `InputError` for ``wanted`` where `replacing` could not write ``file``.

    To be called before the work that would be lost; it leaves nothing behind.
    """
    try:
        if file.is_dir():
            raise InputError(f"{wanted}: a folder; give the name of a file")
        if file.exists() and not file.is_file():
            raise InputError(f"{wanted}: a device or pipe; give the name of a file")
        _beside(file).exists()  # its name may be too long
    except OSError as error:
        raise unwritable(wanted, error) from error
    with writable_folder(file.parent, wanted):
        pass


def keep_apart(
    outputs: Sequence[tuple[str, str | Path]], inputs: Iterable[tuple[str, str | Path]]
) -> None:
    """Raises `InputError` where writing an output would destroy an input or another output.

    Both are pairs (what the user calls it, path or id). A link to a file is that file; a folder is
    all that lies in it.
    """
    read = list(inputs)
    for i, (wanted, output) in enumerate(outputs):
        for name, path in read:
            if _holds(Path(output), Path(path)):
                raise InputError(
                    f"{wanted} would overwrite {name}, which is read; choose another name"
                )
        for name, path in outputs[:i]:
            if _holds(Path(output), Path(path)) or _holds(Path(path), Path(output)):
                raise InputError(f"{wanted} and {name} are one file; choose different names")


def _holds(path: Path, other: Path) -> bool:
    """Whether ``path`` is ``other`` or a folder that it lies in, by whatever names."""
    try:
        place = other.resolve()
        if path.resolve() in (place, *place.parents):
            return True
        if not path.exists():
            return False
        return any(path.samefile(part) for part in (place, *place.parents) if part.exists())
    except (OSError, RuntimeError):  # too long a name, a loop of links: not a file that is there
        return False


@contextmanager
def locked(folder: Path) -> Iterator[Path]:
    """Keep ``folder`` to this process, with a lock that the system takes away when it ends.

    Raises `InputError` where another process has it.
    """
    file = folder / ".rankdistillm.lock"
    lock = FileLock(file, timeout=0)
    try:
        with suppress(NotImplementedError):  # a file system without locks
            lock.acquire()
    except Timeout as error:
        raise InputError(
            f"{folder}: another training writes there; wait for its end, or choose another output"
        ) from error
    try:
        yield folder
    finally:
        file.unlink(missing_ok=True)
        lock.release()


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.part")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path beside ``path`` to write to, and rename it to ``path`` when all went well.

    On an error nothing is left, and what stood under ``path`` before still stands there.
    """
    beside = _beside(path)
    try:
        if path.exists() and not path.is_file():
            raise FileExistsError("not a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        to_disk(beside)
        os.replace(beside, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):  # where the folder itself could not be made
            beside.unlink(missing_ok=True)


def load_ir_dataset(identifier: str, what: str) -> Any:
    """The ir_datasets data set of that id, or an `InputError` where there is no such id."""
    try:
        return _catalogue()[identifier]
    except KeyError as error:
        raise InputError(
            f"{identifier}: neither a file nor an ir_datasets id (wanted: {what})"
        ) from error


def collection_of(source: str | Path) -> str | None:
    """The ir_datasets id of the texts that a run ranks, as its name tells; None if it does not.

    A run that is a data set of ir_datasets brings them; a file may name it after the last ``__``
    with dashes for slashes, as those of the Rank-DistiLLM release do: ``__bm25__cranfield.run.gz``.
    """
    _, marked, name = Path(source).name.rpartition("__")
    name = name.removesuffix(".gz").rpartition(".")[0]
    for known in _catalogue():
        if known == str(source) or (marked and known.replace("/", "-") == name):
            return known
    return None


def _catalogue() -> Any:
    import ir_datasets  # late: registering its catalogue takes a noticeable part of a second

    from rankdistillm import released

    released.register()
    return ir_datasets.registry
