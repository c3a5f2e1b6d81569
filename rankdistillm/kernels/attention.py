"""Attention among the tokens of each pair, of a few hundred tokens: forward and backward.

As FlashAttention (Dao et al., NeurIPS 2022), but for pairs so short that one program has the whole
of one, or, where they are few, all that a block of its queries or keys needs: no sums of several
programs have to be joined.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from rankdistillm.kernels import num_multiprocessors

# Queries and keys that a program works on at a time, and as few queries as a matrix unit takes.
QUERIES, KEYS, FEW_QUERIES = 64, 64, 16
# Programs for each multiprocessor that keep it busy to the end: two run on it at once.
ENOUGH = 8
LOG2_E = 1.4426950408889634


@triton.jit
def _pair(bounds, HEADS: tl.constexpr, IS_FIRST: tl.constexpr):
    """The program's head, first token and length of its pair, first and number of its queries."""
    pair = tl.program_id(0) // HEADS
    start = tl.load(bounds + pair)
    length = tl.load(bounds + pair + 1) - start
    head = tl.program_id(0) % HEADS
    if IS_FIRST:
        return head, start.to(tl.int64), length, pair.to(tl.int64), 1
    else:
        return head, start.to(tl.int64), length, start.to(tl.int64), length


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


@triton.jit(do_not_specialize=["num_queries"])
def _forward(
    query,
    key,
    value,
    bounds,
    context,
    log_sums,
    num_queries,
    log2_scaling,
    QUERY_STRIDE: tl.constexpr,
    KEY_STRIDE: tl.constexpr,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    IS_FIRST: tl.constexpr,
):
    head, start, length, place, own_queries = _pair(bounds, HEADS, IS_FIRST)
    query += place * QUERY_STRIDE + head * SIZE
    key += start * KEY_STRIDE + head * SIZE
    value += start * KEY_STRIDE + head * SIZE
    context += (place * HEADS + head) * SIZE
    log_sums += head * num_queries.to(tl.int64) + place
    for i in range(tl.program_id(1) * QUERIES, own_queries, tl.num_programs(1) * QUERIES):
        q = _rows(query, i, own_queries, QUERY_STRIDE, QUERIES, SIZE, WIDTH)
        highest = tl.full([QUERIES], float("-inf"), tl.float32)
        total = tl.zeros([QUERIES], tl.float32)
        gathered = tl.zeros([QUERIES, WIDTH], tl.float32)
        for j in range(0, length, KEYS):
            k = _rows(key, j, length, KEY_STRIDE, KEYS, SIZE, WIDTH)
            v = _rows(value, j, length, KEY_STRIDE, KEYS, SIZE, WIDTH)
            logits = tl.dot(q, tl.trans(k)) * log2_scaling
            is_key = j + tl.arange(0, KEYS)[None, :] < length
            logits = tl.where(is_key, logits, float("-inf"))
            higher = tl.maximum(highest, tl.max(logits, 1))
            weights = tl.exp2(logits - higher[:, None])
            shrunk = tl.exp2(highest - higher)
            total = total * shrunk + tl.sum(weights, 1)
            gathered = gathered * shrunk[:, None] + tl.dot(weights.to(v.dtype), v)
            highest = higher
        gathered /= total[:, None]
        _put(context, gathered, i, own_queries, HEADS * SIZE, QUERIES, SIZE, WIDTH)
        rows = i + tl.arange(0, QUERIES)
        tl.store(log_sums + rows, highest + tl.log2(total), rows < own_queries)


@triton.jit
def _queries(
    query, of_context, context, log_sums, first, own_queries, QUERY_STRIDE: tl.constexpr,
    STRIDE: tl.constexpr, QUERIES: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """What `_slopes` takes of some queries."""
    q = _rows(query, first, own_queries, QUERY_STRIDE, QUERIES, SIZE, WIDTH)
    gradient = _rows(of_context, first, own_queries, STRIDE, QUERIES, SIZE, WIDTH)
    gathered = _rows(context, first, own_queries, STRIDE, QUERIES, SIZE, WIDTH)
    mean = tl.sum(gradient.to(tl.float32) * gathered.to(tl.float32), 1)
    rows = first + tl.arange(0, QUERIES)
    return q, gradient, mean, tl.load(log_sums + rows, rows < own_queries, 0.0)


@triton.jit
def _slopes(k, v, q, gradient, mean, log_sum, num_keys, log2_scaling, KEYS: tl.constexpr):
    """Weights of attention and gradients of its logits, ``[keys, queries]``.

    Queries beyond the pair's end have a gradient and so a slope of 0.
    """
    weights = tl.exp2(tl.dot(k, tl.trans(q)) * log2_scaling - log_sum[None, :])
    weights = tl.where(tl.arange(0, KEYS)[:, None] < num_keys, weights, 0.0)
    slopes = weights * (tl.dot(v, tl.trans(gradient)) - mean[None, :])
    return weights.to(v.dtype), slopes.to(v.dtype)


@triton.jit(do_not_specialize=["num_queries"])
def _backward(
    of_context,
    query,
    key,
    value,
    bounds,
    context,
    log_sums,
    of_query,
    of_key,
    of_value,
    num_queries,
    log2_scaling,
    slope_scaling,
    QUERY_STRIDE: tl.constexpr,
    KEY_STRIDE: tl.constexpr,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    IS_FIRST: tl.constexpr,
):
    STRIDE: tl.constexpr = HEADS * SIZE
    head, start, length, place, own_queries = _pair(bounds, HEADS, IS_FIRST)
    query += place * QUERY_STRIDE + head * SIZE
    of_query += place * QUERY_STRIDE + head * SIZE
    key += start * KEY_STRIDE + head * SIZE
    of_key += start * KEY_STRIDE + head * SIZE
    value += start * KEY_STRIDE + head * SIZE
    of_value += start * KEY_STRIDE + head * SIZE
    context += place * STRIDE + head * SIZE
    of_context += place * STRIDE + head * SIZE
    log_sums += head * num_queries.to(tl.int64) + place
    for i in range(tl.program_id(1) * QUERIES, own_queries, tl.num_programs(1) * QUERIES):
        q, gradient, mean, log_sum = _queries(
            query, of_context, context, log_sums, i, own_queries, QUERY_STRIDE, STRIDE, QUERIES,
            SIZE, WIDTH,
        )  # fmt: skip
        sum_of_query = tl.zeros([QUERIES, WIDTH], tl.float32)
        for j in range(0, length, KEYS):
            k = _rows(key, j, length, KEY_STRIDE, KEYS, SIZE, WIDTH)
            v = _rows(value, j, length, KEY_STRIDE, KEYS, SIZE, WIDTH)
            _, slopes = _slopes(k, v, q, gradient, mean, log_sum, length - j, log2_scaling, KEYS)
            sum_of_query += tl.dot(tl.trans(slopes), k)
        sum_of_query *= slope_scaling
        _put(of_query, sum_of_query, i, own_queries, QUERY_STRIDE, QUERIES, SIZE, WIDTH)
    # The weights once more, which takes fewer registers than to sum up all three at once.
    for j in range(tl.program_id(1) * KEYS, length, tl.num_programs(1) * KEYS):
        k = _rows(key, j, length, KEY_STRIDE, KEYS, SIZE, WIDTH)
        v = _rows(value, j, length, KEY_STRIDE, KEYS, SIZE, WIDTH)
        sum_of_key = tl.zeros([KEYS, WIDTH], tl.float32)
        sum_of_value = tl.zeros([KEYS, WIDTH], tl.float32)
        for i in range(0, own_queries, QUERIES):
            q, gradient, mean, log_sum = _queries(
                query, of_context, context, log_sums, i, own_queries, QUERY_STRIDE, STRIDE,
                QUERIES, SIZE, WIDTH,
            )  # fmt: skip
            weights, slopes = _slopes(
                k, v, q, gradient, mean, log_sum, length - j, log2_scaling, KEYS
            )
            sum_of_key += tl.dot(slopes, q)
            sum_of_value += tl.dot(weights, gradient)
        sum_of_key *= slope_scaling
        _put(of_key, sum_of_key, j, length, KEY_STRIDE, KEYS, SIZE, WIDTH)
        _put(of_value, sum_of_value, j, length, KEY_STRIDE, KEYS, SIZE, WIDTH)


def forward(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int, scaling: float
) -> tuple[Tensor, Tensor]:
    """softmax(q·k · scaling) v inside each pair: ``[queries, heads, head size]``.

    ``key`` and ``value`` are ``[tokens, heads, head size]``, of the same strides, ``query`` as well
    or, for the first token of each pair alone, ``[pairs, heads, head size]``; in half precision,
    and what belongs to a token lies together. ``bounds`` int32 ``[pairs + 1]`` is where each pair
    ends, from 0, and ``longest`` the tokens of the longest. Also returned is what `backward` needs,
    the binary logarithm of what each softmax divides by: float32 ``[heads, queries]``.
    """
    num_queries, heads, size = query.shape
    context = query.new_empty((num_queries, heads, size))
    log_sums = query.new_empty((heads, num_queries), dtype=torch.float32)
    _forward[_grid(heads, bounds, longest)](
        query,
        key,
        value,
        bounds,
        context,
        log_sums,
        num_queries,
        scaling * LOG2_E,
        **_constants(query, key),
    )
    return context, log_sums


def backward(
    of_context: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bounds: Tensor,
    longest: int,
    scaling: float,
    context: Tensor,
    log_sums: Tensor,
    gradients: Sequence[Tensor],
) -> None:
    """Write gradients of the first three inputs of `forward`, given that of its first output.

    ``gradients`` are where to, of the same shapes and strides.
    """
    num_queries, heads, _ = query.shape
    _backward[_grid(heads, bounds, longest)](
        of_context.contiguous(),
        query,
        key,
        value,
        bounds,
        context,
        log_sums,
        *gradients,
        num_queries,
        scaling * LOG2_E,
        scaling,
        **_constants(query, key),
    )


def _grid(heads: int, bounds: Tensor, longest: int) -> tuple[int, int]:
    """A program for each pair and head; where they are few, for each block of each."""
    wholes = heads * (len(bounds) - 1)
    are_few = wholes < ENOUGH * num_multiprocessors(bounds.device)
    return wholes, triton.cdiv(longest, QUERIES) if are_few else 1


def _constants(query: Tensor, key: Tensor) -> dict[str, int]:
    _, heads, size = query.shape
    # Where all pairs have one token it is the first, and both are the same.
    is_first = len(query) != len(key)
    return {
        "QUERY_STRIDE": query.stride(0),
        "KEY_STRIDE": key.stride(0),
        "HEADS": heads,
        "SIZE": size,
        "WIDTH": max(16, triton.next_power_of_2(size)),
        "QUERIES": FEW_QUERIES if is_first else QUERIES,
        "KEYS": KEYS,
        "IS_FIRST": is_first,
        # With more, Triton 3.6 reads ahead and gives wrong gradients, and is slower
        # (experiments/bench).
        "num_stages": 1,
    }
