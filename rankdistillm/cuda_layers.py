"""The layers of BERT-like encoders in half precision on a GPU.

Between two matrix products a GPU does little but wait for its memory, and with few tokens for the
processor that says what to do. So the three projections are one product, what stands between it and
the others is one pass over memory each way (`rankdistillm.kernels`: attention; bias and GELU; bias,
dropout, residual sum and layer normalisation), and the backward pass of a layer is written out
beside its forward pass. Precision is that of autocast: products in half, the residual stream, its
normalisation and its gradients in float32; only the normalised states that the backward pass needs
are kept in half. The kernel of attention has no dropout: ``attention_probs_dropout_prob`` is not
applied, other dropout is.
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

from rankdistillm.cpu_layers import is_gelu
from rankdistillm.dropout import random_bits, threshold_of
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
        self._layer = layer
        self._dtype = dtype
        self._halves = _joined_halves(
            dtype,
            (inner.query, inner.key, inner.value),
            layer.attention.output.dense,
            layer.intermediate.dense,
            layer.output.dense,
        )

    def __call__(self, hidden: Tensor | States, segments: Segments) -> States:
        """The states behind the layer; ``hidden``: those before it, in any type."""
        layer, inner = self._layer, self._layer.attention.self
        norms = (layer.attention.output, layer.output)
        if isinstance(hidden, Tensor):
            whole = hidden.to(layer.output.LayerNorm.weight.dtype)
            hidden = States(whole, hidden.to(self._dtype))
        options = _Options(
            segments.bounds,
            (3, inner.num_attention_heads, inner.attention_head_size),
            inner.scaling,
            *((n.dropout.p if n.training else 0.0, n.LayerNorm.eps) for n in norms),
        )
        given = (
            *hidden,
            *self._halves,
            layer.intermediate.dense.bias,
            *(p for n in norms for p in (n.dense.bias, n.LayerNorm.weight, n.LayerNorm.bias)),
        )
        device = hidden.half.device
        # Triton computes on the device that is torch's current one.
        with torch.cuda.device_of(hidden.half), torch.autocast(device.type, enabled=False):
            if torch.is_grad_enabled():
                return States(*_Layer.apply(options, *given))
            return _compute(options, _Given(*given), is_kept=False)[0]


def takes(layer: Any) -> bool:
    """Whether a `CudaLayer` can be made of it: its activation is GELU, its heads are not large."""
    is_small = layer.attention.self.attention_head_size <= 128
    return is_small and is_gelu(layer.intermediate.intermediate_act_fn)


class _Options(NamedTuple):
    """What decides how a layer computes, beside what has gradients."""

    bounds: Tensor  # `Segments.bounds`
    heads: tuple[int, int, int]  # projections, heads of each, head size
    scaling: float
    # Each (rate of dropout, what is added to the variance).
    attended: tuple[float, float]
    found: tuple[float, float]


class _Given(NamedTuple):
    """What a layer computes with: states, then matrices in half precision, then the rest."""

    whole: Tensor | None
    half: Tensor
    project: Tensor  # to queries, keys and values
    project_bias: Tensor
    gather: Tensor  # the heads
    widen: Tensor
    narrow: Tensor
    widen_bias: Tensor
    gather_bias: Tensor
    attended_weight: Tensor
    attended_bias: Tensor
    narrow_bias: Tensor
    found_weight: Tensor
    found_bias: Tensor


class _Normed(NamedTuple):
    """LayerNorm(residual + dropout(product + bias)), ``[tokens, hidden]``, and how it came about.

    ``bits`` are those of the dropout, None without; the others are what the kernel returns.
    """

    whole: Tensor
    half: Tensor
    normed: Tensor
    rstd: Tensor
    bits: Tensor | None


class _Kept(NamedTuple):
    """What the backward pass takes beside what was given to the layer."""

    projected: Tensor
    context: Tensor
    log_sums: Tensor
    attended: Tensor
    attended_normed: Tensor
    attended_rstd: Tensor
    attended_bits: Tensor | None
    widened: Tensor
    activated: Tensor
    found_normed: Tensor
    found_rstd: Tensor
    found_bits: Tensor | None


def _compute(options: _Options, given: _Given, *, is_kept: bool) -> tuple[States, _Kept]:
    """The states behind a layer."""
    kernels = _kernels()
    projected = linear(given.half.squeeze(0), given.project, given.project_bias)
    projected = projected.unflatten(-1, options.heads)
    context, log_sums = kernels.attention.forward(
        *projected.unbind(1), options.bounds, options.scaling
    )
    context = context.flatten(1)
    attended = _normed(
        linear(context, given.gather),
        given.whole.squeeze(0),
        (given.gather_bias, given.attended_weight, given.attended_bias),
        *options.attended,
        is_kept=is_kept,
    )
    widened = linear(attended.half, given.widen)
    activated = kernels.gelu.forward(widened, given.widen_bias)
    found = _normed(
        linear(activated, given.narrow),
        attended.whole,
        (given.narrow_bias, given.found_weight, given.found_bias),
        *options.found,
        is_kept=is_kept,
    )
    kept = _Kept(projected, context, log_sums, *attended[1:], widened, activated, *found[2:])
    return States(found.whole.unsqueeze(0), found.half.unsqueeze(0)), kept


def _normed(
    added: Tensor,
    residual: Tensor,
    parameters: tuple[Tensor, Tensor, Tensor],
    rate: float,
    eps: float,
    *,
    is_kept: bool,
) -> _Normed:
    bits = random_bits(added) if rate else None
    inputs = (added, residual, *parameters, bits, *_threshold_and_scale(rate), eps)
    return _Normed(*_kernels().norm.forward(*inputs, is_kept=is_kept), bits)


def _threshold_and_scale(rate: float) -> tuple[int, float]:
    return threshold_of(rate), 1 / (1 - rate)


class _Layer(torch.autograd.Function):
    """`_compute`, with its gradient."""

    @staticmethod
    def forward(ctx: Any, options: _Options, *given: Tensor) -> tuple[Tensor, Tensor]:
        states, kept = _compute(options, _Given(*given), is_kept=True)
        ctx.options = options
        # All but the whole states, which is what takes most and is not needed.
        ctx.save_for_backward(*given[1:], *kept)
        return tuple(states)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        kernels, options = _kernels(), ctx.options
        num_given = len(_Given._fields) - 1
        given = _Given(None, *ctx.saved_tensors[:num_given])
        kept = _Kept(*ctx.saved_tensors[num_given:])
        # Each is a gradient: of what a matrix makes, or of what is summed up.
        narrowed, attended, *of_found = kernels.norm.backward(
            *(gradient.squeeze(0) for gradient in gradients),
            kept.found_normed,
            kept.found_rstd,
            given.found_weight,
            kept.found_bits,
            *_threshold_and_scale(options.found[0]),
        )
        widened, of_widen_bias = kernels.gelu.backward(
            narrowed @ given.narrow, kept.widened, given.widen_bias
        )
        gathered, whole, *of_attended = kernels.norm.backward(
            attended,
            widened @ given.widen,
            kept.attended_normed,
            kept.attended_rstd,
            given.attended_weight,
            kept.attended_bits,
            *_threshold_and_scale(options.attended[0]),
        )
        projected = torch.empty_like(kept.projected)
        kernels.attention.backward(
            gathered @ given.gather,
            *kept.projected.unbind(1),
            options.bounds,
            kept.context,
            kept.log_sums,
            options.scaling,
            projected.unbind(1),
        )
        projected = projected.flatten(1)
        return (  # in the order of `_Given`
            None,
            whole.unsqueeze(0),
            (projected @ given.project).unsqueeze(0),
            projected.mT @ given.half.squeeze(0),
            projected.sum(0),
            gathered.mT @ kept.context,
            widened.mT @ kept.attended,
            narrowed.mT @ kept.activated,
            of_widen_bias,
            *of_attended,
            *of_found,
        )


def context_of_one(inner: Any, query: Tensor, half: Tensor, segments: Segments) -> Tensor:
    """What the one query of each pair gathers: ``[pairs, heads, head size]`` in and out.

    ``inner`` is a layer's self-attention, ``half`` the states ``[1, tokens, hidden]`` before it.
    """
    weight, bias = _joined_halves(half.dtype, (inner.key, inner.value))
    with torch.cuda.device_of(half):
        keys = linear(half.squeeze(0), weight, bias).unflatten(-1, (2, *query.shape[1:]))
        own = _ContextOfOne.apply(query.to(half.dtype), keys, segments.bounds, inner.scaling)
    return own.to(query.dtype)


class _ContextOfOne(torch.autograd.Function):
    """Attention of a query of each pair, with its gradient; ``keys`` are keys and values."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, keys: Tensor, bounds: Tensor, scaling: float) -> Tensor:
        context, log_sums = _kernels().attention.forward(query, *keys.unbind(1), bounds, scaling)
        ctx.scaling = scaling
        ctx.save_for_backward(query, keys, bounds, context, log_sums)
        return context

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, keys, *rest = ctx.saved_tensors
        of_query, of_keys = torch.empty_like(query), torch.empty_like(keys)
        _kernels().attention.backward(
            gradients[0],
            query,
            *keys.unbind(1),
            *rest,
            ctx.scaling,
            (of_query, *of_keys.unbind(1)),
        )
        return of_query, of_keys, None, None


class _Halves(torch.autograd.Function):
    """Copies in half precision; of the first ``number`` one below the other, and of the next ones.

    One launch makes them, and one their gradients: where tokens are few, a step takes as long as
    the processor takes to issue its operations.
    """

    @staticmethod
    def forward(
        ctx: Any, dtype: torch.dtype, number: int, *parameters: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.number = number
        ctx.save_for_backward(*parameters)
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


def _joined_halves(dtype: torch.dtype, joined: Sequence[Any], *others: Any) -> tuple[Tensor, ...]:
    """Of linear layers in half precision: (weight, bias) of the joined ones; others' weights."""
    weights, biases = zip(*((linear.weight, linear.bias) for linear in joined), strict=True)
    rest = (linear.weight for linear in others)
    return _Halves.apply(dtype, len(joined), *weights, *biases, *rest)


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
        if torch.cuda.get_device_capability(device) < (8, 0):
            return False
        ones = torch.ones(1, 16, device=device)
        with torch.cuda.device(device):
            kernels.gelu.forward(ones, ones[0])
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
    from rankdistillm.kernels import attention, gelu, norm

    return SimpleNamespace(attention=attention, gelu=gelu, norm=norm)
