"""Sentence-transformers with one of its backends, as `lists.read_settings` says.

Beside those settings: ``form``, which `backend_forms.load` takes. It only re-ranks.
"""

from backend_forms import load
from lists import Batch, Work, answer, one_by_one, read_batches, read_settings

given = read_settings()
score = load(**given.form)


def rerank(batch: Batch) -> list[float]:
    return score([(query, text) for _, query, docs in batch for _, text in docs]).tolist()


def work_of(what: str, dropout: float) -> Work:
    return one_by_one(rerank)


answer(read_batches(given.data, given.steps, given.queries_per_step), work_of, scored=True)
