"""Ranking losses: pure functions of (scores, targets, mask) on the last axis.

    loss = ranknet_loss(scores, targets, mask=mask)

`scores`, `targets` and `mask` are `[..., list_size]` with any leading dimensions. Targets are
higher-is-better; the mask is True for a real passage. Arithmetic is in float32, or in float64 if
the scores are. Inside a list, a loss averages over its pairs or passages; over lists, it takes the
`reduction` `"mean"`, `"sum"` or `"none"`. A list with nothing to compare costs zero and stays in
the graph. Values at masked positions are ignored; a NaN target of a real passage makes the loss of
its list NaN.

Every public function `NAME_loss` in a module of this package is a loss: it can be imported from
here, and `LOSSES` maps its name to it. `@consumes` at the function says what the loss needs of the
targets. `RankingLoss` and `WeightedSum` wrap losses as modules. Read `lists.py` first; everything
else builds on it.
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
