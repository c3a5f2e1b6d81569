"""Folders of computed files, kept from one command to the next and checked when they are opened.

They are in ``$RANKDISTILLM_CACHE``, else ``$XDG_CACHE_HOME/rankdistillm``, else
``~/.cache/rankdistillm``, and may be deleted at any time.
"""

import json
import logging
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from rankdistillm.data.outputs import acquire

log = logging.getLogger(__name__)

CHECKSUMS = "meta.json"
SECONDS = 5.0  # of waiting for another process before the log says so


def cache_folder() -> Path:
    """The folder that holds all entries. Raises `RuntimeError` if there is no home folder."""
    own = os.environ.get("RANKDISTILLM_CACHE")
    common = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(own) if own else Path(common) / "rankdistillm"


def cached(entry: Path, write: Callable[[Path], None], *, damaged: str, waiting: str) -> Path:
    """The folder ``entry``, which ``write(folder)`` fills if it is missing or damaged.

    One process writes while others wait. The files are written beside ``entry`` and renamed.
    ``damaged`` and ``waiting`` are what the log says in these cases. Raises `OSError` if the
    folder cannot be written.
    """
    if not _is_intact(entry, damaged):
        entry.parent.mkdir(parents=True, exist_ok=True)
        with _locked(entry, waiting):
            if not _is_intact(entry, damaged):  # another process may have made it meanwhile
                _write(entry, write)
    return entry


@contextmanager
def _locked(entry: Path, waiting: str) -> Iterator[None]:
    lock = FileLock(entry.with_name(f"{entry.name}.lock"))
    try:
        acquire(lock, timeout=SECONDS)
    except Timeout:
        log.info(waiting)
        acquire(lock, timeout=-1)
    try:
        yield
    finally:
        lock.release()


def _write(entry: Path, write: Callable[[Path], None]) -> None:
    # A damaged entry, or what a killed process left.
    for old in (entry, *entry.parent.glob(f".{entry.name}.*")):
        shutil.rmtree(old, ignore_errors=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{entry.name}.", dir=entry.parent))
    try:
        write(beside)
        (beside / CHECKSUMS).write_text(json.dumps(_checksums(beside)))
        os.replace(beside, entry)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _is_intact(entry: Path, damaged: str) -> bool:
    if not entry.exists():
        return False
    try:
        if json.loads((entry / CHECKSUMS).read_text()) == _checksums(entry):
            return True
    except (OSError, ValueError):
        pass
    log.warning("%s: %s", entry, damaged)
    return False


def _checksums(entry: Path) -> dict[str, int]:
    files = sorted(file for file in entry.iterdir() if file.name != CHECKSUMS)
    return {file.name: _crc32(file) for file in files}


def _crc32(path: Path) -> int:
    checksum = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return checksum
