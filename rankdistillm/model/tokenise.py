"""Tokenise each distinct text once, into flat token ids that are cached on disk.

A cache entry (`rankdistillm.data.cache`) is a folder ``tokens/KEY/`` with ``tokens.bin`` (the token
ids of all texts end to end), ``offsets.bin`` (int64, where each text starts and the last one ends)
and ``cut.bin`` (bool, whether each text was cut). KEY is a hash of the texts and of everything that
decides how they are tokenised.
"""

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from rankdistillm.data.cache import cache_folder, cached
from rankdistillm.errors import InputError
from rankdistillm.progress import progress_bar

log = logging.getLogger(__name__)

# Part of the key: raise it when the files or the tokenising change.
VERSION = 3

# Enough texts for all cores; the tokeniser's output takes several times the memory of the ids.
TEXTS_AT_ONCE = 1_000

# Fewer texts than this are tokenised faster than the cache is read; they stay in memory.
TEXTS_WORTH_CACHING = 2_000

# Half of a UTF-16 pair: valid in JSON, impossible in UTF-8.
SURROGATE = re.compile("[\ud800-\udfff]")


class TokenisedTexts:
    """Texts as token ids without special tokens, each cut to ``max_length`` tokens (None: not cut).

    ``texts`` maps ids to texts; equal texts share their tokens. With ``retokenise``, each cut text
    is decoded and tokenised again, as lightning-ir does. This changes the tokens if the decoded
    text differs from the original: after a cut inside a word, or if decoding cleans up spaces
    ("does n't" becomes "doesn't").
    """

    def __init__(
        self,
        texts: Mapping[str, str],
        tokenizer: Any,
        max_length: int | None,
        *,
        retokenise: bool = False,
        description: str,
    ) -> None:
        row_of: dict[str, int] = {}
        found = (row_of.setdefault(text, len(row_of)) for text in texts.values())
        rows = np.fromiter(found, np.int32, len(texts))
        job = _Job(list(row_of), tokenizer, max_length, retokenise, description)
        # With millions of texts this dictionary is large; free it before the next one is made.
        del row_of, found
        in_memory = len(job.texts) < TEXTS_WORTH_CACHING
        self._tokens, self._offsets, self._cut = _tokenise(job) if in_memory else _from_cache(job)
        self._rows = dict(zip(texts, rows.tolist(), strict=True))

    def __getitem__(self, identifier: str) -> np.ndarray:
        """The token ids of a text: uint16 if the vocabulary allows it, else int32."""
        row = self._rows[identifier]
        return self._tokens[self._offsets[row] : self._offsets[row + 1]]

    def was_cut(self, identifier: str) -> bool:
        """Whether the text has more than ``max_length`` tokens."""
        return bool(self._cut[self._rows[identifier]])


class _Job:
    """Distinct texts and how to tokenise them."""

    def __init__(
        self,
        texts: Sequence[str],
        tokenizer: Any,
        max_length: int | None,
        retokenise: bool,
        description: str,
    ) -> None:
        self.texts = texts
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.retokenise = retokenise and max_length is not None
        self.description = description
        self.dtype = _token_dtype(tokenizer)

    def key(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        options = [VERSION, self.max_length, self.retokenise, _fingerprint(self.tokenizer)]
        digest.update(json.dumps(options).encode())
        for text in self.texts:
            encoded = text.encode("utf-8", "surrogatepass")
            digest.update(len(encoded).to_bytes(8, "little"))
            digest.update(encoded)
        return digest.hexdigest()

    def batches(self) -> Iterator[tuple[list[list[int]], list[bool]]]:
        """Yield the token ids of the texts in order, and whether each was cut; some at a time."""
        with progress_bar(total=len(self.texts), desc=self.description, unit="text") as bar:
            for start in range(0, len(self.texts), TEXTS_AT_ONCE):
                texts = list(self.texts[start : start + TEXTS_AT_ONCE])
                whole = self._encode(texts)
                tokens = [self._shortened(ids) for ids in whole]
                cut = [len(ids) > len(kept) for ids, kept in zip(whole, tokens, strict=True)]
                if self.retokenise:
                    tokens = self._encode(self.tokenizer.batch_decode(tokens))
                yield tokens, cut
                bar.update(len(texts))

    def _shortened(self, ids: list[int]) -> list[int]:
        if self.max_length is None or len(ids) <= self.max_length:
            return ids
        if self.tokenizer.truncation_side == "left":
            return ids[len(ids) - self.max_length :]
        return ids[: self.max_length]

    def _encode(self, texts: list[str]) -> list[list[int]]:
        try:
            if self.tokenizer.is_fast:
                return self._encode_fast(texts)
            # No warning about long texts: they are cut later.
            return self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        except TypeError as error:
            broken = next((text for text in texts if SURROGATE.search(text)), None)
            if broken is None:
                raise
            raise InputError(
                f"{self.description}: half a character, such as a cut emoji, in {broken[:60]!a}; "
                "correct that text"
            ) from error

    def _encode_fast(self, texts: list[str]) -> list[list[int]]:
        """Like calling the tokeniser, but without computing unused offsets and masks."""
        backend = self.tokenizer.backend_tokenizer
        # Earlier calls through transformers may have changed these settings.
        backend.encode_special_tokens = self.tokenizer.split_special_tokens
        backend.no_truncation()
        backend.no_padding()
        return [text.ids for text in backend.encode_batch_fast(texts, add_special_tokens=False)]


@lru_cache(maxsize=8)  # building the vocabulary takes longer than tokenising a short list
def _token_dtype(tokenizer: Any) -> np.dtype:
    largest = max(tokenizer.get_vocab().values())
    return np.dtype(np.uint16 if largest < 1 << 16 else np.int32)


def _fingerprint(tokenizer: Any) -> str:
    """Hash a tokeniser's behaviour, without the truncation and padding of its last call."""
    if tokenizer.is_fast:
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        content |= {"truncation": None, "padding": None}
        content |= {
            name: getattr(tokenizer, name, None)
            for name in ("truncation_side", "split_special_tokens", "clean_up_tokenization_spaces")
        }
    else:
        content = [type(tokenizer).__name__, tokenizer.get_vocab(), str(tokenizer.init_kwargs)]
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _flat(batch: list[list[int]], dtype: np.dtype) -> np.ndarray:
    return np.fromiter(chain.from_iterable(batch), dtype, sum(map(len, batch)))


# The token ids of all texts end to end, where each text starts, and whether each was cut.
_Tokens = tuple[np.ndarray, np.ndarray, np.ndarray]


def _tokenise(job: _Job) -> _Tokens:
    """Tokenise all texts in memory."""
    lengths: list[int] = [0]
    cut: list[bool] = []
    parts = [np.empty(0, job.dtype)]
    for batch, batch_cut in job.batches():
        lengths.extend(map(len, batch))
        cut.extend(batch_cut)
        parts.append(_flat(batch, job.dtype))
    return np.concatenate(parts), np.cumsum(lengths), np.array(cut, bool)


# ---- the cache on disk


def _from_cache(job: _Job) -> _Tokens:
    """Read the tokens of all texts, memory-mapped; makes the entry if needed."""
    try:
        entry = cached(
            cache_folder() / "tokens" / job.key(),
            lambda folder: _write(folder, job),
            damaged="the cached tokens are damaged; tokenising again",
            waiting="waiting for another process that tokenises the same texts",
        )
        return _read(entry, job.dtype)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        log.warning(
            "the tokens cannot be cached (%s) and stay in memory; set RANKDISTILLM_CACHE to a "
            "folder with more room",
            error,
        )
        return _tokenise(job)


def _write(folder: Path, job: _Job) -> None:
    lengths = [0]
    cut: list[bool] = []
    with open(folder / "tokens.bin", "wb") as file:
        for batch, batch_cut in job.batches():
            lengths.extend(map(len, batch))
            cut.extend(batch_cut)
            file.write(_flat(batch, job.dtype).tobytes())
    np.cumsum(lengths).astype(np.int64).tofile(folder / "offsets.bin")
    np.array(cut, bool).tofile(folder / "cut.bin")


def _read(entry: Path, dtype: np.dtype) -> _Tokens:
    # Slicing a plain array takes a tenth of the time of slicing a memmap.
    offsets = np.asarray(np.memmap(entry / "offsets.bin", np.int64, mode="r"))
    cut = np.asarray(np.memmap(entry / "cut.bin", bool, mode="r"))
    if not offsets[-1]:  # an empty file cannot be mapped
        return np.empty(0, dtype), offsets, cut
    return np.asarray(np.memmap(entry / "tokens.bin", dtype, mode="r")), offsets, cut
