"""Losses as modules: `RankingLoss` and `WeightedSum`."""

from functools import partial

import pytest
import torch

from rankdistillm.losses import (
    RankingLoss,
    WeightedSum,
    adr_mse_loss,
    hinge_loss,
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
