"""BERT-like layers in bf16 on a CPU, for scoring without gradients.

A linear layer, its bias and the GELU or residual sum after it are one call of oneDNN, which rounds
the result once; states stay in bf16 between layers. The operator
(``torch.ops.mkldnn._linear_pointwise``, as of torch 2.13) is meant for torch's compiler and not
public. Where it is missing, the layers of `rankdistillm.encoder.layers` run instead.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu
from transformers.activations import GELUActivation

from rankdistillm.devices import cpu_has_bf16
from rankdistillm.encoder.attention import attention_weights
from rankdistillm.encoder.segments import Segments

DTYPE = torch.bfloat16


@cache
def is_available() -> bool:
    """Whether this torch has the calls, and this CPU computes bf16 in hardware."""
    ones = torch.ones(1, 1, dtype=DTYPE)
    try:
        _linear(ones, (ones, ones[0]), "gelu")
        _linear_and_add(ones, (ones, ones[0]), ones)
    except (AttributeError, RuntimeError):
        return False
    return cpu_has_bf16()


def is_gelu(activation: Any) -> bool:
    """Whether the activation is the exact GELU, not one of its approximations."""
    return isinstance(activation, GELUActivation) and activation.act is gelu


class CpuLayer:
    """A layer in evaluation mode, with bf16 copies of the weights that it has now."""

    def __init__(self, layer: Any) -> None:
        attention = layer.attention.self
        self._projections = [
            _to_bf16(project) for project in (attention.query, attention.key, attention.value)
        ]
        self._head_shape = (attention.num_attention_heads, attention.attention_head_size)
        self._scaling = attention.scaling
        self._out = _to_bf16(layer.attention.output.dense)
        self._attention_norm = layer.attention.output.LayerNorm
        self._up = _to_bf16(layer.intermediate.dense)
        activation = layer.intermediate.intermediate_act_fn
        self._activation = None if is_gelu(activation) else activation
        self._down = _to_bf16(layer.output.dense)
        self._output_norm = layer.output.LayerNorm

    def __call__(self, hidden: Tensor, segments: Segments) -> Tensor:
        """The layer's output, bf16 ``[1, tokens, hidden]``; ``hidden`` may be of any type."""
        hidden = hidden.to(DTYPE)
        context = self._attend(hidden, segments)
        attended = self._attention_norm(_linear_and_add(context, self._out, hidden))
        if self._activation is None:
            up = _linear(attended, self._up, "gelu")
        else:
            up = self._activation(_linear(attended, self._up))
        return self._output_norm(_linear_and_add(up, self._down, attended))

    def _attend(self, hidden: Tensor, segments: Segments) -> Tensor:
        """The same numbers as `rankdistillm.encoder.attention.attend` of the projections.

        States are padded before they are projected: one copy instead of three.
        """
        padded = hidden.index_select(1, segments.low_pad_indices)
        projected = [_linear(padded, weights).squeeze(0) for weights in self._projections]
        context = torch.empty_like(padded)
        end = 0
        for part in segments.low_rectangles:
            start, end = end, end + part.mask.numel()
            query, key, value, part_context = (
                states[start:end].view(*part.mask.shape, *self._head_shape).transpose(1, 2)
                for states in (*projected, context.squeeze(0))
            )
            # Shifted as in `attend`, into memory where each head is contiguous.
            shifted = torch.empty(key.shape, dtype=DTYPE)
            torch.sub(key, key[:, :, :1], out=shifted)
            query, shifted, value = (s.flatten(0, 1).contiguous() for s in (query, shifted, value))
            weights = attention_weights(query, shifted, part, self._scaling)
            part_context.copy_((weights @ value).view(part_context.shape))
        return context.index_select(1, segments.low_unpad_indices)


def _to_bf16(linear: nn.Linear) -> tuple[Tensor, Tensor]:
    return linear.weight.detach().to(DTYPE), linear.bias.detach().to(DTYPE)


def _linear(states: Tensor, weights: tuple[Tensor, Tensor], activation: str = "none") -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(states, *weights, activation, [], "none")


def _linear_and_add(states: Tensor, weights: tuple[Tensor, Tensor], residual: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise.binary(states, residual, *weights, "add")
