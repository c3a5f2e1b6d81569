"""The layers of BERT-like encoders in half precision on a GPU.

Between two matrix products a GPU does little but wait for its memory. So the three projections are
one product, and what follows the others is one pass over memory each way: bias and GELU; bias,
dropout, residual sum and layer normalisation (`rankdistillm.kernels`). Precision is that of
autocast: products in half, the residual stream, its normalisation and its gradients in float32;
only the normalised states that the backward pass needs are kept in half.
"""

import logging
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from rankdistillm.cpu_layers import is_gelu
from rankdistillm.dropout import random_bits, threshold_of
from rankdistillm.packed_attention import attend
from rankdistillm.segments import Segments

log = logging.getLogger(__name__)


class States(NamedTuple):
    """Hidden states ``[1, tokens, hidden]``, whole and as the next matrix product takes them."""

    whole: Tensor
    half: Tensor


class CudaLayer:
    """A layer, with a copy in half precision of the matrices that it has now.

    Gradients reach the layer's own, unless it was made without. Biases and normalisation weights,
    which are taken as they are, are in float32.
    """

    def __init__(self, layer: Any, dtype: torch.dtype) -> None:
        inner = layer.attention.self
        projections = (inner.query, inner.key, inner.value)
        others = (layer.attention.output.dense, layer.intermediate.dense, layer.output.dense)
        self._layer = layer
        self._dtype = dtype
        weight, bias, *rest = _Halves.apply(
            dtype,
            *(projection.weight for projection in projections),
            *(projection.bias for projection in projections),
            *(dense.weight for dense in others),
        )
        self._projections = weight, bias
        self._after_attention, self._intermediate, self._output = rest

    def __call__(self, hidden: Tensor | States, segments: Segments) -> States:
        """The states behind the layer; ``hidden``: those before it, in any type."""
        layer, inner = self._layer, self._layer.attention.self
        if isinstance(hidden, Tensor):
            whole = hidden.to(layer.output.LayerNorm.weight.dtype)
            hidden = States(whole, hidden.to(self._dtype))
        device = hidden.half.device
        # Triton computes on the device that is torch's current one.
        with torch.cuda.device_of(hidden.half), torch.autocast(device.type, enabled=False):
            heads = (3, inner.num_attention_heads, inner.attention_head_size)
            projected = linear(hidden.half, *self._projections).squeeze(0).unflatten(-1, heads)
            dropout = inner.dropout.p if layer.training else 0.0
            query, key, value = projected.unbind(1)
            context = attend(query, key, value, segments, inner.scaling, dropout)
            added = linear(context.flatten(1).unsqueeze(0), self._after_attention)
            attended = _sum_and_norm(added, hidden.whole, layer.attention.output)
            widened = linear(attended.half, self._intermediate)
            added = linear(_activated(widened, layer.intermediate), self._output)
            return _sum_and_norm(added, attended.whole, layer.output)


class _Halves(torch.autograd.Function):
    """Copies in half precision; the first three, and the three after them, one below the other.

    One launch makes them, and one their gradients: where tokens are few, a step takes as long as
    the processor takes to issue its operations.
    """

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*parameters)
        sizes = [parameter.numel() for parameter in parameters]
        row = parameters[0].new_empty(sum(sizes), dtype=dtype)
        copies = [
            copy.view_as(parameter)
            for copy, parameter in zip(row.split(sizes), parameters, strict=True)
        ]
        torch._foreach_copy_(copies, parameters)
        weights, biases = row[: sum(sizes[:6])].split([sum(sizes[:3]), sum(sizes[3:6])])
        return weights.view(-1, *parameters[0].shape[1:]), biases, *copies[6:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        parameters = ctx.saved_tensors
        weights, biases, *others = gradients
        found = [torch.empty_like(parameter) for parameter in parameters]
        torch._foreach_copy_(found, [*weights.chunk(3), *biases.chunk(3), *others])
        return None, *found


def _activated(widened: Tensor, intermediate: Any) -> Tensor:
    """activation(widened + bias); ``intermediate`` has the two."""
    bias, activation = intermediate.dense.bias, intermediate.intermediate_act_fn
    if not is_gelu(activation):
        return activation(widened + bias.to(widened.dtype))
    if torch.is_grad_enabled():
        return _Gelu.apply(widened, bias)
    return _kernels().gelu.forward(widened, bias)


class _Gelu(torch.autograd.Function):
    """GELU(inputs + bias), with its gradient."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, bias)
        return _kernels().gelu.forward(inputs, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        return _kernels().gelu.backward(*gradients, *ctx.saved_tensors)


def _sum_and_norm(added: Tensor, residual: Tensor, output: Any) -> States:
    """LayerNorm(residual + dropout(added + bias)); ``output`` has the three modules."""
    rate = output.dropout.p if output.training else 0.0
    bits = random_bits(added) if rate else None
    norm = output.LayerNorm
    inputs: tuple[Any, ...] = (added, residual, output.dense.bias, norm.weight, norm.bias)
    inputs += (bits, threshold_of(rate), 1 / (1 - rate), norm.eps)
    if torch.is_grad_enabled():
        return States(*_SumAndNorm.apply(*inputs))
    whole, half, *_ = _kernels().norm.forward(*inputs, is_kept=False)
    return States(whole, half)


class _SumAndNorm(torch.autograd.Function):
    """LayerNorm(residual + dropout(added + bias)), with its gradient."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        _, _, _, weight, _, bits, ctx.threshold, ctx.scale, _ = inputs
        whole, half, normed, rstd = _kernels().norm.forward(*inputs, is_kept=True)
        ctx.save_for_backward(normed, rstd, weight, bits)
        return whole, half

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        found = _kernels().norm.backward(*gradients, *ctx.saved_tensors, ctx.threshold, ctx.scale)
        return (*found, None, None, None, None)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """What a `CudaLayer` would compute in there now; None where there is none to be used."""
    if not torch.is_autocast_enabled("cuda") or not is_available(device):
        return None
    return torch.get_autocast_dtype("cuda")


@cache
def is_available(device: torch.device) -> bool:
    """Whether it is a GPU that Triton compiles for."""
    if device.type != "cuda":
        return False
    try:
        kernels = _kernels()
        ones = torch.ones(1, 1, 16, device=device)
        with torch.cuda.device(device):
            kernels.gelu.forward(ones, ones[0, 0])
    except Exception as error:  # no Triton, no C compiler, a GPU that it does not know
        log.warning(
            "Triton does not work here (%s), which costs up to a fifth of the speed: install it, "
            "and a C compiler",
            error,
        )
        return False
    return True


@cache
def _kernels() -> Any:
    from rankdistillm.kernels import gelu, norm

    return SimpleNamespace(gelu=gelu, norm=norm)
