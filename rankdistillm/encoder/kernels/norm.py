"""LayerNorm(residual + dropout(added + bias)): one pass over memory each way."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rankdistillm.encoder.kernels import num_multiprocessors

# Programs of the backward pass per multiprocessor: as many as its registers hold at once (80 per
# thread without dropout, 72 with it), so that some compute while others wait for memory, and all
# run in one wave.
PROGRAMS = 6


@triton.jit
def _forward(
    added,
    residual,
    added_bias,
    bits,
    weight,
    bias,
    fp32,
    low,
    normed,
    rstds,
    num_columns,
    threshold,
    scale,
    eps,
    HAS_DROPOUT: tl.constexpr,
    FOR_BACKWARD: tl.constexpr,
    WIDTH: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, WIDTH)
    inside = columns < num_columns
    indices = row * num_columns + columns
    total = tl.load(added + indices, inside, 0.0).to(tl.float32)
    total += tl.load(added_bias + columns, inside, 0.0).to(tl.float32)
    if HAS_DROPOUT:
        total = tl.where(tl.load(bits + indices, inside, 0) >= threshold, total * scale, 0.0)
    total += tl.load(residual + indices, inside, 0.0).to(tl.float32)
    centred = tl.where(inside, total - tl.sum(total, 0) / num_columns, 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred, 0) / num_columns + eps)
    normalised = centred * rstd
    result = normalised * tl.load(weight + columns, inside, 0.0)
    result += tl.load(bias + columns, inside, 0.0)
    tl.store(fp32 + indices, result, inside)
    tl.store(low + indices, result, inside)
    if FOR_BACKWARD:
        tl.store(normed + indices, normalised, inside)
        tl.store(rstds + row, rstd)


@triton.jit(do_not_specialize=["num_rows"])
def _backward(
    grad_fp32,
    grad_low,
    normed,
    rstds,
    bits,
    weight,
    grad_residual,
    grad_added,
    sums,
    num_rows,
    num_columns,
    threshold,
    scale,
    HAS_DROPOUT: tl.constexpr,
    WIDTH: tl.constexpr,
):
    columns = tl.arange(0, WIDTH)
    inside = columns < num_columns
    norm_weight = tl.load(weight + columns, inside, 0.0).to(tl.float32)
    grad_weight = tl.zeros([WIDTH], tl.float32)
    grad_bias = tl.zeros([WIDTH], tl.float32)
    grad_added_bias = tl.zeros([WIDTH], tl.float32)
    row = tl.program_id(0).to(tl.int64)
    while row < num_rows:
        indices = row * num_columns + columns
        gradient = tl.load(grad_fp32 + indices, inside, 0.0).to(tl.float32)
        gradient += tl.load(grad_low + indices, inside, 0.0).to(tl.float32)
        normalised = tl.load(normed + indices, inside, 0.0).to(tl.float32)
        grad_weight += gradient * normalised
        grad_bias += gradient
        inner = gradient * norm_weight
        shift = tl.sum(inner, 0) + normalised * tl.sum(inner * normalised, 0)
        grad_total = (inner - shift / num_columns) * tl.load(rstds + row).to(tl.float32)
        tl.store(grad_residual + indices, grad_total, inside)
        if HAS_DROPOUT:
            kept = tl.load(bits + indices, inside, 0) >= threshold
            grad_total = tl.where(kept, grad_total * scale, 0.0)
        grad_added_bias += grad_total
        tl.store(grad_added + indices, grad_total, inside)
        row += tl.num_programs(0)
    program_sums = sums + tl.program_id(0) * 3 * num_columns + columns
    tl.store(program_sums, grad_added_bias, inside)
    tl.store(program_sums + num_columns, grad_weight, inside)
    tl.store(program_sums + 2 * num_columns, grad_bias, inside)


def forward(
    added: Tensor,
    residual: Tensor,
    added_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    bits: Tensor | None,
    threshold: int,
    scale: float,
    eps: float,
    *,
    for_backward: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """LayerNorm(residual + dropout(added + added_bias)), ``[tokens, hidden]`` (Ba et al., 2016).

    ``added`` is in half precision, the rest in float32. Dropout zeroes an element whose ``bits``
    (int16, of the same shape; None: no dropout) are below ``threshold``, and multiplies the others
    by ``scale``. Returns the states in the type of ``residual`` and in that of ``added``, and two
    tensors for `backward`, which are empty unless ``for_backward``: the normalised sum in the type
    of ``added``, and the reciprocal of its standard deviation ``[tokens, 1]``.
    """
    num_rows, num_columns = added.shape
    residual = residual.contiguous()
    fp32, low = torch.empty_like(residual), torch.empty_like(added)
    normed = torch.empty_like(added if for_backward else added[:0])
    rstd = residual.new_empty((num_rows if for_backward else 0, 1))
    width = triton.next_power_of_2(num_columns)
    _forward[(num_rows,)](
        added,
        residual,
        added_bias,
        added if bits is None else bits,
        weight,
        bias,
        fp32,
        low,
        normed,
        rstd,
        num_columns,
        threshold,
        scale,
        eps,
        HAS_DROPOUT=bits is not None,
        FOR_BACKWARD=for_backward,
        WIDTH=width,
        num_warps=_num_warps(width),
    )
    return fp32, low, normed, rstd


def backward(
    grad_fp32: Tensor,
    grad_low: Tensor,
    normed: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bits: Tensor | None,
    threshold: int,
    scale: float,
) -> tuple[Tensor, ...]:
    """The gradients of `forward`'s first five inputs, given those of both states."""
    num_rows, num_columns = normed.shape
    grad_fp32, grad_low = grad_fp32.contiguous(), grad_low.contiguous()
    grad_residual, grad_added = torch.empty_like(grad_fp32), torch.empty_like(grad_low)
    num_programs = min(num_rows, PROGRAMS * num_multiprocessors(normed.device))
    sums = grad_fp32.new_empty((num_programs, 3, num_columns))
    width = triton.next_power_of_2(num_columns)
    _backward[(num_programs,)](
        grad_fp32,
        grad_low,
        normed,
        rstd,
        normed if bits is None else bits,
        weight,
        grad_residual,
        grad_added,
        sums,
        num_rows,
        num_columns,
        threshold,
        scale,
        HAS_DROPOUT=bits is not None,
        WIDTH=width,
        num_warps=_num_warps(width),
    )
    return (grad_added, grad_residual, *sums.sum(0).unbind())


def _num_warps(width: int) -> int:
    """Enough warps for at most eight columns per thread, up to a width of 8,192."""
    return min(max(4, width // 256), 32)
