"""A student re-ranks: `Reranker` in Python, ``python -m rankdistillm.rerank`` for run files."""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from rankdistillm import processes
from rankdistillm.bert_layers import FusedLayers
from rankdistillm.cli import run_command
from rankdistillm.devices import (
    device_of,
    keep_freed_memory,
    made_ahead,
    pair_too_large,
    read_later,
)
from rankdistillm.errors import InputError, check_count
from rankdistillm.files import check_output, keep_apart
from rankdistillm.model import CrossEncoder
from rankdistillm.options import READ, RERANK, check_options, files_read
from rankdistillm.progress import progress_bar
from rankdistillm.runs import Run
from rankdistillm.texts import texts_of_run
from rankdistillm.token_cache import TokenisedTexts
from rankdistillm.tokens import PackedPairs

log = logging.getLogger(__name__)

# Pairs that are sorted by length together: enough for little padding, few enough for little memory.
PAIRS_AT_ONCE = 4096


class Ranked(NamedTuple):
    """One passage of `Reranker.rank`: its rank (1 is best), place in the input, score, text."""

    rank: int
    place: int
    score: float
    doc: str


class Reranker:
    """Ranks passages for queries with a `CrossEncoder`, whose weights may change between calls.

    Only a change in place through a weight's ``.data`` may go unseen (in half precision).
    """

    def __init__(self, model: CrossEncoder) -> None:
        self.model = model
        self._fused: FusedLayers = {}
        self._fused_from: list[Tensor] = []
        self._places: list[tuple[int, int]] = []

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
    ) -> "Reranker":
        """Load a student or another re-ranker: a folder (``outputs/…/checkpoint``) or a hub id.

        ``device`` defaults to CUDA where there is one; ``precision`` is auto, fp32, bf16 or fp16.
        The lengths, in tokens, default to those that the student was trained with; ``retokenise``
        is that of `rankdistillm.token_cache.TokenisedTexts`. Raises `InputError` where there is no
        readable model, and for an encoder that was never trained to rank.
        """
        model = CrossEncoder.from_pretrained(
            path,
            query_length=query_length,
            doc_length=doc_length,
            retokenise=retokenise,
            device=device_of(device),
            precision=precision,
        )
        if not model.has_head:
            raise InputError(
                f"model.path={path}: an encoder without a head (linear.weight), whose scores would "
                "be random; train it first (python -m rankdistillm.train), or give a re-ranker"
            )
        return cls(model)

    def score(self, query: str, docs: Sequence[str]) -> np.ndarray:
        """Scores of the passages for the query, float32 ``[len(docs)]``; higher is better."""
        docs = _texts_of(query, docs)
        keys = [str(i) for i in range(len(docs))]
        return self._score_pairs(
            self.model.tokenise_queries({"query": query}),
            self.model.tokenise_docs(dict(zip(keys, docs, strict=True))),
            [("query", key) for key in keys],
            progress=False,
        )

    def rank(self, query: str, docs: Sequence[str], *, depth: int | None = None) -> list[Ranked]:
        """The best ``depth`` passages (all for None), best first; equal scores keep their order."""
        check_count("depth", depth, optional=True)
        docs = _texts_of(query, docs)
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
        """Re-rank the top ``depth`` of each list; what lies below is not in the new run.

        ``queries`` and ``docs`` map the run's ids to texts. Scores are float32.
        """
        run = run.truncate(depth)
        doc_ids = dict.fromkeys(doc_id for ranked in run.values() for doc_id in ranked.doc_ids)
        for kind, ids, texts in (("query", run, queries), ("doc", doc_ids, docs)):
            if lacking := next((i for i in ids if i not in texts), None):
                raise InputError(f"the {kind}_id {lacking} of {run.source} has no text")
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
        """Re-rank the run; `rerank` with texts that the student's tokeniser has seen before."""
        pairs = [(query_id, doc_id) for query_id in run for doc_id in run[query_id].doc_ids]
        scores = iter(self._score_pairs(queries, docs, pairs, progress=progress))
        return Run.from_scores(
            {q: {doc_id: float(next(scores)) for doc_id in run[q].doc_ids} for q in run},
            source=f"re-ranked {run.source}",
        )

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
        waiting: deque[tuple[np.ndarray, Callable[[], list[float]]]] = deque()
        starts = range(0, len(pairs), PAIRS_AT_ONCE)

        def pack(start: int) -> PackedPairs:
            window = pairs[start : start + PAIRS_AT_ONCE]
            return model.template.pack([(queries[q], docs[d]) for q, d in window])

        def read_next() -> None:
            chosen, read = waiting.popleft()
            scores[chosen] = read()

        was_training = model.training
        # To tell each module takes as long as a pair, to ask them does not.
        if any(module.training for module in model.modules()):
            model.eval()
        try:
            bar = progress_bar(shown=progress, total=len(pairs), desc="re-rank", unit="pair")
            fused = self._fused_layers()
            with bar, model.autocast():
                for start, packed in zip(starts, made_ahead(pack, starts), strict=True):
                    # Each process takes some of the chunks that one alone would make, so that its
                    # scores are the same to the last bit.
                    chunks = model.plan_chunks(packed.lengths)
                    own = chunks[processes.rank() :: processes.count()]
                    for chosen, scored in self._score_chunks(packed, own, fused):
                        if activation is not None:
                            scored = activation(scored)
                        waiting.append((start + chosen, read_later(scored)))
                        bar.update(len(chosen) * processes.count())
                        # A GPU computes the next ones meanwhile.
                        while len(waiting) > (1 if scored.is_cuda else 0):
                            read_next()
                while waiting:
                    read_next()
        finally:
            if was_training:
                model.train()
        scores = self._gathered(scores)
        if not np.isfinite(scores).all():
            raise InputError(
                "the student gives scores that are not finite; train it again with "
                "precision=fp32 or a lower learning rate"
            )
        return scores

    def _fused_layers(self) -> FusedLayers:
        """The model's, made anew only after a change of its weights: it takes as long as a pair."""
        weights = list(self.model.parameters())
        # torch counts the changes of a tensor in place.
        places = [(w.data_ptr(), 0 if w.is_inference() else w._version) for w in weights]
        if places != self._places or not self._fused:
            self._fused, self._places = self.model.fused_layers(), places
            # So that no other tensor can get their memory.
            self._fused_from = [weight.detach() for weight in weights] if self._fused else []
        return self._fused

    def _score_chunks(
        self, pairs: PackedPairs, chunks: Sequence[np.ndarray], fused: FusedLayers
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        """As the model's; a chunk that does not fit into the device's memory is halved."""
        waiting = deque(chunks)
        while waiting:
            chunk = waiting.popleft()
            scored = None
            with suppress(torch.OutOfMemoryError):
                ((_, scored),) = self.model.score_chunks(pairs, [chunk], fused)
            if scored is not None:
                yield chunk, scored
            elif len(chunk) > 1:
                torch.cuda.empty_cache()
                waiting.extendleft((chunk[len(chunk) // 2 :], chunk[: len(chunk) // 2]))
            else:
                raise pair_too_large(int(pairs.lengths[chunk[0]]))

    def _gathered(self, scores: np.ndarray) -> np.ndarray:
        """The scores of all processes' chunks; what another process scored is 0 here."""
        if processes.count() == 1:
            return scores
        total = torch.from_numpy(scores).to(self.model.device)
        processes.add_up([total])
        return total.cpu().numpy()


def _texts_of(query: str, docs: Sequence[str]) -> list[str]:
    """The passages in their order; `InputError` for what has none, such as a set, or is no text."""
    if isinstance(docs, str):
        raise InputError("docs is a list of passages, not one text; write [text]")
    is_list = hasattr(docs, "__getitem__") and hasattr(docs, "__len__")
    if not is_list or isinstance(docs, Mapping | bytes):
        raise InputError(f"docs is {docs!r:.40}, not a list of passages; write [text, …]")
    if not isinstance(query, str):
        raise InputError(f"query is {query!r:.40}, not a text")
    return list(docs)


def rerank(config: DictConfig) -> None:
    """Re-rank the run file ``config.run`` into ``config.output``, as conf/rerank.yaml says."""
    for name in ("run", "output"):
        if config.get(name, "") is None:
            raise InputError(f"{name} is not set; add {name}=FILE to the command line")
    check_options(config, RERANK)
    device = device_of(config.device)
    keep_freed_memory(device)
    with processes.joined(device):
        _rerank(config, device)


def _rerank(config: DictConfig, device: torch.device) -> None:
    output = Path(config.output)
    if processes.is_first():
        check_output(output, f"output={output}")
        keep_apart([(f"output={output}", output)], files_read(config, READ))
    run = Run.read(config.run).truncate(config.depth)
    run.check_writable(output)
    queries, docs = texts_of_run(run, config.data.queries, config.data.docs)
    reranker = Reranker.from_pretrained(
        config.model.path,
        device=device,
        precision=config.precision,
        query_length=config.model.query_length,
        doc_length=config.model.doc_length,
        retokenise=config.model.retokenise,
    )
    log.info("%s: re-ranking %d queries with %s", config.run, len(run), config.model.path)
    reranked = reranker.rerank(run, queries, docs)
    if processes.is_first():
        reranked.write(output)
        log.info("wrote %s", output)


def main() -> None:
    """Entry point of ``python -m rankdistillm.rerank``."""
    run_command(rerank, "rerank")


if __name__ == "__main__":
    main()
