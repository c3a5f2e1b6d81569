"""Losses against values and gradients of lightning-ir 0.0.6, computed in float64.

`OURS` translates names, settings and means that differ in lightning-ir ("upstream").
"""

import json
from pathlib import Path

import pytest
import torch

from rankdistillm.losses import (
    adr_mse_loss,
    approx_mrr_loss,
    approx_ndcg_loss,
    info_nce_loss,
    kl_loss,
    margin_mse_loss,
    pearson_loss,
    ranknet_loss,
)

UPSTREAM = json.loads((Path(__file__).parents[1] / "golden" / "upstream_losses.json").read_text())
CASES = UPSTREAM["cases"]
TOLERANCE = {"rtol": 0, "atol": 1e-9}


def over_all_pairs(loss):
    """Upstream's mean is over all pairs of the batch, so a list counts by its number of pairs."""

    def batch_loss(scores, targets, **kwargs):
        values = loss(scores, targets, reduction="none", **kwargs)
        pairs = (targets[..., :, None] > targets[..., None, :]).sum((-1, -2))
        return (values * pairs).sum() / pairs.sum()

    return batch_loss


# Upstream's name -> our function, and a function from upstream's settings to ours.
OURS = {
    # Upstream multiplies the scores by its temperature.
    "RankNet": (
        over_all_pairs(ranknet_loss),
        lambda temperature=1.0: {"temperature": 1 / temperature},
    ),
    # Upstream has no discount by default; ours is the paper's.
    "ApproxRankMSE": (
        adr_mse_loss,
        lambda discount=None, temperature=1.0: {"discount": discount, "temperature": temperature},
    ),
    "InfoNCE": (info_nce_loss, dict),
    "KLDivergence": (kl_loss, dict),
    "PearsonCorrelation": (pearson_loss, dict),
    "SupervisedMarginMSE": (over_all_pairs(margin_mse_loss), lambda: {"margin": "targets"}),
    "ConstantMarginMSE": (over_all_pairs(margin_mse_loss), lambda margin: {"margin": margin}),
    "ApproxNDCG": (
        approx_ndcg_loss,
        lambda scale_gains=True, temperature=1.0: {
            "gain": "exp" if scale_gains else "linear",
            "temperature": temperature,
        },
    ),
    "ApproxMRR": (approx_mrr_loss, dict),
}


def case_id(case):
    lists, size = len(case["scores"]), len(case["scores"][0])
    settings = "-".join(f"{key}={value}" for key, value in case["kwargs"].items())
    return f"{case['upstream']}-{lists}x{size}-{settings or 'default'}"


def tensors(case):
    scores = torch.tensor(case["scores"], dtype=torch.float64, requires_grad=True)
    return scores, torch.tensor(case["targets"], dtype=torch.float64)


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_values_and_gradients_equal_upstreams(case):
    scores, targets = tensors(case)
    loss, arguments = OURS[case["upstream"]]
    value = loss(scores, targets, **arguments(**case["kwargs"]))
    (gradient,) = torch.autograd.grad(value, scores)
    expected = torch.tensor(case["loss"], dtype=torch.float64)
    torch.testing.assert_close(value, expected, **TOLERANCE)
    torch.testing.assert_close(
        gradient, torch.tensor(case["grad"], dtype=torch.float64), **TOLERANCE
    )


def test_every_upstream_loss_has_cases():
    assert {case["upstream"] for case in CASES} == set(OURS)
    assert len(CASES) == 68
    assert "lightning-ir 0.0.6" in UPSTREAM["source"]


def pairs_per_list(case):
    _, targets = tensors(case)
    return (targets[..., :, None] > targets[..., None, :]).sum((-1, -2))


PAIRWISE = [case for case in CASES if case["upstream"] in ("RankNet", "ConstantMarginMSE")]


@pytest.mark.parametrize("case", PAIRWISE, ids=case_id)
def test_our_mean_equals_upstreams_if_and_only_if_lists_have_equally_many_pairs(case):
    """The docstrings of `ranknet_loss` and `margin_mse_loss` say so."""
    scores, targets = tensors(case)
    if case["upstream"] == "RankNet":
        ours = ranknet_loss(scores, targets, temperature=1 / case["kwargs"].get("temperature", 1.0))
    else:
        ours = margin_mse_loss(scores, targets, margin=case["kwargs"]["margin"])
    same = len(pairs_per_list(case).unique()) == 1
    assert (abs(ours.item() - case["loss"]) <= 1e-9) == same


def test_cases_have_equally_and_unequally_many_pairs():
    kinds = {len(pairs_per_list(case).unique()) == 1 for case in PAIRWISE}
    assert kinds == {True, False}
