"""The layers of BERT-like encoders in half precision on a GPU.

Between two matrix products a GPU does little but wait for its memory, and with few tokens for the
processor that says what to do. So the three projections are one product, what stands between it and
the others is one pass over memory each way (`rankdistillm.kernels`: attention; bias and GELU; bias,
dropout, residual sum and layer normalisation), and the backward passes are written out
(`rankdistillm.cuda_gradients`). Precision is that of autocast: products in half, the residual
stream, its normalisation and its gradients in float32; only the normalised states that a backward
pass needs are kept in half. The kernel of attention has no dropout:
``attention_probs_dropout_prob`` is not applied, other dropout is.
"""

import logging
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from rankdistillm import cuda_gradients
from rankdistillm.cpu_layers import is_gelu
from rankdistillm.cuda_gradients import (
    Attended,
    ContextOfOne,
    FeedForward,
    States,
    SumAndNorm,
    joined_halves,
)
from rankdistillm.segments import Segments

log = logging.getLogger(__name__)


class CudaLayer:
    """A layer, with a copy in half precision of the matrices that it has now.

    Gradients reach the layer's own, unless it was made without. Normalisation weights and biases,
    but for those of the projections, are taken as they are, in float32.
    """

    def __init__(self, layer: Any, dtype: torch.dtype) -> None:
        inner = layer.attention.self
        self._layer = layer
        self._dtype = dtype
        *self._attention, self._widen, self._narrow = joined_halves(
            dtype,
            (inner.query, inner.key, inner.value),
            layer.attention.output.dense,
            layer.intermediate.dense,
            layer.output.dense,
        )

    def __call__(self, hidden: Tensor | States, segments: Segments) -> States:
        """The states behind the layer; ``hidden``: those before it, ``[1, tokens, hidden]``."""
        layer, inner = self._layer, self._layer.attention.self
        if isinstance(hidden, Tensor):
            whole = hidden.squeeze(0).to(layer.output.LayerNorm.weight.dtype)
            hidden = States(whole, whole.to(self._dtype))
        head_shape = (3, inner.num_attention_heads, inner.attention_head_size)
        attention = (segments, inner.scaling, head_shape)
        sum_up, parameters = _sum_and_norm(layer.attention.output)
        last_sum_up, last_parameters = _sum_and_norm(layer.output)
        device = hidden.half.device
        # Triton computes on the device that is torch's current one.
        with torch.cuda.device_of(hidden.half), torch.autocast(device.type, enabled=False):
            attended = Attended.apply(sum_up, *attention, *hidden, *self._attention, *parameters)
            widen = (self._widen, layer.intermediate.dense.bias)
            found = FeedForward.apply(
                last_sum_up, *attended, *widen, self._narrow, *last_parameters
            )
        return States(*found)


def _sum_and_norm(output: Any) -> tuple[SumAndNorm, tuple[Tensor, Tensor, Tensor]]:
    """It, and its parameters; ``output``: the modules at the end of a layer's half."""
    rate, norm = output.dropout.p if output.training else 0.0, output.LayerNorm
    made = SumAndNorm(rate, norm.eps, is_kept=torch.is_grad_enabled())
    return made, (output.dense.bias, norm.weight, norm.bias)


def takes(layer: Any) -> bool:
    """Whether a `CudaLayer` can be made of it: its activation is GELU, its heads are not large."""
    # Tiles of larger ones have no room in what a multiprocessor shares.
    is_small = layer.attention.self.attention_head_size <= 128
    return is_small and is_gelu(layer.intermediate.intermediate_act_fn)


def context_of_one(inner: Any, query: Tensor, half: Tensor, segments: Segments) -> Tensor:
    """What the one query of each pair gathers: ``[pairs, heads, head size]`` in and out.

    ``inner`` is a layer's self-attention, ``half`` the states ``[tokens, hidden]`` before it.
    """
    weight, bias = joined_halves(half.dtype, (inner.key, inner.value))
    with torch.cuda.device_of(half):
        keys_and_values = linear(half, weight, bias).unflatten(-1, (2, *query.shape[1:]))
        own = ContextOfOne.apply(segments, inner.scaling, query.to(half.dtype), keys_and_values)
    return own.to(query.dtype)


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
        kernels = cuda_gradients.kernels()
        if torch.cuda.get_device_capability(device) < (8, 0):
            return False
        ones = torch.ones(1, 16, device=device)
        bounds = torch.tensor([0, 1], dtype=torch.int32, device=device)
        with torch.cuda.device(device):
            kernels.gelu.forward(ones, ones[0])
            kernels.attention.forward(*[ones.unsqueeze(0).half()] * 3, bounds, 1, 1.0)
    except Exception as error:  # no Triton, no C compiler, a GPU that it does not know
        log.warning(
            "Triton does not work here (%s), which costs a quarter of the speed: install it, and a "
            "C compiler",
            error,
        )
        return False
    return True
