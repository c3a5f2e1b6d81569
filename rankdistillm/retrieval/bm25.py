"""BM25 over a collection of passages, with an index that is kept on disk.

The index is a folder ``KEY/`` (`rankdistillm.data.cache`) as bm25s saves it: the scores of each
term's passages as a sparse matrix, which is memory-mapped, and the vocabulary. KEY is a hash of the
passages' texts in their order and of all settings.
"""

import hashlib
import json
import logging
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rankdistillm.data.cache import cache_folder, cached
from rankdistillm.data.columns import Coded, Columns, as_array, order_by_score
from rankdistillm.data.outputs import unwritable, writable_folder
from rankdistillm.data.runs import Run
from rankdistillm.data.texts import iterate_texts
from rankdistillm.errors import InputError, check_count, check_number, quoted
from rankdistillm.progress import progress_bar

log = logging.getLogger(__name__)

# Part of the key: raise it when the terms change.
VERSION = 1

# Queries without a list that a note names.
MOST_NAMED = 5


class Bm25:
    """Searches passages by BM25 in Lucene's form, with exact passage lengths.

        score = sum over the query's terms of idf · tf / (tf + k1 · (1 - b + b · length / mean))
        idf = log(1 + (N - df + 0.5) / (df + 0.5))

    A term that the query repeats counts as often. Source: Kamphuis et al., Which BM25 Do You Mean?,
    ECIR 2020; implementation: bm25s (Lù, 2024).

    Args:
        docs: a source for `rankdistillm.data.texts.iterate_texts`, or doc_id -> text. Read once to
            find the index, and again to make it.
        k1: how much repeats of a term add to the score; 0: nothing.
        b: how much the score falls with a passage's length, from 0 (not at all) to 1.
        language: see `rankdistillm.retrieval.analysis.Analyser`.
        index: the folder that keeps indexes; by default one in the cache.

    Raises `InputError` for settings out of range, for bad passages and if bm25s or PyStemmer are
    missing.
    """

    def __init__(
        self,
        docs: str | Path | Mapping[str, str],
        *,
        k1: float = 0.9,
        b: float = 0.4,
        language: str = "english",
        index: str | Path | None = None,
    ) -> None:
        check_number("k1", k1, least=0)
        check_number("b", b, least=0)
        if b > 1:
            raise InputError(f"b={b} is not a number from 0 to 1")
        bm25s = _bm25s()
        # Imported late, as bm25s: they come with an extra.
        from rankdistillm.retrieval.analysis import Analyser

        self._analyse = Analyser(language)
        self._docs = docs
        self._scorer = bm25s.BM25(k1=k1, b=b, method="lucene")
        settings = [VERSION, bm25s.__version__, float(k1), float(b), language]
        doc_ids, key = self._read(json.dumps(settings))
        self._doc_ids = as_array(doc_ids)
        self._index = self._open(key, index)

    def search(
        self, queries: Mapping[str, str], depth: int | None = 100, *, progress: bool = True
    ) -> Run:
        """Rank the passages for each query: the best ``depth`` of those with a term of the query.

        Equal scores are ordered by descending doc_id, as trec_eval does, also where ``depth`` cuts
        them. A query without any passage gets no list, and the log names it. Raises `InputError`
        if that is so for all queries.
        """
        check_count("depth", depth, optional=True)
        found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        bar = progress_bar(queries.items(), shown=progress, desc="retrieve", unit="query")
        for query_id, text in bar:
            docs, scores = self._best(self._analyse(text), depth)
            if len(docs):
                found[query_id] = docs, scores
        missing = [query_id for query_id in queries if query_id not in found]
        if not found:
            raise InputError(
                f"none of {len(queries)} queries has a word in common with the passages; check "
                "that they belong together, and the language"
            )
        if missing:
            named = ", ".join(map(quoted, missing[:MOST_NAMED]))
            log.warning(
                "%d of %d queries have no word in common with any passage and get no list: %s",
                len(missing),
                len(queries),
                named + (", …" if len(missing) > MOST_NAMED else ""),
            )
        codes = np.concatenate([docs for docs, _ in found.values()])
        lengths = [len(docs) for docs, _ in found.values()]
        scores = np.concatenate([scores for _, scores in found.values()])
        coded = Coded(codes, self._doc_ids)
        return Run.from_columns(Columns.from_lists(found, lengths, coded, scores), source="BM25")

    def _best(self, terms: list[str], depth: int | None) -> tuple[np.ndarray, np.ndarray]:
        """The best passages: int32 indices and float32 scores, ``[up to depth]``, best first."""
        known = self._index.get_tokens_ids(terms)
        if not known:
            return np.empty(0, np.int32), np.empty(0, np.float32)
        scores = self._index.get_scores_from_ids(known)
        # Finding the true values of `>` takes a seventh of the time of finding numbers that are
        # not zero, and partitioning mostly zeros would take longer than both.
        docs = np.flatnonzero(scores > 0).astype(np.int32)
        scores = scores[docs]
        if depth is not None and len(docs) > depth:
            is_kept = scores >= np.partition(scores, -depth)[-depth]  # with all ties at the cut
            docs, scores = docs[is_kept], scores[is_kept]
        one_list = np.zeros(len(docs), dtype=np.int64)
        order = order_by_score(one_list, scores, Coded(docs, self._doc_ids))[:depth]
        return docs[order], scores[order]

    # ---- the index

    def _texts(self) -> Iterable[tuple[str, str]]:
        docs = self._docs
        return docs.items() if isinstance(docs, Mapping) else iterate_texts(docs, "doc")

    def _read(self, settings: str) -> tuple[list[str], str]:
        """The ids of all passages and the key of their index."""
        doc_ids = []
        digest = hashlib.blake2b(settings.encode(), digest_size=16)
        for doc_id, text in progress_bar(self._texts(), desc="read", unit="passage"):
            encoded = text.encode("utf-8", "surrogatepass")
            digest.update(len(encoded).to_bytes(8, "little"))
            digest.update(encoded)
            doc_ids.append(doc_id)
        if not doc_ids:
            raise InputError("there are no passages to search; give at least one")
        return doc_ids, digest.hexdigest()

    def _open(self, key: str, folder: str | Path | None) -> Any:
        if folder is not None:
            with writable_folder(Path(folder), f"index={folder}"):
                try:
                    return self._cached(Path(folder) / key)
                except OSError as error:
                    raise unwritable(f"index={folder}", error) from error
        try:
            return self._cached(cache_folder() / "bm25" / key)
        except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
            log.warning(
                "the index cannot be cached (%s) and stays in memory; set RANKDISTILLM_CACHE to a "
                "folder with more room",
                error,
            )
            return self._made()

    def _cached(self, entry: Path) -> Any:
        """The index in the folder ``entry``, memory-mapped; made if needed."""
        cached(
            entry,
            lambda folder: self._made().save(folder),
            damaged="the index is damaged; indexing again",
            waiting="waiting for another process that indexes the same passages",
        )
        return type(self._scorer).load(entry, mmap=True)

    def _made(self) -> Any:
        """Index the passages in memory."""
        code_of: dict[str, int] = {}
        terms = []
        bar = progress_bar(self._texts(), total=len(self._doc_ids), desc="index", unit="passage")
        for _, text in bar:
            terms.append([code_of.setdefault(term, len(code_of)) for term in self._analyse(text)])
        with np.errstate(invalid="ignore"):  # passages without any term have a mean length of 0
            self._scorer.index(
                (terms, code_of), create_empty_token=False, show_progress=sys.stderr.isatty()
            )
        return self._scorer


def _bm25s() -> Any:
    try:
        import bm25s
        import Stemmer  # noqa: F401
    except ImportError as error:
        raise InputError(
            "retrieval needs bm25s and PyStemmer; install them with "
            "pip install 'rankdistillm[teach]'"
        ) from error
    logging.getLogger("bm25s").setLevel(logging.WARNING)  # importing it sets DEBUG
    return bm25s
