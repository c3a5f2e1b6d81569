"""Packed pairs: the tokens of query and passage, joined by the tokeniser's special tokens.

A `PackedPairs` holds the tokens of all its pairs end to end in one flat array.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class PairTemplate:
    """The special tokens that a tokeniser adds to a (query, passage) pair.

    They stand ``before`` the query, ``between`` the two texts and ``after`` the passage, each with
    its token types; ``query_type`` and ``doc_type`` are the types of the texts. ``has_types`` says
    whether the model takes token types. A pair above ``max_length`` tokens (special ones included;
    None: no limit) is cut at the end of its longer text first, as transformers'
    ``truncation="longest_first"`` does.
    """

    before: np.ndarray
    between: np.ndarray
    after: np.ndarray
    before_types: np.ndarray
    between_types: np.ndarray
    after_types: np.ndarray
    query_type: int
    doc_type: int
    has_types: bool
    max_length: int | None = None

    @classmethod
    def from_tokenizer(cls, tokenizer: Any, max_length: int | None = None) -> "PairTemplate":
        """Derive the template from the tokeniser's own encoding of a small pair."""
        encoded = tokenizer("a", "a")
        sequence = encoded.sequence_ids(0)
        ids = np.array(encoded["input_ids"], dtype=np.int32)
        has_types = "token_type_ids" in encoded
        types = np.array(encoded["token_type_ids"] if has_types else [0] * len(ids), dtype=np.int32)
        query = [i for i, part in enumerate(sequence) if part == 0]
        doc = [i for i, part in enumerate(sequence) if part == 1]
        before, between, after = (
            slice(0, query[0]),
            slice(query[-1] + 1, doc[0]),
            slice(doc[-1] + 1, None),
        )
        return cls(
            before=ids[before],
            between=ids[between],
            after=ids[after],
            before_types=types[before],
            between_types=types[between],
            after_types=types[after],
            query_type=int(types[query[0]]),
            doc_type=int(types[doc[0]]),
            has_types=has_types,
            max_length=max_length,
        )

    def pack(self, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> "PackedPairs":
        """Join (query tokens, passage tokens) pairs into one `PackedPairs`."""
        texts = [text for pair in pairs for text in pair]
        sizes = np.fromiter(map(len, texts), np.int64, len(texts)).reshape(-1, 2)
        kept = self._cut(sizes)
        if (kept < sizes).any():
            texts = [text[:size] for text, size in zip(texts, kept.ravel(), strict=True)]
            sizes = kept
        lengths = sizes.sum(1) + self._num_special
        starts = np.cumsum(lengths) - lengths
        tokens, types = np.empty((2, lengths.sum()), np.int32)
        is_text = np.ones(len(tokens), bool)
        for indices, special, special_types in (
            (starts, self.before, self.before_types),
            (starts + len(self.before) + sizes[:, 0], self.between, self.between_types),
            (starts + lengths - len(self.after), self.after, self.after_types),
        ):
            for i in range(len(special)):
                tokens[indices + i] = special[i]
                types[indices + i] = special_types[i]
                is_text[indices + i] = False
        tokens[is_text] = np.concatenate([np.empty(0, np.int32), *texts])
        types[is_text] = np.repeat([self.query_type, self.doc_type] * len(pairs), sizes.ravel())
        return PackedPairs(tokens, types if self.has_types else None, lengths)

    def doc_room(self, query_size: int) -> int | None:
        """The longest passage that is not cut beside a query of this size, in tokens.

        None: any passage.
        """
        if self.max_length is None:
            return None
        room = self.max_length - self._num_special
        half = room // 2 if query_size > room - room // 2 else room - room // 2
        return max(room - query_size, half, 1)

    def _cut(self, sizes: np.ndarray) -> np.ndarray:
        """Return the tokens to keep of each (query, passage): ``[pairs, 2]`` in and out."""
        if self.max_length is None:
            return sizes
        room = self.max_length - self._num_special
        shorter = np.minimum(sizes.min(1), room // 2)
        is_shorter = np.stack([sizes[:, 0] <= sizes[:, 1], sizes[:, 0] > sizes[:, 1]], 1)
        cut = np.where(is_shorter, shorter[:, None], room - shorter[:, None])
        return np.where(sizes.sum(1, keepdims=True) > room, cut, sizes)

    @property
    def _num_special(self) -> int:
        return len(self.before) + len(self.between) + len(self.after)


@dataclass(frozen=True)
class PackedPairs:
    """The tokens of many pairs end to end: ``tokens``, ``types`` ``[sum(lengths)]``."""

    tokens: np.ndarray
    types: np.ndarray | None
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.lengths)

    def select(self, chosen: np.ndarray) -> "PackedPairs":
        """Return the pairs at the indices ``chosen``, packed in that order."""
        lengths = self.lengths[chosen]
        shift = (np.cumsum(self.lengths) - self.lengths)[chosen] - (np.cumsum(lengths) - lengths)
        return self._gathered(np.arange(lengths.sum()) + np.repeat(shift, lengths), lengths)

    def filled(self, token_multiple: int, pair_multiple: int, longest: int) -> "PackedPairs":
        """Append pairs until the tokens and the pairs are multiples of these numbers.

        The appended pairs repeat the row's first tokens, at most ``longest`` of them each. Returns
        the pairs unchanged if both numbers already fit.
        """
        num_tokens = -len(self.tokens) % token_multiple
        num_pairs = -len(self) % pair_multiple
        while not num_pairs <= num_tokens <= num_pairs * longest:
            if num_tokens < num_pairs:
                num_tokens += token_multiple
            else:
                num_pairs += pair_multiple
        if not num_pairs:
            return self
        source = np.arange(len(self.tokens) + num_tokens) % len(self.tokens)
        lengths = np.full(num_pairs, num_tokens // num_pairs)
        lengths[: num_tokens - lengths.sum()] += 1
        return self._gathered(source, np.append(self.lengths, lengths))

    def _gathered(self, source: np.ndarray, lengths: np.ndarray) -> "PackedPairs":
        """Return pairs of these lengths made of the tokens at the indices ``source``."""
        types = None if self.types is None else self.types[source]
        return PackedPairs(self.tokens[source], types, lengths)


def plan_chunks(lengths: np.ndarray, token_budget: int, *, padded: bool) -> list[np.ndarray]:
    """Cut pairs into chunks of at most ``token_budget`` tokens; returns indices into ``lengths``.

    Pairs are taken longest first, so that a chunk holds pairs of similar length. With ``padded``,
    each pair counts as many tokens as the longest of its chunk. A pair above the budget is a chunk
    of its own.
    """
    order = np.argsort(-lengths, kind="stable")
    ends = np.cumsum([0, *lengths[order]])
    chunks = []
    start = 0
    while start < len(order):
        if padded:
            end = start + token_budget // max(1, lengths[order[start]])
        else:
            end = np.searchsorted(ends, ends[start] + token_budget, side="right") - 1
        end = max(start + 1, int(end))
        chunks.append(order[start:end])
        start = end
    return chunks
