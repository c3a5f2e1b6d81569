"""Score long passages by overlapping windows: the best window gives the score.

Known as MaxP (Dai and Callan, "Deeper text understanding for IR with contextual neural language
modeling", SIGIR 2019).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Windows:
    """The windows of the passages of many pairs.

    Window ``i`` shows the tokens ``starts[i]`` to ``starts[i] + widths[owners[i]]`` of the passage
    of the pair ``owners[i]``. The first windows of all pairs come first, in the order of the pairs,
    so that short passages share their chunks with the same passages as without windows, and score
    the same to the last bit.

    ``owners``, ``starts``: ``[windows]``; ``widths``: ``[pairs]``, in tokens.
    """

    owners: np.ndarray
    starts: np.ndarray
    widths: np.ndarray

    @classmethod
    def whole(cls, sizes: np.ndarray) -> "Windows":
        """One window for each pair, as large as its passage; ``sizes``: ``[pairs]`` in tokens."""
        return cls(np.arange(len(sizes)), np.zeros(len(sizes), np.int64), sizes)

    @classmethod
    def overlapping(cls, sizes: np.ndarray, widths: np.ndarray, stride: int | None) -> "Windows":
        """Windows of ``widths`` tokens that start every ``stride`` tokens, down to the end.

        ``sizes``, ``widths``: ``[pairs]``. ``stride``: None for half the width; it is never above
        the width, so that no token is left out. The last window may be shorter.
        """
        strides = widths // 2 if stride is None else np.minimum(stride, widths)
        strides = np.maximum(strides, 1)
        further = -(-np.maximum(sizes - widths, 0) // strides)
        owners = np.repeat(np.arange(len(sizes)), further)
        # 1, 2, 3, … within each pair
        numbers = np.arange(len(owners)) - np.repeat(np.cumsum(further) - further, further) + 1
        first = cls.whole(sizes)
        return cls(
            np.append(first.owners, owners),
            np.append(first.starts, numbers * strides[owners]),
            widths,
        )

    def __len__(self) -> int:
        return len(self.owners)

    def batches(self, size: int) -> list[slice]:
        """Cut the windows into batches of at most ``size``, the first windows by themselves."""
        return [
            slice(start, min(start + size, stop))
            for begin, stop in ((0, len(self.widths)), (len(self.widths), len(self)))
            for start in range(begin, stop, size)
        ]

    def shown(self, batch: slice) -> Iterator[tuple[int, slice]]:
        """Each window of a batch: the index of its pair, and the tokens of the passage it shows."""
        owners, starts = self.owners[batch], self.starts[batch]
        stops = starts + self.widths[owners]
        yield from zip(owners.tolist(), map(slice, starts.tolist(), stops.tolist()), strict=True)

    def best(self, scores: np.ndarray) -> np.ndarray:
        """The score of each pair's best window: ``[windows]`` to ``[pairs]``."""
        best = scores[: len(self.widths)].copy()
        np.maximum.at(best, self.owners[len(best) :], scores[len(best) :])
        return best
