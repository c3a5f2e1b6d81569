"""Open plain or gzipped text with errors that name the file; write beside, then rename."""

import gzip
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, TextIO

from filelock import FileLock, Timeout

from rankdistillm.errors import InputError


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
            said = error.msg if isinstance(error, json.JSONDecodeError) else error
            raise InputError(
                f"{path}, line {line}: not JSON ({said}); expected one object a line"
            ) from error


def text_of(value: Any, name: str, where: str) -> str:
    """An id or text out of a file that has types: a text, UTF-8 in bytes, or a whole number.

    Raises `InputError` for anything else, such as a list or 1.0: an id that would match nothing.
    """
    try:
        if isinstance(value, bytes):
            return value.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: the {name} {value!r:.40} is not UTF-8; convert it") from error
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InputError(f"{where}: the {name} {value!r:.40} is not a text; write it as one")
    return str(value)


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


def check_writable(folder: Path, wanted: str) -> None:
    """Make the folder, if need be; where no file can be written an `InputError` for ``wanted``."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"{wanted}: cannot be written ({error.strerror or error}); choose another place"
        ) from error


def check_output(file: Path, wanted: str) -> None:
    """Raises `InputError` for ``wanted`` where `replacing` could not write ``file``.

    To be called before the work that would be lost; it writes nothing.
    """
    check_writable(file.parent, wanted)
    try:
        if file.is_dir():
            raise InputError(f"{wanted}: a folder; give the name of a file")
        if file.exists() and not file.is_file():
            raise InputError(f"{wanted}: a device or pipe; give the name of a file")
        _beside(file).exists()  # its name may be too long
    except OSError as error:
        raise InputError(
            f"{wanted}: cannot be written ({error.strerror or error}); choose another name"
        ) from error


@contextmanager
def locked(folder: Path) -> Iterator[Path]:
    """Keep ``folder`` to this process, with a lock that the system takes away when it ends.

    Raises `InputError` where another process has it.
    """
    file = folder / ".lock"
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
        raise InputError(
            f"{path}: cannot be written ({error.strerror or error}); choose another place"
        ) from error
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
