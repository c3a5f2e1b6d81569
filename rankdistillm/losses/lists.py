"""Helpers that all losses share: safe input, averages and ranks in a list, reduction over lists.

Shapes in this package: `[...]` are the lists (any leading dimensions), `[..., n]` their passages,
`[..., n, n]` their pairs, where entry `[i, j]` compares passage i with passage j.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

Reduction = Literal["mean", "sum", "none"]


class Lists(NamedTuple):
    """Scores, targets and mask, each `[..., n]`, safe to compute with: see `prepare`."""

    scores: Tensor
    targets: Tensor
    mask: Tensor


def prepare(
    scores: Tensor, targets: Tensor, mask: Tensor | None, *, temperature: float = 1.0
) -> Lists:
    """Check the input and make it safe: float32 (float64 stays), zeros at masked positions.

    The zeros are set before any arithmetic, so that no value at a masked position, not even NaN or
    infinity, reaches the loss or a gradient. Targets are constants: no gradient flows to the
    teacher. The scores are divided by `temperature`.

    Raises:
        ValueError: shapes differ, the scores have no list dimension, the mask is not boolean or
            the temperature is not positive.
    """
    if scores.ndim == 0:
        raise ValueError("scores must be [..., list_size], got a tensor without dimensions")
    if targets.shape != scores.shape:
        raise ValueError(
            f"scores and targets must have one shape, got scores {tuple(scores.shape)} "
            f"and targets {tuple(targets.shape)}"
        )
    if mask is None:
        mask = torch.ones_like(scores, dtype=torch.bool)
    if mask.shape != scores.shape:
        raise ValueError(
            f"scores and mask must have one shape, got scores {tuple(scores.shape)} "
            f"and mask {tuple(mask.shape)}"
        )
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be boolean (True = a real passage), got {mask.dtype}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if scores.shape[-1] == 0:
        # Add one masked passage, because a maximum over nothing does not exist.
        scores, targets, mask = pad(scores, (0, 1)), pad(targets, (0, 1)), pad(mask, (0, 1))
    dtype = torch.float64 if scores.dtype == torch.float64 else torch.float32
    scores = scores.masked_fill(~mask, 0).to(dtype) / temperature
    targets = targets.detach().masked_fill(~mask, 0).to(dtype)
    return Lists(scores, targets, mask)


def reduce_lists(values: Tensor, targets: Tensor, reduction: Reduction) -> Tensor:
    """Reduce one value per list `[...]` to the loss: `"mean"` over all lists, `"sum"`, or `"none"`.

    The mean includes lists with nothing to compare, so that a batch equals the mean of its lists
    taken one at a time. `targets` `[..., n]` come from `prepare`; a NaN among them makes the value
    of its list NaN.
    """
    # NaN is neither above nor below any number, so most losses would skip such a passage.
    unknown = targets.isnan().any(-1)
    values = values * torch.where(unknown, torch.nan, 1.0)
    if reduction == "none":
        return values
    if reduction == "sum":
        return values.sum()
    if reduction == "mean":
        # .mean() would give NaN for no lists at all; this gives zero.
        return values.sum() / max(values.numel(), 1)
    raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")


def average(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` over the last axis where `mask` is True; zero if it never is."""
    total = torch.where(mask, values, 0).sum(-1)
    return total / mask.sum(-1).clamp(min=1)


def centre(values: Tensor, mask: Tensor) -> Tensor:
    """`values` minus their mean, which gets no gradient; zero at masked positions.

    For losses that do not depend on the offset of the scores, but whose rounding errors do.
    """
    mean = average(values, mask).detach().unsqueeze(-1)
    return (values - mean).masked_fill(~mask, 0)


def zero_unless(comparable: Tensor, values: Tensor) -> Tensor:
    """`values` `[...]`, or a zero that stays in the graph for a list that is not `comparable`."""
    return torch.where(comparable, values, 0)


def fill_masked(values: Tensor, mask: Tensor) -> Tensor:
    """`values` with the lowest finite number where `mask` is False, for softmax and logsumexp.

    With minus infinity, the softmax of a list without passages and its gradient would be NaN.
    """
    return values.masked_fill(~mask, torch.finfo(values.dtype).min)


def has_order(values: Tensor, mask: Tensor) -> Tensor:
    """Whether a list has passages with different values, i.e. anything to order, `[...]`."""
    highest = values.masked_fill(~mask, -torch.inf).amax(-1)
    lowest = values.masked_fill(~mask, torch.inf).amin(-1)
    return highest > lowest


def average_ranks(values: Tensor, mask: Tensor) -> Tensor:
    """Rank of each passage, 1 for the highest value; tied passages share their average rank."""
    rows, columns = values.unsqueeze(-1), values.unsqueeze(-2)
    above = (columns > rows) & mask.unsqueeze(-2)
    level = (columns == rows) & mask.unsqueeze(-2)
    # A passage is level with itself, which adds the other half.
    return 0.5 + above.sum(-1).to(values.dtype) + 0.5 * level.sum(-1).to(values.dtype)


def ordered_pairs(values: Tensor, mask: Tensor) -> Tensor:
    """Whether the first passage of a pair has the higher value, `[..., n, n]`."""
    return (values.unsqueeze(-1) > values.unsqueeze(-2)) & mask.unsqueeze(-1) & mask.unsqueeze(-2)


def differences(values: Tensor) -> Tensor:
    """`values[i] - values[j]` for all pairs, `[..., n, n]`."""
    return values.unsqueeze(-1) - values.unsqueeze(-2)
