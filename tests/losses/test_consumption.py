"""What losses consume, by their declarations and settings."""

from functools import partial

import pytest

from rankdistillm.losses import (
    LOSSES,
    RankingLoss,
    WeightedSum,
    consumed_by,
    consumes,
    kl_loss,
    lambda_loss,
    margin_mse_loss,
    ranknet_loss,
)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_declares_and_documents_what_it_consumes(name):
    (consumed,) = consumed_by(LOSSES[name])
    assert consumed in ("order", "gain", "score")
    assert f"Consumes *{consumed}*" in LOSSES[name].__doc__
    assert consumed_by(RankingLoss(partial(LOSSES[name]))) == {consumed}


def test_settings_change_what_a_loss_consumes():
    assert consumed_by(partial(margin_mse_loss, margin=1.0)) == {"order"}
    assert consumed_by(partial(margin_mse_loss, margin="targets")) == {"score"}
    assert consumed_by(RankingLoss(margin_mse_loss, margin=1)) == {"order"}
    outer_setting = RankingLoss(partial(margin_mse_loss, margin=1), margin="targets")
    assert consumed_by(outer_setting) == {"score"}
    assert consumed_by(partial(lambda_loss, weighting=None)) == {"order"}
    assert consumed_by(partial(lambda_loss, weighting="mrr")) == {"gain"}


def test_a_weighted_sum_consumes_what_its_losses_do():
    assert consumed_by(WeightedSum([ranknet_loss, partial(kl_loss)])) == {"order", "score"}


def test_a_function_of_another_package_may_declare_what_it_consumes():
    def my_loss(scores, targets, *, mask=None, reduction="mean"):
        return scores.sum()

    assert consumed_by(my_loss) == set()
    assert consumed_by(partial(consumes("gain")(my_loss))) == {"gain"}
