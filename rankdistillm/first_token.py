"""The last layer of a BERT-like encoder, computed for the first token alone.

Only that token's state reaches the head, so that the queries, the output projection and the
feed-forward of the others in the last layer are never used; keys and values still are. Exact: the
first token's state is the one that the whole layer gives.
"""

from typing import Any

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def restrict_last_layer(backbone: Any) -> bool:
    """Make the encoder's output ``[pairs, 1, hidden]``: the state of each first token.

    Done in place where the last layer is made as BERT's is (BERT, ELECTRA, RoBERTa, MiniLM); any
    other encoder stays as it is. Returns whether it was done.
    """
    layers = getattr(getattr(backbone, "encoder", None), "layer", None)
    if layers is None or not _is_bert_layer(layers[-1]):
        return False
    layer = layers[-1]

    def forward(hidden: Tensor, attention_mask: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
        return _first_token_layer(layer, hidden, attention_mask)

    # The modules and so the names of the weights stay what they are.
    layer.forward = forward
    return True


def _is_bert_layer(layer: Any) -> bool:
    attention = getattr(layer, "attention", None)
    inner = getattr(attention, "self", None)
    return (
        type(layer).__name__ in ("BertLayer", "ElectraLayer", "RobertaLayer")
        and all(hasattr(inner, name) for name in ("query", "key", "value", "dropout"))
        and hasattr(attention, "output")
        and not getattr(layer, "add_cross_attention", False)
    )


def _first_token_layer(layer: Any, hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
    inner = layer.attention.self
    heads = (inner.num_attention_heads, inner.attention_head_size)
    first = hidden[:, :1]
    query, key, value = (
        project(states).unflatten(-1, heads).transpose(1, 2)
        for project, states in ((inner.query, first), (inner.key, hidden), (inner.value, hidden))
    )
    if attention_mask is not None and attention_mask.shape[-2] > 1:
        attention_mask = attention_mask[:, :, :1]
    context = scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=attention_mask,
        dropout_p=inner.dropout.p if layer.training else 0.0,
    )
    attended = layer.attention.output(context.transpose(1, 2).flatten(-2), first)
    return layer.output(layer.intermediate(attended), attended)
