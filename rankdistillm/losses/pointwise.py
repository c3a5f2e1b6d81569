"""Pointwise losses: a cost of each passage by itself, averaged over the passages of a list."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from .consumption import consumes
from .lists import Reduction, average, prepare, reduce_lists


@consumes("gain")
def bce_loss(
    scores: Tensor,
    targets: Tensor,
    *,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Binary cross-entropy: each score is the logit of the passage being relevant.

        mean over i of -[y_i log sigmoid(s_i / temperature)
                         + (1 - y_i) log sigmoid(-s_i / temperature)],   y_i = min(max(t_i, 0), 1)

    Pointwise classification as in Nogueira and Cho, "Passage Re-ranking with BERT", arXiv
    1901.04085, 2019.

    Consumes *gain*: relevance, where any grade from 1 up is relevant, or a probability. On ranks,
    every passage would be relevant. A list of one passage, or of equal targets, still counts.

    Args:
        scores: `[..., list_size]`.
        targets: `[..., list_size]`, higher is better; clamped to [0, 1].
        mask: `[..., list_size]`, True = a real passage; by default, all are.
        temperature: divides the scores.
        reduction: `"mean"` or `"sum"` over lists, or `"none"`.

    Returns:
        The loss, or `[...]` values with `reduction="none"`.

    >>> bce_loss(torch.tensor([2.0, 0.0]), torch.tensor([1, 0]))
    tensor(0.4100)
    """
    lists = prepare(scores, targets, mask, temperature=temperature)
    relevant = lists.targets.clamp(0, 1)
    costs = binary_cross_entropy_with_logits(lists.scores, relevant, reduction="none")
    return reduce_lists(average(costs, lists.mask), lists.targets, reduction)


@consumes("score")
def mse_loss(
    scores: Tensor,
    targets: Tensor,
    *,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Mean squared error: the student regresses to the teacher's scores.

        mean over i of (s_i - t_i)^2

    Least squares for ranking: Cossock and Zhang, "Subset Ranking Using Regression", COLT 2006.

    Consumes *score*: the values themselves are learnt, with their scale and offset. No temperature:
    it would change the scale. A list of one passage, or of equal targets, still counts.

    Args:
        scores: `[..., list_size]`.
        targets: `[..., list_size]`, higher is better.
        mask: `[..., list_size]`, True = a real passage; by default, all are.
        reduction: `"mean"` or `"sum"` over lists, or `"none"`.

    Returns:
        The loss, or `[...]` values with `reduction="none"`.

    >>> mse_loss(torch.tensor([2.0, 0.0]), torch.tensor([1.0, 3.0]))
    tensor(5.)
    """
    lists = prepare(scores, targets, mask)
    costs = torch.square(lists.scores - lists.targets)
    return reduce_lists(average(costs, lists.mask), lists.targets, reduction)
