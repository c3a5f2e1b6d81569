"""Ranking losses: pure functions of (scores, targets, mask) on the last axis.

    loss = ranknet_loss(scores, targets, mask=mask)

`scores`, `targets` and `mask` are `[..., list_size]` with any leading dimensions. Targets are
higher-is-better; the mask is True for a real passage. Arithmetic is in float32, or in float64 if
the scores are. Inside a list, a loss averages over its pairs or passages; over lists, it takes the
`reduction` `"mean"`, `"sum"` or `"none"`. A list with nothing to compare costs zero and stays in
the graph. Values at masked positions are ignored; a NaN target of a real passage makes the loss of
its list NaN.

The losses are in files by kind:

- `pointwise.py`: each passage by itself (bce, mse)
- `pairwise.py`: differences between two passages (ranknet, weighted_ranknet, hinge, margin_mse)
- `listwise.py`: a softmax over the list, or a correlation (info_nce, kl, listnet, pearson)
- `plackett_luce.py`: the likelihood of a ranking (listmle, p_listmle)
- `lambdas.py`: pairs weighted by their effect on NDCG (lambda)
- `approximate.py`: smooth ranks (adr_mse, approx_ndcg, approx_mrr)
- `neural.py`: a differentiable sort (neural_ndcg)

The other files help them: `lists.py` (masks, ties, averages; read it first), `gains.py` (gains and
discounts), `consumption.py` (`@consumes`: what a loss needs of the targets) and `modules.py`
(`RankingLoss` and `WeightedSum`, which only wrap losses as modules).

Every public function `NAME_loss` in these files is a loss: it can be imported from here, and
`LOSSES` maps its name to it.
"""
# ruff: noqa: F401, F403, F405

import pkgutil
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from torch import Tensor

from .consumption import Consumes, consumed_by, consumes
from .modules import RankingLoss, WeightedSum

if TYPE_CHECKING:  # type checkers cannot follow the search below
    from .approximate import *
    from .lambdas import *
    from .listwise import *
    from .neural import *
    from .pairwise import *
    from .plackett_luce import *
    from .pointwise import *


def _find_losses() -> dict[str, Callable[..., Tensor]]:
    found = {}
    for info in pkgutil.iter_modules(__path__, f"{__name__}."):
        for name, function in vars(import_module(info.name)).items():
            if name.endswith("_loss") and name[0] != "_" and function.__module__ == info.name:
                found[name.removesuffix("_loss")] = function
    return found


LOSSES = _find_losses()
globals().update({f"{name}_loss": function for name, function in LOSSES.items()})
