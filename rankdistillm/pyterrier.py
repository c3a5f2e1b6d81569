"""Re-rank in PyTerrier: ``bm25 >> Reranker("outputs/…/checkpoint")``.

Needs the extra ``pyterrier``. PyTerrier's frames call a query_id ``qid`` and a doc_id ``docno``.
"""

from pathlib import Path
from typing import Any

try:
    import pandas as pd
    import pyterrier as pt
except ImportError as error:
    raise ImportError(
        "rankdistillm.pyterrier needs the extra pyterrier: pip install 'rankdistillm[pyterrier]', "
        "or -e '.[pyterrier]' in a checkout"
    ) from error

from rankdistillm.errors import InputError
from rankdistillm.model import reranker


class Reranker(pt.Transformer):
    """Scores the passages of a result frame anew, all queries at once, and ranks them.

    ``model`` is a folder, a hub id, or a `rankdistillm.Reranker`; ``options`` are those of
    `rankdistillm.Reranker.from_pretrained`, such as ``long="maxp"``. ``text_field`` names the
    column with the passages.

    Takes the columns ``qid``, ``query``, ``docno`` and ``text_field``. Returns the same rows with a
    new ``score`` and ``rank``.
    """

    def __init__(
        self,
        model: "str | Path | reranker.Reranker",
        *,
        text_field: str = "text",
        **options: Any,
    ) -> None:
        super().__init__()
        self.name = str(model) if isinstance(model, str | Path) else type(model).__name__
        if isinstance(model, str | Path):
            model = reranker.Reranker.from_pretrained(model, **options)
        elif options:
            raise TypeError(f"{', '.join(options)}: these options are for a folder or a hub id")
        self.model = model
        self.text_field = text_field

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Score and rank the rows of a result frame.

        Raises `pt.validate.InputValidationError` for a missing column, and `InputError` for a query
        or passage that is no text.
        """
        pt.validate.result_frame(inp, extra_columns=["query", self.text_field], context=self)
        for row in inp[["qid", "docno", "query", self.text_field]].itertuples(index=False):
            if not all(isinstance(text, str) for text in row[2:]):
                raise InputError(
                    f"qid {row[0]}, docno {row[1]}: query or {self.text_field} is no text; add the "
                    "texts to the frame, e.g. by pt.text.get_text"
                )
        pairs = list(zip(inp["query"], inp[self.text_field], strict=True))
        return pt.model.add_ranks(inp.assign(score=self.model.score_pairs(pairs)))

    def __repr__(self) -> str:
        return f"Reranker({self.name!r})"
