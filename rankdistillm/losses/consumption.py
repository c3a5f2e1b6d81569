"""Declare and look up what a loss consumes of the targets.

- *order*: only which of two passages is better, so ranks are enough.
- *gain*: how much a passage is worth, with zero for a worthless one: graded or binary relevance.
- *score*: a teacher's real-valued scores; the loss learns the sizes of their differences.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, TypeVar

from torch import Tensor

from .modules import RankingLoss, WeightedSum

Consumes = Literal["order", "gain", "score"]
Function = TypeVar("Function", bound=Callable[..., Tensor])


def consumes(
    declared: Consumes | Callable[[Mapping[str, Any]], Consumes],
) -> Callable[[Function], Function]:
    """Declare what a loss function consumes, or how that follows from its settings.

    >>> @consumes(lambda settings: "order" if settings["margin"] == 1.0 else "score")
    ... def my_loss(scores, targets, *, mask=None, margin=1.0, reduction="mean"): ...
    >>> consumed_by(my_loss)
    frozenset({'order'})
    """

    def declare(function: Function) -> Function:
        vars(function)["consumes"] = declared
        return function

    return declare


def consumed_by(loss: Callable[..., Tensor]) -> frozenset[Consumes]:
    """The kinds of targets that a loss consumes with its settings; a weighted sum may have several.

    Takes a function, a partial of one, a `RankingLoss` or a `WeightedSum`. The set is empty for a
    function that declares nothing.

    >>> from rankdistillm.losses import margin_mse_loss
    >>> consumed_by(margin_mse_loss)
    frozenset({'score'})
    >>> consumed_by(partial(margin_mse_loss, margin=1.0))
    frozenset({'order'})
    """
    if isinstance(loss, WeightedSum):
        return frozenset().union(*(consumed_by(part) for part in loss.losses))
    function, settings = _unwrap(loss)
    declared = getattr(function, "consumes", None)
    if declared is None:
        return frozenset()
    if callable(declared):
        parameters = inspect.signature(function).parameters.values()
        declared = declared({p.name: p.default for p in parameters} | settings)
    return frozenset({declared})


def _unwrap(loss: Callable[..., Tensor]) -> tuple[Callable[..., Tensor], dict[str, Any]]:
    """The function inside partials and modules, and its settings; outer settings override."""
    if isinstance(loss, partial):
        function, settings = _unwrap(loss.func)
        return function, settings | loss.keywords
    if isinstance(loss, RankingLoss):
        function, settings = _unwrap(loss.function)
        return function, settings | loss.kwargs
    return loss, {}
