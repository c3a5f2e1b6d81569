"""Attention among the tokens of each pair, of a few hundred tokens: forward and backward.

As FlashAttention (Dao et al., NeurIPS 2022), but for pairs so short that one program has the whole
of one: backward it computes all three gradients in one go, without partial sums of other programs.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Queries and keys that a program works on at a time.
QUERIES, KEYS = 64, 64


@triton.jit
def _pair(bounds, HEADS: tl.constexpr):
    """Which head is this program's, and its pair's first token and length."""
    pair = tl.program_id(0) // HEADS
    start = tl.load(bounds + pair)
    length = tl.load(bounds + pair + 1) - start
    return tl.program_id(0) % HEADS, start.to(tl.int64), length


@triton.jit
def _rows(
    tensor, first, length, STRIDE: tl.constexpr, ROWS: tl.constexpr, SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """``ROWS`` vectors of a head from the place ``first`` of the pair on, 0 beyond its end."""
    rows = first + tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, WIDTH)[None, :]
    return tl.load(tensor + rows * STRIDE + columns, (rows < length) & (columns < SIZE), 0.0)


@triton.jit
def _put(
    tensor, values, first, length, STRIDE: tl.constexpr, ROWS: tl.constexpr, SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """Write what `_rows` reads."""
    rows = first + tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, WIDTH)[None, :]
    tl.store(tensor + rows * STRIDE + columns, values, (rows < length) & (columns < SIZE))


@triton.jit(do_not_specialize=["num_tokens"])
def _forward(
    projected,
    bounds,
    context,
    log_sums,
    num_tokens,
    scaling,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    HIDDEN: tl.constexpr = HEADS * SIZE
    head, start, length = _pair(bounds, HEADS)
    queries = projected + start * 3 * HIDDEN + head * SIZE
    own_context = context + start * HIDDEN + head * SIZE
    own_sums = log_sums + head * num_tokens.to(tl.int64) + start
    for i in range(0, length, QUERIES):
        query = _rows(queries, i, length, 3 * HIDDEN, QUERIES, SIZE, WIDTH)
        highest = tl.full([QUERIES], float("-inf"), tl.float32)
        total = tl.zeros([QUERIES], tl.float32)
        gathered = tl.zeros([QUERIES, WIDTH], tl.float32)
        for j in range(0, length, KEYS):
            key = _rows(queries + HIDDEN, j, length, 3 * HIDDEN, KEYS, SIZE, WIDTH)
            value = _rows(queries + 2 * HIDDEN, j, length, 3 * HIDDEN, KEYS, SIZE, WIDTH)
            logits = tl.dot(query, tl.trans(key)) * scaling
            is_key = j + tl.arange(0, KEYS)[None, :] < length
            logits = tl.where(is_key, logits, float("-inf"))
            higher = tl.maximum(highest, tl.max(logits, 1))
            weights = tl.exp2(logits - higher[:, None])
            shrunk = tl.exp2(highest - higher)
            total = total * shrunk + tl.sum(weights, 1)
            gathered = gathered * shrunk[:, None] + tl.dot(weights.to(value.dtype), value)
            highest = higher
        gathered /= total[:, None]
        _put(own_context, gathered, i, length, HIDDEN, QUERIES, SIZE, WIDTH)
        rows = i + tl.arange(0, QUERIES)
        tl.store(own_sums + rows, highest + tl.log2(total), rows < length)


@triton.jit
def _queries(
    projected, of_context, context, log_sums, first, length, HIDDEN: tl.constexpr,
    QUERIES: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """What `_slopes` takes of some queries."""
    query = _rows(projected, first, length, 3 * HIDDEN, QUERIES, SIZE, WIDTH)
    gradient = _rows(of_context, first, length, HIDDEN, QUERIES, SIZE, WIDTH)
    gathered = _rows(context, first, length, HIDDEN, QUERIES, SIZE, WIDTH)
    mean = tl.sum(gradient.to(tl.float32) * gathered.to(tl.float32), 1)
    rows = first + tl.arange(0, QUERIES)
    return query, gradient, mean, tl.load(log_sums + rows, rows < length, 0.0)


@triton.jit
def _slopes(key, value, query, gradient, mean, log_sum, num_keys, scaling, KEYS: tl.constexpr):
    """Weights of attention and gradients of its logits, ``[keys, queries]``.

    Queries beyond the pair's end have a gradient and so a slope of 0.
    """
    weights = tl.exp2(tl.dot(key, tl.trans(query)) * scaling - log_sum[None, :])
    weights = tl.where(tl.arange(0, KEYS)[:, None] < num_keys, weights, 0.0)
    slopes = weights * (tl.dot(value, tl.trans(gradient)) - mean[None, :])
    return weights.to(value.dtype), slopes.to(value.dtype)


@triton.jit(do_not_specialize=["num_tokens"])
def _backward(
    of_context,
    projected,
    bounds,
    context,
    log_sums,
    of_projected,
    num_tokens,
    scaling,
    slope_scaling,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    HIDDEN: tl.constexpr = HEADS * SIZE
    head, start, length = _pair(bounds, HEADS)
    queries = projected + start * 3 * HIDDEN + head * SIZE
    of_queries = of_projected + start * 3 * HIDDEN + head * SIZE
    own_context = context + start * HIDDEN + head * SIZE
    of_own = of_context + start * HIDDEN + head * SIZE
    own_sums = log_sums + head * num_tokens.to(tl.int64) + start
    for i in range(0, length, QUERIES):
        query, gradient, mean, log_sum = _queries(
            queries, of_own, own_context, own_sums, i, length, HIDDEN, QUERIES, SIZE, WIDTH
        )
        of_query = tl.zeros([QUERIES, WIDTH], tl.float32)
        for j in range(0, length, KEYS):
            key = _rows(queries + HIDDEN, j, length, 3 * HIDDEN, KEYS, SIZE, WIDTH)
            value = _rows(queries + 2 * HIDDEN, j, length, 3 * HIDDEN, KEYS, SIZE, WIDTH)
            weights, slopes = _slopes(
                key, value, query, gradient, mean, log_sum, length - j, scaling, KEYS
            )
            of_query += tl.dot(tl.trans(slopes), key)
        of_query *= slope_scaling
        _put(of_queries, of_query, i, length, 3 * HIDDEN, QUERIES, SIZE, WIDTH)
    for j in range(0, length, KEYS):
        key = _rows(queries + HIDDEN, j, length, 3 * HIDDEN, KEYS, SIZE, WIDTH)
        value = _rows(queries + 2 * HIDDEN, j, length, 3 * HIDDEN, KEYS, SIZE, WIDTH)
        of_key = tl.zeros([KEYS, WIDTH], tl.float32)
        of_value = tl.zeros([KEYS, WIDTH], tl.float32)
        for i in range(0, length, QUERIES):
            query, gradient, mean, log_sum = _queries(
                queries, of_own, own_context, own_sums, i, length, HIDDEN, QUERIES, SIZE, WIDTH
            )
            weights, slopes = _slopes(
                key, value, query, gradient, mean, log_sum, length - j, scaling, KEYS
            )
            of_key += tl.dot(slopes, query)
            of_value += tl.dot(weights, gradient)
        of_key *= slope_scaling
        _put(of_queries + HIDDEN, of_key, j, length, 3 * HIDDEN, KEYS, SIZE, WIDTH)
        _put(of_queries + 2 * HIDDEN, of_value, j, length, 3 * HIDDEN, KEYS, SIZE, WIDTH)


LOG2_E = 1.4426950408889634


def forward(projected: Tensor, bounds: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """softmax(q·k · scaling) v inside each pair: ``[tokens, heads, head size]``.

    ``projected`` ``[tokens, 3, heads, head size]`` are queries, keys and values in half precision;
    ``bounds`` int32 ``[pairs + 1]`` is where each pair ends, from 0. Also returned is what
    `backward` needs, the binary logarithm of what each softmax divides by: float32
    ``[heads, tokens]``.
    """
    num_tokens, _, heads, size = projected.shape
    context = projected.new_empty((num_tokens, heads, size))
    log_sums = projected.new_empty((heads, num_tokens), dtype=torch.float32)
    _forward[(heads * (len(bounds) - 1),)](
        projected,
        bounds,
        context,
        log_sums,
        num_tokens,
        scaling * LOG2_E,
        **_constants(heads, size),
    )
    return context, log_sums


def backward(
    of_context: Tensor,
    projected: Tensor,
    bounds: Tensor,
    context: Tensor,
    log_sums: Tensor,
    scaling: float,
) -> Tensor:
    """Gradient of ``projected``, given that of the first thing that `forward` returns."""
    num_tokens, _, heads, size = projected.shape
    of_projected = torch.empty_like(projected)
    _backward[(heads * (len(bounds) - 1),)](
        of_context,
        projected,
        bounds,
        context,
        log_sums,
        of_projected,
        num_tokens,
        scaling * LOG2_E,
        scaling,
        **_constants(heads, size),
    )
    return of_projected


def _constants(heads: int, size: int) -> dict[str, int]:
    width = max(16, triton.next_power_of_2(size))
    return {"HEADS": heads, "SIZE": size, "WIDTH": width, "QUERIES": QUERIES, "KEYS": KEYS}
