"""Where the pairs lie in a row of packed tokens, and the padded rectangles that are made of it."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from rankdistillm.devices import to_device

# A rectangle is padded to its longest pair; the shortest has at least this share of its length.
FULL = 0.75
# On a CPU it holds at most so many products of queries and keys for each head, if it is not one
# pair's: with a dozen heads they stay in the last cache from one operation to the next.
PRODUCTS = 160_000


@dataclass(frozen=True)
class Segments:
    """Where the pairs lie in a row of tokens: pair i has the next ``lengths[i]`` of them."""

    lengths: np.ndarray
    device: torch.device

    @property
    def num_tokens(self) -> int:
        return int(self.lengths.sum())

    @property
    def longest(self) -> int:
        return int(self.lengths.max())

    @cached_property
    def alike(self) -> list["Segments"]:
        """The pairs once more, neighbours of about the same length together: parts to be padded."""
        return self._parts(float("inf"))

    @cached_property
    def rectangles(self) -> list["Segments"]:
        """`alike`, on a CPU in parts that fit its cache."""
        return self._parts(PRODUCTS) if self.device.type == "cpu" else self.alike

    def _parts(self, products: float) -> list["Segments"]:
        parts = []
        rest = self.lengths
        while len(rest):
            longest = np.maximum.accumulate(rest)
            full = np.minimum.accumulate(rest) >= FULL * longest
            fits = np.arange(1, len(rest) + 1) * longest**2 <= products
            pairs = max(1, int((full & fits).sum()))
            parts.append(Segments(rest[:pairs], self.device))
            rest = rest[pairs:]
        return parts

    @cached_property
    def starts(self) -> Tensor:
        """int64 ``[pairs]``: where each pair's first token is."""
        return self._to_device(np.cumsum(self.lengths) - self.lengths)

    @cached_property
    def bounds(self) -> Tensor:
        """int32 ``[pairs + 1]``: where each pair ends, from 0."""
        return self._to_device(np.cumsum([0, *self.lengths]).astype(np.int32))

    @cached_property
    def positions(self) -> Tensor:
        """int64 ``[tokens]``: the place of each token in its pair, from 0."""
        starts = np.cumsum(self.lengths) - self.lengths
        return self._to_device(np.arange(self.lengths.sum()) - np.repeat(starts, self.lengths))

    @cached_property
    def mask(self) -> Tensor:
        """``[pairs, longest]``: True for a real token of the rectangle."""
        return self._to_device(np.arange(self.longest) < self.lengths[:, None])

    @cached_property
    def places(self) -> Tensor:
        """int64 ``[pairs, longest]``: the token at each place of the rectangle, 0 for a padding."""
        return torch.where(
            self.mask,
            self.starts[:, None] + torch.arange(self.longest, device=self.device),
            0,
        )

    @cached_property
    def real(self) -> Tensor:
        """int64 ``[tokens]``: the place of each token in the flattened rectangle."""
        rows = np.repeat(np.arange(len(self.lengths)) * self.longest, self.lengths)
        return self._to_device(rows) + self.positions

    def pad(self, row: Tensor) -> Tensor:
        """``[tokens, ...]`` -> ``[pairs, longest, ...]``; a padding repeats the first token."""
        return row.index_select(0, self.places.flatten()).unflatten(0, self.places.shape)

    def unpad(self, rectangle: Tensor) -> Tensor:
        """``[pairs, longest, ...]`` -> ``[tokens, ...]``."""
        return rectangle.flatten(0, 1).index_select(0, self.real)

    def _to_device(self, array: np.ndarray) -> Tensor:
        return to_device(array, self.device)
