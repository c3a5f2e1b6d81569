"""BERT-like layers on a row of packed pairs; the last layer for first tokens only.

Only the first token of each pair reaches the head. So the last layer computes queries, output
projection and feed-forward for first tokens alone. It does not project every token to a key and a
value either:

- keys: q·(W h + b) = (Wᵀ q)·h + q·b, so W is applied once per pair, to its one query, instead of
  once per token h;
- values: Σ w (W h + b) = W (Σ w h) + b Σ w, so W is applied once, to the weighted sum.

The result is exact. In half precision on a GPU, all keys and values are projected: there, these
products would need padding, which takes longer.
"""

from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from rankdistillm.encoder import cpu, cuda
from rankdistillm.encoder.attention import attend, use_packed_attention
from rankdistillm.encoder.dropout import use_fast_dropout
from rankdistillm.encoder.segments import Segments

LAYERS = ("BertLayer", "ElectraLayer", "RobertaLayer", "XLMRobertaLayer", "CamembertLayer")
# Their positions start after the padding token's id.
ROBERTAS = ("roberta", "xlm-roberta", "camembert")

FusedLayers = Mapping[nn.Module, Callable[[Any, Segments], Tensor | cuda.States]]


def pack_encoder(model: Any, *, first_only: bool) -> bool:
    """Prepare a transformers model, in place, to run on packed pairs by `run_packed`.

    ``model`` is an encoder, or a classifier around one. Its encoder's output is then
    ``[1, tokens, hidden]``; with ``first_only`` it is ``[pairs, 1, hidden]``, each pair's first
    token, which only BERT-like layers support. Returns whether it was done; a model that does not
    support it is unchanged.
    """
    layers = _bert_layers(model.base_model)
    if (first_only and not layers) or not use_packed_attention(model):
        return False
    use_fast_dropout(model)
    # Methods on the same modules keep the names of the weights, and a copy of the encoder gets
    # methods of its own layers.
    for layer in layers:
        layer.forward = MethodType(_layer, layer)
    if layers:
        last = _first_token_layer if first_only else _last_layer
        layers[-1].forward = MethodType(last, layers[-1])
    return True


def run_packed(
    model: Any, segments: Segments, fused: FusedLayers | None = None, **rows: Tensor | None
) -> Any:
    """Run a model that `pack_encoder` prepared; returns its output as transformers does.

    ``rows`` are transformers' inputs for the packed tokens, ``[tokens, ...]``: ``input_ids`` or
    ``inputs_embeds``, and ``token_type_ids`` (None: none). ``fused`` is from `fused_layers`.
    """
    positions = segments.positions
    if model.config.model_type in ROBERTAS:
        positions = positions + (model.config.pad_token_id + 1)
    rows = {"position_ids": positions, **rows}
    inputs = {name: row.unsqueeze(0) for name, row in rows.items() if row is not None}
    return model(**inputs, segments=segments, fused=fused)


def fused_layers(network: nn.Module, device: torch.device, dtype: torch.dtype) -> FusedLayers:
    """Faster layers for scoring without gradients, with copies of the weights as they are now.

    ``network`` contains an encoder that `pack_encoder` prepared; ``dtype`` is that of autocast.
    The result is the ``fused`` of `run_packed`; empty where no faster layers exist. Scores differ
    from those of the other layers by the rounding of half precision.
    """
    layers = [
        module
        for module in network.modules()
        if getattr(module.forward, "__func__", None) in (_layer, _last_layer)
    ]
    if dtype.itemsize == 2 and cuda.is_available(device) and all(map(cuda.supports, layers)):
        return {layer: cuda.CudaLayer(layer, dtype) for layer in layers}
    if device.type == "cpu" and dtype == torch.bfloat16 and cpu.is_available():
        return {layer: cpu.CpuLayer(layer) for layer in layers}
    return {}


def scoring_layers(device: torch.device, dtype: torch.dtype) -> str:
    """Say which layers of BERT's kind score on the device, and why no faster ones: one line."""
    half = dtype.itemsize == 2
    if half and cuda.is_available(device):
        return "fused Triton kernels"
    if device.type == "cpu" and dtype == torch.bfloat16 and cpu.is_available():
        return "oneDNN's fused calls in bf16"
    if not half:
        return "plain torch layers: the faster ones need half precision"
    if device.type == "cuda":
        return "plain torch layers: Triton does not work here, or the GPU is older than Ampere"
    return "plain torch layers: the faster ones need bf16 in hardware, and torch's oneDNN calls"


def _bert_layers(encoder: Any) -> list[Any]:
    """The encoder's layers if they are built like BERT's, else none."""
    layers = list(getattr(getattr(encoder, "encoder", None), "layer", ()))
    return layers if layers and type(layers[-1]).__name__ in LAYERS else []


def _layer(
    layer: Any,
    hidden: Tensor | cuda.States,
    *_: Any,
    segments: Segments,
    fused: FusedLayers | None = None,
    **__: Any,
) -> Tensor | cuda.States:
    """The forward method of all layers but the last."""
    if fused:
        return fused[layer](hidden, segments)
    dtype = cuda.autocast_dtype(segments.device)
    if dtype is not None and cuda.supports(layer):
        return cuda.CudaLayer(layer, dtype)(hidden, segments)
    hidden = _as_tensor(hidden)
    attention = layer.attention.self
    inputs = _autocast(hidden)
    query, key, value = (
        project(inputs).squeeze(0).unflatten(-1, _head_shape(attention))
        for project in (attention.query, attention.key, attention.value)
    )
    dropout = attention.dropout.p if layer.training else 0.0
    context = attend(query, key, value, segments, attention.scaling, dropout)
    return _after_attention(layer, context, hidden)


def _last_layer(layer: Any, hidden: Tensor | cuda.States, *_: Any, **options: Any) -> Tensor:
    """The forward method of a last layer that computes all tokens."""
    return _as_tensor(_layer(layer, hidden, **options))


def _first_token_layer(
    layer: Any, hidden: Tensor | cuda.States, *_: Any, segments: Segments, **__: Any
) -> Tensor:
    """The forward method of a last layer that computes first tokens: ``[pairs, 1, hidden]``."""
    attention = layer.attention.self
    # There is little to compute here and the score follows directly, so autocast's rounding is not
    # worth it, except for the keys and values of all tokens.
    with torch.autocast(segments.device.type, enabled=False):
        states = _as_tensor(hidden).to(attention.query.weight.dtype)
        first = states.index_select(1, segments.starts)
        query = attention.query(first).squeeze(0).unflatten(-1, _head_shape(attention))
        if isinstance(hidden, cuda.States):
            context = cuda.first_token_context(attention, query, hidden.low, segments)
        else:
            context = _first_token_context(attention, query, states.squeeze(0), segments)
        return _after_attention(layer, context, first).transpose(0, 1)


def _first_token_context(
    attention: Any, query: Tensor, states: Tensor, segments: Segments
) -> Tensor:
    """Attention of one query per pair: ``[pairs, heads, head size]`` in and out.

    ``attention`` is a layer's self-attention module, ``states`` its input ``[tokens, hidden]``.
    """
    key_weight, key_bias, value_weight, value_bias = (
        parameter.unflatten(0, _head_shape(attention))
        for project in (attention.key, attention.value)
        for parameter in (project.weight, project.bias)
    )
    query = query * attention.scaling
    key_query = torch.einsum("phs,hsd->phd", query, key_weight)
    # The offset is the same for all tokens, so softmax cancels it. It is added so that the key
    # bias has a gradient, of 0: optimisers decay only parameters that have one.
    offset = (query * key_bias).sum(-1, keepdim=True)
    parts = segments.by_length
    num_tokens = [part.num_tokens for part in parts]
    num_pairs = [len(part.lengths) for part in parts]
    mixtures, totals = [], []
    for part, part_states, part_query, part_offset in zip(
        parts,
        states.split(num_tokens),
        key_query.split(num_pairs),
        offset.split(num_pairs),
        strict=True,
    ):
        padded = part.pad(part_states)
        # Tokens are the rows of this product, a multiple of `segments.ROWS`.
        logits = (padded @ part_query.mT).mT + part_offset
        logits = logits.masked_fill(~part.mask[:, None], -torch.inf)
        weights = attention.dropout(logits.softmax(-1))
        mixtures.append(weights @ padded)
        totals.append(weights.sum(-1, keepdim=True))
    mixture = torch.einsum("phd,hsd->phs", torch.cat(mixtures), value_weight)
    # Under dropout the weights do not sum to 1.
    return mixture + torch.cat(totals) * value_bias


def _after_attention(layer: Any, context: Tensor, residual: Tensor) -> Tensor:
    attended = layer.attention.output(context.flatten(1).unsqueeze(0), residual)
    return layer.output(layer.intermediate(attended), attended)


def _head_shape(attention: Any) -> tuple[int, int]:
    return attention.num_attention_heads, attention.attention_head_size


def _as_tensor(hidden: Tensor | cuda.States) -> Tensor:
    """The states as one tensor ``[1, tokens, hidden]``."""
    return hidden if isinstance(hidden, Tensor) else hidden.fp32.unsqueeze(0)


def _autocast(hidden: Tensor) -> Tensor:
    """Cast once to autocast's type, which autocast itself would do for each projection."""
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        return hidden.to(torch.get_autocast_dtype(device))
    return hidden
