"""LayerNorm(residual + dropout(added + bias)): forward and backward, a pass over memory each."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rankdistillm.kernels import num_multiprocessors

# As many programs as fit on a multiprocessor at once by their registers, so that while some wait
# for memory others compute, and none is left over: 80 a thread without dropout, 72 with it.
PROGRAMS = 6


@triton.jit
def _forward(
    added,
    residual,
    added_bias,
    bits,
    weight,
    bias,
    whole,
    half,
    normed,
    rstd_of,
    num_columns,
    threshold,
    scale,
    eps,
    IS_DROPPED: tl.constexpr,
    IS_KEPT: tl.constexpr,
    WIDTH: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, WIDTH)
    inside = columns < num_columns
    places = row * num_columns + columns
    total = tl.load(added + places, inside, 0.0).to(tl.float32)
    total += tl.load(added_bias + columns, inside, 0.0).to(tl.float32)
    if IS_DROPPED:
        total = tl.where(tl.load(bits + places, inside, 0) >= threshold, total * scale, 0.0)
    total += tl.load(residual + places, inside, 0.0).to(tl.float32)
    centred = tl.where(inside, total - tl.sum(total, 0) / num_columns, 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred, 0) / num_columns + eps)
    normalised = centred * rstd
    result = normalised * tl.load(weight + columns, inside, 0.0)
    result += tl.load(bias + columns, inside, 0.0)
    tl.store(whole + places, result, inside)
    tl.store(half + places, result, inside)
    if IS_KEPT:
        tl.store(normed + places, normalised, inside)
        tl.store(rstd_of + row, rstd)


@triton.jit(do_not_specialize=["num_rows"])
def _backward(
    of_whole,
    of_half,
    normed,
    rstd_of,
    bits,
    weight,
    of_residual,
    of_added,
    sums,
    num_rows,
    num_columns,
    threshold,
    scale,
    IS_DROPPED: tl.constexpr,
    WIDTH: tl.constexpr,
):
    columns = tl.arange(0, WIDTH)
    inside = columns < num_columns
    scaling = tl.load(weight + columns, inside, 0.0).to(tl.float32)
    sum_of_weight = tl.zeros([WIDTH], tl.float32)
    sum_of_bias = tl.zeros([WIDTH], tl.float32)
    sum_of_added = tl.zeros([WIDTH], tl.float32)
    row = tl.program_id(0).to(tl.int64)
    while row < num_rows:
        places = row * num_columns + columns
        gradient = tl.load(of_whole + places, inside, 0.0).to(tl.float32)
        gradient += tl.load(of_half + places, inside, 0.0).to(tl.float32)
        normalised = tl.load(normed + places, inside, 0.0).to(tl.float32)
        sum_of_weight += gradient * normalised
        sum_of_bias += gradient
        inner = gradient * scaling
        shift = tl.sum(inner, 0) + normalised * tl.sum(inner * normalised, 0)
        of_total = (inner - shift / num_columns) * tl.load(rstd_of + row).to(tl.float32)
        tl.store(of_residual + places, of_total, inside)
        if IS_DROPPED:
            kept = tl.load(bits + places, inside, 0) >= threshold
            of_total = tl.where(kept, of_total * scale, 0.0)
        sum_of_added += of_total
        tl.store(of_added + places, of_total, inside)
        row += tl.num_programs(0)
    own = sums + tl.program_id(0) * 3 * num_columns + columns
    tl.store(own, sum_of_added, inside)
    tl.store(own + num_columns, sum_of_weight, inside)
    tl.store(own + 2 * num_columns, sum_of_bias, inside)


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
    is_kept: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """LayerNorm(residual + dropout(added + added_bias)), ``[tokens, hidden]`` (Ba et al., 2016).

    ``added`` is in half precision, all else in float32. An element is dropped where its ``bits``
    (int16 of the same shape; None: nowhere) are below ``threshold``, and multiplied by ``scale``
    elsewhere. Returned are the states in the types of ``residual`` and of ``added``; then what
    `backward` needs, empty unless ``is_kept``: the normalised sum, in the type of ``added``, and
    the reciprocal of its standard deviation ``[tokens, 1]``.
    """
    num_rows, num_columns = added.shape
    residual = residual.contiguous()
    whole, half = torch.empty_like(residual), torch.empty_like(added)
    normed = torch.empty_like(added if is_kept else added[:0])
    rstd = residual.new_empty((num_rows if is_kept else 0, 1))
    width = triton.next_power_of_2(num_columns)
    _forward[(num_rows,)](
        added,
        residual,
        added_bias,
        added if bits is None else bits,
        weight,
        bias,
        whole,
        half,
        normed,
        rstd,
        num_columns,
        threshold,
        scale,
        eps,
        IS_DROPPED=bits is not None,
        IS_KEPT=is_kept,
        WIDTH=width,
        num_warps=_num_warps(width),
    )
    return whole, half, normed, rstd


def backward(
    of_whole: Tensor,
    of_half: Tensor,
    normed: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bits: Tensor | None,
    threshold: int,
    scale: float,
) -> tuple[Tensor, ...]:
    """Gradients of the first five inputs of `forward`, given those of both states."""
    num_rows, num_columns = normed.shape
    of_whole, of_half = of_whole.contiguous(), of_half.contiguous()
    of_residual, of_added = torch.empty_like(of_whole), torch.empty_like(of_half)
    num_programs = min(num_rows, PROGRAMS * num_multiprocessors(normed.device))
    sums = of_whole.new_empty((num_programs, 3, num_columns))
    width = triton.next_power_of_2(num_columns)
    _backward[(num_programs,)](
        of_whole,
        of_half,
        normed,
        rstd,
        normed if bits is None else bits,
        weight,
        of_residual,
        of_added,
        sums,
        num_rows,
        num_columns,
        threshold,
        scale,
        IS_DROPPED=bits is not None,
        WIDTH=width,
        num_warps=_num_warps(width),
    )
    return (of_added, of_residual, *sums.sum(0).unbind())


def _num_warps(width: int) -> int:
    """So many that a thread has at most eight columns, where there are no more than 8,192."""
    return min(max(4, width // 256), 32)
