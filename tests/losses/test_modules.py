"""Losses as modules: `RankingLoss` and `WeightedSum`."""

from functools import partial

import pytest
import torch

from rankdistillm.losses import (
    RankingLoss,
    WeightedSum,
    adr_mse_loss,
    hinge_loss,
    info_nce_loss,
    kl_loss,
    mse_loss,
    ranknet_loss,
)

SIZE = 7


def random_lists(*shape):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(*shape, SIZE, generator=generator, requires_grad=True)
    return scores, torch.rand(*shape, SIZE, generator=generator)


def test_a_module_equals_its_function():
    scores, targets = random_lists()
    mask = torch.arange(SIZE) < 4
    module = RankingLoss(adr_mse_loss, discount="reciprocal", temperature=0.5)
    expected = adr_mse_loss(scores, targets, mask=mask, discount="reciprocal", temperature=0.5)
    assert module(scores, targets, mask) == expected
    assert module(scores, targets, mask=mask) == expected
    assert module(scores, targets) != expected
    assert repr(module) == "RankingLoss(adr_mse_loss, discount='reciprocal', temperature=0.5)"


def test_the_reduction_of_a_call_overrides_that_of_the_settings():
    scores, targets = random_lists(3)
    module = RankingLoss(ranknet_loss, reduction="none")
    assert module(scores, targets).shape == (3,)
    assert module(scores, targets, reduction="sum") == module(scores, targets).sum()


def test_a_module_refuses_an_unknown_setting():
    with pytest.raises(TypeError, match="discount"):
        RankingLoss(ranknet_loss, discount="log2")


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_weighted_sum_equals_the_sum_of_weighted_losses(reduction):
    scores, targets = random_lists(3)
    mask = torch.arange(SIZE) < torch.tensor([[7], [4], [1]])
    total = WeightedSum(
        [ranknet_loss, partial(kl_loss, temperature=2.0), RankingLoss(mse_loss)], [1.0, 0.5, 0.25]
    )
    given = {"mask": mask, "reduction": reduction}
    expected = (
        ranknet_loss(scores, targets, **given)
        + 0.5 * kl_loss(scores, targets, temperature=2.0, **given)
        + 0.25 * mse_loss(scores, targets, **given)
    )
    ours = total(scores, targets, **given)
    torch.testing.assert_close(ours, expected)
    (gradient,) = torch.autograd.grad(ours.sum(), scores)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), scores)[0])


def test_weighted_sums_have_weights_of_one_by_default_and_nest():
    scores, targets = random_lists()
    plain = WeightedSum([ranknet_loss, hinge_loss])
    expected = ranknet_loss(scores, targets) + hinge_loss(scores, targets)
    torch.testing.assert_close(plain(scores, targets), expected)
    nested = WeightedSum([plain, mse_loss], [2.0, 1.0])
    torch.testing.assert_close(nested(scores, targets), 2 * expected + mse_loss(scores, targets))
    assert "weights=[2.0, 1.0]" in repr(nested)


def test_a_weighted_sum_needs_losses_and_as_many_weights():
    with pytest.raises(ValueError, match="2 losses but 1 weights"):
        WeightedSum([ranknet_loss, hinge_loss], [1.0])
    with pytest.raises(ValueError, match="one loss or more"):
        WeightedSum([])


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_each_loss_of_a_sum_may_have_targets_that_leave_passages_out(reduction):
    scores, ranks = random_lists(3)
    mask = torch.arange(SIZE) < torch.tensor([[7], [4], [1]])
    judged = torch.tensor([[1, 0, torch.nan, 0, torch.nan, torch.nan, torch.nan]]).expand(3, -1)
    ranked = ranks.masked_fill(torch.arange(SIZE) == 2, torch.nan)
    total = WeightedSum([ranknet_loss, info_nce_loss], [1.0, 0.5], targets=["rank", "judged"])
    ours = total(scores, torch.stack([ranked, judged], -2), mask, reduction=reduction)
    first = ranknet_loss(scores, ranks, mask=mask & (torch.arange(SIZE) != 2), reduction=reduction)
    second = info_nce_loss(
        scores,
        (judged == 1).float(),
        mask=mask & torch.tensor([True, True, False, True, False, False, False]),
        reduction=reduction,
    )
    torch.testing.assert_close(ours, first + 0.5 * second)
    (gradient,) = torch.autograd.grad(ours.sum(), scores)
    assert gradient.isfinite().all()
    # Passage 2 has neither a rank nor a judgement, and passage 5 of list 0 has a rank alone.
    assert not gradient[:, 2].any()
    assert gradient[0, 5]


def test_a_list_that_no_targets_know_costs_zero():
    scores, _ = random_lists(2)
    total = WeightedSum([ranknet_loss, info_nce_loss], targets=["rank", "judged"])
    value = total(scores, torch.full((2, 2, SIZE), torch.nan))
    assert value == 0
    (gradient,) = torch.autograd.grad(value, scores)
    assert not gradient.any()


def test_a_sum_with_targets_needs_one_for_each_loss_and_does_not_nest():
    with pytest.raises(ValueError, match="2 losses but 1 targets"):
        WeightedSum([ranknet_loss, hinge_loss], targets=["rank"])
    inner = WeightedSum([ranknet_loss], targets=["rank"])
    for targets in (["rank", "judged"], None):
        with pytest.raises(ValueError, match="cannot have targets of its own"):
            WeightedSum([inner, hinge_loss], targets=targets)
    with pytest.raises(ValueError, match="one name per loss, not 'rank'"):
        WeightedSum([ranknet_loss], targets="rank")


@pytest.mark.parametrize("weights", [[1.0, float("nan")], [1.0, -1.0], [0.0, 0.0]])
def test_weights_that_would_learn_nothing_or_the_opposite_are_refused(weights):
    with pytest.raises(ValueError, match="weights must be finite"):
        WeightedSum([ranknet_loss, hinge_loss], weights)
