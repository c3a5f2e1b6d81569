"""Losses on approximate ranks: a sum of sigmoids counts the passages above, smoothly.

The approximation is that of Qin, Liu and Li, "A General Approximation Framework for Direct
Optimization of Information Retrieval Measures", Information Retrieval 13, 2010. A low temperature
makes the ranks exact, but their gradients vanish.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .consumption import consumes
from .gains import Gain, ideal_dcg, relative_gains
from .lists import (
    Reduction,
    average,
    average_ranks,
    differences,
    has_order,
    prepare,
    reduce_lists,
    zero_unless,
)


def approx_ranks(scores: Tensor, mask: Tensor) -> Tensor:
    """1 + the sum over the other passages j of sigmoid(s_j - s_i), `[..., n]`."""
    above = torch.sigmoid(-differences(scores))
    # The sum includes the passage itself as 0.5, without a gradient; so add 0.5, not 1.
    return 0.5 + torch.where(mask.unsqueeze(-2), above, 0).sum(-1)


@consumes("order")
def adr_mse_loss(
    scores: Tensor,
    targets: Tensor,
    *,
    mask: Tensor | None = None,
    discount: Literal["log2", "reciprocal"] | None = "log2",
    temperature: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """ADR-MSE: discounted squared error between the approximate ranks and the teacher's ranks.

        mean over i of d(r_i) (a_i - r_i)^2,   a_i = 1 + sum over j != i of
                                                     sigmoid((s_j - s_i) / temperature)

    with r the rank by targets, ties sharing their average rank, and d(r) = 1 / log2(1 + r) for
    `"log2"` (the paper's), 1 / r for `"reciprocal"`, 1 for None.

    Schlatt et al., "Rank-DistiLLM: Closing the Effectiveness Gap Between Cross-Encoders and LLMs
    for Passage Re-Ranking", ECIR 2025.

    Consumes *order*: ranks are enough. Passages with tied targets are drawn to one rank; a list of
    nothing but ties has no order and costs zero. Bounded: a passage that is far from its rank gets
    next to no gradient.

    Args:
        scores: `[..., list_size]`.
        targets: `[..., list_size]`, higher is better.
        mask: `[..., list_size]`, True = a real passage; by default, all are.
        discount: the weight of a rank, see above.
        temperature: divides the scores.
        reduction: `"mean"` or `"sum"` over lists, or `"none"`.

    Returns:
        The loss, or `[...]` values with `reduction="none"`.

    >>> adr_mse_loss(torch.tensor([2.0, 0.0, 1.0]), torch.tensor([3, 2, 1]))
    tensor(0.2956)
    """
    lists = prepare(scores, targets, mask, temperature=temperature)
    ranks = average_ranks(lists.targets, lists.mask)
    errors = (approx_ranks(lists.scores, lists.mask) - ranks).square()
    if discount == "log2":
        errors = errors / torch.log2(1 + ranks)
    elif discount == "reciprocal":
        errors = errors / ranks
    elif discount is not None:
        raise ValueError(f"discount must be 'log2', 'reciprocal' or None, got {discount!r}")
    comparable = has_order(lists.targets, lists.mask)
    values = zero_unless(comparable, average(errors, lists.mask))
    return reduce_lists(values, lists.targets, reduction)


@consumes("gain")
def approx_ndcg_loss(
    scores: Tensor,
    targets: Tensor,
    *,
    mask: Tensor | None = None,
    gain: Gain = "exp",
    temperature: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """ApproxNDCG: one minus the NDCG of the approximate ranks.

        1 - (sum over i of g_i / log2(1 + a_i)) / (the same sum in the best order)

    with a as in `adr_mse_loss` and g_i = 2^t_i - 1 (`gain="exp"`) or t_i (`"linear"`); negative
    targets count as zero.

    Qin, Liu and Li, "A General Approximation Framework for Direct Optimization of Information
    Retrieval Measures", Information Retrieval 13, 2010; Bruch et al., "Revisiting Approximate
    Metric Optimization in the Age of Deep Neural Networks", SIGIR 2019.

    Consumes *gain*: graded relevance. On ranks, the exponential gain makes all but the first few
    passages worthless. A list whose gains are all equal costs zero. Bounded: a passage that is far
    from its rank gets next to no gradient.

    Args:
        scores: `[..., list_size]`.
        targets: `[..., list_size]`, higher is better.
        mask: `[..., list_size]`, True = a real passage; by default, all are.
        gain: `"exp"` or `"linear"`.
        temperature: divides the scores.
        reduction: `"mean"` or `"sum"` over lists, or `"none"`.

    Returns:
        The loss, or `[...]` values with `reduction="none"`.

    >>> approx_ndcg_loss(torch.tensor([2.0, 0.0, 1.0]), torch.tensor([2, 0, 1]))
    tensor(0.1683)
    """
    lists = prepare(scores, targets, mask, temperature=temperature)
    gains = relative_gains(lists.targets, gain)
    dcg = (gains / torch.log2(1 + approx_ranks(lists.scores, lists.mask))).sum(-1)
    values = 1 - dcg / ideal_dcg(gains)
    return reduce_lists(zero_unless(has_order(gains, lists.mask), values), lists.targets, reduction)


@consumes("gain")
def approx_mrr_loss(
    scores: Tensor,
    targets: Tensor,
    *,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """ApproxMRR: one minus the reciprocal of the best approximate rank of a relevant passage.

        1 - max over {i: t_i > 0} of 1 / a_i

    with a as in `adr_mse_loss`.

    The framework of Qin, Liu and Li (Information Retrieval 13, 2010), which covers NDCG and MAP,
    applied to the reciprocal rank.

    Consumes *gain*: a target above zero is relevant, grades do not matter. On ranks, every passage
    would be relevant. A list of only relevant or only other passages costs zero. Bounded: a passage
    that is far from its rank gets next to no gradient.

    Args:
        scores: `[..., list_size]`.
        targets: `[..., list_size]`, higher is better.
        mask: `[..., list_size]`, True = a real passage; by default, all are.
        temperature: divides the scores.
        reduction: `"mean"` or `"sum"` over lists, or `"none"`.

    Returns:
        The loss, or `[...]` values with `reduction="none"`.

    >>> approx_mrr_loss(torch.tensor([2.0, 0.0, 1.0]), torch.tensor([0, 0, 1]))
    tensor(0.5000)
    """
    lists = prepare(scores, targets, mask, temperature=temperature)
    relevant = lists.targets > 0
    reciprocal = torch.where(relevant, 1 / approx_ranks(lists.scores, lists.mask), 0)
    comparable = has_order(relevant.to(lists.scores.dtype), lists.mask)
    return reduce_lists(zero_unless(comparable, 1 - reciprocal.amax(-1)), lists.targets, reduction)
