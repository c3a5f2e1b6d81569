"""Losses as modules: one loss with its settings, and a weighted sum of several."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
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
    """The weighted sum of several losses on the same scores.

    Called like a loss function: scores and mask are `[..., list_size]`. Without `targets`, all
    losses get the same targets `[..., list_size]`. With `targets`, loss i gets targets of its own:
    `[..., i, :]` of the targets `[..., len(losses), list_size]`; NaN marks a passage that these
    targets say nothing about, and masks it for this loss alone.

    Args:
        losses: loss functions, partials of them, or modules.
        weights: one number per loss; ones by default.
        targets: one kind of targets per loss, as `data.train.targets` names them, which tells a
            training what to build. None: the losses share the targets.

    >>> import torch
    >>> from rankdistillm.losses import hinge_loss, info_nce_loss, ranknet_loss
    >>> scores = torch.tensor([2.0, 0.0, 1.0])
    >>> loss = WeightedSum([ranknet_loss, hinge_loss], weights=[1.0, 0.1])
    >>> loss(scores, torch.tensor([3, 2, 1]))
    tensor(0.6512)
    >>> loss = WeightedSum([ranknet_loss, info_nce_loss], [1.0, 0.5], targets=["rank", "judged"])
    >>> loss(scores, torch.tensor([[3.0, 2.0, 1.0], [1.0, 0.0, torch.nan]]))
    tensor(0.6479)
    """

    def __init__(
        self,
        losses: Sequence[Callable[..., Tensor]],
        weights: Sequence[float] | None = None,
        targets: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        if len(losses) == 0:
            raise ValueError("a weighted sum needs one loss or more")
        weights = [1.0] * len(losses) if weights is None else [float(weight) for weight in weights]
        if isinstance(targets, str):
            raise ValueError(f"targets must be a list with one name per loss, not {targets!r}")
        if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not any(weights):
            raise ValueError(
                f"weights must be finite, not negative and not all zero, got {weights}"
            )
        for name, given in (("weights", weights), ("targets", targets)):
            if given is not None and len(given) != len(losses):
                raise ValueError(f"got {len(losses)} losses but {len(given)} {name}")
        self.losses = nn.ModuleList(
            loss if isinstance(loss, nn.Module) else RankingLoss(loss) for loss in losses
        )
        if any(getattr(loss, "targets", None) for loss in self.losses):
            raise ValueError("a sum inside another sum cannot have targets of its own")
        self.weights = weights
        self.targets = None if targets is None else tuple(targets)

    def forward(
        self,
        scores: Tensor,
        targets: Tensor,
        mask: Tensor | None = None,
        *,
        reduction: Reduction = "mean",
    ) -> Tensor:
        """The sum; `reduction` overrides that of every loss."""
        if self.targets is None:
            inputs = [(targets, mask)] * len(self.losses)
        else:
            inputs = [_split_known(own, mask) for own in targets.unbind(-2)]
        values = [
            weight * loss(scores, own, mask=own_mask, reduction=reduction)
            for loss, weight, (own, own_mask) in zip(self.losses, self.weights, inputs, strict=True)
        ]
        return torch.stack(values).sum(0)

    def extra_repr(self) -> str:
        targets = "" if self.targets is None else f", targets={list(self.targets)}"
        return f"weights={self.weights}{targets}"


def _split_known(targets: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The targets without NaN, and the mask of the passages that have one."""
    known = ~targets.isnan()
    return targets.nan_to_num(0.0), known if mask is None else known & mask
