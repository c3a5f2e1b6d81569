"""The last layer of a BERT-like encoder, computed for the first token of each pair alone.

Only that token's state reaches the head, so that the queries, the output projection and the
feed-forward of the others in the last layer are never used; keys and values still are. Exact: the
first token's state is the one that the whole layer gives.
"""

from types import MethodType
from typing import Any

from torch import Tensor

from rankdistillm.packed_attention import Segments, attend

LAYERS = ("BertLayer", "ElectraLayer", "RobertaLayer", "XLMRobertaLayer", "CamembertLayer")


def restrict_last_layer(backbone: Any) -> bool:
    """Make the output of an encoder of packed pairs ``[pairs, 1, hidden]``: each first token's.

    Done in place where the last layer is made as BERT's is (BERT, ELECTRA, RoBERTa, MiniLM); any
    other encoder stays as it is. Returns whether it was done.
    """
    layers = getattr(getattr(backbone, "encoder", None), "layer", None)
    if layers is None or type(layers[-1]).__name__ not in LAYERS:
        return False
    # The modules and so the names of the weights stay what they are; a method, so that a copy of
    # the encoder gets that of its own layer.
    layers[-1].forward = MethodType(_first_token_layer, layers[-1])
    return True


def _first_token_layer(
    layer: Any, hidden: Tensor, *_: Any, segments: Segments, **__: Any
) -> Tensor:
    inner = layer.attention.self
    heads = (inner.num_attention_heads, inner.attention_head_size)
    first = hidden.index_select(1, segments.starts)
    query, key, value = (
        project(states)[0].unflatten(-1, heads)
        for project, states in ((inner.query, first), (inner.key, hidden), (inner.value, hidden))
    )
    dropout = inner.dropout.p if layer.training else 0.0
    firsts = Segments.of_one_token(segments)
    context = attend(query, key, value, firsts, segments, inner.scaling, dropout)
    attended = layer.attention.output(context.flatten(1).unsqueeze(0), first)
    return layer.output(layer.intermediate(attended), attended).transpose(0, 1)
