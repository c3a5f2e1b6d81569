"""Pairwise losses: the mean, over the pairs of a list, of a cost of their score difference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from .lists import (
    Reduction,
    average,
    average_ranks,
    differences,
    ordered_pairs,
    prepare,
    reduce_lists,
)


def mean_over_pairs(
    scores: Tensor,
    pairs: Tensor,
    cost: Callable[[Tensor], Tensor],
    weights: Tensor | None = None,
) -> Tensor:
    """The skeleton: mean of `weights * cost(scores[i] - scores[j])` over the True `pairs`.

    Shapes: scores `[..., n]`; pairs, weights and what `cost` takes and gives `[..., n, n]`;
    the result `[...]`, zero for a list without pairs.
    """
    costs = cost(differences(scores))
    if weights is not None:
        costs = costs * weights
    return average(costs.flatten(-2), pairs.flatten(-2))


def logistic_cost(margins: Tensor) -> Tensor:
    """-log sigmoid(margin), exact where the sigmoid itself has long become 0 or 1."""
    # Not softplus: torch's is linear from 20 on, which is off by 2e-9.
    return -logsigmoid(margins)


def ranknet_loss(
    scores: Tensor,
    targets: Tensor,
    *,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """RankNet: the logistic cost of each pair that the scores should put in the targets' order.

        mean over {(i, j): t_i > t_j} of log(1 + exp(-(s_i - s_j) / temperature))

    Burges et al., "Learning to Rank using Gradient Descent", ICML 2005.

    Consumes *order*: ranks will do. Tied targets form no pair.

    The mean is first over the pairs of a list, then over the lists. That equals the mean over all
    pairs of the batch (as lightning-ir 0.0.6 takes it) when all lists have the same number of
    pairs, e.g. full rankings of one length; with ties or lists of different lengths it does not,
    because here each list counts the same. Its temperature multiplies: it is 1 / ours.

    Args:
        scores: `[..., list_size]`.
        targets: `[..., list_size]`, higher is better.
        mask: `[..., list_size]`, True = a real passage; all of them by default.
        temperature: divides the scores.
        reduction: `"mean"` or `"sum"` over lists, or `"none"`.

    Returns:
        The loss, or `[...]` values with `reduction="none"`.

    >>> ranknet_loss(torch.tensor([2.0, 0.0, 1.0]), torch.tensor([3, 2, 1]))
    tensor(0.5845)
    """
    lists = prepare(scores, targets, mask, temperature=temperature)
    pairs = ordered_pairs(lists.targets, lists.mask)
    values = mean_over_pairs(lists.scores, pairs, logistic_cost)
    return reduce_lists(values, lists.targets, reduction)


def weighted_ranknet_loss(
    scores: Tensor,
    targets: Tensor,
    *,
    mask: Tensor | None = None,
    weighting: Literal["inverse_sum", "reciprocal_difference"] = "inverse_sum",
    temperature: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Weighted RankNet: RankNet whose pairs weigh more the nearer the top the teacher put them.

        mean over {(i, j): t_i > t_j} of w_ij log(1 + exp(-(s_i - s_j) / temperature))

    with r the rank by targets, ties sharing their average rank, and w_ij by `weighting`:

    - `"inverse_sum"`: 1 / (r_i + r_j), after Gangi Reddy et al., "FIRST: Faster Improved Listwise
      Reranking with Single Token Decoding", EMNLP 2024.
    - `"reciprocal_difference"`: 1 / r_i - 1 / r_j, what swapping the two costs in reciprocal rank.
      From practice, without a paper of its own: LambdaRank's idea with the teacher's ranks.

    The weights are not normalised: the mean is over the number of pairs.

    Consumes *order*: ranks will do.

    Args:
        scores: `[..., list_size]`.
        targets: `[..., list_size]`, higher is better.
        mask: `[..., list_size]`, True = a real passage; all of them by default.
        weighting: the weight of a pair, see above.
        temperature: divides the scores.
        reduction: `"mean"` or `"sum"` over lists, or `"none"`.

    Returns:
        The loss, or `[...]` values with `reduction="none"`.

    >>> weighted_ranknet_loss(torch.tensor([2.0, 0.0, 1.0]), torch.tensor([3, 2, 1]))
    tensor(0.1278)
    """
    lists = prepare(scores, targets, mask, temperature=temperature)
    pairs = ordered_pairs(lists.targets, lists.mask)
    ranks = average_ranks(lists.targets, lists.mask)
    if weighting == "inverse_sum":
        weights = 1 / (ranks.unsqueeze(-1) + ranks.unsqueeze(-2))
    elif weighting == "reciprocal_difference":
        weights = differences(1 / ranks)
    else:
        raise ValueError(
            f"weighting must be 'inverse_sum' or 'reciprocal_difference', got {weighting!r}"
        )
    values = mean_over_pairs(lists.scores, pairs, logistic_cost, weights)
    return reduce_lists(values, lists.targets, reduction)


def hinge_loss(
    scores: Tensor,
    targets: Tensor,
    *,
    mask: Tensor | None = None,
    margin: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Hinge: what each pair in the targets' order lacks of a margin.

        mean over {(i, j): t_i > t_j} of max(0, margin - (s_i - s_j))

    Herbrich, Graepel and Obermayer, "Large Margin Rank Boundaries for Ordinal Regression", 2000;
    Joachims, "Optimizing Search Engines using Clickthrough Data", KDD 2002.

    Consumes *order*: ranks will do. Tied targets form no pair. No temperature: the margin is it.

    Args:
        scores: `[..., list_size]`.
        targets: `[..., list_size]`, higher is better.
        mask: `[..., list_size]`, True = a real passage; all of them by default.
        margin: the score difference from which on a pair costs nothing.
        reduction: `"mean"` or `"sum"` over lists, or `"none"`.

    Returns:
        The loss, or `[...]` values with `reduction="none"`.

    >>> hinge_loss(torch.tensor([2.0, 0.0, 1.0]), torch.tensor([3, 2, 1]))
    tensor(0.6667)
    """
    lists = prepare(scores, targets, mask)
    pairs = ordered_pairs(lists.targets, lists.mask)
    values = mean_over_pairs(lists.scores, pairs, lambda margins: relu(margin - margins))
    return reduce_lists(values, lists.targets, reduction)


def margin_mse_loss(
    scores: Tensor,
    targets: Tensor,
    *,
    mask: Tensor | None = None,
    margin: float | Literal["targets"] = "targets",
    reduction: Reduction = "mean",
) -> Tensor:
    """Margin-MSE: squared distance between the student's and the teacher's score differences.

        mean over {(i, j): t_i > t_j} of ((s_i - s_j) - m_ij)^2

    with m_ij = t_i - t_j for `margin="targets"`, else the number `margin`.

    Hofstätter et al., "Improving Efficient Neural Ranking Models with Cross-Architecture Knowledge
    Distillation", arXiv 2010.02666, 2020. There a list is one relevant and one other passage;
    here it is every pair that the targets order.

    Consumes *score* with `margin="targets"`, because the sizes of the differences are learnt, and
    *order* with a number. No temperature: the targets set the scale. As for `ranknet_loss`, the
    mean over all pairs of a batch (lightning-ir) is the same if all lists have as many pairs.

    Args:
        scores: `[..., list_size]`.
        targets: `[..., list_size]`, higher is better.
        mask: `[..., list_size]`, True = a real passage; all of them by default.
        margin: `"targets"`, or one margin for all pairs.
        reduction: `"mean"` or `"sum"` over lists, or `"none"`.

    Returns:
        The loss, or `[...]` values with `reduction="none"`.

    >>> margin_mse_loss(torch.tensor([2.0, 0.0]), torch.tensor([7.0, 4.0]))
    tensor(1.)
    """
    lists = prepare(scores, targets, mask)
    pairs = ordered_pairs(lists.targets, lists.mask)
    if isinstance(margin, str):
        if margin != "targets":
            raise ValueError(f"margin must be 'targets' or a number, got {margin!r}")
        wanted = differences(lists.targets)
    else:
        wanted = torch.full_like(pairs, margin, dtype=lists.scores.dtype)
    values = mean_over_pairs(lists.scores, pairs, lambda margins: (margins - wanted).square())
    return reduce_lists(values, lists.targets, reduction)
