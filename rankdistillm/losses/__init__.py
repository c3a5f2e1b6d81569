"""Ranking losses: pure functions of (scores, targets, mask) on the last axis.

    loss = ranknet_loss(scores, targets, mask=mask)

`scores`, `targets` and `mask` are `[..., list_size]`, any leading dimensions; targets are higher is
better; the mask is True for a real passage. Arithmetic is in float32, or in float64 if the scores
are. Inside a list a loss averages over its pairs or passages; over lists it takes the `reduction`
`"mean"`, `"sum"` or `"none"`. A list with nothing to compare costs zero and stays in the graph.
Whatever stands at masked positions is ignored; a NaN target of a real passage makes the loss of its
list NaN.

`LOSSES` has all of them by the name that a config uses, with what they consume; `RankingLoss` and
`WeightedSum` are the same as modules. Read `lists.py` first: everything else stands on it.
"""

from .approximate import adr_mse_loss, approx_mrr_loss, approx_ndcg_loss
from .catalogue import LOSSES, Loss, consumed_by
from .lambdas import lambda_loss
from .listwise import (
    info_nce_loss,
    kl_loss,
    listnet_loss,
    pearson_loss,
)
from .modules import RankingLoss, WeightedSum
from .neural import neural_ndcg_loss
from .pairwise import hinge_loss, margin_mse_loss, ranknet_loss, weighted_ranknet_loss
from .plackett_luce import listmle_loss, p_listmle_loss
from .pointwise import bce_loss, mse_loss

__all__ = [
    "LOSSES",
    "Loss",
    "RankingLoss",
    "WeightedSum",
    "adr_mse_loss",
    "approx_mrr_loss",
    "approx_ndcg_loss",
    "bce_loss",
    "consumed_by",
    "hinge_loss",
    "info_nce_loss",
    "kl_loss",
    "lambda_loss",
    "listmle_loss",
    "listnet_loss",
    "margin_mse_loss",
    "mse_loss",
    "neural_ndcg_loss",
    "p_listmle_loss",
    "pearson_loss",
    "ranknet_loss",
    "weighted_ranknet_loss",
]
