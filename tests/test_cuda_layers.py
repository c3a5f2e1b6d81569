"""The layers for GPUs; all but the speed shows on a CPU."""

from importlib.metadata import version
from types import SimpleNamespace

import numpy as np
import pytest
import reference_kernels as reference
import torch
from conftest import SIZES
from packaging.version import Version
from test_gradients import distance
from test_model import DOCS, PAIRS, load, pack
from transformers.activations import ACT2FN

from rankdistillm import cuda_gradients
from rankdistillm import cuda_layers as module
from rankdistillm.cuda_gradients import States
from rankdistillm.cuda_layers import CudaLayer
from rankdistillm.dropout import random_bits, threshold_of
from rankdistillm.networks import POOLINGS, MonoNetwork
from rankdistillm.packed_attention import attend
from rankdistillm.rerank import Reranker
from rankdistillm.segments import Segments

LENGTHS = np.array([14, 9, 7])
TOKENS = int(LENGTHS.sum())
SEGMENTS = Segments(LENGTHS, torch.device("cpu"))


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def by_reference(monkeypatch):
    """The layers here compute by torch's own operations, on a CPU and in any precision."""
    kernels = SimpleNamespace(
        attention=reference.Attention, gelu=reference.Gelu, norm=reference.Norm
    )
    monkeypatch.setattr(cuda_gradients, "kernels", lambda: kernels)


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
    return output.whole.unsqueeze(0) if isinstance(output, States) else output


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
    assert projected.whole.dtype == torch.float32
    assert (projected.whole - exact).norm() < 0.01 * exact.norm()


def test_gradients_of_the_residual_stream_are_not_rounded(layers, monkeypatch):
    given = []

    class Norm(reference.Norm):
        @staticmethod
        def backward(of_whole, of_half, *rest):
            given.append((of_whole, of_half))
            return reference.Norm.backward(of_whole, of_half, *rest)

    monkeypatch.setattr(cuda_gradients.kernels(), "norm", Norm)
    hidden = states(torch.float32)
    for layer in layers.float():
        hidden = CudaLayer(layer, torch.bfloat16)(hidden, SEGMENTS)
    hidden.whole.square().sum().backward()
    assert len(given) == 2 * len(layers)
    for of_whole, of_half in given:
        assert of_half.dtype == torch.bfloat16
        assert not torch.equal(of_whole, of_whole.bfloat16().float())


def inputs_of(tokens, hidden, dtype, half, rate):
    """What `forward` takes."""
    torch.manual_seed(7)
    added = torch.randn(tokens, hidden).to(half)
    residual = torch.randn(tokens, hidden, dtype=dtype)
    parameters = torch.randn(3, hidden, dtype=dtype).unbind()
    bits = random_bits(added) if rate else None
    return [added, residual, *parameters, bits, threshold_of(rate), 1 / (1 - rate), 0.1]


def test_dropout_leaves_and_scales_what_its_bits_say():
    double = torch.float64
    tensors, options = (given := inputs_of(TOKENS, 16, double, double, 0.3))[:5], given[5:]
    added, residual, added_bias, weight, bias = tensors
    is_kept = options[0] >= options[1]
    assert 0.6 < is_kept.double().mean() < 0.8
    found, *_ = reference.Norm.forward(*given, is_kept=True)
    total = residual + (added + added_bias) * is_kept / 0.7
    expected = torch.nn.functional.layer_norm(total, (16,), weight, bias, 0.1)
    torch.testing.assert_close(found, expected)


def test_gradients_are_those_of_the_dropout_that_was_drawn(layers):
    layer = layers[0].train()
    layer.attention.output.dropout.p, layer.output.dropout.p = 0.4, 0.2
    layer.attention.self.dropout.p = 0.0

    def compute(whole, half, *_):
        torch.manual_seed(3)
        return CudaLayer(layer, torch.float64)(States(whole[0], half[0]), SEGMENTS)

    given = (states(), states().detach().flip(1).requires_grad_(), *layer.parameters())
    assert torch.autograd.gradcheck(compute, given, atol=1e-9, fast_mode=True)


# On a GPU enough rows that each program has several of them, as the interpreter's one has here.
MANY = 10_000 if DEVICE == "cuda" else 40


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rate", [0.0, 0.1])
@pytest.mark.parametrize(("tokens", "hidden"), [(1, 16), (3, 100), (MANY, 384), (9, 1100)])
def test_the_norm_of_the_kernels_is_that_of_torch(tokens, hidden, rate, half):
    norm = pytest.importorskip("rankdistillm.kernels.norm", exc_type=ImportError)
    given = inputs_of(tokens, hidden, torch.float32, half, rate)
    given = [each.to(DEVICE) if isinstance(each, torch.Tensor) else each for each in given]
    for is_kept in (False, True):
        expected = reference.Norm.forward(*given, is_kept=is_kept)
        for own, other in zip(norm.forward(*given, is_kept=is_kept), expected, strict=True):
            assert_near(own, other, 1e-5)
    _, half_states, normed, rstd = expected
    bits, threshold, scale = given[5:8]
    of_whole, of_half = torch.randn_like(given[1]), torch.randn_like(half_states)
    gradients = (of_whole, of_half, normed, rstd, given[3], bits, threshold, scale)
    expected = reference.Norm.backward(*gradients)
    for own, other in zip(norm.backward(*gradients), expected, strict=True):
        assert_near(own, other, 1e-4)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("tokens", "columns"), [(1, 32), (7, 1536), (MANY, 100), (3, 2048)])
def test_the_gelu_of_the_kernels_is_that_of_torch(tokens, columns, half):
    gelu = pytest.importorskip("rankdistillm.kernels.gelu", exc_type=ImportError)
    torch.manual_seed(8)
    exact = torch.linspace(-9, 9, tokens * columns, device=DEVICE).view(tokens, columns)
    bias, gradient = torch.randn(columns, device=DEVICE), torch.randn_like(exact)
    for dtype, atol in ((torch.float32, 2e-6), (half, 1e-4)):
        inputs, of_outputs = exact.to(dtype), gradient.to(dtype)
        assert_near(gelu.forward(inputs, bias), reference.Gelu.forward(inputs, bias), atol)
        found = gelu.backward(of_outputs, inputs, bias)
        for own, other in zip(
            found, reference.Gelu.backward(of_outputs, inputs, bias), strict=True
        ):
            assert_near(own, other, 10 * atol if own.ndim == 2 else 1e-3)


# Of one block of queries and keys, of several, of heads whose size is no power of two.
SHAPES = [((14, 9, 1), 2, 16), ((300, 64, 65, 63, 128), 1, 64), ((129, 20), 3, 24)]


@pytest.mark.parametrize("is_first", [False, True])
@pytest.mark.parametrize("are_few", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("lengths", "heads", "size"), SHAPES)
def test_the_attention_of_the_kernels_is_that_of_torch(
    lengths, heads, size, dtype, are_few, is_first, monkeypatch
):
    attention = pytest.importorskip("rankdistillm.kernels.attention", exc_type=ImportError)
    monkeypatch.setattr(attention, "ENOUGH", 1000 if are_few else 0)
    if DEVICE == "cpu" and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter multiplies bf16 as if they were integers")
    if DEVICE == "cpu" and Version(version("triton")) < Version("3.7"):
        pytest.skip("the interpreter of Triton 3.6 cannot count up to a number that it loaded")
    segments = Segments(np.array(lengths), torch.device(DEVICE))
    torch.manual_seed(9)
    shape = (sum(lengths), 3, heads, size)
    projected = (2 * torch.randn(shape, device=DEVICE)).to(dtype)
    # All logits far below 0: exp of what is beyond a pair's end, 0, would be infinite.
    projected[:, :2] += torch.tensor([-2.5, 2.5], device=DEVICE)[:, None, None]
    inputs = list(projected.unbind(1))
    if is_first:
        inputs[0] = inputs[0].index_select(0, segments.starts)
    exact, how = [tensor.double() for tensor in inputs], (segments.bounds, max(lengths), size**-0.5)
    expected, sums = reference.Attention.forward(*exact, *how)
    context, log_sums = attention.forward(*inputs, *how)
    # A GPU multiplies float32 in TF32.
    error = torch.finfo(dtype).eps if dtype.itemsize == 2 else 5e-2 if DEVICE == "cuda" else 1e-5
    assert context.dtype == dtype
    assert (context - expected).norm() < error * expected.norm()
    assert (log_sums - sums).norm() < error * sums.norm()
    saved = (*how, context, log_sums)
    gradients = torch.empty_like(projected).unbind(1)
    if is_first:
        gradients = (torch.empty_like(inputs[0]), *gradients[1:])
    of_context = torch.randn_like(context.transpose(0, 1)).transpose(0, 1)
    attention.backward(of_context, *inputs, *saved, gradients)
    wanted = [torch.empty_like(tensor) for tensor in exact]
    reference.Attention.backward(of_context.double(), *exact, *saved, wanted)
    for own, other in zip(gradients, wanted, strict=True):
        assert (own - other).norm() < 2 * error * other.norm()


def assert_near(found, expected, atol):
    assert found.dtype == expected.dtype
    # A sum over rows, of which there are many on a GPU, is not added up in the same order.
    rtol = 1e-5 if found.dtype == torch.float32 else 2**-7
    atol *= 1 if found.ndim == 2 else max(1, MANY / 100)
    torch.testing.assert_close(found, expected, atol=atol, rtol=rtol)


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


def test_the_halves_of_a_layer_have_dropout_and_norm_of_their_own(layers):
    layer = layers[0]
    inner, attended, last = layer.attention.self, layer.attention.output, layer.output
    attended.LayerNorm.eps, last.LayerNorm.eps = 0.5, 0.1
    attended.dropout.p, last.dropout.p = 0.4, 0.2
    hidden = states()
    query, key, value = (
        project(hidden[0]).unflatten(-1, (inner.num_attention_heads, -1))
        for project in (inner.query, inner.key, inner.value)
    )
    context = attend(query, key, value, SEGMENTS, inner.scaling).flatten(1)

    torch.manual_seed(3)
    between = {}
    for output, rate in ((attended, 0.4), (last, 0.2)):
        between[output] = (random_bits(hidden[0]) >= threshold_of(rate)) / (1 - rate)
    expected = attended.LayerNorm(hidden[0] + attended.dense(context) * between[attended])
    dropped = last.dense(layer.intermediate(expected)) * between[last]
    expected = last.LayerNorm(expected + dropped)
    torch.manual_seed(3)
    found = CudaLayer(layer.train(), torch.float64)(hidden, SEGMENTS)
    torch.testing.assert_close(found.whole, expected)


def test_the_dropout_of_attention_is_not_applied(layers):
    layers.train()
    for part in layers.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    hidden = states()
    without = CudaLayer(layers[0], torch.float64)(hidden, SEGMENTS).whole
    layers[0].attention.self.dropout.p = 0.5
    assert torch.equal(CudaLayer(layers[0], torch.float64)(hidden, SEGMENTS).whole, without)


@pytest.fixture
def as_on_a_gpu(monkeypatch, calls_of):
    """The layers that computed as on a GPU, in turn; in float32."""
    monkeypatch.setattr(module, "is_available", lambda _: True)
    monkeypatch.setattr(module, "autocast_dtype", lambda _: torch.float32)
    return calls_of(CudaLayer)


@pytest.mark.parametrize("architecture", ["bert", "electra", "roberta"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_whole_model_has_the_scores_and_gradients_of_the_plain_one(
    architecture, pooling, tiny_models, request
):
    model = load(tiny_models(architecture))
    model.network = MonoNetwork(model.network.backbone, pooling=pooling)
    torch.nn.init.normal_(model.network.linear.weight)
    pairs = pack(model, PAIRS)

    def found():
        model.zero_grad()
        scores = model(pairs)
        scores.square().sum().backward()
        return scores.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}

    expected, gradients = found()
    called = request.getfixturevalue("as_on_a_gpu")
    scores, own = found()
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)
    assert distance(own, gradients) < 1e-5
    assert len(called) == SIZES["num_hidden_layers"] - (pooling == "first")


def test_layers_with_large_heads_stay_as_they_are(layers):
    inner = layers[0].attention.self
    for size, is_taken in ((64, True), (128, True), (256, False)):
        inner.attention_head_size = size
        assert module.takes(layers[0]) == is_taken


def test_a_gpu_in_use_elsewhere_changes_nothing_on_a_cpu():
    torch.set_autocast_enabled("cuda", True)
    try:
        assert module.autocast_dtype(torch.device("cpu")) is None
    finally:
        torch.set_autocast_enabled("cuda", False)


@pytest.mark.parametrize("activation", ["gelu_new", "relu"])
def test_layers_with_another_activation_stay_as_they_are(activation, tiny_bert, as_on_a_gpu):
    model = load(tiny_bert)
    as_on_a_gpu.clear()  # loading scores a pair
    layers = model.network.backbone.encoder.layer
    for layer in layers:
        layer.intermediate.intermediate_act_fn = ACT2FN[activation]
    model(pack(model, PAIRS)).sum().backward()
    model.autocast_dtype = torch.bfloat16
    assert CudaLayer not in map(type, model.fused_layers().values())
    assert not as_on_a_gpu
    assert layers[0].intermediate.dense.weight.grad.abs().max() > 0


def test_a_reranker_makes_the_layers_once(tiny_bert, monkeypatch, as_on_a_gpu):
    model = load(tiny_bert)
    as_on_a_gpu.clear()  # loading scores a pair
    last, kept = [], []

    def context_of_one(inner, query, half, segments):
        last.append((query.dtype, half.dtype))
        return whole_context(inner, query, half, segments)

    class Norm(reference.Norm):
        @staticmethod
        def forward(*inputs, is_kept):
            kept.append(is_kept)
            return reference.Norm.forward(*inputs, is_kept=is_kept)

    whole_context = module.context_of_one
    monkeypatch.setattr(module, "context_of_one", context_of_one)
    monkeypatch.setattr(cuda_gradients.kernels(), "norm", Norm)
    exact = model.fused_layers  # of float32 there are none
    assert exact() == {}
    model.autocast_dtype = torch.bfloat16
    reranker = Reranker(model)
    first = reranker.score("how is bread made", DOCS)
    assert (reranker.score("how is bread made", DOCS) == first).all()
    num_layers = SIZES["num_hidden_layers"] - 1
    assert len(as_on_a_gpu) == 2 * num_layers
    assert as_on_a_gpu[:num_layers] == as_on_a_gpu[num_layers:]
    # The first token's own is in float32.
    assert last == [(torch.float32, torch.bfloat16)] * 2
    assert kept == [False] * 4 * num_layers


def test_where_triton_does_not_work_it_is_said(monkeypatch, caplog):
    def absent():
        raise ImportError("No module named 'triton'")

    monkeypatch.setattr(cuda_gradients, "kernels", absent)
    assert not module.is_available.__wrapped__(torch.device("cuda"))
    assert "No module named 'triton'" in caplog.text
    assert "install it" in caplog.text
