"""What lies between the matrix products of a layer, on a GPU: one pass over memory each way.

Only `rankdistillm.cuda_layers` imports this; Triton comes with torch's builds for CUDA. What the
functions compute, `rankdistillm.cuda_layers.StepByStep` says.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# As many programs as fit on a multiprocessor at once by their registers (72 and 96 a thread), so
# that while some wait for memory others compute, and none is left over.
NORM_PROGRAMS, GELU_PROGRAMS = 6, 5
# What one of them works on at a time.
GELU_ROWS, GELU_WIDTH = 4, 1024


@triton.jit
def _norm_forward(
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
    total += tl.load(added_bias + columns, inside, 0.0)
    if IS_DROPPED:
        total = tl.where(tl.load(bits + places, inside, 0) >= threshold, total * scale, 0.0)
    total += tl.load(residual + places, inside, 0.0)
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
def _norm_backward(
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
    scaling = tl.load(weight + columns, inside, 0.0)
    sum_of_weight = tl.zeros([WIDTH], tl.float32)
    sum_of_bias = tl.zeros([WIDTH], tl.float32)
    sum_of_added = tl.zeros([WIDTH], tl.float32)
    row = tl.program_id(0).to(tl.int64)
    while row < num_rows:
        places = row * num_columns + columns
        gradient = tl.load(of_whole + places, inside, 0.0)
        gradient += tl.load(of_half + places, inside, 0.0).to(tl.float32)
        normalised = tl.load(normed + places, inside, 0.0).to(tl.float32)
        sum_of_weight += gradient * normalised
        sum_of_bias += gradient
        inner = gradient * scaling
        shift = tl.sum(inner, 0) + normalised * tl.sum(inner * normalised, 0)
        of_total = (inner - shift / num_columns) * tl.load(rstd_of + row)
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


@triton.jit
def _normal(x):
    """Cumulative distribution and density of the normal distribution.

    By formula 7.1.26 of Abramowitz & Stegun, to 1.5e-7: what half precision rounds is 4e-3.
    """
    density = tl.exp(-0.5 * x * x)
    t = 1 / (1 + 0.3275911 * 0.7071067812 * tl.abs(x))
    series = t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))
    series = t * (0.254829592 + t * (-0.284496736 + series))
    tail = 0.5 * density * series
    return tl.where(x < 0, tail, 1 - tail), 0.3989422804 * density


@triton.jit
def _block(first_row, num_rows, num_columns, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Places of some rows and columns in a matrix, and which of them are inside."""
    rows = first_row + tl.arange(0, ROWS).to(tl.int64)[:, None]
    columns = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)[None, :]
    return rows * num_columns + columns, (rows < num_rows) & (columns < num_columns)


@triton.jit(do_not_specialize=["num_rows"])
def _gelu_forward(
    inputs, bias, outputs, num_rows, num_columns, ROWS: tl.constexpr, WIDTH: tl.constexpr
):
    columns = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    places, inside = _block(tl.program_id(0) * ROWS, num_rows, num_columns, ROWS, WIDTH)
    x = tl.load(inputs + places, inside, 0.0).to(tl.float32)
    x += tl.load(bias + columns, columns < num_columns, 0.0)[None, :]
    below, _ = _normal(x)
    tl.store(outputs + places, x * below, inside)


@triton.jit(do_not_specialize=["num_rows"])
def _gelu_backward(
    of_outputs,
    inputs,
    bias,
    of_inputs,
    sums,
    num_rows,
    num_columns,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    columns = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    shift = tl.load(bias + columns, columns < num_columns, 0.0)[None, :]
    total = tl.zeros([WIDTH], tl.float32)
    first_row = tl.program_id(0) * ROWS
    while first_row < num_rows:
        places, inside = _block(first_row, num_rows, num_columns, ROWS, WIDTH)
        x = tl.load(inputs + places, inside, 0.0).to(tl.float32) + shift
        below, density = _normal(x)
        gradient = tl.load(of_outputs + places, inside, 0.0).to(tl.float32)
        gradient *= below + x * density
        total += tl.sum(gradient, 0)
        tl.store(of_inputs + places, gradient, inside)
        first_row += tl.num_programs(0) * ROWS
    tl.store(sums + tl.program_id(0) * num_columns + columns, total, columns < num_columns)


def norm_forward(
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
    """As `rankdistillm.cuda_layers.StepByStep.norm_forward`."""
    num_rows, num_columns = added.numel() // added.shape[-1], added.shape[-1]
    whole, half = torch.empty_like(residual), torch.empty_like(added)
    normed = torch.empty_like(added if is_kept else added[:, :0])
    rstd = residual.new_empty((1, num_rows if is_kept else 0, 1))
    _norm_forward[(num_rows,)](
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
        WIDTH=(width := triton.next_power_of_2(num_columns)),
        num_warps=_num_warps(width),
    )
    return whole, half, normed, rstd


def norm_backward(
    of_whole: Tensor,
    of_half: Tensor,
    normed: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bits: Tensor | None,
    threshold: int,
    scale: float,
) -> tuple[Tensor, ...]:
    """As `rankdistillm.cuda_layers.StepByStep.norm_backward`."""
    num_rows, num_columns = normed.numel() // normed.shape[-1], normed.shape[-1]
    of_whole, of_half = of_whole.contiguous(), of_half.contiguous()
    of_residual, of_added = torch.empty_like(of_whole), torch.empty_like(of_half)
    num_programs = min(num_rows, NORM_PROGRAMS * _num_multiprocessors(normed.device))
    sums = of_whole.new_empty((num_programs, 3, num_columns))
    _norm_backward[(num_programs,)](
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
        WIDTH=(width := triton.next_power_of_2(num_columns)),
        num_warps=_num_warps(width),
    )
    return (of_added, of_residual, *sums.sum(0).unbind())


def _num_warps(width: int) -> int:
    """So many that a thread has at most eight columns, where there are no more than 8,192."""
    return min(max(4, width // 256), 32)


def gelu_forward(inputs: Tensor, bias: Tensor) -> Tensor:
    """As `rankdistillm.cuda_layers.StepByStep.gelu_forward`."""
    outputs = torch.empty_like(inputs)
    num_rows, num_columns = inputs.numel() // inputs.shape[-1], inputs.shape[-1]
    grid = (triton.cdiv(num_rows, GELU_ROWS), triton.cdiv(num_columns, GELU_WIDTH))
    _gelu_forward[grid](
        inputs, bias, outputs, num_rows, num_columns, ROWS=GELU_ROWS, WIDTH=GELU_WIDTH
    )
    return outputs


def gelu_backward(of_outputs: Tensor, inputs: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """As `rankdistillm.cuda_layers.StepByStep.gelu_backward`."""
    of_inputs = torch.empty_like(inputs)
    num_rows, num_columns = inputs.numel() // inputs.shape[-1], inputs.shape[-1]
    num_tiles = triton.cdiv(num_columns, GELU_WIDTH)
    num_programs = max(1, GELU_PROGRAMS * _num_multiprocessors(inputs.device) // num_tiles)
    num_programs = min(num_programs, triton.cdiv(num_rows, GELU_ROWS))
    sums = bias.new_empty((num_programs, num_columns))
    _gelu_backward[(num_programs, num_tiles)](
        of_outputs.contiguous(),
        inputs,
        bias,
        of_inputs,
        sums,
        num_rows,
        num_columns,
        ROWS=GELU_ROWS,
        WIDTH=GELU_WIDTH,
    )
    return of_inputs, sums.sum(0)


def _num_multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":  # Triton's interpreter
        return 1
    properties: Any = torch.cuda.get_device_properties(device)
    return properties.multi_processor_count
