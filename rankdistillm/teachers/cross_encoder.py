"""Another re-ranker as the teacher: a cross-encoder that scores passages one by one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch

from rankdistillm.model.reranker import Reranker
from rankdistillm.teachers.local_model import fingerprint


class CrossEncoderTeacher:
    """Scores passages with a `Reranker`; see `rankdistillm.teachers.backends.ScoringBackend`.

    ``path`` names the model. Its weights are part of ``name``, so that the answers of a model
    which is trained again in the same folder are not taken for its own.
    """

    def __init__(self, reranker: Reranker, path: str | Path) -> None:
        self.reranker = reranker
        self.name = f"{path}@{fingerprint(reranker.model)}"
        template = reranker.model
        self.options: Mapping[str, Any] = {
            "query_length": template.query_length,
            "doc_length": template.doc_length,
        }

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, device: torch.device | str = "auto", **options: Any
    ) -> Self:
        """Load any re-ranker that `Reranker.from_pretrained` loads, with its ``options``."""
        return cls(Reranker.from_pretrained(path, device=device, **options), path)

    def score(self, query: str, passages: Sequence[str]) -> list[float]:
        """The student's scores, higher is better; see `Reranker.score`."""
        return [float(score) for score in self.reranker.score(query, passages)]
