"""Exact GELU(inputs + bias) (Hendrycks & Gimpel, 2016): one pass over memory each way."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rankdistillm.encoder.kernels import num_multiprocessors

# Programs of the backward pass per multiprocessor: as many as its registers hold at once (96 per
# thread), so that some compute while others wait for memory, and all run in one wave.
PROGRAMS = 5
# The block that a program processes at once.
ROWS, WIDTH = 4, 1024


@triton.jit
def _normal(x):
    """Cumulative distribution and density of the standard normal distribution.

    Formula 7.1.26 of Abramowitz & Stegun; its absolute error is at most 1.5e-7.
    """
    density = tl.exp(-0.5 * x * x)
    t = 1 / (1 + 0.3275911 * 0.7071067812 * tl.abs(x))
    series = t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))
    series = t * (0.254829592 + t * (-0.284496736 + series))
    tail = 0.5 * density * series
    return tl.where(x < 0, tail, 1 - tail), 0.3989422804 * density


@triton.jit
def _block(first_row, num_rows, num_columns, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Flat indices of a block of a matrix, and which of them lie inside the matrix."""
    rows = first_row + tl.arange(0, ROWS).to(tl.int64)[:, None]
    columns = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)[None, :]
    return rows * num_columns + columns, (rows < num_rows) & (columns < num_columns)


@triton.jit(do_not_specialize=["num_rows"])
def _forward(inputs, bias, outputs, num_rows, num_columns, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    columns = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    indices, inside = _block(tl.program_id(0) * ROWS, num_rows, num_columns, ROWS, WIDTH)
    x = tl.load(inputs + indices, inside, 0.0).to(tl.float32)
    x += tl.load(bias + columns, columns < num_columns, 0.0).to(tl.float32)[None, :]
    cdf, _ = _normal(x)
    tl.store(outputs + indices, x * cdf, inside)


@triton.jit(do_not_specialize=["num_rows"])
def _backward(
    grad_outputs,
    inputs,
    bias,
    grad_inputs,
    sums,
    num_rows,
    num_columns,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    columns = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    shift = tl.load(bias + columns, columns < num_columns, 0.0).to(tl.float32)[None, :]
    total = tl.zeros([WIDTH], tl.float32)
    first_row = tl.program_id(0) * ROWS
    while first_row < num_rows:
        indices, inside = _block(first_row, num_rows, num_columns, ROWS, WIDTH)
        x = tl.load(inputs + indices, inside, 0.0).to(tl.float32) + shift
        cdf, density = _normal(x)
        gradient = tl.load(grad_outputs + indices, inside, 0.0).to(tl.float32)
        gradient *= cdf + x * density
        total += tl.sum(gradient, 0)
        tl.store(grad_inputs + indices, gradient, inside)
        first_row += tl.num_programs(0) * ROWS
    tl.store(sums + tl.program_id(0) * num_columns + columns, total, columns < num_columns)


def forward(inputs: Tensor, bias: Tensor) -> Tensor:
    """GELU(inputs + bias), in the shape and type of ``inputs``.

    ``inputs`` is ``[tokens, feed-forward]`` in half precision, ``bias`` ``[feed-forward]`` in
    float32.
    """
    outputs = torch.empty_like(inputs)
    num_rows, num_columns = inputs.shape
    grid = (triton.cdiv(num_rows, ROWS), triton.cdiv(num_columns, WIDTH))
    _forward[grid](inputs, bias, outputs, num_rows, num_columns, ROWS=ROWS, WIDTH=WIDTH)
    return outputs


def backward(grad_outputs: Tensor, inputs: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of both inputs of `forward`, given that of its output."""
    grad_inputs = torch.empty_like(inputs)
    num_rows, num_columns = inputs.shape
    num_tiles = triton.cdiv(num_columns, WIDTH)
    num_programs = max(1, PROGRAMS * num_multiprocessors(inputs.device) // num_tiles)
    num_programs = min(num_programs, triton.cdiv(num_rows, ROWS))
    sums = bias.new_empty((num_programs, num_columns))
    _backward[(num_programs, num_tiles)](
        grad_outputs.contiguous(),
        inputs,
        bias,
        grad_inputs,
        sums,
        num_rows,
        num_columns,
        ROWS=ROWS,
        WIDTH=WIDTH,
    )
    return grad_inputs, sums.sum(0)
