"""Losses on a differentiable sort: a relaxed permutation matrix sorts the gains by score."""

from __future__ import annotations

import torch
from torch import Tensor

from .consumption import consumes
from .gains import Gain, ideal_dcg, rank_discounts, relative_gains
from .lists import (
    Reduction,
    centre,
    differences,
    fill_masked,
    has_order,
    prepare,
    reduce_lists,
    zero_unless,
)


def neural_sort(scores: Tensor, mask: Tensor, sinkhorn_iterations: int) -> Tensor:
    """Relaxed permutation `[..., n, n]`: entry `[i, j]` is the share of passage j at rank i + 1.

    NeuralSort (Grover et al., ICLR 2019) makes the rows sum to one; Sinkhorn scaling does the same
    for the columns. A list of m passages uses m rows and the m columns of its passages; the rest
    is zero.
    """
    scores = centre(scores, mask)
    size = mask.sum(-1, keepdim=True)
    rank = torch.arange(1, scores.shape[-1] + 1, device=scores.device)
    distances = torch.where(mask.unsqueeze(-2), differences(scores).abs(), 0).sum(-1)
    pull = (size + 1 - 2 * rank).to(scores.dtype)
    logits = pull.unsqueeze(-1) * scores.unsqueeze(-2) - distances.unsqueeze(-2)
    used = (rank <= size).unsqueeze(-1) & mask.unsqueeze(-2)
    matrix = torch.where(used, fill_masked(logits, used).softmax(-1), 0)
    # A fixed number of rounds: stopping once the batch has converged would make the value of a list
    # depend on the other lists.
    for _ in range(sinkhorn_iterations):
        matrix = _sum_to_one(_sum_to_one(matrix, -2), -1)
    return matrix


def _sum_to_one(matrix: Tensor, dim: int) -> Tensor:
    total = matrix.sum(dim, keepdim=True)
    # Unused rows and columns stay zero. Dividing them by a tiny number would keep them zero too,
    # but its gradient grows to infinity within a few rounds.
    return matrix / torch.where(total > 0, total, 1)


@consumes("gain")
def neural_ndcg_loss(
    scores: Tensor,
    targets: Tensor,
    *,
    mask: Tensor | None = None,
    gain: Gain = "exp",
    temperature: float = 1.0,
    sinkhorn_iterations: int = 50,
    reduction: Reduction = "mean",
) -> Tensor:
    """NeuralNDCG: one minus the NDCG of the gains that a differentiable sort puts into order.

        1 - (sum over ranks r of (P g)_r / log2(1 + r)) / (the same sum in the best order)

        P = sinkhorn(softmax over j of ((m + 1 - 2 r) s_j - sum over k of |s_j - s_k|)
                                       / temperature)

    with m passages in the list and g_i = 2^t_i - 1 (`gain="exp"`) or t_i (`"linear"`); negative
    targets count as zero.

    Pobrotyn and Białobrzeski, "NeuralNDCG: Direct Optimisation of a Ranking Metric via
    Differentiable Relaxation of Sorting", SIGIR eCom 2021; the sort is that of Grover et al.,
    "Stochastic Optimization of Sorting Networks via Continuous Relaxations", ICLR 2019.

    Consumes *gain*: graded relevance; see `approx_ndcg_loss`. A list whose gains are all equal
    costs zero. Bounded: a passage that is far from its rank gets next to no gradient.

    Args:
        scores: `[..., list_size]`.
        targets: `[..., list_size]`, higher is better.
        mask: `[..., list_size]`, True = a real passage; by default, all are.
        gain: `"exp"` or `"linear"`.
        temperature: divides the scores; low values sort exactly but give no gradient.
        sinkhorn_iterations: rounds of scaling columns, then rows; 0 is plain NeuralSort.
        reduction: `"mean"` or `"sum"` over lists, or `"none"`.

    Returns:
        The loss, or `[...]` values with `reduction="none"`.

    >>> neural_ndcg_loss(torch.tensor([2.0, 0.0, 1.0]), torch.tensor([2, 0, 1]))
    tensor(0.0615)
    """
    lists = prepare(scores, targets, mask, temperature=temperature)
    gains = relative_gains(lists.targets, gain)
    permutation = neural_sort(lists.scores, lists.mask, sinkhorn_iterations)
    # Autocast would compute a matrix product in half precision.
    in_order = (permutation * gains.unsqueeze(-2)).sum(-1)
    values = 1 - (in_order * rank_discounts(gains)).sum(-1) / ideal_dcg(gains)
    return reduce_lists(zero_unless(has_order(gains, lists.mask), values), lists.targets, reduction)
