"""Several rankings of the same candidates, fused into one teacher."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankdistillm.data.runs import Run
from rankdistillm.errors import InputError
from rankdistillm.evaluation.metrics import fuse

log = logging.getLogger(__name__)


def fused_teacher(
    candidates: Run,
    paths: Sequence[str | Path],
    *,
    method: str = "rrf",
    norm: str | None = "min-max",
    params: Mapping[str, Any] | None = None,
) -> Run:
    """Rank the candidates by several runs: files or ir_datasets ids.

    A passage that a run lacks gets nothing from it; one that no run has is left out, which the log
    says. Arguments and errors as in `rankdistillm.evaluation.metrics.fuse`; `Run.within` names a
    query without any passage of the candidates.
    """
    runs = [Run.read(path, queries=set(candidates)) for path in paths]
    fused = fuse(runs, method=method, norm=norm, params=params)
    ranked = fused.within(candidates, None)
    if left_out := int(candidates.lengths.sum() - ranked.lengths.sum()):
        log.warning(
            "%d of %d candidates are in none of the runs and are left out",
            left_out,
            candidates.lengths.sum(),
        )
    return ranked


@dataclass(frozen=True)
class Fused:
    """`fused_teacher` as a `rankdistillm.teachers.backends.RecordedTeacher`."""

    runs: Sequence[str | Path]
    method: str = "rrf"
    norm: str | None = "min-max"
    params: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.runs, str):
            raise InputError(f"runs={self.runs} is one run; give a list of at least two: [a,b]")

    @property
    def name(self) -> str:
        return f"{self.method} of {', '.join(map(str, self.runs))}"

    def rank(self, candidates: Run, *_: object) -> tuple[Run, Counter[str]]:
        """The fused ranking of the candidates; it needs no repairs."""
        fused = fused_teacher(
            candidates, self.runs, method=self.method, norm=self.norm, params=self.params
        )
        return fused, Counter()
