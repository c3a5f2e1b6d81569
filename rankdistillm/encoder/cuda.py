"""BERT-like layers in half precision on a GPU.

Between matrix products a GPU is memory-bound, and on small batches launch-bound. So:

- The query, key and value projections are one product.
- Everything between the products is one pass over memory each way, by the Triton kernels of
  `rankdistillm.encoder.kernels`: attention; bias and GELU; bias, dropout, residual sum and norm.
- Each half of a layer is a `torch.autograd.Function` with its backward pass written out, which
  issues fewer operations than autograd records.

Precision is autocast's: products in half precision; the residual stream, its normalisation and its
gradients in float32. For the backward pass of a norm, only the normalised states are kept, in half
precision. The attention kernel has no dropout: ``attention_probs_dropout_prob`` is not applied,
other dropout is.
"""

import logging
from collections.abc import Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from rankdistillm.encoder.cpu import is_gelu
from rankdistillm.encoder.dropout import dropout_threshold, random_int16
from rankdistillm.encoder.segments import Segments

log = logging.getLogger(__name__)


class States(NamedTuple):
    """Hidden states ``[tokens, hidden]``: in float32, and in the precision of the products."""

    fp32: Tensor
    low: Tensor


class CudaLayer:
    """A layer with a half-precision copy of the matrices that it has now.

    Gradients flow back to the layer's own parameters, unless it was made without gradients. Norm
    weights and all biases but those of the query, key and value projections are used as they are,
    in float32.
    """

    def __init__(self, layer: Any, dtype: torch.dtype) -> None:
        attention = layer.attention.self
        self._layer = layer
        self._dtype = dtype
        self._qkv_weight, self._qkv_bias, self._out_weight, self._up_weight, self._down_weight = (
            low_copies(
                dtype,
                (attention.query, attention.key, attention.value),
                layer.attention.output.dense,
                layer.intermediate.dense,
                layer.output.dense,
            )
        )

    def __call__(self, hidden: Tensor | States, segments: Segments) -> States:
        """The layer's output states; a tensor ``hidden`` is ``[1, tokens, hidden]``."""
        layer, attention = self._layer, self._layer.attention.self
        if isinstance(hidden, Tensor):
            fp32 = hidden.squeeze(0).to(layer.output.LayerNorm.weight.dtype)
            hidden = States(fp32, fp32.to(self._dtype))
        head_shape = (3, attention.num_attention_heads, attention.attention_head_size)
        add_norm, norm_parameters = _add_norm_of(layer.attention.output)
        last_add_norm, last_norm_parameters = _add_norm_of(layer.output)
        device = hidden.low.device
        # Triton launches kernels on torch's current device.
        with torch.cuda.device_of(hidden.low), torch.autocast(device.type, enabled=False):
            attended = AttentionBlock.apply(
                add_norm,
                segments,
                attention.scaling,
                head_shape,
                *hidden,
                self._qkv_weight,
                self._qkv_bias,
                self._out_weight,
                *norm_parameters,
            )
            output = FeedForwardBlock.apply(
                last_add_norm,
                *attended,
                self._up_weight,
                layer.intermediate.dense.bias,
                self._down_weight,
                *last_norm_parameters,
            )
        return States(*output)


def supports(layer: Any) -> bool:
    """Whether a `CudaLayer` can replace the layer: its activation is GELU, its heads are small."""
    # The tiles of larger heads do not fit into a multiprocessor's shared memory.
    is_small = layer.attention.self.attention_head_size <= 128
    return is_small and is_gelu(layer.intermediate.intermediate_act_fn)


def first_token_context(attention: Any, query: Tensor, low: Tensor, segments: Segments) -> Tensor:
    """Attention of one query per pair: ``[pairs, heads, head size]`` in and out.

    ``attention`` is a layer's self-attention module, ``low`` its input ``[tokens, hidden]`` in half
    precision.
    """
    weight, bias = low_copies(low.dtype, (attention.key, attention.value))
    with torch.cuda.device_of(low):
        keys_and_values = linear(low, weight, bias).unflatten(-1, (2, *query.shape[1:]))
        context = FirstTokenAttention.apply(
            segments, attention.scaling, query.to(low.dtype), keys_and_values
        )
    return context.to(query.dtype)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The type that a `CudaLayer` would compute in now; None where it cannot be used."""
    if not torch.is_autocast_enabled("cuda") or not is_available(device):
        return None
    return torch.get_autocast_dtype("cuda")


@cache
def is_available(device: torch.device) -> bool:
    """Whether the device is a GPU that Triton compiles for."""
    if device.type != "cuda":
        return False
    try:
        triton_kernels = kernels()
        if torch.cuda.get_device_capability(device) < (8, 0):
            return False
        ones = torch.ones(1, 16, device=device)
        bounds = torch.tensor([0, 1], dtype=torch.int32, device=device)
        with torch.cuda.device(device):
            triton_kernels.gelu.forward(ones, ones[0])
            triton_kernels.attention.forward(*[ones.unsqueeze(0).half()] * 3, bounds, 1, 1.0)
    except Exception as error:  # no Triton, no C compiler, a GPU unknown to Triton
        log.warning(
            "Triton does not work here (%s), which costs a quarter of the speed; install triton "
            "and a C compiler",
            error,
        )
        return False
    return True


@cache
def kernels() -> Any:
    """The kernel modules, imported on first use: Triton is optional."""
    from rankdistillm.encoder.kernels import attention, gelu, norm

    return SimpleNamespace(attention=attention, gelu=gelu, norm=norm)


class AddNorm(NamedTuple):
    """LayerNorm(residual + dropout(added + bias)), which ends both halves of a layer."""

    rate: float  # of dropout
    eps: float  # of the norm
    for_backward: bool  # whether to keep what `backward` needs

    def forward(
        self, added: Tensor, residual: Tensor, parameters: Sequence[Tensor]
    ) -> tuple[States, tuple[Tensor | None, ...]]:
        """The states, and the tensors that `backward` needs.

        ``parameters``: the bias, then the norm's weight and bias.
        """
        bits = random_int16(added) if self.rate else None
        inputs = (added, residual, *parameters, bits, *self._dropout, self.eps)
        *states, normed, rstd = kernels().norm.forward(*inputs, for_backward=self.for_backward)
        return States(*states), (normed, rstd, parameters[1], bits)

    def backward(
        self, grad_states: Sequence[Tensor], saved: Sequence[Tensor | None]
    ) -> tuple[Tensor, ...]:
        """The gradients of ``added``, ``residual`` and ``parameters``."""
        return kernels().norm.backward(*grad_states, *saved, *self._dropout)

    @property
    def _dropout(self) -> tuple[int, float]:
        return dropout_threshold(self.rate), 1 / (1 - self.rate)


def _add_norm_of(output: Any) -> tuple[AddNorm, tuple[Tensor, Tensor, Tensor]]:
    """The `AddNorm` of a transformers output module, and its parameters."""
    rate, norm = output.dropout.p if output.training else 0.0, output.LayerNorm
    add_norm = AddNorm(rate, norm.eps, for_backward=torch.is_grad_enabled())
    return add_norm, (output.dense.bias, norm.weight, norm.bias)


class AttentionBlock(torch.autograd.Function):
    """The first half of a layer: attention inside each pair."""

    @staticmethod
    def forward(
        ctx: Any,
        add_norm: AddNorm,
        segments: Segments,
        scaling: float,
        head_shape: tuple[int, int, int],
        fp32: Tensor,
        low: Tensor,
        qkv_weight: Tensor,
        qkv_bias: Tensor,
        out_weight: Tensor,
        *norm_parameters: Tensor,
    ) -> States:
        qkv = linear(low, qkv_weight, qkv_bias).unflatten(-1, head_shape)
        context, log_sums = kernels().attention.forward(
            *qkv.unbind(1), segments.bounds, segments.longest, scaling
        )
        context = context.flatten(1)
        states, saved = add_norm.forward(linear(context, out_weight), fp32, norm_parameters)
        ctx.add_norm, ctx.segments, ctx.scaling = add_norm, segments, scaling
        ctx.save_for_backward(low, qkv_weight, out_weight, qkv, context, log_sums, *saved)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_states: Tensor) -> tuple[Tensor | None, ...]:
        low, qkv_weight, out_weight, qkv, context, log_sums, *saved = ctx.saved_tensors
        grad_added, grad_fp32, *grad_norm = ctx.add_norm.backward(grad_states, saved)
        grad_qkv = torch.empty_like(qkv)
        kernels().attention.backward(
            grad_added @ out_weight,
            *qkv.unbind(1),
            ctx.segments.bounds,
            ctx.segments.longest,
            ctx.scaling,
            context,
            log_sums,
            grad_qkv.unbind(1),
        )
        grad_qkv = grad_qkv.flatten(1)
        grad_weights = (grad_qkv.mT @ low, grad_qkv.sum(0), grad_added.mT @ context)
        grad_low = grad_qkv @ qkv_weight
        return None, None, None, None, grad_fp32, grad_low, *grad_weights, *grad_norm


class FeedForwardBlock(torch.autograd.Function):
    """The second half of a layer: the feed-forward network, on each token alone."""

    @staticmethod
    def forward(
        ctx: Any,
        add_norm: AddNorm,
        fp32: Tensor,
        low: Tensor,
        up_weight: Tensor,
        up_bias: Tensor,
        down_weight: Tensor,
        *norm_parameters: Tensor,
    ) -> States:
        up = linear(low, up_weight)
        activated = kernels().gelu.forward(up, up_bias)
        states, saved = add_norm.forward(linear(activated, down_weight), fp32, norm_parameters)
        ctx.add_norm = add_norm
        ctx.save_for_backward(low, up_weight, up_bias, down_weight, up, activated, *saved)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_states: Tensor) -> tuple[Tensor | None, ...]:
        low, up_weight, up_bias, down_weight, up, activated, *saved = ctx.saved_tensors
        grad_added, grad_fp32, *grad_norm = ctx.add_norm.backward(grad_states, saved)
        grad_activated = grad_added @ down_weight
        grad_up, grad_up_bias = kernels().gelu.backward(grad_activated, up, up_bias)
        grad_weights = (grad_up.mT @ low, grad_up_bias, grad_added.mT @ activated)
        return None, grad_fp32, grad_up @ up_weight, *grad_weights, *grad_norm


class FirstTokenAttention(torch.autograd.Function):
    """Attention of one query per pair, its first token's."""

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
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        query, keys_and_values, context, log_sums = ctx.saved_tensors
        grad_query, grad_kv = torch.empty_like(query), torch.empty_like(keys_and_values)
        kernels().attention.backward(
            grad_outputs[0],
            query,
            *keys_and_values.unbind(1),
            ctx.segments.bounds,
            ctx.segments.longest,
            ctx.scaling,
            context,
            log_sums,
            (grad_query, *grad_kv.unbind(1)),
        )
        return None, None, grad_query, grad_kv


def low_copies(dtype: torch.dtype, joined: Sequence[Any], *others: Any) -> tuple[Tensor, ...]:
    """Half-precision copies of the parameters of linear layers.

    Returns the weights of ``joined`` stacked into one matrix, their biases as one vector, and the
    weight of each of ``others``.
    """
    weights, biases = zip(*((layer.weight, layer.bias) for layer in joined), strict=True)
    rest = (layer.weight for layer in others)
    return _LowCopies.apply(dtype, len(joined), *weights, *biases, *rest)


class _LowCopies(torch.autograd.Function):
    """`low_copies`; ``parameters`` are ``num_joined`` weights, as many biases, other weights.

    One kernel launch makes all copies, and one all their gradients: on small batches a step is
    bound by launches.
    """

    @staticmethod
    def forward(
        ctx: Any, dtype: torch.dtype, num_joined: int, *parameters: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.num_joined = num_joined
        ctx.save_for_backward(*parameters)  # for their shapes; this costs no memory
        sizes = [parameter.numel() for parameter in parameters]
        row = parameters[0].new_empty(sum(sizes), dtype=dtype)
        copies = [
            copy.view_as(parameter)
            for copy, parameter in zip(row.split(sizes), parameters, strict=True)
        ]
        torch._foreach_copy_(copies, parameters)
        weights_end = sum(sizes[:num_joined])
        biases_end = sum(sizes[: 2 * num_joined])
        weight, bias, _ = row.tensor_split((weights_end, biases_end))
        return weight.view(-1, *parameters[0].shape[1:]), bias, *copies[2 * num_joined :]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grad_weight, grad_bias, *grad_others = grad_outputs
        gradients = [torch.empty_like(parameter) for parameter in ctx.saved_tensors]
        parts = [
            *grad_weight.chunk(ctx.num_joined),
            *grad_bias.chunk(ctx.num_joined),
            *grad_others,
        ]
        torch._foreach_copy_(gradients, parts)
        return None, None, *gradients
