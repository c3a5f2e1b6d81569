"""Counts of asking a teacher: answers and their tokens, repairs, failures, cost."""

import logging
from collections import Counter
from dataclasses import dataclass, field

from rankdistillm.errors import InputError
from rankdistillm.teachers.answers import UNREADABLE
from rankdistillm.teachers.budget import Usage

log = logging.getLogger(__name__)


@dataclass
class Tally:
    """Counts of questions, answers and failures.

    ``asked`` counts the answers that the model gave now, ``stored`` those that it had given
    before; one that a query needs again, as a further pass may, counts once. ``repairs``: kind ->
    answers that needed it. ``read`` counts the answers that were read, ``unreadable`` those among
    them that named no passage. ``shortened``: questions whose passages were cut shorter for the
    context. ``failed``: query_id -> why it has no ranking. ``stopped``: why nothing more was asked,
    or None. ``cost`` is that of ``asked``, ``total_cost`` that of both at today's prices; None if
    the prices are unknown. ``is_minimum``: a rehearsal's counts, where other answers lead to more
    questions.
    """

    asked: Usage = field(default_factory=Usage)
    stored: Usage = field(default_factory=Usage)
    repairs: Counter[str] = field(default_factory=Counter)
    read: int = 0
    unreadable: int = 0
    shortened: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    stopped: str | None = None
    cost: float | None = None
    total_cost: float | None = None
    seconds: float = 0.0
    is_minimum: bool = False

    @property
    def calls(self) -> int:
        return self.asked.answers

    @property
    def cache_hits(self) -> int:
        return self.stored.answers


def check_readable(tally: Tally, name: str) -> None:
    """Raises `InputError` if no answer of a teacher could be read; warns of more than a tenth.

    Such answers leave the first stage's order, which is no ranking of the teacher. Also warns if
    more than a tenth were cut off.
    """
    kinds = ", ".join(f"{kind} {n}" for kind, n in tally.repairs.items() if kind in UNREADABLE)
    remedy = "choose another prompt, or allow longer answers"
    if tally.read and tally.unreadable == tally.read:
        raise InputError(
            f"{name}: none of its {tally.read} answers names a passage ({kinds}); {remedy}"
        )
    if tally.unreadable > tally.read / 10:
        log.warning(
            "%s: %d of %d answers name no passage (%s); %s",
            name, tally.unreadable, tally.read, kinds, remedy,
        )  # fmt: skip
    if (cut_off := tally.repairs["cut_off"]) > tally.read / 10:
        log.warning(
            "%s: %d of %d answers are cut off; allow longer answers (max_tokens)",
            name, cut_off, tally.read,
        )  # fmt: skip
