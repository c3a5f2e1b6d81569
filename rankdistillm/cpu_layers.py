"""The layers of BERT-like encoders where only scores are wanted, in bf16 on a CPU.

A linear layer, its bias and what comes after it, GELU or the residual sum, are one call of oneDNN,
which rounds the result once; what goes from layer to layer is bf16. The calls are those that torch
made for its own compiler, ``torch.ops.mkldnn._linear_pointwise`` (as of torch 2.13), not public
ones: where they are not to be had, the layers stay those of `rankdistillm.bert_layers`.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu
from transformers.activations import GELUActivation

from rankdistillm.devices import cpu_has_bf16
from rankdistillm.packed_attention import attention_weights
from rankdistillm.segments import Segments

DTYPE = torch.bfloat16


@cache
def is_available() -> bool:
    """Whether this torch has the calls, and this CPU what makes them quick."""
    ones = torch.ones(1, 1, dtype=DTYPE)
    try:
        _linear(ones, (ones, ones[0]), "gelu")
        _linear_and_sum(ones, (ones, ones[0]), ones)
    except (AttributeError, RuntimeError):
        return False
    return cpu_has_bf16()


class CpuLayer:
    """A layer in evaluation mode, with a copy in bf16 of the weights that it has now."""

    def __init__(self, layer: Any) -> None:
        inner = layer.attention.self
        self._projections = [_narrowed(p) for p in (inner.query, inner.key, inner.value)]
        self._head_shape = (inner.num_attention_heads, inner.attention_head_size)
        self._scaling = inner.scaling
        self._after_attention = _narrowed(layer.attention.output.dense)
        self._attention_norm = layer.attention.output.LayerNorm
        self._intermediate = _narrowed(layer.intermediate.dense)
        activation = layer.intermediate.intermediate_act_fn
        self._activation = None if is_gelu(activation) else activation
        self._output = _narrowed(layer.output.dense)
        self._output_norm = layer.output.LayerNorm

    def __call__(self, hidden: Tensor, segments: Segments) -> Tensor:
        """States bf16 ``[1, tokens, hidden]`` of those, in any type, before the layer."""
        hidden = hidden.to(DTYPE)
        context = self._context(hidden, segments)
        attended = _linear_and_sum(context, self._after_attention, hidden)
        attended = self._attention_norm(attended)
        if self._activation is None:
            inner = _linear(attended, self._intermediate, "gelu")
        else:
            inner = self._activation(_linear(attended, self._intermediate))
        return self._output_norm(_linear_and_sum(inner, self._output, attended))

    def _context(self, hidden: Tensor, segments: Segments) -> Tensor:
        """What `rankdistillm.packed_attention.attend` makes of the projections, the same numbers.

        The states are padded before they are projected, which takes one copy instead of three.
        """
        padded = hidden.index_select(1, segments.aligned_places)
        projected = [_linear(padded, weights).squeeze(0) for weights in self._projections]
        context = torch.empty_like(padded)
        end = 0
        for part in segments.aligned:
            start, end = end, end + part.mask.numel()
            query, key, value, gathered = (
                states[start:end].view(*part.mask.shape, *self._head_shape).transpose(1, 2)
                for states in (*projected, context.squeeze(0))
            )
            # Shifted as in `packed_attention`, into memory where each head is by itself.
            shifted = torch.empty(key.shape, dtype=DTYPE)
            torch.sub(key, key[:, :, :1], out=shifted)
            query, shifted, value = (s.flatten(0, 1).contiguous() for s in (query, shifted, value))
            weights = attention_weights(query, shifted, part, self._scaling)
            gathered.copy_((weights @ value).view(gathered.shape))
        return context.index_select(1, segments.aligned_real)


def is_gelu(activation: Any) -> bool:
    """Whether it is the exact GELU, not one of its approximations."""
    return isinstance(activation, GELUActivation) and activation.act is gelu


def _narrowed(linear: nn.Linear) -> tuple[Tensor, Tensor]:
    return linear.weight.detach().to(DTYPE), linear.bias.detach().to(DTYPE)


def _linear(states: Tensor, weights: tuple[Tensor, Tensor], then: str = "none") -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(states, *weights, then, [], "none")


def _linear_and_sum(states: Tensor, weights: tuple[Tensor, Tensor], residual: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise.binary(states, residual, *weights, "add")
