"""Write outputs safely: beside the final name, then renamed; never over inputs or each other."""

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile

from filelock import FileLock, Timeout

from rankdistillm.errors import InputError


def to_disk(path: Path) -> None:
    """Flush a file to disk, so that a power failure cannot leave its name without its content."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


# Errors of the disk itself: another file name on the same disk would not help.
FULL = {errno.ENOSPC, errno.EDQUOT}


def unwritable(name: str | Path, error: OSError) -> InputError:
    """The `InputError` for a file or folder that cannot be written."""
    number = error.errno
    # safetensors and tokenizers report the system's error number only in their message.
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
    """Create the folder if needed; remove it again if it is still empty after the ``with`` block.

    Raises `InputError`, naming ``wanted``, if no file can be written there.
    """
    made: list[Path] = []
    try:
        made = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder) as file:
            file.write(b"0")  # a full disk still takes empty files
    except OSError as error:
        _remove_empty(made)
        raise unwritable(wanted, error) from error
    try:
        yield folder
    finally:
        _remove_empty(made)


def _remove_empty(folders: Iterable[Path]) -> None:
    with suppress(OSError):  # not empty, or never created
        for folder in folders:
            folder.rmdir()


def check_output(file: Path, wanted: str) -> None:
    """Raises `InputError`, naming ``wanted``, if `replacing` could not write ``file``.

    Call it before work that would be lost. It leaves nothing behind.
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
    """Raises `InputError` if writing an output would destroy an input or another output.

    Each is a pair: the name that the message uses, such as ``output=x``, and the path or id. Links
    are followed, and a folder stands for everything in it.
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
    """Whether ``path`` is ``other`` or one of its parent folders, also through links."""
    try:
        found = other.resolve()
        if path.resolve() in (found, *found.parents):
            return True
        if not path.exists():
            return False
        return any(path.samefile(part) for part in (found, *found.parents) if part.exists())
    except (OSError, RuntimeError):  # a name too long, or a loop of links: no such file
        return False


def acquire(lock: FileLock, *, timeout: float) -> None:
    """Acquire a lock, or do without it on a file system that has none.

    Waits ``timeout`` seconds (-1: for ever), then raises `filelock.Timeout`.
    """
    with suppress(NotImplementedError):
        lock.acquire(timeout=timeout)


LOCK = ".rankdistillm.lock"


@contextmanager
def locked(folder: Path) -> Iterator[Path]:
    """Lock ``folder`` for this process; the system releases the lock when the process ends.

    Raises `InputError` if another process holds it.
    """
    file = folder / LOCK
    lock = FileLock(file)
    try:
        acquire(lock, timeout=0)
    except Timeout as error:
        raise InputError(
            f"{folder}: another process writes there; wait until it ends, or choose another folder"
        ) from error
    try:
        yield folder
    finally:
        file.unlink(missing_ok=True)
        lock.release()


def is_locked(folder: Path) -> bool:
    """Whether a process holds the lock of `locked`; False where that cannot be told."""
    file = folder / LOCK
    if not file.exists():
        return False
    lock = FileLock(file)
    try:
        acquire(lock, timeout=0)
    except Timeout:
        return True
    except OSError:  # the folder of another user, or one that is gone by now
        return False
    lock.release()
    return False


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.part")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``, and rename it to ``path`` on success.

    On an error the temporary file is removed and ``path`` keeps its old content.
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
        with suppress(OSError):  # the folder itself could not be created
            beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` and a final newline, by `replacing`."""
    with replacing(path) as beside:
        # File names that are not UTF-8 give halves of surrogate pairs; escape them as JSON does.
        beside.write_text(text + "\n", "utf-8", errors="backslashreplace", newline="")


@contextmanager
def replacing_folder(folder: Path, *, keep: Callable[[Path], bool] | None = None) -> Iterator[Path]:
    """Yield a temporary folder beside ``folder``, and rename it to ``folder`` on success.

    Until then ``folder`` keeps its old content; nothing half-written ever has its name. What the
    old folder has and the new one lacks is moved there if ``keep`` says so, and else deleted.
    """
    beside = folder.with_name(f".{folder.name}.part")
    old = folder.with_name(f".{folder.name}.old")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        yield beside
        for file in beside.rglob("*"):
            if file.is_file():
                to_disk(file)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.replace(folder, old)
        os.replace(beside, folder)
        if keep is not None and old.exists():
            for path in old.iterdir():
                if keep(path) and not (folder / path.name).exists():
                    os.replace(path, folder / path.name)
    except OSError as error:
        raise unwritable(folder, error) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)


def restore_folder(folder: Path) -> None:
    """Undo a `replacing_folder` that was killed between its two renames."""
    old = folder.with_name(f".{folder.name}.old")
    if old.exists() and not folder.exists():
        os.replace(old, folder)
