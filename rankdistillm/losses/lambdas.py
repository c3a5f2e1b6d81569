"""LambdaLoss: the logistic cost of a pair, weighted by the effect of its order on a metric."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from .consumption import consumes
from .gains import Gain, ideal_dcg, relative_gains
from .lists import Lists, Reduction, differences, has_order, ordered_pairs, prepare, reduce_lists
from .pairwise import logistic_cost, mean_over_pairs

Weighting = Literal["ndcg1", "ndcg2", "ndcg2++", "lambdarank", "mrr"]
WEIGHTINGS = ("ndcg1", "ndcg2", "ndcg2++", "lambdarank", "mrr", None)


@consumes(lambda settings: "order" if settings["weighting"] is None else "gain")
def lambda_loss(
    scores: Tensor,
    targets: Tensor,
    *,
    mask: Tensor | None = None,
    weighting: Weighting | None = "ndcg2++",
    k: int | None = None,
    gain: Gain = "exp",
    mu: float = 10.0,
    temperature: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """LambdaLoss: RankNet with pairs weighted by their effect on NDCG or reciprocal rank.

        mean over {(i, j): t_i > t_j} of w_ij log(1 + exp(-(s_i - s_j) / temperature))

    with r the rank by the student's scores, G_i = (2^t_i - 1) / ideal DCG (t_i / ideal DCG for
    `gain="linear"`), D(r) = log2(1 + r), and w_ij, which gets no gradient, by `weighting`:

    - `"ndcg1"`: G_i / D(r_i), with the mean over all pairs i != j, whatever their targets.
    - `"ndcg2"`: delta_ij |G_i - G_j|, delta_ij = 1 / D(|r_i - r_j|) - 1 / D(|r_i - r_j| + 1).
    - `"lambdarank"`: rho_ij |G_i - G_j|, rho_ij = |1 / D(r_i) - 1 / D(r_j)|: the change of NDCG if
      the two swapped ranks.
    - `"ndcg2++"`: (rho_ij + mu delta_ij) |G_i - G_j|, the paper's best.
    - `"mrr"`: the change of reciprocal rank if the two swapped ranks, i relevant (t_i > 0), j not.
    - None: 1, i.e. `ranknet_loss`.

    With `k`, only pairs with at least one passage in the student's top k count, and the ideal DCG
    is that at k.

    Wang et al., "The LambdaLoss Framework for Ranking Metric Optimization", CIKM 2018; LambdaRank
    is Burges, Ragno and Le, "Learning to Rank with Nonsmooth Cost Functions", NIPS 2006, and its
    use for reciprocal rank Donmez, Svore and Burges, "On the Local Optimality of LambdaRank",
    SIGIR 2009. The paper sums over pairs and takes log2.

    Consumes *gain*: graded relevance, with negative targets counting as zero; see
    `approx_ndcg_loss`. With `weighting=None`, it consumes *order*.

    Args:
        scores: `[..., list_size]`.
        targets: `[..., list_size]`, higher is better.
        mask: `[..., list_size]`, True = a real passage; by default, all are.
        weighting: the weight of a pair, see above.
        k: the last rank at which the order matters; None for the whole list.
        gain: `"exp"` or `"linear"`.
        mu: the share of delta in `"ndcg2++"`.
        temperature: divides the scores.
        reduction: `"mean"` or `"sum"` over lists, or `"none"`.

    Returns:
        The loss, or `[...]` values with `reduction="none"`.

    >>> lambda_loss(torch.tensor([2.0, 0.0, 1.0]), torch.tensor([2, 0, 1]), weighting="ndcg2")
    tensor(0.0364)
    """
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting must be one of {WEIGHTINGS}, got {weighting!r}")
    if k is not None and k < 1:
        raise ValueError(f"k must be 1 or more, or None, got {k}")
    given = lists = prepare(scores, targets, mask, temperature=temperature)
    if weighting == "mrr":
        lists = lists._replace(targets=(lists.targets > 0).to(lists.scores.dtype))
    elif weighting is not None:
        lists = lists._replace(targets=lists.targets.clamp(min=0))
    ranks = student_ranks(lists)
    pairs = _pairs(lists, all_pairs=weighting == "ndcg1")
    if k is not None:
        pairs = pairs & (torch.minimum(ranks.unsqueeze(-1), ranks.unsqueeze(-2)) <= k)
    if weighting is None:
        weights = None
    elif weighting == "mrr":
        weights = _swap_in_reciprocal_rank(lists, ranks)
    else:
        gains = relative_gains(lists.targets, gain)
        gains = gains / ideal_dcg(gains, k).unsqueeze(-1)
        weights = _ndcg_weights(gains, ranks, weighting, mu)
    values = mean_over_pairs(lists.scores, pairs, logistic_cost, weights)
    return reduce_lists(values, given.targets, reduction)


def student_ranks(lists: Lists) -> Tensor:
    """Ranks by the scores, `[..., n]`; tied scores are ranked the worst target first.

    The order of tied scores is free but must not depend on the order of the input; this one
    keeps the weight of a tied pair, and with it the gradient that separates the two. Passages
    with equal scores and equal targets share their average rank.
    """
    scores, targets, mask = lists
    with torch.no_grad():
        level = differences(scores) == 0
        order = differences(targets)
        above = (differences(scores) < 0) | (level & (order > 0))
        same = level & (order == 0)
        counted = above.to(scores.dtype) + 0.5 * same.to(scores.dtype)
        return 0.5 + torch.where(mask.unsqueeze(-2), counted, 0).sum(-1)


def _pairs(lists: Lists, *, all_pairs: bool) -> Tensor:
    if not all_pairs:
        return ordered_pairs(lists.targets, lists.mask)
    others = ~torch.eye(lists.mask.shape[-1], dtype=torch.bool, device=lists.mask.device)
    both = lists.mask.unsqueeze(-1) & lists.mask.unsqueeze(-2) & others
    return both & has_order(lists.targets, lists.mask)[..., None, None]


def _ndcg_weights(gains: Tensor, ranks: Tensor, weighting: Weighting, mu: float) -> Tensor:
    if weighting == "ndcg1":
        return (gains / torch.log2(1 + ranks)).unsqueeze(-1)
    rho = differences(1 / torch.log2(1 + ranks)).abs()
    # Passages with different targets are at least one rank apart. The clamp is for a passage paired
    # with itself, whose weight would be infinite.
    distance = differences(ranks).abs().clamp(min=1)
    delta = 1 / torch.log2(1 + distance) - 1 / torch.log2(2 + distance)
    factor = {"lambdarank": rho, "ndcg2": delta, "ndcg2++": rho + mu * delta}[weighting]
    return factor * differences(gains).abs()


def _swap_in_reciprocal_rank(lists: Lists, ranks: Tensor) -> Tensor:
    """|change of reciprocal rank| when relevant passage i and other passage j swap ranks."""
    relevant = ranks.masked_fill(lists.targets <= 0, torch.inf)
    # Pad with two infinities: there may be no relevant passage, or only one.
    first, second = pad(relevant, (0, 2), value=torch.inf).sort(-1).values[..., :2].split(1, -1)
    rest = torch.where(ranks == first, second, first)
    swapped = torch.minimum(rest.unsqueeze(-1), ranks.unsqueeze(-2))
    return (1 / first.unsqueeze(-1) - 1 / swapped).abs()
