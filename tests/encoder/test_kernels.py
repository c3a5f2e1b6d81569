"""The Triton kernels against torch: on a GPU, or in Triton's interpreter."""

from importlib.metadata import version

import numpy as np
import pytest
import torch
from packaging.version import Version

from rankdistillm.encoder.dropout import dropout_threshold, random_int16
from rankdistillm.encoder.segments import Segments
from tests.encoder import reference_kernels as reference

attention, gelu, norm = (
    pytest.importorskip(f"rankdistillm.encoder.kernels.{name}", exc_type=ImportError)
    for name in ("attention", "gelu", "norm")
)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# On a GPU so many rows that each program gets several of them, as the interpreter's one does here.
MANY = 10_000 if DEVICE == "cuda" else 40


def assert_near(value, expected, atol):
    assert value.dtype == expected.dtype
    # Sums over rows, of which a GPU has many here, are added in another order.
    rtol = 1e-5 if value.dtype == torch.float32 else 2**-7
    atol *= 1 if value.ndim == 2 else max(1, MANY / 100)
    torch.testing.assert_close(value, expected, atol=atol, rtol=rtol)


def norm_inputs(tokens, hidden, dtype, low, rate):
    """The positional arguments of a norm's `forward`."""
    torch.manual_seed(7)
    added = torch.randn(tokens, hidden).to(low)
    residual = torch.randn(tokens, hidden, dtype=dtype)
    parameters = torch.randn(3, hidden, dtype=dtype).unbind()
    bits = random_int16(added) if rate else None
    return [added, residual, *parameters, bits, dropout_threshold(rate), 1 / (1 - rate), 0.1]


def test_the_reference_norm_drops_and_scales_by_its_bits():
    inputs = norm_inputs(30, 16, torch.float64, torch.float64, 0.3)
    added, residual, added_bias, weight, bias, bits, threshold, *_ = inputs
    kept = bits >= threshold
    assert 0.6 < kept.double().mean() < 0.8
    output, *_ = reference.Norm.forward(*inputs, for_backward=True)
    total = residual + (added + added_bias) * kept / 0.7
    expected = torch.nn.functional.layer_norm(total, (16,), weight, bias, 0.1)
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rate", [0.0, 0.1])
@pytest.mark.parametrize(("tokens", "hidden"), [(1, 16), (3, 100), (MANY, 384), (9, 1100)])
def test_norm_equals_torch(tokens, hidden, rate, low):
    inputs = norm_inputs(tokens, hidden, torch.float32, low, rate)
    inputs = [each.to(DEVICE) if isinstance(each, torch.Tensor) else each for each in inputs]
    for for_backward in (False, True):
        outputs = norm.forward(*inputs, for_backward=for_backward)
        expected = reference.Norm.forward(*inputs, for_backward=for_backward)
        for value, wanted in zip(outputs, expected, strict=True):
            assert_near(value, wanted, 1e-5)
    _, low_states, normed, rstd = expected
    bits, threshold, scale = inputs[5:8]
    grad_fp32, grad_low = torch.randn_like(inputs[1]), torch.randn_like(low_states)
    inputs = (grad_fp32, grad_low, normed, rstd, inputs[3], bits, threshold, scale)
    expected = reference.Norm.backward(*inputs)
    for value, wanted in zip(norm.backward(*inputs), expected, strict=True):
        assert_near(value, wanted, 1e-4)


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("tokens", "columns"), [(1, 32), (7, 1536), (MANY, 100), (3, 2048)])
def test_gelu_equals_torch(tokens, columns, low):
    torch.manual_seed(8)
    exact = torch.linspace(-9, 9, tokens * columns, device=DEVICE).view(tokens, columns)
    bias, gradient = torch.randn(columns, device=DEVICE), torch.randn_like(exact)
    for dtype, atol in ((torch.float32, 2e-6), (low, 1e-4)):
        inputs, grad_outputs = exact.to(dtype), gradient.to(dtype)
        assert_near(gelu.forward(inputs, bias), reference.Gelu.forward(inputs, bias), atol)
        gradients = gelu.backward(grad_outputs, inputs, bias)
        expected = reference.Gelu.backward(grad_outputs, inputs, bias)
        for value, wanted in zip(gradients, expected, strict=True):
            assert_near(value, wanted, 10 * atol if value.ndim == 2 else 1e-3)


# One block of queries and keys; several blocks; heads whose size is not a power of two.
SHAPES = [((14, 9, 1), 2, 16), ((300, 64, 65, 63, 128), 1, 64), ((129, 20), 3, 24)]
# The interpreter is slow: there each value of a choice meets each value of each other. It also
# multiplies bf16 as if it were integers.
CHOICES = [
    (dtype, are_few, first_only)
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
    for are_few in (False, True)
    for first_only in (False, True)
    if DEVICE == "cuda"
    or (dtype != torch.bfloat16 and (dtype == torch.float32) ^ are_few ^ first_only)
]


@pytest.mark.parametrize(("dtype", "are_few", "first_only"), CHOICES)
@pytest.mark.parametrize(("lengths", "heads", "size"), SHAPES)
@pytest.mark.slow
def test_attention_equals_torch(lengths, heads, size, dtype, are_few, first_only, monkeypatch):
    # One program per pair and head, or several.
    monkeypatch.setattr(attention, "ENOUGH_PROGRAMS", 1000 if are_few else 0)
    if DEVICE == "cpu" and Version(version("triton")) < Version("3.7"):
        pytest.skip("Triton 3.6's interpreter cannot loop up to a number that it loaded")
    segments = Segments(np.array(lengths), torch.device(DEVICE))
    torch.manual_seed(9)
    shape = (sum(lengths), 3, heads, size)
    qkv = (2 * torch.randn(shape, device=DEVICE)).to(dtype)
    # All logits far below 0: exp of the 0 beyond a pair's end would overflow.
    qkv[:, :2] += torch.tensor([-2.5, 2.5], device=DEVICE)[:, None, None]
    inputs = list(qkv.unbind(1))
    if first_only:
        inputs[0] = inputs[0].index_select(0, segments.starts)
    exact = [tensor.double() for tensor in inputs]
    options = (segments.bounds, max(lengths), size**-0.5)
    expected, expected_sums = reference.Attention.forward(*exact, *options)
    context, log_sums = attention.forward(*inputs, *options)
    # A GPU multiplies float32 in TF32.
    error = torch.finfo(dtype).eps if dtype.itemsize == 2 else 5e-2 if DEVICE == "cuda" else 1e-5
    assert context.dtype == dtype
    assert (context - expected).norm() < error * expected.norm()
    assert (log_sums - expected_sums).norm() < error * expected_sums.norm()
    saved = (*options, context, log_sums)
    gradients = torch.empty_like(qkv).unbind(1)
    if first_only:
        gradients = (torch.empty_like(inputs[0]), *gradients[1:])
    grad_context = torch.randn_like(context.transpose(0, 1)).transpose(0, 1)
    attention.backward(grad_context, *inputs, *saved, gradients)
    expected_gradients = [torch.empty_like(tensor) for tensor in exact]
    reference.Attention.backward(grad_context.double(), *exact, *saved, expected_gradients)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        assert (gradient - wanted).norm() < 2 * error * wanted.norm()
