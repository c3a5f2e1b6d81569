"""Re-rank passages with a student: `Reranker`."""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
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
from rankdistillm.model.maxp import Windows
from rankdistillm.model.pairs import PackedPairs
from rankdistillm.model.tokenise import TokenisedTexts
from rankdistillm.progress import progress_bar

log = logging.getLogger(__name__)

# Pairs that are sorted by length at once. More of them need less padding but more memory.
SORTED_AT_ONCE = 4096

LONG = ("truncate", "maxp")
NO_LIMIT = int(np.iinfo(np.int64).max)


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

    ``long`` says what happens to a passage above the model's ``doc_length``, or above what the
    encoder has room for beside the query: ``truncate`` cuts its end off; ``maxp`` scores it by the
    best of its overlapping windows of that length, which start every ``stride`` tokens (None: half
    a window).

    ``token_budget`` bounds the tokens of one forward pass, and with them the memory; None for the
    device's default. Scores do not depend on it but for rounding.
    """

    def __init__(
        self,
        model: CrossEncoder,
        *,
        long: str = "truncate",
        stride: int | None = None,
        token_budget: int | None = None,
    ) -> None:
        if not isinstance(model, CrossEncoder):
            raise InputError(
                f"a Reranker is made of a CrossEncoder, not of {type(model).__name__}; for a "
                "folder or hub id, use Reranker.from_pretrained(…)"
            )
        if long not in LONG:
            raise InputError(f"long={long} is not one of {', '.join(LONG)}")
        check_count("stride", stride, optional=True)
        check_count("token_budget", token_budget, optional=True)
        if stride is not None and long == "truncate":
            raise InputError(f"stride={stride} is for long=maxp; add that, or leave stride out")
        if stride is not None and stride > (model.doc_length or stride):
            raise InputError(
                f"stride={stride} is above doc_length={model.doc_length}: the tokens between two "
                "windows would not be read; lower it"
            )
        if long == "maxp" and model.retokenise:
            raise InputError("long=maxp does not go with retokenise; choose one of them")
        self.model = model
        self.long = long
        self.stride = stride
        self.token_budget = token_budget
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
        long: str = "truncate",
        stride: int | None = None,
        token_budget: int | None = None,
    ) -> "Reranker":
        """Load a student or another re-ranker: a folder (``outputs/…/checkpoint``) or a hub id.

        ``device`` defaults to CUDA if available; ``precision`` is auto, fp32, bf16 or fp16. The
        lengths, in tokens, default to those that the student was trained with. ``retokenise`` is
        explained in `rankdistillm.model.tokenise.TokenisedTexts`; ``packed=False`` runs
        transformers' own padded forward (`rankdistillm.model.heads`). ``long``, ``stride`` and
        ``token_budget`` are explained above.

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
        return cls(model, long=long, stride=stride, token_budget=token_budget)

    def score(self, query: str, docs: Sequence[str]) -> np.ndarray:
        """Score the passages for the query: float32 ``[len(docs)]``, higher is better."""
        docs = _checked_docs(query, docs)
        keys = [str(i) for i in range(len(docs))]
        return self._score_pairs(
            self.model.tokenise_queries({"query": query}),
            self._tokenise_docs(dict(zip(keys, docs, strict=True))),
            [("query", key) for key in keys],
            progress=False,
        )

    def score_pairs(
        self, pairs: Sequence[tuple[str, str]], *, progress: bool = False
    ) -> np.ndarray:
        """Score (query, passage) texts: float32 ``[len(pairs)]``, higher is better.

        Many pairs at once are faster than `score` query by query.
        """
        for query, doc in pairs:
            for kind, text in (("query", query), ("passage", doc)):
                if not isinstance(text, str):
                    raise InputError(f"a {kind} is {text!r:.40}, not a text")
        return self._score_pairs(
            self.model.tokenise_queries({query: query for query, _ in pairs}),
            self._tokenise_docs({doc: doc for _, doc in pairs}),
            pairs,
            progress=progress,
            report=True,
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

        ``queries`` and ``docs`` map the run's ids to texts. Scores are float32. The log says how
        many passages are cut, or scored by windows.
        """
        run = run.truncate(depth)
        doc_ids = run.doc_ids()
        for kind, ids, texts in (("query", run, queries), ("doc", doc_ids, docs)):
            if missing := next((i for i in ids if i not in texts), None):
                raise InputError(f"the {kind}_id {missing} of {run.source} has no text")
        query_tokens = self.model.tokenise_queries({q: queries[q] for q in run})
        doc_tokens = self._tokenise_docs({d: docs[d] for d in doc_ids})
        scores = self._score_pairs(
            query_tokens, doc_tokens, list(run.pairs()), progress=progress, report=True
        )
        return run.with_scores(scores, source=f"re-ranked {run.source}")

    def rerank_tokenised(
        self,
        run: Run,
        queries: TokenisedTexts,
        docs: TokenisedTexts,
        *,
        progress: bool = True,
    ) -> Run:
        """Re-rank the run as `rerank` does, with texts that are already tokenised.

        ``maxp`` has windows only where the passages were not cut when they were tokenised.
        """
        scores = self._score_pairs(queries, docs, list(run.pairs()), progress=progress)
        return run.with_scores(scores, source=f"re-ranked {run.source}")

    def _tokenise_docs(self, docs: Mapping[str, str]) -> TokenisedTexts:
        return self.model.tokenise_docs(docs, cut=self.long == "truncate")

    def _widths(self, queries: TokenisedTexts, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """The longest passage that each pair shows whole, in tokens: ``[pairs]``."""
        limits = {}
        for query_id in {query_id for query_id, _ in pairs}:
            room = self.model.template.doc_room(len(queries[query_id]))
            limits[query_id] = min(self.model.doc_length or NO_LIMIT, room or NO_LIMIT)
        return np.fromiter((limits[query_id] for query_id, _ in pairs), np.int64, len(pairs))

    @torch.inference_mode()
    def _score_pairs(
        self,
        queries: TokenisedTexts,
        docs: TokenisedTexts,
        pairs: Sequence[tuple[str, str]],
        *,
        progress: bool,
        report: bool = False,
    ) -> np.ndarray:
        model, activation = self.model, self.model.network.activation
        sizes = np.fromiter((len(docs[d]) for _, d in pairs), np.int64, len(pairs))
        widths = self._widths(queries, pairs)
        windows = Windows.whole(sizes)
        if self.long == "maxp":
            windows = Windows.overlapping(sizes, widths, self.stride)
        if report:
            over = zip(pairs, (sizes > widths).tolist(), strict=True)
            _report_long(
                {d for (_, d), is_over in over if is_over or docs.was_cut(d)},
                num_docs=len({d for _, d in pairs}),
                width=int(widths.max(initial=0)),
                num_windows=len(windows) - len(pairs) if self.long == "maxp" else None,
            )
        scores = np.zeros(len(windows), dtype=np.float32)
        pending: deque[tuple[np.ndarray, Callable[[], list[float]]]] = deque()
        batches = windows.batches(SORTED_AT_ONCE)

        def pack(batch: slice) -> PackedPairs:
            return model.template.pack(
                [
                    (queries[pairs[i][0]], docs[pairs[i][1]][tokens])
                    for i, tokens in windows.shown(batch)
                ]
            )

        def read_next() -> None:
            indices, read = pending.popleft()
            scores[indices] = read()

        was_training = model.training
        # `eval()` takes as long as scoring a pair; checking the flags is cheap.
        if any(module.training for module in model.modules()):
            model.eval()
        try:
            bar = progress_bar(shown=progress, total=len(windows), desc="re-rank", unit="pair")
            with bar, model.autocast():
                for batch, packed in zip(batches, prefetch(pack, batches), strict=True):
                    # The processes share the chunks that a single process would make, so that the
                    # scores are the same to the last bit.
                    chunks = model.plan_chunks(packed.lengths, self.token_budget)
                    own = chunks[distributed.rank() :: distributed.world_size()]
                    for indices, scored in self._score_chunks(packed, own):
                        if activation is not None:
                            scored = activation(scored)
                        pending.append((batch.start + indices, async_copy(scored)))
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
        return windows.best(scores)

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


def _report_long(long: Set[str], *, num_docs: int, width: int, num_windows: int | None) -> None:
    """Log how many passages are longer than ``width`` tokens and what becomes of them.

    ``num_windows``: the windows after the first of each pair; None if passages are cut.
    """
    if long:
        ending = "are cut; long=maxp scores them by overlapping windows"
        if num_windows is not None:
            ending = f"are scored by overlapping windows, {num_windows} more in all"
        log.info(
            "%d of %d passages are longer than the %d tokens that the student reads and %s",
            len(long), num_docs, width, ending,
        )  # fmt: skip


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
