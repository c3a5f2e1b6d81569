"""Which tokens of a packed row belong to which pair, and the padded rectangles cut from the row."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from rankdistillm.devices import to_device

# A rectangle is padded to its longest pair. Its shortest pair has at least this share of that
# width, or would be padded to the same width on its own.
MIN_FILL = 0.75
# On a CPU, the matrices of a product have a multiple of this many rows. That is not faster, but
# scores must not depend on the number of threads: several processes, which share the threads, write
# the same run as one, byte for byte. The rounding of the rows beyond a multiple of four depends on
# which thread computes them (MKL on AMD).
ROWS = 4
# In half precision on a CPU, widths are a multiple of this: it suits the vector and matrix units,
# and there are few widths, for each of which oneDNN compiles products (`row_multiples`).
LOW_MULTIPLE = 32
# On a CPU, a rectangle of several pairs has at most this many attention weights per head: with a
# dozen heads they stay in the last-level cache from one operation to the next.
MAX_WEIGHTS = 160_000


def row_multiples(num_tokens: int, device: torch.device, dtype: torch.dtype) -> tuple[int, int]:
    """The multiples that (tokens, pairs) of a row should be filled up to, for products in dtype.

    In half precision on a CPU oneDNN compiles each new shape of a product, which takes several
    times as long as the product itself. So row sizes must be few, and fewer among long rows, where
    the added tokens cost relatively less. In float32 on a CPU they are multiples of `ROWS`;
    elsewhere any size does.
    """
    if device.type != "cpu":
        return 1, 1
    if dtype.itemsize != 2:
        return ROWS, ROWS
    return 256 if num_tokens > 1024 else 64, ROWS


@dataclass(frozen=True)
class Segments:
    """The pairs of a packed row: pair i is the next ``lengths[i]`` tokens.

    As a rectangle ``[pairs, width]`` they are padded to the longest length, rounded up to a
    multiple of ``multiple``.
    """

    lengths: np.ndarray
    device: torch.device
    multiple: int = 1

    @property
    def num_tokens(self) -> int:
        return int(self.lengths.sum())

    @cached_property
    def longest(self) -> int:
        return int(self.lengths.max())

    @property
    def width(self) -> int:
        return -(-self.longest // self.multiple) * self.multiple

    @cached_property
    def by_length(self) -> list["Segments"]:
        """The row cut into runs of neighbours of similar length, each to be padded by itself."""
        return self._cut(float("inf"), ROWS if self.device.type == "cpu" else 1)

    @cached_property
    def rectangles(self) -> list["Segments"]:
        """`by_length`; on a CPU cut further, so that attention weights fit into the cache."""
        return self._cut(MAX_WEIGHTS, ROWS) if self.device.type == "cpu" else self.by_length

    @cached_property
    def low_rectangles(self) -> list["Segments"]:
        """`rectangles`; on a CPU with widths that suit half precision."""
        return self._cut(MAX_WEIGHTS, LOW_MULTIPLE) if self.device.type == "cpu" else self.by_length

    @cached_property
    def low_pad_indices(self) -> Tensor:
        """int64 ``[slots]``: the token in each slot of all `low_rectangles`, 0 for padding.

        The rectangles lie end to end; padding up to the size of `row_multiples` follows.
        """
        size = sum(part.mask.numel() for part in self.low_rectangles)
        size += -size % row_multiples(size, self.device, torch.bfloat16)[0]
        indices = torch.zeros(size, dtype=torch.int64, device=self.device)
        indices[self.low_unpad_indices] = torch.arange(self.num_tokens, device=self.device)
        return indices

    @cached_property
    def low_unpad_indices(self) -> Tensor:
        """int64 ``[tokens]``: the slot of each token in `low_pad_indices`."""
        widths = np.repeat(*np.transpose([(p.width, len(p.lengths)) for p in self.low_rectangles]))
        return self._to_device(np.repeat(np.cumsum(widths) - widths, self.lengths)) + self.positions

    def _cut(self, max_weights: float, multiple: int) -> list["Segments"]:
        parts = []
        rest = self.lengths
        while len(rest):
            width = -(-np.maximum.accumulate(rest) // multiple) * multiple
            shortest = np.minimum.accumulate(rest)
            is_filled = shortest >= np.minimum(MIN_FILL * width, width - multiple + 1)
            fits = np.arange(1, len(rest) + 1) * width**2 <= max_weights
            num_pairs = max(1, int((is_filled & fits).sum()))
            parts.append(Segments(rest[:num_pairs], self.device, multiple))
            rest = rest[num_pairs:]
        return parts

    @cached_property
    def starts(self) -> Tensor:
        """int64 ``[pairs]``: the index of each pair's first token."""
        return self._to_device(np.cumsum(self.lengths) - self.lengths)

    @cached_property
    def bounds(self) -> Tensor:
        """int32 ``[pairs + 1]``: 0, then the end of each pair."""
        return self._to_device(np.append(0, np.cumsum(self.lengths)).astype(np.int32))

    @cached_property
    def positions(self) -> Tensor:
        """int64 ``[tokens]``: the index of each token in its pair."""
        starts = np.cumsum(self.lengths) - self.lengths
        return self._to_device(np.arange(self.lengths.sum()) - np.repeat(starts, self.lengths))

    @cached_property
    def mask(self) -> Tensor:
        """bool ``[pairs, width]``: True for a real token of the rectangle."""
        return self._to_device(np.arange(self.width) < self.lengths[:, None])

    @cached_property
    def bias(self) -> Tensor:
        """float32 ``[pairs, width]``: added to attention logits, -inf for padding, else 0."""
        zeros = torch.zeros(self.mask.shape, device=self.device)
        return zeros.masked_fill_(~self.mask, -torch.inf)

    @cached_property
    def pad_indices(self) -> Tensor:
        """int64 ``[pairs, width]``: the token in each slot of the rectangle, 0 for padding."""
        return torch.where(
            self.mask,
            self.starts[:, None] + torch.arange(self.width, device=self.device),
            0,
        )

    @cached_property
    def unpad_indices(self) -> Tensor:
        """int64 ``[tokens]``: the slot of each token in the flattened rectangle."""
        row_starts = np.repeat(np.arange(len(self.lengths)) * self.width, self.lengths)
        return self._to_device(row_starts) + self.positions

    def pad(self, row: Tensor) -> Tensor:
        """``[tokens, ...]`` -> ``[pairs, width, ...]``; padding repeats the first token."""
        return row.index_select(0, self.pad_indices.flatten()).unflatten(0, self.pad_indices.shape)

    def unpad(self, rectangle: Tensor) -> Tensor:
        """``[pairs, width, ...]`` -> ``[tokens, ...]``."""
        return rectangle.flatten(0, 1).index_select(0, self.unpad_indices)

    def _to_device(self, array: np.ndarray) -> Tensor:
        return to_device(array, self.device)
