"""What the layers for GPUs are made of, each with its backward pass written out.

As `torch.autograd.Function`: where tokens are few, to record and issue each operation of a layer
takes longer than to compute it.
"""

from collections.abc import Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from rankdistillm.dropout import random_bits, threshold_of
from rankdistillm.segments import Segments


class States(NamedTuple):
    """Hidden states ``[tokens, hidden]``, whole and as the next matrix product takes them."""

    whole: Tensor
    half: Tensor


class SumAndNorm(NamedTuple):
    """LayerNorm(residual + dropout(added + bias)), the end of both halves of a layer."""

    rate: float  # of the dropout
    eps: float  # of the norm
    is_kept: bool  # whether to keep what `backward` takes

    def forward(
        self, added: Tensor, residual: Tensor, parameters: Sequence[Tensor]
    ) -> tuple[States, tuple[Tensor | None, ...]]:
        """States, and what `backward` takes; ``parameters``: the bias, and those of the norm."""
        bits = random_bits(added) if self.rate else None
        inputs = (added, residual, *parameters, bits, *self._dropout, self.eps)
        *states, normed, rstd = kernels().norm.forward(*inputs, is_kept=self.is_kept)
        return States(*states), (normed, rstd, parameters[1], bits)

    def backward(
        self, gradients: Sequence[Tensor], kept: Sequence[Tensor | None]
    ) -> tuple[Tensor, ...]:
        """Gradients of ``added``, ``residual`` and ``parameters``, given those of the states."""
        return kernels().norm.backward(*gradients, *kept, *self._dropout)

    @property
    def _dropout(self) -> tuple[int, float]:
        return threshold_of(self.rate), 1 / (1 - self.rate)


class Attended(torch.autograd.Function):
    """The first half of a layer: attention among the tokens of each pair."""

    @staticmethod
    def forward(
        ctx: Any,
        sum_up: SumAndNorm,
        segments: Segments,
        scaling: float,
        head_shape: tuple[int, int, int],
        whole: Tensor,
        half: Tensor,
        project: Tensor,
        project_bias: Tensor,
        gather: Tensor,
        *parameters: Tensor,
    ) -> States:
        projected = linear(half, project, project_bias).unflatten(-1, head_shape)
        context, log_sums = kernels().attention.forward(
            *projected.unbind(1), segments.bounds, segments.longest, scaling
        )
        context = context.flatten(1)
        states, kept = sum_up.forward(linear(context, gather), whole, parameters)
        ctx.sum_up, ctx.segments, ctx.scaling = sum_up, segments, scaling
        ctx.save_for_backward(half, project, gather, projected, context, log_sums, *kept)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        half, project, gather, projected, context, log_sums, *kept = ctx.saved_tensors
        of_added, of_whole, *of_parameters = ctx.sum_up.backward(gradients, kept)
        of_projected = torch.empty_like(projected)
        kernels().attention.backward(
            of_added @ gather,
            *projected.unbind(1),
            ctx.segments.bounds,
            ctx.segments.longest,
            ctx.scaling,
            context,
            log_sums,
            of_projected.unbind(1),
        )
        of_projected = of_projected.flatten(1)
        of_project = of_projected.mT @ half
        of_gather = of_added.mT @ context
        of_half = of_projected @ project
        of_matrices = (of_project, of_projected.sum(0), of_gather)
        return None, None, None, None, of_whole, of_half, *of_matrices, *of_parameters


class FeedForward(torch.autograd.Function):
    """The second half of a layer: what it does with each token alone."""

    @staticmethod
    def forward(
        ctx: Any,
        sum_up: SumAndNorm,
        whole: Tensor,
        half: Tensor,
        widen: Tensor,
        widen_bias: Tensor,
        narrow: Tensor,
        *parameters: Tensor,
    ) -> States:
        widened = linear(half, widen)
        activated = kernels().gelu.forward(widened, widen_bias)
        states, kept = sum_up.forward(linear(activated, narrow), whole, parameters)
        ctx.sum_up = sum_up
        ctx.save_for_backward(half, widen, widen_bias, narrow, widened, activated, *kept)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        half, widen, widen_bias, narrow, widened, activated, *kept = ctx.saved_tensors
        of_added, of_whole, *of_parameters = ctx.sum_up.backward(gradients, kept)
        of_activated = of_added @ narrow
        of_widened, of_widen_bias = kernels().gelu.backward(of_activated, widened, widen_bias)
        of_matrices = (of_widened.mT @ half, of_widen_bias, of_added.mT @ activated)
        return None, of_whole, of_widened @ widen, *of_matrices, *of_parameters


class ContextOfOne(torch.autograd.Function):
    """Attention of one query of each pair, its first token's."""

    @staticmethod
    def forward(
        ctx: Any, segments: Segments, scaling: float, query: Tensor, keys_and_values: Tensor
    ) -> Tensor:
        context, log_sums = kernels().attention.forward(
            query, *keys_and_values.unbind(1), segments.bounds, segments.longest, scaling
        )
        ctx.segments, ctx.scaling = segments, scaling
        ctx.save_for_backward(query, keys_and_values, context, log_sums)
        return context

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, keys_and_values, context, log_sums = ctx.saved_tensors
        found = torch.empty_like(query), torch.empty_like(keys_and_values)
        kernels().attention.backward(
            gradients[0],
            query,
            *keys_and_values.unbind(1),
            ctx.segments.bounds,
            ctx.segments.longest,
            ctx.scaling,
            context,
            log_sums,
            (found[0], *found[1].unbind(1)),
        )
        return None, None, *found


class Halves(torch.autograd.Function):
    """Copies in half precision of ``number`` matrices, as many biases, and other matrices.

    Those matrices are one, each below the one before, and so are those biases. One launch makes all
    copies, and one their gradients: where tokens are few, a step takes as long as the processor
    takes to issue its operations.
    """

    @staticmethod
    def forward(
        ctx: Any, dtype: torch.dtype, number: int, *parameters: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.number = number
        ctx.save_for_backward(*parameters)  # for their shapes: they are there anyway
        sizes = [parameter.numel() for parameter in parameters]
        row = parameters[0].new_empty(sum(sizes), dtype=dtype)
        copies = [
            copy.view_as(parameter)
            for copy, parameter in zip(row.split(sizes), parameters, strict=True)
        ]
        torch._foreach_copy_(copies, parameters)
        weights, biases = sum(sizes[:number]), sum(sizes[number : 2 * number])
        weight, bias, _ = row.tensor_split((weights, weights + biases))
        return weight.view(-1, *parameters[0].shape[1:]), bias, *copies[2 * number :]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        weight, bias, *others = gradients
        found = [torch.empty_like(parameter) for parameter in ctx.saved_tensors]
        parts = [*weight.chunk(ctx.number), *bias.chunk(ctx.number), *others]
        torch._foreach_copy_(found, parts)
        return None, None, *found


def joined_halves(dtype: torch.dtype, joined: Sequence[Any], *others: Any) -> tuple[Tensor, ...]:
    """Of linear layers in half precision: (weight, bias) of the joined ones; others' weights."""
    weights, biases = zip(*((linear.weight, linear.bias) for linear in joined), strict=True)
    rest = (linear.weight for linear in others)
    return Halves.apply(dtype, len(joined), *weights, *biases, *rest)


@cache
def kernels() -> Any:
    from rankdistillm.kernels import attention, gelu, norm

    return SimpleNamespace(attention=attention, gelu=gelu, norm=norm)
