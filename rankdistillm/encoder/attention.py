"""Attention inside each pair of a packed row.

A transformers encoder runs on ``[1, tokens]``, all pairs end to end, and passes its queries, keys
and values to `packed_attention`. On CUDA in half precision that calls torch's variable-length flash
attention. Elsewhere, pairs of similar length share a padded rectangle for the two matrix products;
nothing else is padded. The flash kernel has no dropout of attention probabilities: where it runs,
``attention_probs_dropout_prob`` is not applied in training (other dropout is). On a GPU, BERT's
layers use a faster kernel (`rankdistillm.encoder.cuda`), which has no such dropout either.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from rankdistillm.encoder.dropout import apply_keep_bits, draw_keep_bits
from rankdistillm.encoder.segments import Segments

NAME = "rankdistillm_packed"

# The embeddings and layers of these models treat each token alone: only attention crosses tokens.
PACKED_MODELS = ("bert", "electra", "roberta", "xlm-roberta", "camembert", "modernbert")


def use_packed_attention(model: Any) -> bool:
    """Switch a transformers model to `packed_attention`; returns whether it supports that."""
    if model.config.model_type not in PACKED_MODELS:
        return False
    model.set_attn_implementation(NAME)
    return True


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segments: Segments,
    scaling: float,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers' layers call.

    ``query``, ``key`` and ``value`` are ``[1, heads, tokens, head size]``; the result is
    ``[1, tokens, heads, head size]``. ``segments`` is the keyword of that name given to the model.
    """
    q, k, v = (states.squeeze(0).transpose(0, 1) for states in (query, key, value))
    # transformers' window counts the token itself.
    window = None if sliding_window is None else sliding_window - 1
    return attend(q, k, v, segments, scaling, dropout, window).unsqueeze(0), None


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    scaling: float,
    dropout: float = 0.0,
    window: int | None = None,
) -> Tensor:
    """softmax(q·k · scaling) v inside each pair; ``[tokens, heads, head size]`` in and out.

    ``window``: a token attends to at most that many tokens before and after it.
    """
    # Under autocast, rotary positions turn queries and keys into float32.
    query, key = query.to(value.dtype), key.to(value.dtype)
    if _has_flash(value):
        return _flash_attention(query, key, value, segments, scaling, window)
    parts = segments.low_rectangles if value.dtype.itemsize == 2 else segments.rectangles
    sizes = [part.num_tokens for part in parts]
    rows = (states.split(sizes) for states in (query, key, value))
    # CUDA's autocast would turn the attention weights into float32.
    with torch.autocast(value.device.type, enabled=False):
        return torch.cat(
            [
                _attend_in_rectangle(q, k, v, part, scaling, dropout, window)
                for q, k, v, part in zip(*rows, parts, strict=True)
            ]
        )


def _has_flash(value: Tensor) -> bool:
    return (
        value.is_cuda
        and value.dtype in (torch.bfloat16, torch.float16)
        and value.shape[-1] % 8 == 0
        and torch.cuda.get_device_capability(value.device) >= (8, 0)
    )


def _flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    scaling: float,
    window: int | None,
) -> Tensor:
    # Imported on first use: it takes more than two seconds, and only a GPU needs it.
    from torch.nn.attention.varlen import varlen_attn

    lengths = (segments.bounds, segments.bounds, segments.longest, segments.longest)
    reach = -1 if window is None else window  # -1: everywhere
    context: Any = varlen_attn(
        query, key, value, *lengths, scale=scaling, window_size=(reach, reach)
    )
    return context


def _attend_in_rectangle(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    scaling: float,
    dropout: float,
    window: int | None,
) -> Tensor:
    """`attend` by plain matrix products in one padded rectangle.

    On a CPU this is faster than torch's fused attention at the lengths of passages, several times
    faster in training (torch 2.13).
    """
    q, k, v = (_split_heads(states, segments) for states in (query, key, value))
    if k.dtype.itemsize == 2:
        # Subtracting the first key shifts all logits of a query equally, so softmax and gradients
        # do not change. The highest logits are close to the first token's, so after the shift they
        # lie near 0, where half precision is finest.
        k = k - k[:, :1].detach()
    weights = attention_weights(q, k, segments, scaling, window)
    if dropout:
        return _merge_heads(_DropoutProduct.apply(weights, v, dropout), segments)
    return _merge_heads(weights @ v, segments)


def attention_weights(
    query: Tensor, key: Tensor, segments: Segments, scaling: float, window: int | None = None
) -> Tensor:
    """softmax(q·k · scaling) in a rectangle; padding and keys outside the window get 0.

    ``[pairs * heads, width, head size]`` in, ``[pairs * heads, width, width]`` out.
    """
    shape = (len(segments.lengths), -1)
    num_heads = len(query) // shape[0]
    bias = segments.bias.to(query.dtype).repeat_interleave(num_heads, 0).unsqueeze(1)
    # baddbmm scales before it rounds to half precision; softmax computes in float32 internally.
    logits = torch.baddbmm(bias, query, key.mT, alpha=scaling)
    if window is not None:
        indices = torch.arange(segments.width, device=segments.device)
        # Padded queries stay unmasked: with every key masked, their softmax would be NaN.
        far = ((indices[:, None] - indices).abs() > window) & segments.mask[:, None, :, None]
        logits.unflatten(0, shape).masked_fill_(far, -torch.inf)
    return logits.softmax(-1)


def _split_heads(row: Tensor, segments: Segments) -> Tensor:
    """``[tokens, heads, size]`` -> ``[pairs * heads, width, size]``."""
    rectangle = _Pad.apply(row.flatten(1), segments)
    # For a single pair `flatten` returns a view, and products of non-contiguous tensors are slower.
    return rectangle.unflatten(-1, row.shape[1:]).transpose(1, 2).flatten(0, 1).contiguous()


def _merge_heads(rectangle: Tensor, segments: Segments) -> Tensor:
    """``[pairs * heads, width, size]`` -> ``[tokens, heads, size]``."""
    heads = rectangle.unflatten(0, (len(segments.lengths), -1)).transpose(1, 2)
    return _Unpad.apply(heads.flatten(2), segments).unflatten(-1, heads.shape[2:])


class _DropoutProduct(torch.autograd.Function):
    """dropout(weights) @ value.

    The backward pass recomputes the dropped weights instead of storing them. The scale is applied
    to the values, which are fewer than the weights.
    """

    @staticmethod
    def forward(ctx: Any, weights: Tensor, value: Tensor, rate: float) -> Tensor:
        ctx.scale = 1 / (1 - rate)
        scaled = value * ctx.scale
        bits = draw_keep_bits(weights, rate)
        ctx.save_for_backward(weights, bits, scaled)
        return apply_keep_bits(weights, bits) @ scaled

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        weights, bits, scaled = ctx.saved_tensors
        (grad_context,) = grad_outputs
        grad_weights = apply_keep_bits(grad_context @ scaled.mT, bits)
        grad_value = (apply_keep_bits(weights, bits).mT @ grad_context).mul_(ctx.scale)
        return grad_weights, grad_value, None


class _Pad(torch.autograd.Function):
    """`Segments.pad` for rectangles whose padding gets no gradient: backward is `unpad`."""

    @staticmethod
    def forward(ctx: Any, row: Tensor, segments: Segments) -> Tensor:
        ctx.segments = segments
        return segments.pad(row)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return ctx.segments.unpad(grad_outputs[0]), None


class _Unpad(torch.autograd.Function):
    """`Segments.unpad`; its backward pass is a copy instead of torch's scatter-add."""

    @staticmethod
    def forward(ctx: Any, rectangle: Tensor, segments: Segments) -> Tensor:
        ctx.segments = segments
        return segments.unpad(rectangle)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        # `pad` fills padding with a copy of a real token, whose gradient must not count twice.
        segments = ctx.segments
        return segments.pad(grad_outputs[0]).masked_fill_(~segments.mask[..., None], 0), None


def _no_mask(*_: Any, **__: Any) -> None:
    """The mask that transformers builds for `packed_attention`: none, ``segments`` replaces it."""


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, _no_mask)
