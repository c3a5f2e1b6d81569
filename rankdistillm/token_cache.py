"""Each distinct text is tokenised once: flat token ids, memory-mapped from a cache on disk.

An entry of the cache is a folder ``KEY/`` with ``tokens.bin`` (all token ids end to end),
``offsets.bin`` (int64, where each text ends, from 0) and ``meta.json`` (their checksums).
KEY is a hash of the texts and of all that decides how they are tokenised. The cache lies in
``$RANKDISTILLM_CACHE``, else ``$XDG_CACHE_HOME/rankdistillm``, else ``~/.cache/rankdistillm``; it
may be removed at any time.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from rankdistillm.errors import InputError
from rankdistillm.progress import progress_bar

log = logging.getLogger(__name__)

# Hashed into the key: raise it when the layout or the way of tokenising changes.
VERSION = 1

# Enough for all cores; what the tokeniser makes of a text takes several times its memory.
TEXTS_AT_ONCE = 1_000

# Fewer texts are tokenised faster than a cache is searched, and leave nothing behind.
TEXTS_WORTH_CACHING = 2_000


class TokenisedTexts:
    """Texts as flat token ids without special tokens, each cut to ``max_length`` tokens.

    ``texts`` maps ids to texts. Equal texts are tokenised once and share their tokens.
    ``retokenise``: decode what was cut and tokenise it again, as lightning-ir does. The two differ
    where the decoded text reads otherwise than the original: a cut inside a word, or a clean-up of
    spaces ("does n't" becomes "doesn't").
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
        work = _Work(list(row_of), tokenizer, max_length, retokenise, description)
        # Of millions of texts such a dictionary is large; the one by ids comes after the work.
        del row_of, found
        self._tokens, self._offsets = (
            _in_memory(work) if len(work.texts) < TEXTS_WORTH_CACHING else _cached(work)
        )
        self._rows = dict(zip(texts, rows.tolist(), strict=True))

    def __getitem__(self, identifier: str) -> np.ndarray:
        """The token ids of that text, uint16 where the vocabulary allows, else int32."""
        row = self._rows[identifier]
        return self._tokens[self._offsets[row] : self._offsets[row + 1]]


# Half of a pair of UTF-16, which JSON can spell and UTF-8 cannot.
SURROGATE = re.compile("[\ud800-\udfff]")


class _Work:
    """Texts to tokenise, and how."""

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
        self.dtype = _dtype_of(tokenizer)

    def key(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        options = [VERSION, self.max_length, self.retokenise, _fingerprint(self.tokenizer)]
        digest.update(json.dumps(options).encode())
        for text in self.texts:
            encoded = text.encode("utf-8", "surrogatepass")
            digest.update(len(encoded).to_bytes(8, "little"))
            digest.update(encoded)
        return digest.hexdigest()

    def batches(self) -> Iterator[list[list[int]]]:
        """The token ids of some texts after others; the tokeniser works on each in parallel."""
        with progress_bar(total=len(self.texts), desc=self.description, unit="text") as bar:
            for start in range(0, len(self.texts), TEXTS_AT_ONCE):
                texts = list(self.texts[start : start + TEXTS_AT_ONCE])
                tokens = self._tokenise(texts, self.max_length)
                if self.retokenise:
                    tokens = self._tokenise(self.tokenizer.batch_decode(tokens), None)
                yield tokens
                bar.update(len(texts))

    def _tokenise(self, texts: list[str], max_length: int | None) -> list[list[int]]:
        try:
            if self.tokenizer.is_fast:
                return self._tokenise_fast(texts, max_length)
            return self.tokenizer(
                texts,
                add_special_tokens=False,
                truncation=max_length is not None,
                max_length=max_length,
                verbose=False,  # about texts above the model's length: they are cut in the pair
            )["input_ids"]
        except TypeError as error:
            halved = next((text for text in texts if SURROGATE.search(text)), None)
            if halved is None:
                raise
            raise InputError(
                f"{self.description}: half a character, as of a cut emoji, in {halved[:60]!a}; "
                "correct that text"
            ) from error

    def _tokenise_fast(self, texts: list[str], max_length: int | None) -> list[list[int]]:
        """The same ids without all else that transformers asks for, as where a token comes from."""
        backend = self.tokenizer.backend_tokenizer
        # As transformers sets them before each call; others may have used the tokeniser.
        backend.encode_special_tokens = self.tokenizer.split_special_tokens
        backend.no_truncation()
        backend.no_padding()
        encoded = backend.encode_batch_fast(texts, add_special_tokens=False)
        if max_length is None:
            return [text.ids for text in encoded]
        if self.tokenizer.truncation_side == "left":
            return [text.ids[max(0, len(text.ids) - max_length) :] for text in encoded]
        return [text.ids[:max_length] for text in encoded]


@lru_cache(maxsize=8)  # to ask takes longer than to tokenise a short list
def _dtype_of(tokenizer: Any) -> np.dtype:
    largest = max(tokenizer.get_vocab().values())
    return np.dtype(np.uint16 if largest < 1 << 16 else np.int32)


def _in_memory(work: _Work) -> tuple[np.ndarray, np.ndarray]:
    lengths: list[int] = [0]
    pieces = [np.empty(0, work.dtype)]
    for batch in work.batches():
        lengths.extend(map(len, batch))
        pieces.append(_flat(batch, work.dtype))
    return np.concatenate(pieces), np.cumsum(lengths)


def _cached(work: _Work) -> tuple[np.ndarray, np.ndarray]:
    """From the cache, after making the entry where it is not there or damaged."""
    try:
        entry = _cache_folder() / work.key()
        if not _is_whole(entry):
            entry.parent.mkdir(parents=True, exist_ok=True)
            with _alone(entry):
                if not _is_whole(entry):  # nor has another process made it meanwhile
                    _make(entry, work)
        return _map(entry, work.dtype)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        log.warning(
            "the tokens cannot be cached (%s); they stay in memory. Set RANKDISTILLM_CACHE to a "
            "folder with more room",
            error,
        )
        return _in_memory(work)


@contextmanager
def _alone(entry: Path) -> Iterator[None]:
    """Of processes that want the same entry one makes it and the others wait."""
    lock = FileLock(entry.with_name(f"{entry.name}.lock"))
    try:
        lock.acquire(timeout=5)
    except Timeout:
        log.info("waiting for another process that tokenises the same texts")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _cache_folder() -> Path:
    own = os.environ.get("RANKDISTILLM_CACHE")
    common = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return (Path(own) if own else Path(common) / "rankdistillm") / "tokens"


def _make(entry: Path, work: _Work) -> None:
    for left in (entry, *entry.parent.glob(f".{entry.name}.*")):  # damaged; of a killed process
        shutil.rmtree(left, ignore_errors=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{entry.name}.", dir=entry.parent))
    try:
        lengths = [0]
        with open(beside / "tokens.bin", "wb") as file:
            for batch in work.batches():
                lengths.extend(map(len, batch))
                file.write(_flat(batch, work.dtype).tobytes())
        np.cumsum(lengths).astype(np.int64).tofile(beside / "offsets.bin")
        (beside / "meta.json").write_text(json.dumps(_checksums(beside)))
        os.replace(beside, entry)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _is_whole(entry: Path) -> bool:
    if not entry.exists():
        return False
    try:
        if json.loads((entry / "meta.json").read_text()) == _checksums(entry):
            return True
    except (OSError, ValueError):
        pass
    log.warning("%s: the cached tokens are damaged; tokenising again", entry)
    return False


def _checksums(entry: Path) -> dict[str, int]:
    return {name: _crc32(entry / f"{name}.bin") for name in ("tokens", "offsets")}


def _crc32(path: Path) -> int:
    checksum = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _map(entry: Path, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    # As plain arrays, of which a slice takes a tenth of the time.
    offsets = np.asarray(np.memmap(entry / "offsets.bin", np.int64, mode="r"))
    if not offsets[-1]:  # a file without content cannot be mapped
        return np.empty(0, dtype), offsets
    return np.asarray(np.memmap(entry / "tokens.bin", dtype, mode="r")), offsets


def _flat(batch: list[list[int]], dtype: np.dtype) -> np.ndarray:
    return np.fromiter(chain.from_iterable(batch), dtype, sum(map(len, batch)))


def _fingerprint(tokenizer: Any) -> str:
    """What a tokeniser does, whatever it was last asked to cut and pad to."""
    if tokenizer.is_fast:
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        content |= {"truncation": None, "padding": None}
        content |= {
            n: getattr(tokenizer, n, None)
            for n in ("truncation_side", "split_special_tokens", "clean_up_tokenization_spaces")
        }
    else:
        content = [type(tokenizer).__name__, tokenizer.get_vocab(), str(tokenizer.init_kwargs)]
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode()).hexdigest()
