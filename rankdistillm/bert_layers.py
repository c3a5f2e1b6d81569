"""The layers of BERT-like encoders on a row of packed pairs; the last for first tokens alone.

Only the first token of each pair reaches the head, so that in the last layer the queries, the
output projection and the feed-forward of the others are never used. Nor are their keys and values
needed one by one: with the one query q of a pair, q·(W h + b) = (Wᵀ q)·h + q·b takes a product of
that query with the matrix instead of one for each token h, and Σ w (W h + b) = W (Σ w h) + b Σ w
does as well. Exact: the first token's state is the one that the whole layer gives. (In half
precision on a GPU it is quicker to project them all, with its rounding, than to pad rectangles for
those products.)
"""

from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from rankdistillm import cpu_layers, cuda_layers
from rankdistillm.cpu_layers import CpuLayer
from rankdistillm.cuda_gradients import States
from rankdistillm.cuda_layers import CudaLayer
from rankdistillm.packed_attention import attend
from rankdistillm.segments import Segments

LAYERS = ("BertLayer", "ElectraLayer", "RobertaLayer", "XLMRobertaLayer", "CamembertLayer")

FusedLayers = Mapping[nn.Module, Callable[[Any, Segments], Tensor | States]]


def use_packed_layers(backbone: Any, *, first_only: bool) -> bool:
    """Let an encoder whose layers are made as BERT's are run them on packed pairs, in place.

    ``first_only``: its output is then ``[pairs, 1, hidden]``, each first token's. Any other encoder
    stays as it is. Returns whether it was done.
    """
    layers = getattr(getattr(backbone, "encoder", None), "layer", None)
    if layers is None or type(layers[-1]).__name__ not in LAYERS:
        return False
    # The modules and so the names of the weights stay what they are; methods, so that a copy of
    # the encoder gets those of its own layers.
    for layer in layers:
        layer.forward = MethodType(_layer, layer)
    layers[-1].forward = MethodType(_first_token_layer if first_only else _last_layer, layers[-1])
    return True


def fused_layers(network: nn.Module, device: torch.device, dtype: torch.dtype) -> FusedLayers:
    """Quicker stand-ins for scoring without gradients, made of the weights as they are now.

    For what an encoder takes as ``fused``; ``dtype``: that of autocast. Empty where there are none.
    """
    ours = [
        module
        for module in network.modules()
        if getattr(module.forward, "__func__", None) in (_layer, _last_layer)
    ]
    if (
        dtype.itemsize == 2
        and cuda_layers.is_available(device)
        and all(map(cuda_layers.takes, ours))
    ):
        return {layer: CudaLayer(layer, dtype) for layer in ours}
    if device.type == "cpu" and dtype == torch.bfloat16 and cpu_layers.is_available():
        return {layer: CpuLayer(layer) for layer in ours}
    return {}


def _layer(
    layer: Any,
    hidden: Tensor | States,
    *_: Any,
    segments: Segments,
    fused: FusedLayers | None = None,
    **__: Any,
) -> Tensor | States:
    if fused:
        return fused[layer](hidden, segments)
    dtype = cuda_layers.autocast_dtype(segments.device)
    if dtype is not None and cuda_layers.takes(layer):
        return CudaLayer(layer, dtype)(hidden, segments)
    hidden = _whole(hidden)
    inner = layer.attention.self
    narrow = _narrowed(hidden)
    query, key, value = (
        project(narrow).squeeze(0).unflatten(-1, _head_shape(inner))
        for project in (inner.query, inner.key, inner.value)
    )
    dropout = inner.dropout.p if layer.training else 0.0
    context = attend(query, key, value, segments, inner.scaling, dropout)
    return _after_attention(layer, context, hidden)


def _last_layer(layer: Any, hidden: Tensor | States, *_: Any, **options: Any) -> Tensor:
    return _whole(_layer(layer, hidden, **options))


def _first_token_layer(
    layer: Any, hidden: Tensor | States, *_: Any, segments: Segments, **__: Any
) -> Tensor:
    inner = layer.attention.self
    # Little to compute and last before the score: not worth autocast's rounding, but for the keys
    # and values of all tokens.
    with torch.autocast(segments.device.type, enabled=False):
        states = _whole(hidden).to(inner.query.weight.dtype)
        first = states.index_select(1, segments.starts)
        query = inner.query(first).squeeze(0).unflatten(-1, _head_shape(inner))
        if isinstance(hidden, States):
            context = cuda_layers.context_of_one(inner, query, hidden.half, segments)
        else:
            context = _context_of_one(inner, query, states.squeeze(0), segments)
        return _after_attention(layer, context, first).transpose(0, 1)


def _context_of_one(inner: Any, query: Tensor, states: Tensor, segments: Segments) -> Tensor:
    """What the one query of each pair gathers: ``[pairs, heads, head size]`` in and out.

    ``states`` ``[tokens, hidden]`` are those that keys and values would be projected from.
    """
    key_weight, key_bias, value_weight, value_bias = (
        parameter.unflatten(0, _head_shape(inner))
        for project in (inner.key, inner.value)
        for parameter in (project.weight, project.bias)
    )
    query = query * inner.scaling
    sought = torch.einsum("phs,hsd->phd", query, key_weight)
    # The same for all tokens, so that softmax forgets it; but only a parameter that has a gradient,
    # of 0, is decayed as the others are.
    offset = (query * key_bias).sum(-1, keepdim=True)
    parts = segments.alike
    tokens = [part.num_tokens for part in parts]
    pairs = [len(part.lengths) for part in parts]
    mixtures, totals = [], []
    for part, own_states, own_sought, own_offset in zip(
        parts, states.split(tokens), sought.split(pairs), offset.split(pairs), strict=True
    ):
        padded = part.pad(own_states)
        # The tokens are the rows, of which there is a multiple of `segments.ROWS`.
        logits = (padded @ own_sought.mT).mT + own_offset
        logits = logits.masked_fill(~part.mask[:, None], -torch.inf)
        weights = inner.dropout(logits.softmax(-1))
        mixtures.append(weights @ padded)
        totals.append(weights.sum(-1, keepdim=True))
    mixture = torch.einsum("phd,hsd->phs", torch.cat(mixtures), value_weight)
    # Under dropout the weights do not add up to 1.
    return mixture + torch.cat(totals) * value_bias


def _after_attention(layer: Any, context: Tensor, residual: Tensor) -> Tensor:
    attended = layer.attention.output(context.flatten(1).unsqueeze(0), residual)
    return layer.output(layer.intermediate(attended), attended)


def _head_shape(inner: Any) -> tuple[int, int]:
    return inner.num_attention_heads, inner.attention_head_size


def _whole(hidden: Tensor | States) -> Tensor:
    return hidden if isinstance(hidden, Tensor) else hidden.whole.unsqueeze(0)


def _narrowed(hidden: Tensor) -> Tensor:
    """In autocast's type: once, where autocast would do it anew for each projection."""
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        return hidden.to(torch.get_autocast_dtype(device))
    return hidden
