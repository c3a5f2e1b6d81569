"""Another re-ranker as the teacher: a cross-encoder that scores passages one by one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch

from rankdistillm.model.reranker import Reranker
from rankdistillm.teachers.local_model import fingerprint, shown_name


class CrossEncoderTeacher:
    """Scores passages with a `Reranker`; see `rankdistillm.teachers.backends.ScoringBackend`.

    ``identity`` is the fingerprint of its weights: the same model in another folder is the same,
    and one that is trained again in this folder is another. ``path`` is for messages.
    """

    cuts_passages = True

    def __init__(self, reranker: Reranker, path: str | Path) -> None:
        self.reranker = reranker
        self.identity = fingerprint(reranker.model.state_dict())
        self.name = shown_name(path, self.identity)
        model = reranker.model
        # Only where they matter, so that answers from before these options keep their keys.
        windows = {"long": reranker.long, "stride": reranker.stride}
        self.options: Mapping[str, Any] = {
            "query_length": model.query_length,
            "doc_length": model.doc_length,
            "dtype": str(model.autocast_dtype).removeprefix("torch."),
            **(windows if reranker.long == "maxp" else {}),
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
