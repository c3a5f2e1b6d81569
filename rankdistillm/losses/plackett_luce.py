"""Likelihood losses: a ranking is a sequence of choices of the best remaining passage."""

from __future__ import annotations

import torch
from torch import Tensor

from .consumption import consumes
from .lists import (
    Reduction,
    average,
    average_ranks,
    differences,
    fill_masked,
    ordered_pairs,
    prepare,
    reduce_lists,
)


def _choice_costs(scores: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """-log of the probability of choosing i over all passages with lower targets, `[..., n]`.

    Without ties, these are the steps of a Plackett-Luce choice from the best passage to the worst.
    Tied passages do not compete, so that no arbitrary order among them is learnt.
    """
    itself = torch.eye(scores.shape[-1], dtype=torch.bool, device=scores.device)
    return fill_masked(-differences(scores), ordered_pairs(targets, mask) | itself).logsumexp(-1)


@consumes("order")
def listmle_loss(
    scores: Tensor,
    targets: Tensor,
    *,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """ListMLE: negative log-likelihood of the targets' order under the Plackett-Luce model.

        mean over i of -log(e^(s_i / temperature) /
                            sum over {j: j = i or t_j < t_i} of e^(s_j / temperature))

    Xia et al., "Listwise Approach to Learning to Rank: Theory and Algorithm", ICML 2008. The paper
    sums over the passages of a list and has no ties; here tied passages do not compete.

    Consumes *order*: ranks are enough.

    Args:
        scores: `[..., list_size]`.
        targets: `[..., list_size]`, higher is better.
        mask: `[..., list_size]`, True = a real passage; by default, all are.
        temperature: divides the scores.
        reduction: `"mean"` or `"sum"` over lists, or `"none"`.

    Returns:
        The loss, or `[...]` values with `reduction="none"`.

    >>> listmle_loss(torch.tensor([2.0, 0.0, 1.0]), torch.tensor([3, 2, 1]))
    tensor(0.5736)
    """
    lists = prepare(scores, targets, mask, temperature=temperature)
    return reduce_lists(average(_choice_costs(*lists), lists.mask), lists.targets, reduction)


@consumes("order")
def p_listmle_loss(
    scores: Tensor,
    targets: Tensor,
    *,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Position-aware ListMLE: ListMLE whose steps weigh less the lower the rank that they fill.

        (sum over i of a_i c_i) / (sum over i of a_i),   a_i = 2^(m - r_i) - 1

    with c_i the terms of `listmle_loss`, m passages in the list, and r the rank by targets, ties
    sharing their average rank.

    Lan et al., "Position-Aware ListMLE: A Sequential Learning Process for Ranking", UAI 2014. The
    paper sums a_i c_i; dividing by the sum of the weights keeps the loss in the range of the other
    losses (2^m has 30 digits for 100 passages) and preserves their proportions.

    Consumes *order*: ranks are enough.

    Args:
        scores: `[..., list_size]`.
        targets: `[..., list_size]`, higher is better.
        mask: `[..., list_size]`, True = a real passage; by default, all are.
        temperature: divides the scores.
        reduction: `"mean"` or `"sum"` over lists, or `"none"`.

    Returns:
        The loss, or `[...]` values with `reduction="none"`.

    >>> p_listmle_loss(torch.tensor([2.0, 0.0, 1.0]), torch.tensor([3, 2, 1]))
    tensor(0.6340)
    """
    lists = prepare(scores, targets, mask, temperature=temperature)
    ranks = average_ranks(lists.targets, lists.mask)
    size = lists.mask.sum(-1, keepdim=True)
    # Divided by 2^(m - best rank), so that neither end leaves the range of floating point.
    best = ranks.masked_fill(~lists.mask, torch.inf).amin(-1, keepdim=True)
    weights = torch.exp2(best - ranks) - torch.exp2(best - size)
    weights = weights.masked_fill(~lists.mask, 0)
    total = weights.sum(-1)
    values = (weights * _choice_costs(*lists)).sum(-1) / torch.where(total > 0, total, 1)
    return reduce_lists(values, lists.targets, reduction)
