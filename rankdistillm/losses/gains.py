"""Gains and discounts of NDCG, for losses that approximate it or weight pairs by it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Gain = Literal["exp", "linear"]


def relative_gains(targets: Tensor, gain: Gain) -> Tensor:
    """Gains divided by 2^(highest target of the list), or by the highest target, `[..., n]`.

    `"exp"` is 2^target - 1, `"linear"` is the target itself. NDCG is a ratio, so the scale of a
    list cancels out; this scale keeps 2^target finite for any target. As in trec_eval, a negative
    target gains nothing. Masked positions gain zero, because `prepare` sets their targets to zero.
    """
    relevance = targets.clamp(min=0)
    highest = relevance.amax(-1, keepdim=True)
    if gain == "exp":
        return torch.exp2(relevance - highest) - torch.exp2(-highest)
    if gain == "linear":
        return relevance / torch.where(highest > 0, highest, 1)
    raise ValueError(f"gain must be 'exp' or 'linear', got {gain!r}")


def rank_discounts(values: Tensor) -> Tensor:
    """1 / log2(1 + rank) of the ranks 1 to n, `[n]`, in the dtype and on the device of `values`."""
    ranks = torch.arange(1, values.shape[-1] + 1, dtype=values.dtype, device=values.device)
    return 1 / torch.log2(1 + ranks)


def ideal_dcg(gains: Tensor, k: int | None = None) -> Tensor:
    """DCG of the best order, down to rank `k`, `[...]`; one if it is zero, to divide by safely."""
    best = gains.sort(dim=-1, descending=True).values * rank_discounts(gains)
    dcg = best[..., :k].sum(-1)
    return torch.where(dcg > 0, dcg, 1)
