"""The layers for GPUs; all but the speed shows on a CPU."""

import importlib
import sys

import numpy as np
import pytest
import torch
from conftest import SIZES
from test_model import load
from transformers.activations import ACT2FN

import rankdistillm
from rankdistillm import cuda_layers as module
from rankdistillm.cuda_layers import CudaLayer, States, StepByStep, _SumAndNorm
from rankdistillm.dropout import random_bits, threshold_of
from rankdistillm.segments import Segments

LENGTHS = np.array([14, 9, 7])
TOKENS = int(LENGTHS.sum())
SEGMENTS = Segments(LENGTHS, torch.device("cpu"))


@pytest.fixture
def layers(tiny_bert):
    found = load(tiny_bert).network.backbone.encoder.layer[:2].double()
    torch.manual_seed(5)
    for parameter in found.parameters():  # random models have biases of 0
        torch.nn.init.normal_(parameter, std=0.3)
    return found


def states(dtype=torch.float64):
    torch.manual_seed(6)
    return torch.randn(1, TOKENS, SIZES["hidden_size"], dtype=dtype, requires_grad=True)


def whole(output):
    return output.whole if isinstance(output, States) else output


def run(layers, compute):
    """States behind the layers, and the gradients of a weighted sum of them."""
    layers.zero_grad()
    before = hidden = states()
    for layer in layers:
        hidden = compute(layer, hidden)
    weights = torch.linspace(-1, 1, hidden_size := SIZES["hidden_size"], dtype=torch.float64)
    (whole(hidden) * weights).square().sum().div(hidden_size).backward()
    gradients = {name: parameter.grad for name, parameter in layers.named_parameters()}
    return whole(hidden).detach(), gradients | {"states": before.grad}


def plain(layer, hidden):
    return layer(hidden, segments=SEGMENTS)


def for_cuda(layer, hidden):
    return CudaLayer(layer, torch.float64)(hidden, SEGMENTS)


def test_layers_and_their_gradients_are_those_of_the_plain_ones(layers):
    expected, gradients = run(layers, plain)
    found, own = run(layers, for_cuda)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    for name, gradient in gradients.items():
        assert gradient.abs().max() > 0 or name.endswith("key.bias")
        torch.testing.assert_close(own[name], gradient, rtol=1e-8, atol=1e-10, msg=name)


def test_products_are_in_half_precision_and_the_rest_is_not(layers):
    layer = layers[0].float()
    hidden = states(torch.float32)
    exact = layer(hidden, segments=SEGMENTS)
    found = CudaLayer(layer, torch.bfloat16)(hidden, SEGMENTS)
    assert found.whole.dtype == torch.float32
    assert torch.equal(found.half, found.whole.to(torch.bfloat16))
    assert 0 < (found.whole - exact).norm() < 0.01 * exact.norm()
    # States in half precision, as a projection of embeddings gives them under autocast.
    projected = CudaLayer(layer, torch.bfloat16)(hidden.to(torch.bfloat16), SEGMENTS)
    assert (projected.whole - exact).norm() < 0.01 * exact.norm()


def inputs_of(tokens, hidden, dtype, half, rate):
    """What `forward` takes."""
    torch.manual_seed(7)
    added = torch.randn(1, tokens, hidden).to(half)
    residual = torch.randn(1, tokens, hidden, dtype=dtype)
    parameters = torch.randn(3, hidden, dtype=dtype).unbind()
    bits = random_bits(added) if rate else None
    return [added, residual, *parameters, bits, threshold_of(rate), 1 / (1 - rate), 1e-12]


def test_dropout_leaves_and_scales_what_its_bits_say():
    double = torch.float64
    tensors, options = (given := inputs_of(TOKENS, 16, double, double, 0.3))[:5], given[5:]
    added, residual, added_bias, weight, bias = tensors
    is_kept = options[0] >= options[1]
    assert 0.6 < is_kept.double().mean() < 0.8
    found, _ = _SumAndNorm.apply(*given)
    total = residual + (added + added_bias) * is_kept / 0.7
    expected = torch.nn.functional.layer_norm(total, (16,), weight, bias, 1e-12)
    torch.testing.assert_close(found, expected)
    tensors = [tensor.requires_grad_() for tensor in tensors]
    assert torch.autograd.gradcheck(lambda *given: _SumAndNorm.apply(*given, *options), tensors)


@pytest.fixture
def kernels():
    """Triton's, which its interpreter runs where there is no GPU."""
    pytest.importorskip("triton")
    return importlib.import_module("rankdistillm.triton_kernels")


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rate", [0.0, 0.1])
@pytest.mark.parametrize(("tokens", "hidden"), [(1, 16), (3, 100), (40, 384)])
def test_the_kernels_compute_what_torch_does_step_by_step(tokens, hidden, rate, half, kernels):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    given = inputs_of(tokens, hidden, torch.float32, half, rate)
    given = [each.to(device) if isinstance(each, torch.Tensor) else each for each in given]
    for is_kept in (False, True):
        expected = StepByStep.norm_forward(*given, is_kept=is_kept)
        found = kernels.norm_forward(*given, is_kept=is_kept)
        for own, other in zip(found, expected, strict=True):
            assert own.dtype == other.dtype
            rtol = 1e-5 if own.dtype == torch.float32 else 2**-7
            torch.testing.assert_close(own, other, atol=1e-5, rtol=rtol)
    _, half_states, normed, rstd = expected
    bits, threshold, scale = given[5:8]
    of_whole, of_half = torch.randn_like(given[1]), torch.randn_like(half_states)
    gradients = (of_whole, of_half, normed, rstd, given[3], bits, threshold, scale)
    for own, other in zip(
        kernels.norm_backward(*gradients), StepByStep.norm_backward(*gradients), strict=True
    ):
        assert own.dtype == other.dtype
        rtol = 1e-4 if own.dtype == torch.float32 else 2**-7
        torch.testing.assert_close(own, other, atol=1e-4, rtol=rtol)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("tokens", "columns"), [(1, 32), (7, 1536), (3, 2048)])
def test_the_gelu_of_the_kernels_is_that_of_torch(tokens, columns, half, kernels):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(8)
    inputs = torch.linspace(-9, 9, tokens * columns, device=device).view(1, tokens, columns)
    bias = torch.randn(columns, device=device)
    gradient = torch.randn_like(inputs)
    found, expected = (k.gelu_forward(inputs, bias) for k in (kernels, StepByStep))
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-6)
    for own, other in zip(
        *(k.gelu_backward(gradient, inputs, bias) for k in (kernels, StepByStep)), strict=True
    ):
        torch.testing.assert_close(own, other, atol=1e-4 if own.ndim == 1 else 1e-5, rtol=1e-5)
    narrow, gradient = inputs.to(half), gradient.to(half)
    assert kernels.gelu_forward(narrow, bias).dtype == half
    assert kernels.gelu_backward(gradient, narrow, bias)[0].dtype == half
    found, expected = (k.gelu_forward(narrow, bias) for k in (kernels, StepByStep))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=2**-7)


@pytest.mark.parametrize("name", ["gelu_new", "relu"])
def test_other_activations_than_gelu(name, layers):
    layers[0].intermediate.intermediate_act_fn = ACT2FN[name]
    layers[1].intermediate.intermediate_act_fn = ACT2FN[name]
    expected, gradients = run(layers, plain)
    found, own = run(layers, for_cuda)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    name = "0.intermediate.dense.bias"
    torch.testing.assert_close(own[name], gradients[name], rtol=1e-8, atol=1e-10)


def test_a_layer_in_training_draws_dropout(layers):
    layers.train()
    for layer in layers:
        layer.attention.output.dropout.p = layer.output.dropout.p = 0.4

    hidden = states()

    def draw(seed):
        torch.manual_seed(seed)
        return CudaLayer(layers[0], torch.float64)(hidden, SEGMENTS).whole

    assert torch.equal(draw(1), draw(1))
    assert not torch.allclose(draw(1), draw(2), atol=0.1)
    layers.eval()
    assert torch.equal(draw(1), draw(2))


def test_where_triton_does_not_work_it_is_said(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "rankdistillm.triton_kernels", None)  # not to be imported
    monkeypatch.delattr(rankdistillm, "triton_kernels", raising=False)
    assert not module.is_available.__wrapped__(torch.device("cuda"))
    assert "Triton does not work here" in caplog.text
    assert "triton_kernels" in caplog.text
