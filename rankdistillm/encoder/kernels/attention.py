"""Attention inside each pair, for pairs of up to a few hundred tokens: forward and backward.

This is FlashAttention (Dao et al., NeurIPS 2022) for short pairs: one program processes a whole
pair of one head or, where there are few pairs, one block of its queries or keys from start to end.
So no partial sums of several programs need to be combined.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from rankdistillm.encoder.kernels import num_multiprocessors

# Block sizes: queries and keys that a program processes at once. FEW_QUERIES is the smallest number
# of rows that a matrix unit takes.
QUERIES, KEYS, FEW_QUERIES = 64, 64, 16
# This many programs per multiprocessor, of which two run at once, keep it busy to the end.
ENOUGH_PROGRAMS = 8
LOG2_E = 1.4426950408889634


@triton.jit
def _pair(bounds, HEADS: tl.constexpr, FIRST_ONLY: tl.constexpr):
    """The program's head; its pair's first token and length; its first query and their number."""
    pair = tl.program_id(0) // HEADS
    start = tl.load(bounds + pair)
    length = tl.load(bounds + pair + 1) - start
    head = tl.program_id(0) % HEADS
    if FIRST_ONLY:
        return head, start.to(tl.int64), length, pair.to(tl.int64), 1
    else:
        return head, start.to(tl.int64), length, start.to(tl.int64), length


@triton.jit
def _load_rows(
    tensor, first, length, STRIDE: tl.constexpr, ROWS: tl.constexpr, SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """A head's ``ROWS`` vectors from the index ``first`` of the pair, 0 beyond the pair's end."""
    rows = first + tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, WIDTH)[None, :]
    return tl.load(tensor + rows * STRIDE + columns, (rows < length) & (columns < SIZE), 0.0)


@triton.jit
def _store_rows(
    tensor, values, first, length, STRIDE: tl.constexpr, ROWS: tl.constexpr, SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """Write the rows that `_load_rows` reads."""
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
    FIRST_ONLY: tl.constexpr,
):
    head, start, length, query_start, query_length = _pair(bounds, HEADS, FIRST_ONLY)
    query += query_start * QUERY_STRIDE + head * SIZE
    key += start * KEY_STRIDE + head * SIZE
    value += start * KEY_STRIDE + head * SIZE
    context += (query_start * HEADS + head) * SIZE
    log_sums += head * num_queries.to(tl.int64) + query_start
    for i in range(tl.program_id(1) * QUERIES, query_length, tl.num_programs(1) * QUERIES):
        q = _load_rows(query, i, query_length, QUERY_STRIDE, QUERIES, SIZE, WIDTH)
        running_max = tl.full([QUERIES], float("-inf"), tl.float32)
        total = tl.zeros([QUERIES], tl.float32)
        output = tl.zeros([QUERIES, WIDTH], tl.float32)
        for j in range(0, length, KEYS):
            k = _load_rows(key, j, length, KEY_STRIDE, KEYS, SIZE, WIDTH)
            v = _load_rows(value, j, length, KEY_STRIDE, KEYS, SIZE, WIDTH)
            logits = tl.dot(q, tl.trans(k)) * log2_scaling
            is_key = j + tl.arange(0, KEYS)[None, :] < length
            logits = tl.where(is_key, logits, float("-inf"))
            new_max = tl.maximum(running_max, tl.max(logits, 1))
            weights = tl.exp2(logits - new_max[:, None])
            decay = tl.exp2(running_max - new_max)
            total = total * decay + tl.sum(weights, 1)
            output = output * decay[:, None] + tl.dot(weights.to(v.dtype), v)
            running_max = new_max
        output /= total[:, None]
        _store_rows(context, output, i, query_length, HEADS * SIZE, QUERIES, SIZE, WIDTH)
        rows = i + tl.arange(0, QUERIES)
        tl.store(log_sums + rows, running_max + tl.log2(total), rows < query_length)


@triton.jit
def _load_queries(
    query, grad_context, context, log_sums, first, query_length, QUERY_STRIDE: tl.constexpr,
    STRIDE: tl.constexpr, QUERIES: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The inputs of `_grad_logits` that belong to a block of queries."""
    q = _load_rows(query, first, query_length, QUERY_STRIDE, QUERIES, SIZE, WIDTH)
    grad_output = _load_rows(grad_context, first, query_length, STRIDE, QUERIES, SIZE, WIDTH)
    output = _load_rows(context, first, query_length, STRIDE, QUERIES, SIZE, WIDTH)
    mean = tl.sum(grad_output.to(tl.float32) * output.to(tl.float32), 1)
    rows = first + tl.arange(0, QUERIES)
    return q, grad_output, mean, tl.load(log_sums + rows, rows < query_length, 0.0)


@triton.jit
def _grad_logits(k, v, q, grad_output, mean, log_sum, num_keys, log2_scaling, KEYS: tl.constexpr):
    """Attention weights and the gradients of the logits, ``[keys, queries]``.

    Queries beyond the pair's end have an output gradient of 0, so their logits have one of 0.
    """
    weights = tl.exp2(tl.dot(k, tl.trans(q)) * log2_scaling - log_sum[None, :])
    weights = tl.where(tl.arange(0, KEYS)[:, None] < num_keys, weights, 0.0)
    grad_logits = weights * (tl.dot(v, tl.trans(grad_output)) - mean[None, :])
    return weights.to(v.dtype), grad_logits.to(v.dtype)


@triton.jit(do_not_specialize=["num_queries"])
def _backward(
    grad_context,
    query,
    key,
    value,
    bounds,
    context,
    log_sums,
    grad_query,
    grad_key,
    grad_value,
    num_queries,
    log2_scaling,
    scaling,
    QUERY_STRIDE: tl.constexpr,
    KEY_STRIDE: tl.constexpr,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    FIRST_ONLY: tl.constexpr,
):
    STRIDE: tl.constexpr = HEADS * SIZE
    head, start, length, query_start, query_length = _pair(bounds, HEADS, FIRST_ONLY)
    query += query_start * QUERY_STRIDE + head * SIZE
    grad_query += query_start * QUERY_STRIDE + head * SIZE
    key += start * KEY_STRIDE + head * SIZE
    grad_key += start * KEY_STRIDE + head * SIZE
    value += start * KEY_STRIDE + head * SIZE
    grad_value += start * KEY_STRIDE + head * SIZE
    context += query_start * STRIDE + head * SIZE
    grad_context += query_start * STRIDE + head * SIZE
    log_sums += head * num_queries.to(tl.int64) + query_start
    for i in range(tl.program_id(1) * QUERIES, query_length, tl.num_programs(1) * QUERIES):
        q, grad_output, mean, log_sum = _load_queries(
            query, grad_context, context, log_sums, i, query_length, QUERY_STRIDE, STRIDE, QUERIES,
            SIZE, WIDTH,
        )  # fmt: skip
        query_sum = tl.zeros([QUERIES, WIDTH], tl.float32)
        for j in range(0, length, KEYS):
            k = _load_rows(key, j, length, KEY_STRIDE, KEYS, SIZE, WIDTH)
            v = _load_rows(value, j, length, KEY_STRIDE, KEYS, SIZE, WIDTH)
            _, grad_logits = _grad_logits(
                k, v, q, grad_output, mean, log_sum, length - j, log2_scaling, KEYS
            )
            query_sum += tl.dot(tl.trans(grad_logits), k)
        query_sum *= scaling
        _store_rows(grad_query, query_sum, i, query_length, QUERY_STRIDE, QUERIES, SIZE, WIDTH)
    # A second loop recomputes the weights: one loop for all three sums would need more registers.
    for j in range(tl.program_id(1) * KEYS, length, tl.num_programs(1) * KEYS):
        k = _load_rows(key, j, length, KEY_STRIDE, KEYS, SIZE, WIDTH)
        v = _load_rows(value, j, length, KEY_STRIDE, KEYS, SIZE, WIDTH)
        key_sum = tl.zeros([KEYS, WIDTH], tl.float32)
        value_sum = tl.zeros([KEYS, WIDTH], tl.float32)
        for i in range(0, query_length, QUERIES):
            q, grad_output, mean, log_sum = _load_queries(
                query, grad_context, context, log_sums, i, query_length, QUERY_STRIDE, STRIDE,
                QUERIES, SIZE, WIDTH,
            )  # fmt: skip
            weights, grad_logits = _grad_logits(
                k, v, q, grad_output, mean, log_sum, length - j, log2_scaling, KEYS
            )
            key_sum += tl.dot(grad_logits, q)
            value_sum += tl.dot(weights, grad_output)
        key_sum *= scaling
        _store_rows(grad_key, key_sum, j, length, KEY_STRIDE, KEYS, SIZE, WIDTH)
        _store_rows(grad_value, value_sum, j, length, KEY_STRIDE, KEYS, SIZE, WIDTH)


def forward(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int, scaling: float
) -> tuple[Tensor, Tensor]:
    """softmax(q·k · scaling) v inside each pair: ``[queries, heads, head size]``.

    ``key`` and ``value`` are ``[tokens, heads, head size]`` with the same strides. So is ``query``,
    or it holds the first token of each pair alone: ``[pairs, heads, head size]``. All are in half
    precision, and the values of one token are contiguous. ``bounds``, int32 ``[pairs + 1]``, is 0
    and then the end of each pair; ``longest`` is the length of the longest pair. The second result
    is for `backward`: the binary logarithm of each softmax's denominator, float32
    ``[heads, queries]``.
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
    grad_context: Tensor,
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
    """Write the gradients of `forward`'s first three inputs, given that of its first output.

    They are written into ``gradients``, tensors of the inputs' shapes and strides.
    """
    num_queries, heads, _ = query.shape
    _backward[_grid(heads, bounds, longest)](
        grad_context.contiguous(),
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
    """One program per pair and head; where these are few, one per block of each."""
    num_pairs_and_heads = heads * (len(bounds) - 1)
    are_few = num_pairs_and_heads < ENOUGH_PROGRAMS * num_multiprocessors(bounds.device)
    return num_pairs_and_heads, triton.cdiv(longest, QUERIES) if are_few else 1


def _constants(query: Tensor, key: Tensor) -> dict[str, int]:
    _, heads, size = query.shape
    # If every pair has one token, that is the first token: both cases are the same.
    first_only = len(query) != len(key)
    return {
        "QUERY_STRIDE": query.stride(0),
        "KEY_STRIDE": key.stride(0),
        "HEADS": heads,
        "SIZE": size,
        "WIDTH": max(16, triton.next_power_of_2(size)),
        "QUERIES": FEW_QUERIES if first_only else QUERIES,
        "KEYS": KEYS,
        "FIRST_ONLY": first_only,
        # With more stages Triton 3.6 prefetches, which is slower and gives wrong gradients
        # (experiments/bench).
        "num_stages": 1,
    }
