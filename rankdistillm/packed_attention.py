"""Attention among the tokens of each pair, in a row of packed pairs: nothing is padded outside it.

An encoder of transformers runs on ``[1, tokens]``, all pairs end to end, and hands its queries,
keys and values to `packed_attention`. On CUDA in half precision that is torch's variable-length
flash attention; elsewhere pairs of about the same length share a rectangle for the two matrix
products, and only there are padded. The flash kernel has no dropout of attention probabilities:
where it computes, ``attention_probs_dropout_prob`` is not applied in training (other dropout is).
BERT's layers have a quicker kernel on a GPU (`rankdistillm.cuda_layers`), without it as well.
"""

import inspect
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from rankdistillm.dropout import keep, kept_bits
from rankdistillm.segments import Segments

NAME = "rankdistillm_packed"

# Their embeddings and layers treat each token alone, so that only attention need know of pairs.
MODEL_TYPES = ("bert", "electra", "roberta", "xlm-roberta", "camembert", "modernbert")


def use_packed_attention(backbone: Any) -> bool:
    """Let the encoder take packed pairs, if it is one that can; returns whether it is."""
    if backbone.config.model_type not in MODEL_TYPES:
        return False
    backbone.set_attn_implementation(NAME)
    # The ModernBERT of transformers 5.0 to 5.6 keeps another one, without a word.
    return backbone.config._attn_implementation == NAME


def first_position(config: Any) -> int:
    """The position of a pair's first token: RoBERTa's count from behind the padding's."""
    is_roberta = config.model_type in ("roberta", "xlm-roberta", "camembert")
    return config.pad_token_id + 1 if is_roberta else 0


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
    """What transformers' layers call, with ``[1, heads, tokens, head size]`` each.

    ``segments`` comes from the keyword of that name given to the model.
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

    ``window``: a token sees those at most so many places before and behind it.
    """
    # Rotary positions make float32 of queries and keys under autocast.
    query, key = query.to(value.dtype), key.to(value.dtype)
    if _has_flash(value) and (window is None or "window_size" in _flash_parameters()):
        from torch.nn.attention.varlen import varlen_attn

        options: dict[str, Any] = {} if window is None else {"window_size": (window, window)}
        if "scale" in _flash_parameters():
            options["scale"] = scaling
        else:  # torch 2.10 scales by 1 / √(head size)
            query = query * (scaling * query.shape[-1] ** 0.5)
        context: Any = varlen_attn(
            query,
            key,
            value,
            segments.bounds,
            segments.bounds,
            segments.longest,
            segments.longest,
            **options,
        )
        return context
    parts = segments.aligned if value.dtype.itemsize == 2 else segments.rectangles
    rows = (states.split([part.num_tokens for part in parts]) for states in (query, key, value))
    # CUDA's autocast would make float32 of the weights of attention.
    with torch.autocast(value.device.type, enabled=False):
        return torch.cat(
            [
                _in_rectangle(q, k, v, part, scaling, dropout, window)
                for q, k, v, part in zip(*rows, parts, strict=True)
            ]
        )


@cache
def _flash_parameters() -> tuple[str, ...]:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return ()
    return tuple(inspect.signature(varlen_attn).parameters)


def _has_flash(value: Tensor) -> bool:
    return (
        value.is_cuda
        and value.dtype in (torch.bfloat16, torch.float16)
        and value.shape[-1] % 8 == 0
        and torch.cuda.get_device_capability(value.device) >= (8, 0)
        and bool(_flash_parameters())
    )


def _in_rectangle(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    scaling: float,
    dropout: float,
    window: int | None,
) -> Tensor:
    """`attend` by plain matrix products in a padded rectangle.

    On a CPU that is faster than torch's fused attention at the lengths of passages, several times
    so in training (torch 2.13).
    """
    q, k, v = (_heads(states, segments) for states in (query, key, value))
    if k.dtype.itemsize == 2:
        # The same for all keys of a query, so that softmax and gradients forget it. The tokens
        # that attention falls on have scores near the first token's, which are then near 0, where
        # half precision rounds least.
        k = k - k[:, :1].detach()
    weights = attention_weights(q, k, segments, scaling, window)
    if dropout:
        return _rows(_DroppedSum.apply(weights, v, dropout), segments)
    return _rows(weights @ v, segments)


def attention_weights(
    query: Tensor, key: Tensor, segments: Segments, scaling: float, window: int | None = None
) -> Tensor:
    """softmax(q·k · scaling) in a rectangle, without paddings and what is outside the window.

    ``[pairs * heads, width, head size]`` in, ``[pairs * heads, width, width]`` out.
    """
    shape = (len(segments.lengths), -1)
    num_heads = len(query) // shape[0]
    bias = segments.bias.to(query.dtype).repeat_interleave(num_heads, 0).unsqueeze(1)
    # Scaled before they are rounded to half precision, of which softmax makes float32 inside.
    logits = torch.baddbmm(bias, query, key.mT, alpha=scaling)
    if window is not None:
        places = torch.arange(segments.width, device=segments.device)
        # A padded query must see something, or its softmax is NaN.
        far = ((places[:, None] - places).abs() > window) & segments.mask[:, None, :, None]
        logits.unflatten(0, shape).masked_fill_(far, -torch.inf)
    return logits.softmax(-1)


def _heads(row: Tensor, segments: Segments) -> Tensor:
    """``[tokens, heads, size]`` -> ``[pairs * heads, width, size]``."""
    rectangle = _Pad.apply(row.flatten(1), segments)
    # Of one pair a flatten makes no copy, and products of what is not contiguous are slower.
    return rectangle.unflatten(-1, row.shape[1:]).transpose(1, 2).flatten(0, 1).contiguous()


def _rows(rectangle: Tensor, segments: Segments) -> Tensor:
    """``[pairs * heads, width, size]`` -> ``[tokens, heads, size]``."""
    heads = rectangle.unflatten(0, (len(segments.lengths), -1)).transpose(1, 2)
    return _Unpad.apply(heads.flatten(2), segments).unflatten(-1, heads.shape[2:])


class _DroppedSum(torch.autograd.Function):
    """The product of what dropout leaves of the weights with the values.

    The former is made again backward instead of kept, and the values are scaled instead of it,
    which are fewer.
    """

    @staticmethod
    def forward(ctx: Any, weights: Tensor, value: Tensor, rate: float) -> Tensor:
        ctx.scale = 1 / (1 - rate)
        scaled = value * ctx.scale
        bits = kept_bits(weights, rate)
        ctx.save_for_backward(weights, bits, scaled)
        return keep(weights, bits) @ scaled

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        weights, bits, scaled = ctx.saved_tensors
        of_weights = keep(gradients[0] @ scaled.mT, bits)
        of_value = (keep(weights, bits).mT @ gradients[0]).mul_(ctx.scale)
        return of_weights, of_value, None


class _Pad(torch.autograd.Function):
    """`Segments.pad`, where no gradient comes from a padding."""

    @staticmethod
    def forward(ctx: Any, row: Tensor, segments: Segments) -> Tensor:
        ctx.segments = segments
        return segments.pad(row)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.segments.unpad(gradients[0]), None


class _Unpad(torch.autograd.Function):
    """`Segments.unpad`, whose gradient is a copy instead of a sum over places."""

    @staticmethod
    def forward(ctx: Any, rectangle: Tensor, segments: Segments) -> Tensor:
        ctx.segments = segments
        return segments.unpad(rectangle)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        # A padding repeats a real token; its gradient is not to be counted.
        segments = ctx.segments
        return segments.pad(gradients[0]).masked_fill_(~segments.mask[..., None], 0), None


def _no_mask(*_: Any, **__: Any) -> None:
    """The mask that transformers makes for `packed_attention`: none, ``segments`` says it all."""


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, _no_mask)
