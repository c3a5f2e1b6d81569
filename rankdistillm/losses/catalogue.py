"""The losses by name, and what each needs of the targets.

- *order*: which passage is better is all that is needed, so ranks will do.
- *gain*: how much a passage is worth, zero being worthless: relevance, graded or binary.
- *score*: a teacher's real-valued scores; the sizes of their differences are learnt.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

from torch import Tensor

from .approximate import adr_mse_loss, approx_mrr_loss, approx_ndcg_loss
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

Consumes = Literal["order", "gain", "score"]


class Loss(NamedTuple):
    """A loss function and what it consumes with its default settings."""

    function: Callable[..., Tensor]
    consumes: Consumes


LOSSES: dict[str, Loss] = {
    "info_nce": Loss(info_nce_loss, "gain"),
    "ranknet": Loss(ranknet_loss, "order"),
    "weighted_ranknet": Loss(weighted_ranknet_loss, "order"),
    "adr_mse": Loss(adr_mse_loss, "order"),
    "listnet": Loss(listnet_loss, "order"),
    "listmle": Loss(listmle_loss, "order"),
    "p_listmle": Loss(p_listmle_loss, "order"),
    "hinge": Loss(hinge_loss, "order"),
    "kl": Loss(kl_loss, "score"),
    "pearson": Loss(pearson_loss, "score"),
    "margin_mse": Loss(margin_mse_loss, "score"),
    "mse": Loss(mse_loss, "score"),
    "approx_ndcg": Loss(approx_ndcg_loss, "gain"),
    "approx_mrr": Loss(approx_mrr_loss, "gain"),
    "neural_ndcg": Loss(neural_ndcg_loss, "gain"),
    "lambda": Loss(lambda_loss, "gain"),
    "bce": Loss(bce_loss, "gain"),
}

_CONSUMES = {loss.function: loss.consumes for loss in LOSSES.values()}


def consumed_by(loss: Callable[..., Tensor]) -> frozenset[Consumes]:
    """What a loss consumes with the settings it has: several things if it is a weighted sum.

    Takes a function of this package, a partial of one, a `RankingLoss` or a `WeightedSum`. Of
    anybody else's function nothing is known: the set is empty.

    >>> from rankdistillm.losses import margin_mse_loss
    >>> consumed_by(margin_mse_loss)
    frozenset({'score'})
    >>> consumed_by(partial(margin_mse_loss, margin=1.0))
    frozenset({'order'})
    """
    if isinstance(loss, WeightedSum):
        parts = (consumed_by(part) for part in loss.losses)
        return frozenset().union(*parts)
    function, settings = _unwrap(loss)
    if function is margin_mse_loss and settings.get("margin", "targets") != "targets":
        return frozenset({"order"})
    if function is lambda_loss and settings.get("weighting", "") is None:
        return frozenset({"order"})
    consumes = _CONSUMES.get(function)
    return frozenset() if consumes is None else frozenset({consumes})


def _unwrap(loss: Callable[..., Tensor]) -> tuple[Callable[..., Tensor], dict[str, Any]]:
    """The function inside partials and modules, and its settings: what is further out holds."""
    if isinstance(loss, partial):
        function, settings = _unwrap(loss.func)
        return function, settings | loss.keywords
    if isinstance(loss, RankingLoss):
        function, settings = _unwrap(loss.function)
        return function, settings | loss.kwargs
    return loss, {}
