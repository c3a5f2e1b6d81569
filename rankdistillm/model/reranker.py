"""Re-rank passages with a student: `Reranker`."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rankdistillm import distributed
from rankdistillm.data.runs import Run
from rankdistillm.devices import async_copy, device_of, pair_too_large, prefetch
from rankdistillm.errors import InputError, check_count
from rankdistillm.model.cross_encoder import CrossEncoder
from rankdistillm.model.pairs import PackedPairs
from rankdistillm.model.tokenise import TokenisedTexts
from rankdistillm.progress import progress_bar

# Pairs that are sorted by length at once. More of them need less padding but more memory.
WINDOW = 4096


@dataclass(frozen=True)
class Ranked:
    """A passage from `Reranker.rank`: its rank (1 is best), index in the input, score and text."""

    rank: int
    index: int
    score: float
    doc: str


class Reranker:
    """Ranks passages for queries with a `CrossEncoder`.

    It prepares faster layers once, when it is made, with a copy of the model's weights. After a
    change of weights or device, make a new `Reranker`.
    """

    def __init__(self, model: CrossEncoder) -> None:
        self.model = model
        with torch.inference_mode():
            self._fused = model.fused_layers()

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        device: torch.device | str = "auto",
        precision: str = "auto",
        query_length: int | None = None,
        doc_length: int | None = None,
        retokenise: bool = False,
        packed: bool = True,
    ) -> "Reranker":
        """Load a student or another re-ranker: a folder (``outputs/…/checkpoint``) or a hub id.

        ``device`` defaults to CUDA if available; ``precision`` is auto, fp32, bf16 or fp16. The
        lengths, in tokens, default to those that the student was trained with. ``retokenise`` is
        explained in `rankdistillm.model.tokenise.TokenisedTexts`; ``packed=False`` runs
        transformers' own padded forward (`rankdistillm.model.heads`).

        Raises `InputError` if there is no readable model, or if it was never trained to rank.
        """
        model = CrossEncoder.from_pretrained(
            path,
            query_length=query_length,
            doc_length=doc_length,
            retokenise=retokenise,
            packed=packed,
            device=device_of(device),
            precision=precision,
        )
        if not model.has_head:
            raise InputError(
                f"{path}: an encoder without a head (linear.weight), whose scores would be "
                "random; train it first (python -m rankdistillm.train), or give a re-ranker"
            )
        return cls(model)

    def score(self, query: str, docs: Sequence[str]) -> np.ndarray:
        """Score the passages for the query: float32 ``[len(docs)]``, higher is better."""
        docs = _checked_docs(query, docs)
        keys = [str(i) for i in range(len(docs))]
        return self._score_pairs(
            self.model.tokenise_queries({"query": query}),
            self.model.tokenise_docs(dict(zip(keys, docs, strict=True))),
            [("query", key) for key in keys],
            progress=False,
        )

    def rank(self, query: str, docs: Sequence[str], *, depth: int | None = None) -> list[Ranked]:
        """Return the best ``depth`` passages (None: all), best first; ties keep their order."""
        check_count("depth", depth, optional=True)
        docs = _checked_docs(query, docs)
        scores = self.score(query, docs)
        order = np.argsort(-scores, kind="stable")[:depth]
        return [Ranked(r, int(i), float(scores[i]), docs[i]) for r, i in enumerate(order, 1)]

    def rerank(
        self,
        run: Run,
        queries: Mapping[str, str],
        docs: Mapping[str, str],
        *,
        depth: int | None = None,
        progress: bool = True,
    ) -> Run:
        """Re-rank the top ``depth`` of each list; passages below it are dropped.

        ``queries`` and ``docs`` map the run's ids to texts. Scores are float32.
        """
        run = run.truncate(depth)
        doc_ids = run.doc_ids()
        for kind, ids, texts in (("query", run, queries), ("doc", doc_ids, docs)):
            if missing := next((i for i in ids if i not in texts), None):
                raise InputError(f"the {kind}_id {missing} of {run.source} has no text")
        query_tokens = self.model.tokenise_queries({q: queries[q] for q in run})
        doc_tokens = self.model.tokenise_docs({d: docs[d] for d in doc_ids})
        return self.rerank_tokenised(run, query_tokens, doc_tokens, progress=progress)

    def rerank_tokenised(
        self,
        run: Run,
        queries: TokenisedTexts,
        docs: TokenisedTexts,
        *,
        progress: bool = True,
    ) -> Run:
        """Re-rank the run as `rerank` does, with texts that are already tokenised."""
        scores = self._score_pairs(queries, docs, list(run.pairs()), progress=progress)
        return run.with_scores(scores, source=f"re-ranked {run.source}")

    @torch.inference_mode()
    def _score_pairs(
        self,
        queries: TokenisedTexts,
        docs: TokenisedTexts,
        pairs: Sequence[tuple[str, str]],
        *,
        progress: bool,
    ) -> np.ndarray:
        model, activation = self.model, self.model.network.activation
        scores = np.zeros(len(pairs), dtype=np.float32)
        pending: deque[tuple[np.ndarray, Callable[[], list[float]]]] = deque()
        starts = range(0, len(pairs), WINDOW)

        def pack(start: int) -> PackedPairs:
            window = pairs[start : start + WINDOW]
            return model.template.pack([(queries[q], docs[d]) for q, d in window])

        def read_next() -> None:
            indices, read = pending.popleft()
            scores[indices] = read()

        was_training = model.training
        # `eval()` takes as long as scoring a pair; checking the flags is cheap.
        if any(module.training for module in model.modules()):
            model.eval()
        try:
            bar = progress_bar(shown=progress, total=len(pairs), desc="re-rank", unit="pair")
            with bar, model.autocast():
                for start, packed in zip(starts, prefetch(pack, starts), strict=True):
                    # The processes share the chunks that a single process would make, so that the
                    # scores are the same to the last bit.
                    chunks = model.plan_chunks(packed.lengths)
                    own = chunks[distributed.rank() :: distributed.world_size()]
                    for indices, scored in self._score_chunks(packed, own):
                        if activation is not None:
                            scored = activation(scored)
                        pending.append((start + indices, async_copy(scored)))
                        bar.update(len(indices) * distributed.world_size())
                        # A GPU computes the next chunk while the last one is copied.
                        while len(pending) > (1 if scored.is_cuda else 0):
                            read_next()
                while pending:
                    read_next()
        finally:
            if was_training:
                model.train()
        scores = self._gathered(scores)
        if not np.isfinite(scores).all():
            raise InputError(
                "the student's scores are not finite; train it again in fp32 or at a lower "
                "learning rate"
            )
        return scores

    def _score_chunks(
        self, pairs: PackedPairs, chunks: Sequence[np.ndarray]
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Yield each chunk with its scores; halves a chunk that exceeds the device's memory."""
        todo = deque(chunks)
        while todo:
            chunk = todo.popleft()
            scored = None
            with suppress(torch.OutOfMemoryError):
                scored = self.model(pairs.select(chunk), self._fused)
            if scored is not None:
                yield chunk, scored
            elif len(chunk) > 1:
                torch.cuda.empty_cache()
                todo.extendleft((chunk[len(chunk) // 2 :], chunk[: len(chunk) // 2]))
            else:
                raise pair_too_large(int(pairs.lengths[chunk[0]]))

    def _gathered(self, scores: np.ndarray) -> np.ndarray:
        """Sum over the processes: each has zeros for the pairs that others scored."""
        if distributed.world_size() == 1:
            return scores
        total = torch.from_numpy(scores).to(self.model.device)
        distributed.all_reduce([total])
        return total.cpu().numpy()


def _checked_docs(query: str, docs: Sequence[str]) -> list[str]:
    """Return the passages as a list; raises `InputError` for unordered collections and non-text."""
    if isinstance(docs, str):
        raise InputError("docs is a list of passages, not one text; write [text]")
    is_list = hasattr(docs, "__getitem__") and hasattr(docs, "__len__")
    if not is_list or isinstance(docs, Mapping | bytes):
        raise InputError(f"docs is {docs!r:.40}, not a list of passages; write [text, …]")
    if not isinstance(query, str):
        raise InputError(f"query is {query!r:.40}, not a text")
    return list(docs)
