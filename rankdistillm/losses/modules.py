"""Losses as modules: one loss with its settings, and a weighted sum of several."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from .lists import Reduction


class RankingLoss(nn.Module):
    """A loss function with its settings, as a module.

    Called like the function: scores, targets and mask are `[..., list_size]`.

    Args:
        function: a loss of this package or any function with the same signature, e.g. a
            `functools.partial`.
        **kwargs: its settings; an unknown one raises a TypeError here, not at the first step.

    >>> import torch
    >>> from rankdistillm.losses import ranknet_loss
    >>> loss = RankingLoss(ranknet_loss, temperature=0.5)
    >>> loss
    RankingLoss(ranknet_loss, temperature=0.5)
    >>> loss(torch.tensor([2.0, 0.0, 1.0]), torch.tensor([3, 2, 1]))
    tensor(0.7573)
    """

    def __init__(self, function: Callable[..., Tensor], **kwargs: Any) -> None:
        super().__init__()
        inspect.signature(function).bind(None, None, mask=None, **kwargs)
        self.function = function
        self.kwargs = kwargs

    def forward(
        self,
        scores: Tensor,
        targets: Tensor,
        mask: Tensor | None = None,
        *,
        reduction: Reduction | None = None,
    ) -> Tensor:
        """The loss; `reduction`, if given, overrides that of the settings."""
        kwargs = self.kwargs if reduction is None else {**self.kwargs, "reduction": reduction}
        return self.function(scores, targets, mask=mask, **kwargs)

    def extra_repr(self) -> str:
        name = getattr(self.function, "__name__", repr(self.function))
        return ", ".join([name, *(f"{key}={value!r}" for key, value in self.kwargs.items())])


class WeightedSum(nn.Module):
    """The weighted sum of several losses on the same scores and targets.

    Called like a loss function: scores, targets and mask are `[..., list_size]`.

    Args:
        losses: loss functions, partials of them, or modules.
        weights: one number per loss; ones by default.

    >>> import torch
    >>> from rankdistillm.losses import hinge_loss, ranknet_loss
    >>> loss = WeightedSum([ranknet_loss, hinge_loss], weights=[1.0, 0.1])
    >>> loss(torch.tensor([2.0, 0.0, 1.0]), torch.tensor([3, 2, 1]))
    tensor(0.6512)
    """

    def __init__(
        self, losses: Sequence[Callable[..., Tensor]], weights: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        if len(losses) == 0:
            raise ValueError("a weighted sum needs one loss or more")
        weights = [1.0] * len(losses) if weights is None else [float(weight) for weight in weights]
        if len(weights) != len(losses):
            raise ValueError(f"got {len(losses)} losses but {len(weights)} weights")
        self.losses = nn.ModuleList(
            loss if isinstance(loss, nn.Module) else RankingLoss(loss) for loss in losses
        )
        self.weights = weights

    def forward(
        self,
        scores: Tensor,
        targets: Tensor,
        mask: Tensor | None = None,
        *,
        reduction: Reduction = "mean",
    ) -> Tensor:
        """The sum; `reduction` overrides that of every loss."""
        values = [loss(scores, targets, mask=mask, reduction=reduction) for loss in self.losses]
        total = self.weights[0] * values[0]
        for weight, value in zip(self.weights[1:], values[1:], strict=True):
            total = total + weight * value
        return total

    def extra_repr(self) -> str:
        return f"weights={self.weights}"
