"""The questions to a teacher and its replies, query by query: JSONL beside its run.

One line per query:

    {"query_id": "q1", "windows": [{"kind": "order", "doc_ids": ["a", "b"], "reply": [1, 0],
     "repairs": ["wrong_format"]}]}

The fields are those of `Window`; null is the score -inf, which JSON does not have. The lines stand
in the order in which the queries were finished.
"""

import json
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from rankdistillm.data.files import is_utf8, json_lines
from rankdistillm.data.outputs import replacing
from rankdistillm.errors import InputError
from rankdistillm.teachers.rankings import Question, Reply


class Window(NamedTuple):
    """A question, its reply (`rankdistillm.teachers.rankings.Question`), and what was repaired.

    ``repairs`` are those of `rankdistillm.teachers.answers`, sorted.
    """

    question: Question
    reply: Reply
    repairs: tuple[str, ...]

    def doc_ids_replied(self) -> tuple[str, ...]:
        """The passages as the reply orders them; of a choice, the best one alone."""
        asked = self.question.doc_ids
        if isinstance(self.reply, tuple):
            return tuple(asked[index] for index in self.reply)
        return (asked[int(self.reply)],) if self.question.kind == "best" else asked


Record = Callable[[str, Sequence[Window]], None]


@contextmanager
def recording(path: Path) -> Iterator[Record]:
    """Yield a function that writes the windows of a query; an error leaves no file."""
    with replacing(path) as beside, open(beside, "w", encoding="utf-8") as file:

        def record(query_id: str, windows: Sequence[Window]) -> None:
            listed = [
                {
                    "kind": window.question.kind,
                    "doc_ids": window.question.doc_ids,
                    "reply": None if window.reply == -math.inf else window.reply,
                    "repairs": window.repairs,
                }
                for window in windows
            ]
            line = {"query_id": query_id, "windows": listed}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

        yield record


def read_windows(path: Path, wanted: Collection[str]) -> dict[str, list[Window]]:
    """Read ``query_id -> windows`` of these queries.

    Raises `InputError` with file and line for a line that `recording` would not write.
    """
    found = {}
    for line, entry in json_lines(path):
        try:
            if entry["query_id"] in wanted:
                found[entry["query_id"]] = [_window(**window) for window in entry["windows"]]
        except (TypeError, KeyError, ValueError) as error:
            raise InputError(
                f"{path}, line {line}: not the windows of a query; write the file again, with "
                "teach windows=true"
            ) from error
    return found


def _window(kind: Any, doc_ids: Any, reply: Any, repairs: Any) -> Window:
    """Raises ValueError unless the reply fits the passages."""
    size = len(doc_ids)
    if kind == "score" and reply is None:
        reply = -math.inf
    fits = {
        "order": lambda: (
            sorted(reply) == list(range(size)) and all(isinstance(i, int) for i in reply)
        ),
        "best": lambda: reply in range(size),
        "score": lambda: size == 1 and isinstance(reply, int | float),
    }
    texts = [*doc_ids, *repairs]
    are_texts = all(isinstance(text, str) and is_utf8(text) for text in texts)
    if not isinstance(doc_ids, list) or not isinstance(repairs, list) or not are_texts:
        raise ValueError("ids are texts")
    if not fits[kind]():
        raise ValueError("a reply to other passages")
    question = Question(kind, tuple(doc_ids))
    return Window(question, tuple(reply) if kind == "order" else reply, tuple(repairs))
