"""The answers that were already given, in an SQLite file: nothing is lost, nothing paid twice."""

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rankdistillm.data.outputs import unwritable
from rankdistillm.errors import InputError
from rankdistillm.teachers.backends import Completion

# Written into the file as its user_version; a file with another one is refused.
VERSION = 2
# How long one process waits for another one's row. A row takes well under a millisecond.
SECONDS = 60.0
TABLE = """
CREATE TABLE IF NOT EXISTS answers (
    key BLOB PRIMARY KEY,
    model TEXT NOT NULL,
    text TEXT NOT NULL,
    input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    top_logprobs TEXT,
    cut_to INTEGER,
    cut_off INTEGER NOT NULL DEFAULT 0
)"""
# From version 1, so that no answer in such a file is paid for again.
UPGRADE = """
ALTER TABLE answers RENAME COLUMN cut TO cut_to;
ALTER TABLE answers ADD COLUMN cut_off INTEGER NOT NULL DEFAULT 0;
"""
COLUMNS = "text, input_tokens, output_tokens, top_logprobs, cut_to, cut_off"


def key_of(identity: str, question: Any, options: Mapping[str, Any]) -> bytes:
    """The key of an answer: sha256 over the model's identity, the question and all options.

    ``question`` is the chat messages, or the query and passage that a model scores. Whatever
    changes a word of the prompt, a passage or an option asks anew.
    """
    content = json.dumps([identity, question, options], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(content.encode()).digest()


class AnswerStore:
    """An SQLite file with one row per answer, written as soon as the answer is there.

    A process that is killed loses no answer that it stored, and several processes may share a
    file. (A power failure may take the last answers; the file stays sound.) The file holds hashes
    of the questions and the answers, neither the questions themselves nor anything about the
    endpoint. It must be on a local disk: SQLite's write-ahead log does not work on network file
    systems.

    Raises `InputError` for a file that is not such a store or cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(self.path, error) from error
        with self._input_errors():
            # Without transactions of Python's own, each statement is committed at once.
            self._database = sqlite3.connect(self.path, timeout=SECONDS, isolation_level=None)
        try:
            with self._input_errors():
                self._prepare()
        except BaseException:
            self._database.close()
            raise

    def _prepare(self) -> None:
        database = self._database
        self._check()  # before anything is changed in a file that may be somebody else's
        self._use_write_ahead_log()
        # The log survives the process in any case; waiting for the disk would guard against a
        # power failure only.
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute("BEGIN IMMEDIATE")  # another process may be creating the table
        if self._check() == 1:
            for statement in filter(str.strip, UPGRADE.split(";")):
                database.execute(statement)
        database.execute(TABLE)
        database.execute(f"PRAGMA user_version = {VERSION}")
        database.execute("COMMIT")

    def _use_write_ahead_log(self) -> None:
        """Switch the file to a write-ahead log, which it keeps from then on.

        SQLite refuses the switch at once, whatever the timeout, while another process uses the
        file, which happens where several make it together.
        """
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                self._database.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
            time.sleep(0.01)

    def _check(self) -> int:
        """The version of the file; 0 for a new one."""
        # In this order: another process that makes the table sets the version together with it.
        tables = self._database.execute("SELECT name FROM sqlite_master").fetchall()
        version = self._database.execute("PRAGMA user_version").fetchone()[0]
        if version not in (1, VERSION) and (version or tables):
            raise InputError(f"{self.path}: not a store of answers; give another file")
        return int(version)

    def __len__(self) -> int:
        with self._input_errors():
            return int(self._database.execute("SELECT count(*) FROM answers").fetchone()[0])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; its log is merged into it."""
        self._database.close()

    def get(self, key: bytes) -> Completion | None:
        """The answer under this key (`key_of`), or None."""
        with self._input_errors():
            row = self._database.execute(
                f"SELECT {COLUMNS} FROM answers WHERE key = ?", (key,)
            ).fetchone()
        if row is None:
            return None
        text, input_tokens, output_tokens, top_logprobs, cut_to, cut_off = row
        logprobs = None if top_logprobs is None else json.loads(top_logprobs)
        return Completion(text, input_tokens, output_tokens, logprobs, cut_to, bool(cut_off))

    def put(self, key: bytes, completion: Completion, *, model: str = "") -> Completion:
        """Store an answer; returns the stored one, which is the first that any process gave.

        ``model`` is for people who look into the file.
        """
        logprobs = completion.top_logprobs
        with self._input_errors():
            added = self._database.execute(
                f"INSERT INTO answers (key, model, {COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?) "
                "ON CONFLICT DO NOTHING",
                (
                    key,
                    model,
                    completion.text,
                    completion.input_tokens,
                    completion.output_tokens,
                    None if logprobs is None else json.dumps(logprobs),
                    completion.cut_to,
                    completion.cut_off,
                ),
            )
        if added.rowcount == 1:
            return completion
        first = self.get(key)
        return completion if first is None else first

    @contextmanager
    def _input_errors(self) -> Iterator[None]:
        """Turn errors of SQLite into an `InputError` that names the file."""
        try:
            yield
        except sqlite3.Error as error:
            raise InputError(
                f"{self.path}: the store of answers cannot be used ({error}); give another file, "
                "on a local disk with free space"
            ) from error


class ReadOnlyStore:
    """A store that is read but not written: for a rehearsal."""

    def __init__(self, store: AnswerStore) -> None:
        self.get = store.get

    def put(self, key: bytes, completion: Completion, *, model: str = "") -> Completion:
        """Return the answer and forget it."""
        return completion
