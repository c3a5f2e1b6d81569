"""Pairwise losses: each pair costs something by its score difference; a list costs the mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from .consumption import consumes
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
    """Mean of `weights * cost(scores[i] - scores[j])` over the True `pairs`.

    Shapes: scores `[..., n]`; pairs, weights, and the input and output of `cost` `[..., n, n]`;
    the result `[...]`, zero for a list without pairs.
    """
    costs = cost(differences(scores))
    if weights is not None:
        costs = costs * weights
    return average(costs.flatten(-2), pairs.flatten(-2))


def logistic_cost(margins: Tensor) -> Tensor:
    """-log sigmoid(margin), exact even if the sigmoid itself rounds to 0 or 1."""
    # torch's softplus is linear from 20 on, which is off by 2e-9.
    return -logsigmoid(margins)


@consumes("order")
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

    Consumes *order*: ranks are enough. Tied targets form no pair.

    The mean is taken over the pairs of a list, then over the lists, so that each list counts the
    same. It equals the mean over all pairs of the batch, which lightning-ir 0.0.6 takes, if all
    lists have the same number of pairs, e.g. full rankings of one length; with ties or lists of
    different lengths it does not. lightning-ir multiplies by its temperature, which is 1 / ours.

    Args:
        scores: `[..., list_size]`.
        targets: `[..., list_size]`, higher is better.
        mask: `[..., list_size]`, True = a real passage; by default, all are.
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


@consumes("order")
def weighted_ranknet_loss(
    scores: Tensor,
    targets: Tensor,
    *,
    mask: Tensor | None = None,
    weighting: Literal["inverse_sum", "reciprocal_difference"] = "inverse_sum",
    temperature: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Weighted RankNet: RankNet whose pairs weigh more the higher the teacher ranked them.

        mean over {(i, j): t_i > t_j} of w_ij log(1 + exp(-(s_i - s_j) / temperature))

    with r the rank by targets, ties sharing their average rank, and w_ij by `weighting`:

    - `"inverse_sum"`: 1 / (r_i + r_j), after Gangi Reddy et al., "FIRST: Faster Improved Listwise
      Reranking with Single Token Decoding", EMNLP 2024.
    - `"reciprocal_difference"`: 1 / r_i - 1 / r_j, the change of reciprocal rank if the two are
      swapped. It has no paper of its own: it is LambdaRank's idea with the teacher's ranks.

    The weights are not normalised: the sum is divided by the number of pairs.

    Consumes *order*: ranks are enough.

    Args:
        scores: `[..., list_size]`.
        targets: `[..., list_size]`, higher is better.
        mask: `[..., list_size]`, True = a real passage; by default, all are.
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


@consumes("order")
def hinge_loss(
    scores: Tensor,
    targets: Tensor,
    *,
    mask: Tensor | None = None,
    margin: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Hinge: the amount by which each pair in the targets' order falls short of a margin.

        mean over {(i, j): t_i > t_j} of max(0, margin - (s_i - s_j))

    Herbrich, Graepel and Obermayer, "Large Margin Rank Boundaries for Ordinal Regression", 2000;
    Joachims, "Optimizing Search Engines using Clickthrough Data", KDD 2002.

    Consumes *order*: ranks are enough. Tied targets form no pair. No temperature: the
    margin takes its role.

    Args:
        scores: `[..., list_size]`.
        targets: `[..., list_size]`, higher is better.
        mask: `[..., list_size]`, True = a real passage; by default, all are.
        margin: the smallest score difference at which a pair costs nothing.
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


@consumes(lambda settings: "score" if settings["margin"] == "targets" else "order")
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
    *order* with a number. No temperature: the targets set the scale. As with `ranknet_loss`, the
    mean over all pairs of a batch (lightning-ir) is the same if all lists have equally many pairs.

    Args:
        scores: `[..., list_size]`.
        targets: `[..., list_size]`, higher is better.
        mask: `[..., list_size]`, True = a real passage; by default, all are.
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
