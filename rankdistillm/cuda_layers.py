"""The layers of BERT-like encoders in half precision on a GPU.

Between two matrix products a GPU does little but wait for its memory. So the three projections are
one product, and what follows the others is one pass over memory each way: bias and GELU; bias,
dropout, residual sum and layer normalisation (`rankdistillm.triton_kernels`). Precision is that of
autocast: products in half, the residual stream, its normalisation and its gradients in float32;
only the normalised states that the backward pass needs are kept in half.
"""

import logging
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import gelu, linear

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
    """A layer, with a copy in half precision of the weights that it has now.

    Gradients reach the layer's own weights, unless it was made without.
    """

    def __init__(self, layer: Any, dtype: torch.dtype) -> None:
        inner = layer.attention.self
        projections = (inner.query, inner.key, inner.value)
        self._layer = layer
        self._dtype = dtype
        self._projections = (
            torch.cat([projection.weight for projection in projections]).to(dtype),
            torch.cat([projection.bias for projection in projections]).to(dtype),
        )
        self._after_attention = layer.attention.output.dense.weight.to(dtype)
        self._intermediate = layer.intermediate.dense.weight.to(dtype)
        self._output = layer.output.dense.weight.to(dtype)

    def __call__(self, hidden: Tensor | States, segments: Segments) -> States:
        """The states behind the layer; ``hidden``: those before it, in any type."""
        layer, inner = self._layer, self._layer.attention.self
        if isinstance(hidden, Tensor):
            whole = hidden.to(layer.output.LayerNorm.weight.dtype)
            hidden = States(whole, hidden.to(self._dtype))
        with torch.autocast(hidden.half.device.type, enabled=False):
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


def _activated(widened: Tensor, intermediate: Any) -> Tensor:
    """activation(widened + bias); ``intermediate`` has the two."""
    bias, activation = intermediate.dense.bias, intermediate.intermediate_act_fn
    if not is_gelu(activation):
        return activation(widened + bias.to(widened.dtype))
    if torch.is_grad_enabled():
        return _Gelu.apply(widened, bias)
    return _kernels(widened.device).gelu_forward(widened, bias)


class _Gelu(torch.autograd.Function):
    """GELU(inputs + bias), with its gradient."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, bias)
        return _kernels(inputs.device).gelu_forward(inputs, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        return _kernels(gradients[0].device).gelu_backward(*gradients, *ctx.saved_tensors)


def _sum_and_norm(added: Tensor, residual: Tensor, output: Any) -> States:
    """LayerNorm(residual + dropout(added + bias)); ``output`` has the three modules."""
    rate = output.dropout.p if output.training else 0.0
    bits = random_bits(added) if rate else None
    norm = output.LayerNorm
    inputs: tuple[Any, ...] = (added, residual, output.dense.bias, norm.weight, norm.bias)
    inputs += (bits, threshold_of(rate), 1 / (1 - rate), norm.eps)
    if torch.is_grad_enabled():
        return States(*_SumAndNorm.apply(*inputs))
    whole, half, *_ = _kernels(added.device).norm_forward(*inputs, is_kept=False)
    return States(whole, half)


class _SumAndNorm(torch.autograd.Function):
    """LayerNorm(residual + dropout(added + bias)), with its gradient."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        added, _, _, weight, _, bits, ctx.threshold, ctx.scale, _ = inputs
        whole, half, normed, rstd = _kernels(added.device).norm_forward(*inputs, is_kept=True)
        ctx.save_for_backward(normed, rstd, weight, bits)
        return whole, half

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        found = _kernels(gradients[0].device).norm_backward(
            *gradients, *ctx.saved_tensors, ctx.threshold, ctx.scale
        )
        return (*found, None, None, None, None)


class StepByStep:
    """What `rankdistillm.triton_kernels` computes, by torch's own operations.

    For devices that are no GPU, and to compare with.
    """

    @staticmethod
    def gelu_forward(inputs: Tensor, bias: Tensor) -> Tensor:
        """GELU(inputs + bias), ``[1, tokens, feed-forward]``; the bias is in float32."""
        return gelu(inputs + bias).to(inputs.dtype)

    @staticmethod
    def gelu_backward(of_outputs: Tensor, inputs: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of both inputs of `gelu_forward`, given that of what it returns."""
        of_sum = torch.ops.aten.gelu_backward(of_outputs.to(bias.dtype), inputs + bias)
        return of_sum.to(inputs.dtype), of_sum.sum((0, 1))

    @staticmethod
    def norm_forward(
        added: Tensor,
        residual: Tensor,
        added_bias: Tensor,
        weight: Tensor,
        bias: Tensor,
        bits: Tensor | None,
        threshold: int,
        scale: float,
        eps: float,
        *,
        is_kept: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """LayerNorm(residual + dropout(added + added_bias)), ``[1, tokens, hidden]``.

        An element is dropped where its ``bits`` (None: nowhere) are below ``threshold``, and
        multiplied by ``scale`` elsewhere. Returned are the states in the types of ``residual`` and
        of ``added``; then what `norm_backward` needs, empty unless ``is_kept``: the normalised
        sum, and the reciprocal of its standard deviation.
        """
        total = residual + _dropped(added.to(residual.dtype) + added_bias, bits, threshold, scale)
        whole, mean, rstd = torch.native_layer_norm(total, weight.shape, weight, bias, eps)
        half = whole.to(added.dtype)
        if not is_kept:
            return whole, half, half[:, :0], rstd[:, :0]
        return whole, half, ((total - mean) * rstd).to(added.dtype), rstd

    @staticmethod
    def norm_backward(
        of_whole: Tensor,
        of_half: Tensor,
        normed: Tensor,
        rstd: Tensor,
        weight: Tensor,
        bits: Tensor | None,
        threshold: int,
        scale: float,
    ) -> tuple[Tensor, ...]:
        """Gradients of the first five inputs of `norm_forward`, given those of both states."""
        gradient, normed = of_whole + of_half, normed.to(of_whole.dtype)
        inner = gradient * weight
        shift = inner.mean(-1, keepdim=True) + normed * (inner * normed).mean(-1, keepdim=True)
        of_residual = (inner - shift) * rstd
        of_added = _dropped(of_residual, bits, threshold, scale)
        sums = (tensor.sum((0, 1)) for tensor in (of_added, gradient * normed, gradient))
        return of_added.to(of_half.dtype), of_residual, *sums


def _dropped(values: Tensor, bits: Tensor | None, threshold: int, scale: float) -> Tensor:
    return values if bits is None else torch.where(bits >= threshold, values * scale, 0)


@cache
def is_available(device: torch.device) -> bool:
    """Whether it is a GPU that Triton compiles for."""
    if device.type != "cuda":
        return False
    try:
        kernels = _kernels(device)
        ones = torch.ones(1, 1, 16, device=device)
        kernels.gelu_forward(ones, ones[0, 0])
    except Exception as error:  # no Triton, no C compiler, a GPU that it does not know
        log.warning("Triton does not work here, which costs a fifth of the speed: %s", error)
        return False
    return True


def _kernels(device: torch.device) -> Any:
    if device.type != "cuda":
        return StepByStep
    from rankdistillm import triton_kernels

    return triton_kernels
