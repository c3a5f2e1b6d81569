"""Listwise losses on probabilities: a softmax over the passages of a list, and one correlation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .consumption import consumes
from .lists import (
    Reduction,
    average,
    centre,
    fill_masked,
    has_order,
    prepare,
    reduce_lists,
    zero_unless,
)


def log_probabilities(values: Tensor, mask: Tensor) -> Tensor:
    """Log of the softmax over the real passages, `[..., n]`; zero at masked positions."""
    return fill_masked(values, mask).log_softmax(-1).masked_fill(~mask, 0)


def teacher_log_probabilities(targets: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """`log_probabilities` of the targets, which have their own temperature."""
    if not temperature > 0:
        raise ValueError(f"target_temperature must be positive, got {temperature}")
    return log_probabilities(targets / temperature, mask)


@consumes("gain")
def info_nce_loss(
    scores: Tensor,
    targets: Tensor,
    *,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """InfoNCE, or localised contrastive estimation: find the relevant passage among the others.

        mean over {p: t_p > 0} of -log(e^(s_p / temperature) /
                                       (e^(s_p / temperature) + sum over {j: t_j <= 0} of
                                                                 e^(s_j / temperature)))

    With one relevant passage it is the cross-entropy of the softmax; several do not compete with
    one another.

    van den Oord, Li and Vinyals, "Representation Learning with Contrastive Predictive Coding",
    arXiv 1807.03748, 2018; for re-rankers Gao, Dai and Callan, "Rethink Training of BERT Rerankers
    in Multi-Stage Retrieval Pipeline", ECIR 2021.

    Consumes *gain*: a target above zero is relevant, grades do not matter. On ranks, every passage
    would be relevant. A list of only relevant or only other passages costs zero.

    Args:
        scores: `[..., list_size]`.
        targets: `[..., list_size]`, higher is better.
        mask: `[..., list_size]`, True = a real passage; by default, all are.
        temperature: divides the scores.
        reduction: `"mean"` or `"sum"` over lists, or `"none"`.

    Returns:
        The loss, or `[...]` values with `reduction="none"`.

    >>> info_nce_loss(torch.tensor([2.0, 0.0, 1.0]), torch.tensor([1, 0, 0]))
    tensor(0.4076)
    """
    lists = prepare(scores, targets, mask, temperature=temperature)
    relevant = lists.targets > 0
    scores = centre(lists.scores, lists.mask)
    others = fill_masked(scores, lists.mask & ~relevant).logsumexp(-1, keepdim=True)
    return reduce_lists(average(-logsigmoid(scores - others), relevant), lists.targets, reduction)


@consumes("score")
def kl_loss(
    scores: Tensor,
    targets: Tensor,
    *,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    target_temperature: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """KL divergence of the student's softmax from the teacher's.

        sum over i of p_i (log p_i - log q_i),   p = softmax(t / target_temperature),
                                                 q = softmax(s / temperature)

    Kullback and Leibler, "On Information and Sufficiency", Annals of Mathematical Statistics 22,
    1951; for distillation Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural
    Network", arXiv 1503.02531, 2015.

    Consumes *score*: p is the teacher's own distribution, which ranks alone do not contain. A list
    of equal targets still counts: it teaches the uniform distribution.

    Args:
        scores: `[..., list_size]`.
        targets: `[..., list_size]`, higher is better.
        mask: `[..., list_size]`, True = a real passage; by default, all are.
        temperature: divides the scores.
        target_temperature: divides the targets.
        reduction: `"mean"` or `"sum"` over lists, or `"none"`.

    Returns:
        The loss, or `[...]` values with `reduction="none"`.

    >>> kl_loss(torch.tensor([2.0, 0.0, 1.0]), torch.tensor([2.0, 1.0, 0.0]))
    tensor(0.1547)
    """
    lists = prepare(scores, targets, mask, temperature=temperature)
    teacher = teacher_log_probabilities(lists.targets, lists.mask, target_temperature)
    student = log_probabilities(lists.scores, lists.mask)
    # At masked positions both logarithms are zero, so they add nothing.
    return reduce_lists((teacher.exp() * (teacher - student)).sum(-1), lists.targets, reduction)


@consumes("order")
def listnet_loss(
    scores: Tensor,
    targets: Tensor,
    *,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    target_temperature: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """ListNet: cross-entropy between the top-one probabilities of the targets and of the scores.

        -sum over i of p_i log q_i,   p = softmax(t / target_temperature),
                                      q = softmax(s / temperature)

    Cao et al., "Learning to Rank: From Pairwise Approach to Listwise Approach", ICML 2007.

    Consumes *order*: the paper defines p for any ordinal targets, in its experiments the grades of
    assessors, so ranks are enough. p depends on their spacing, but not on their offset: on ranks it
    falls by the factor e^(-1 / target_temperature) from one rank to the next, so that by default
    the first three ranks hold 95 % of it; a `target_temperature` of a few ranks spreads it. The
    gradient equals that of `kl_loss`, which is for targets that *are* a teacher's scores. A list
    whose targets are all equal has no order and costs zero.

    Args:
        scores: `[..., list_size]`.
        targets: `[..., list_size]`, higher is better.
        mask: `[..., list_size]`, True = a real passage; by default, all are.
        temperature: divides the scores.
        target_temperature: divides the targets.
        reduction: `"mean"` or `"sum"` over lists, or `"none"`.

    Returns:
        The loss, or `[...]` values with `reduction="none"`.

    >>> listnet_loss(torch.tensor([2.0, 0.0, 1.0]), torch.tensor([3, 2, 1]))
    tensor(0.9871)
    """
    lists = prepare(scores, targets, mask, temperature=temperature)
    teacher = teacher_log_probabilities(lists.targets, lists.mask, target_temperature)
    student = log_probabilities(lists.scores, lists.mask)
    values = -(teacher.exp() * student).sum(-1)
    values = zero_unless(has_order(lists.targets, lists.mask), values)
    return reduce_lists(values, lists.targets, reduction)


@consumes("score")
def pearson_loss(
    scores: Tensor,
    targets: Tensor,
    *,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Pearson: one minus the correlation of scores and targets within the list.

        1 - sum over i of (s_i - mean s) (t_i - mean t)
              / sqrt(sum over i of (s_i - mean s)^2 * sum over i of (t_i - mean t)^2)

    Pearson's correlation coefficient (1895) taken as a loss; the form is lightning-ir's.

    Consumes *score*: the spacing of the targets matters, and ranks would claim that all neighbours
    are equally far apart. No temperature: scale and offset do not matter. Equal targets correlate
    with nothing and cost zero; equal scores cost 1, with a gradient towards the targets. Bounded: a
    list in the opposite order gets next to no gradient.

    Args:
        scores: `[..., list_size]`.
        targets: `[..., list_size]`, higher is better.
        mask: `[..., list_size]`, True = a real passage; by default, all are.
        reduction: `"mean"` or `"sum"` over lists, or `"none"`.

    Returns:
        The loss, or `[...]` values with `reduction="none"`.

    >>> pearson_loss(torch.tensor([2.0, 0.0, 1.0]), torch.tensor([2.0, 1.0, 0.0]))
    tensor(0.5000)
    """
    lists = prepare(scores, targets, mask)
    score_units = _unit_vector(lists.scores, lists.mask)
    target_units = _unit_vector(lists.targets, lists.mask)
    values = 1 - (score_units * target_units).sum(-1)
    values = zero_unless(has_order(lists.targets, lists.mask), values)
    return reduce_lists(values, lists.targets, reduction)


def _unit_vector(values: Tensor, mask: Tensor) -> Tensor:
    """Values minus their mean, scaled to length one; only centred (near zero) if all are equal."""
    # A gradient through the mean would add nothing, because the centred values sum to zero.
    centred = centre(values, mask)
    squares = centred.square().sum(-1, keepdim=True)
    # The length of equal values is zero or a rounding error; never divide by it.
    varied = has_order(values, mask).unsqueeze(-1) & (squares > 0)
    return centred / torch.where(varied, squares, 1).sqrt()
