"""Where the pairs lie in a row of packed tokens, and the padded rectangles that are made of it."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from rankdistillm.devices import to_device

# A rectangle is padded to its longest pair. The shortest has at least this share of its width, or
# would need the same width by itself.
FULL = 0.75
# On a CPU the matrices of a product have a multiple of so many rows. How the rows beyond it are
# rounded depends on which of them a thread has, and so on the number of threads (MKL on AMD).
ROWS = 4
# In half precision on a CPU the width is a multiple of so many tokens: its vector and matrix units
# take as many, and products are compiled for each new width (`size_multiple`).
MULTIPLE = 32
# On a CPU it holds at most so many products of queries and keys for each head, if it is not one
# pair's: with a dozen heads they stay in the last cache from one operation to the next.
PRODUCTS = 160_000


def size_multiple(num_tokens: int) -> int:
    """What the tokens of a row are made a multiple of, in half precision on a CPU.

    oneDNN compiles each new shape of a product, which takes several times as long as the product,
    so that sizes must be few: of long rows fewer, where what is added counts less.
    """
    return 256 if num_tokens > 1024 else 64


@dataclass(frozen=True)
class Segments:
    """Where the pairs lie in a row of tokens: pair i has the next ``lengths[i]`` of them.

    The width of their rectangle is the longest length, rounded up to a multiple of ``multiple``.
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
    def alike(self) -> list["Segments"]:
        """The pairs once more, neighbours of about the same length together: parts to be padded."""
        return self._parts(float("inf"), ROWS if self.device.type == "cpu" else 1)

    @cached_property
    def rectangles(self) -> list["Segments"]:
        """`alike`, on a CPU in parts that fit its cache."""
        return self._parts(PRODUCTS, ROWS) if self.device.type == "cpu" else self.alike

    @cached_property
    def aligned(self) -> list["Segments"]:
        """`rectangles`, on a CPU of widths that suit half precision."""
        return self._parts(PRODUCTS, MULTIPLE) if self.device.type == "cpu" else self.alike

    @cached_property
    def aligned_places(self) -> Tensor:
        """int64 ``[padded tokens]``: the token at each place of all `aligned`, 0 for a padding.

        They lie end to end, and behind them are paddings up to a `size_multiple`.
        """
        size = sum(part.mask.numel() for part in self.aligned)
        size += -size % size_multiple(size)
        places = torch.zeros(size, dtype=torch.int64, device=self.device)
        places[self.aligned_real] = torch.arange(self.num_tokens, device=self.device)
        return places

    @cached_property
    def aligned_real(self) -> Tensor:
        """int64 ``[tokens]``: the place of each token in `aligned_places`."""
        widths = np.repeat(*np.transpose([(p.width, len(p.lengths)) for p in self.aligned]))
        return self._to_device(np.repeat(np.cumsum(widths) - widths, self.lengths)) + self.positions

    def _parts(self, products: float, multiple: int) -> list["Segments"]:
        parts = []
        rest = self.lengths
        while len(rest):
            width = -(-np.maximum.accumulate(rest) // multiple) * multiple
            full = np.minimum.accumulate(rest) >= np.minimum(FULL * width, width - multiple + 1)
            fits = np.arange(1, len(rest) + 1) * width**2 <= products
            pairs = max(1, int((full & fits).sum()))
            parts.append(Segments(rest[:pairs], self.device, multiple))
            rest = rest[pairs:]
        return parts

    @cached_property
    def starts(self) -> Tensor:
        """int64 ``[pairs]``: where each pair's first token is."""
        return self._to_device(np.cumsum(self.lengths) - self.lengths)

    @cached_property
    def bounds(self) -> Tensor:
        """int32 ``[pairs + 1]``: where each pair ends, from 0."""
        return self._to_device(np.append(0, np.cumsum(self.lengths)).astype(np.int32))

    @cached_property
    def positions(self) -> Tensor:
        """int64 ``[tokens]``: the place of each token in its pair, from 0."""
        starts = np.cumsum(self.lengths) - self.lengths
        return self._to_device(np.arange(self.lengths.sum()) - np.repeat(starts, self.lengths))

    @cached_property
    def mask(self) -> Tensor:
        """``[pairs, width]``: True for a real token of the rectangle."""
        return self._to_device(np.arange(self.width) < self.lengths[:, None])

    @cached_property
    def bias(self) -> Tensor:
        """float32 ``[pairs, width]``: what hides a padding from attention, -inf, else 0."""
        zeros = torch.zeros(self.mask.shape, device=self.device)
        return zeros.masked_fill_(~self.mask, -torch.inf)

    @cached_property
    def places(self) -> Tensor:
        """int64 ``[pairs, width]``: the token at each place of the rectangle, 0 for a padding."""
        return torch.where(
            self.mask,
            self.starts[:, None] + torch.arange(self.width, device=self.device),
            0,
        )

    @cached_property
    def real(self) -> Tensor:
        """int64 ``[tokens]``: the place of each token in the flattened rectangle."""
        rows = np.repeat(np.arange(len(self.lengths)) * self.width, self.lengths)
        return self._to_device(rows) + self.positions

    def pad(self, row: Tensor) -> Tensor:
        """``[tokens, ...]`` -> ``[pairs, width, ...]``; a padding repeats the first token."""
        return row.index_select(0, self.places.flatten()).unflatten(0, self.places.shape)

    def unpad(self, rectangle: Tensor) -> Tensor:
        """``[pairs, width, ...]`` -> ``[tokens, ...]``."""
        return rectangle.flatten(0, 1).index_select(0, self.real)

    def _to_device(self, array: np.ndarray) -> Tensor:
        return to_device(array, self.device)
